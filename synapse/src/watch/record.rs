//! Records of the store, decoded and judged (pure).

use std::sync::Arc;

use nerve::model::{Instance, Node, ServiceSettings};
use nerve::store::{Entry, Key};

use crate::catalog::Change;

/// Why a record is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// A path that this version knows nothing of: a newer agent's. Not worth a word.
    #[error("the path means nothing to this version")]
    Unknown,
    /// The value does not decode.
    #[error("the value cannot be read: {0}")]
    Undecodable(String),
    /// The value names another service, instance or node than the path.
    #[error("the value is about {0}, not about what the path names")]
    Mismatch(String),
}

impl Refused {
    /// The word for it, as in metric labels.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown_path",
            Self::Undecodable(_) => "undecodable",
            Self::Mismatch(_) => "mismatch",
        }
    }
}

/// What an entry says, with the key that it stands at.
pub(super) fn decode(entry: &Entry) -> Result<(Key, Change), Refused> {
    let key = Key::parse(&entry.path).ok_or(Refused::Unknown)?;
    let change = match &key {
        Key::Instance(service, id) => {
            let instance: Instance = json(&entry.value)?;
            if instance.service != *service || instance.id != *id {
                return Err(Refused::Mismatch(format!("instance {} of {}", instance.id, instance.service)));
            }
            Change::PutInstance(Arc::new(instance))
        }
        Key::Node(name) => {
            let node: Node = json(&entry.value)?;
            if node.name != *name {
                return Err(Refused::Mismatch(format!("node {}", node.name)));
            }
            Change::PutNode(Arc::new(node))
        }
        Key::Service(service) => {
            let settings: ServiceSettings = json(&entry.value)?;
            Change::PutSettings(service.clone(), Arc::new(settings))
        }
    };
    Ok((key, change))
}

/// The change that takes away what stood at a key.
pub(super) fn removal(key: &Key) -> Change {
    match key {
        Key::Instance(service, id) => Change::RemoveInstance(service.clone(), id.clone()),
        Key::Service(service) => Change::RemoveSettings(service.clone()),
        Key::Node(node) => Change::RemoveNode(node.clone()),
    }
}

fn json<T: serde::de::DeserializeOwned>(value: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(value).map_err(|error| Refused::Undecodable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use nerve::store::{Path, Revision};
    use proptest::prelude::*;

    use super::*;

    fn entry(path: &str, value: &str) -> Entry {
        Entry { path: Path::new(path).unwrap(), value: value.as_bytes().to_vec(), revision: Revision(1) }
    }

    #[test]
    fn a_record_must_be_about_what_its_path_names() {
        let value = r#"{"service":"web","id":"1","node":"a","address":"192.0.2.1","port":80,"of_a_newer_agent":true}"#;
        assert!(decode(&entry("instances/web/1", value)).is_ok());
        assert!(matches!(decode(&entry("instances/web/2", value)), Err(Refused::Mismatch(_))));
        assert!(matches!(decode(&entry("instances/api/1", value)), Err(Refused::Mismatch(_))));
        assert!(matches!(decode(&entry("instances/web/1", "{")), Err(Refused::Undecodable(_))));
        assert_eq!(decode(&entry("networks/default", "{}")), Err(Refused::Unknown));
    }

    proptest! {
        #[test]
        fn no_record_crashes_the_reader(path in "(instances|nodes|services)/[a-z]{1,3}(/[a-z]{1,3})?", value in ".{0,60}") {
            let _ = decode(&entry(&path, &value));
        }
    }
}
