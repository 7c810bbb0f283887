//! Records of the store, decoded and judged (pure).

use std::sync::Arc;

use nerve::model::{Instance, Network, Node, RuleRecord, RuleSet, ServiceSettings, Subnet, VipClaim};
use nerve::store::Key;

use crate::catalog::{Change, Names, NetworkUpdate};

/// Why a record is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// The value does not decode.
    #[error("the value cannot be read: {0}")]
    Undecodable(String),
    /// The value names another service, instance or node than the path.
    #[error("the value is about {0}, not about what the path names")]
    Mismatch(String),
    /// Another version wrote something into it that this one does not know; the rest is taken.
    #[error("not understood and left out: {0}; a newer version may have written it")]
    Partly(String),
}

impl Refused {
    /// The word for it, as in metric labels.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Undecodable(_) => "undecodable",
            Self::Mismatch(_) => "mismatch",
            Self::Partly(_) => "partly",
        }
    }
}

/// What a record says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) change: Change,
    /// The text of a durable record: what this version does not understand of it must survive a restoration.
    pub(super) text: Option<Arc<str>>,
    /// What was left out of the change.
    pub(super) partly: Option<Refused>,
}

/// What the value at a key says.
pub(super) fn decode(key: &Key, value: &[u8], names: &mut Names) -> Result<Decoded, Refused> {
    let change = match key {
        Key::Instance(service, id) => {
            let mut instance: Instance = json(value)?;
            if instance.service != *service || instance.id != *id {
                return Err(Refused::Mismatch(format!("instance {} of {}", instance.id, instance.service)));
            }
            names.share(&mut instance);
            Change::PutInstance(Arc::new(instance))
        }
        Key::Node(name) => {
            let node: Node = json(value)?;
            if node.name != *name {
                return Err(Refused::Mismatch(format!("node {}", node.name)));
            }
            Change::PutNode(Arc::new(node))
        }
        Key::Service(service) => {
            let (settings, left_out) = ServiceSettings::read(value).map_err(undecodable)?;
            let partly = (!left_out.is_empty()).then(|| Refused::Partly(left_out.join(", ")));
            let change = Change::PutSettings(service.clone(), Arc::new(settings));
            return Ok(Decoded { change, text: Some(text(value)?), partly });
        }
        Key::Vip(address) => {
            let claim: VipClaim = json(value)?;
            let change = Change::PutVip(*address, names.shared_service(claim.service));
            return Ok(Decoded { change, text: Some(text(value)?), partly: None });
        }
        Key::Network(name) => {
            let network: Network = json(value)?;
            let change = Change::Network(name.clone(), NetworkUpdate::Put(Arc::new(network)));
            return Ok(Decoded { change, text: Some(text(value)?), partly: None });
        }
        Key::Rules => {
            let record = RuleRecord::read(value).map_err(|error| Refused::Undecodable(error.to_string()))?;
            let (rules, left_out) = record.understood();
            let partly = (!left_out.is_empty()).then(|| Refused::Partly(left_out.join(", ")));
            return Ok(Decoded {
                change: Change::PutRules(Arc::new(rules)),
                text: Some(text(value)?),
                partly,
            });
        }
        Key::Subnet(network, slot) => {
            let mut subnet: Subnet = json(value)?;
            names.share_node(&mut subnet);
            Change::Network(network.clone(), NetworkUpdate::PutSubnet(*slot, Arc::new(subnet)))
        }
    };
    Ok(Decoded { change, text: None, partly: None })
}

/// The change that takes away what stood at a key.
pub(super) fn removal(key: &Key) -> Change {
    match key {
        Key::Instance(service, id) => Change::RemoveInstance(service.clone(), id.clone()),
        Key::Service(service) => Change::RemoveSettings(service.clone()),
        Key::Node(node) => Change::RemoveNode(node.clone()),
        Key::Vip(address) => Change::RemoveVip(*address),
        Key::Network(name) => Change::Network(name.clone(), NetworkUpdate::Remove),
        Key::Subnet(network, slot) => Change::Network(network.clone(), NetworkUpdate::RemoveSubnet(*slot)),
        Key::Rules => Change::PutRules(Arc::new(RuleSet::default())),
    }
}

/// The change that marks what stood at a key as kept without the store's word. Nodes have no such mark; nor has what is
/// durable, which is never kept like that.
pub(super) fn unconfirmation(key: &Key) -> Option<Change> {
    match key {
        Key::Instance(service, id) => Some(Change::Unconfirm(service.clone(), id.clone())),
        Key::Subnet(network, slot) => {
            Some(Change::Network(network.clone(), NetworkUpdate::UnconfirmSubnet(*slot)))
        }
        Key::Node(_) | Key::Service(_) | Key::Vip(_) | Key::Network(_) | Key::Rules => None,
    }
}

/// Does what stands at a key outlive its writer?
pub(super) fn is_durable(key: &Key) -> bool {
    match key {
        Key::Service(_) | Key::Vip(_) | Key::Network(_) | Key::Rules => true,
        Key::Instance(..) | Key::Node(_) | Key::Subnet(..) => false,
    }
}

fn text(value: &[u8]) -> Result<Arc<str>, Refused> {
    std::str::from_utf8(value).map(Arc::from).map_err(|error| Refused::Undecodable(error.to_string()))
}

fn json<T: serde::de::DeserializeOwned>(value: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(value).map_err(undecodable)
}

fn undecodable(error: serde_json::Error) -> Refused {
    Refused::Undecodable(error.to_string())
}

#[cfg(test)]
mod tests {
    use nerve::store::Path;
    use proptest::prelude::*;

    use super::*;

    fn read(path: &str, value: &str) -> Result<Decoded, Refused> {
        let key = Key::parse(&Path::new(path).unwrap()).unwrap();
        decode(&key, value.as_bytes(), &mut Names::default())
    }

    #[test]
    fn a_record_must_be_about_what_its_path_names() {
        let value = r#"{"service":"web","id":"1","node":"a","address":"192.0.2.1","port":80,"of_a_newer_agent":true}"#;
        assert!(read("instances/web/1", value).is_ok());
        assert!(matches!(read("instances/web/2", value), Err(Refused::Mismatch(_))));
        assert!(matches!(read("instances/api/1", value), Err(Refused::Mismatch(_))));
        assert!(matches!(read("instances/web/1", "{"), Err(Refused::Undecodable(_))));
        let node = r#"{"name":"a","address":"192.0.2.1","version":"0"}"#;
        assert!(read("nodes/a", node).is_ok());
        assert!(matches!(read("nodes/b", node), Err(Refused::Mismatch(_))));
    }

    #[test]
    fn the_text_of_settings_is_kept_as_it_was_written() {
        let text = r#"{ "published": [{"port": 8080, "of_a_newer_agent": 1}] }"#;
        assert_eq!(read("services/web", text).unwrap().text.as_deref(), Some(text));
    }

    #[test]
    fn a_word_of_a_newer_agent_costs_that_setting_alone() {
        let text = r#"{"published":[{"port":8080},{"port":1,"mode":"astral"}],"balance":{"policy":"psychic","slow_start":"5s"}}"#;
        let decoded = read("services/web", text).unwrap();
        let Change::PutSettings(_, settings) = decoded.change else { panic!("settings") };
        assert_eq!(settings.published.len(), 1);
        assert!(settings.balance.policy.is_none() && settings.balance.slow_start.is_some());
        assert_eq!(
            decoded.partly,
            Some(Refused::Partly("balance.policy \"psychic\", published[1]".to_owned()))
        );
        assert!(decoded.text.is_some_and(|kept| kept.contains("psychic")));
    }

    #[test]
    fn a_claim_names_its_service() {
        let decoded = read("vips/10.96.0.1", r#"{"service":"web"}"#).unwrap();
        let (address, web) = ("10.96.0.1".parse().unwrap(), nerve::model::ServiceName::new("web").unwrap());
        assert_eq!(decoded.change, Change::PutVip(address, web));
        assert!(decoded.text.is_some());
        assert!(matches!(read("vips/10.96.0.1", "{}"), Err(Refused::Undecodable(_))));
    }

    #[test]
    fn a_network_and_its_subnets_are_known_by_their_paths() {
        let text =
            r#"{"vni": 7, "pools": [{"cidr":"10.42.0.0/16","subnet_length":24}], "of_a_newer_agent": 1}"#;
        let decoded = read("networks/blue", text).unwrap();
        assert_eq!(decoded.text.as_deref(), Some(text));
        assert!(
            matches!(decoded.change, Change::Network(name, NetworkUpdate::Put(_)) if name.as_str() == "blue")
        );
        let subnet = r#"{"node":"a","address":"192.0.2.1","mac":"02:00:00:00:00:01"}"#;
        let decoded = read("subnets/blue/7", subnet).unwrap();
        assert!(
            matches!(decoded.change, Change::Network(_, NetworkUpdate::PutSubnet(slot, _)) if slot.0 == 7)
        );
        assert_eq!(decoded.text, None);
        assert!(matches!(read("networks/blue", r#"{"vni":7,"pools":[]}"#), Err(Refused::Undecodable(_))));
        assert!(matches!(read("subnets/blue/7", "{}"), Err(Refused::Undecodable(_))));
    }

    #[test]
    fn rules_are_taken_as_far_as_they_are_understood() {
        let text = r#"{"default":"deny","rules":{"a":{"effect":"allow","from":"web","to":"api"},"b":{"effect":"log"}}}"#;
        let decoded = read("rules/mesh", text).unwrap();
        let Change::PutRules(rules) = decoded.change else { panic!("rules") };
        assert_eq!(rules.rules.len(), 1);
        assert_eq!(decoded.partly, Some(Refused::Partly("rules.b".to_owned())));
        assert_eq!(decoded.text.as_deref(), Some(text));
        assert!(matches!(read("rules/mesh", "[]"), Err(Refused::Undecodable(_))));
    }

    proptest! {
        #[test]
        fn no_record_crashes_the_reader(path in "(instances/a/[a-z]|nodes/[a-z]|services/[a-z]|networks/[a-z]|subnets/a/[1-9]|rules/mesh)", value in ".{0,60}") {
            let _ = read(&path, &value);
        }
    }
}
