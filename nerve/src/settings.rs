//! Changing the settings of a service in the store, one by one, by the names that an operator types.
//!
//! Settings are durable and shared: each change is read, modified and compare-and-swapped, and what a newer agent wrote
//! beside it is kept. What is no setting or no value of it is refused before the store is asked.

use crate::model::{ServiceName, ServiceSettings, SettingKey};
use crate::store::{self, Expect, Key, Path, Revision, Store, Swap};

/// How often a compare-and-swap that met another writer is tried before giving up.
const ATTEMPTS: usize = 16;

/// Why the settings of a service could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such setting.
    #[error("no setting is called {name:?}")]
    Unknown {
        /// What was given as its name.
        name: String,
    },
    /// The setting cannot have this value.
    #[error("{0}")]
    Value(String),
    /// The settings in the store are not what any version of this program writes.
    #[error(
        "the settings of service {service} cannot be changed: what stands at {path} in the store is unreadable \
         ({source}); repair or delete that key"
    )]
    Unreadable {
        /// The service.
        service: ServiceName,
        /// The key in the store, below its prefix.
        path: Path,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// Other writers were always faster.
    #[error(
        "the settings of service {service} were changed by others {ATTEMPTS} times in a row; nothing was written, \
         try again"
    )]
    Contended {
        /// The service.
        service: ServiceName,
    },
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// One setting that is different now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Which.
    pub name: &'static str,
    /// What was set before; `None`: the default held.
    pub before: Option<String>,
    /// What is set now; `None`: the default holds.
    pub after: Option<String>,
}

/// Sets each `(name, Some(value))` and unsets each `(name, None)` of `service`, all of them or none. Idempotent: tells
/// what is different from before.
pub async fn change(
    store: &dyn Store,
    service: &ServiceName,
    changes: &[(String, Option<String>)],
) -> Result<Vec<Changed>, Error> {
    let mut wanted = Vec::new();
    for (name, value) in changes {
        let key = SettingKey::find(name).ok_or_else(|| Error::Unknown { name: name.clone() })?;
        // Tried on nothing, so that a mistake is told whatever stands in the store.
        value.iter().try_for_each(|value| apply(key, Some(value), &mut ServiceSettings::default()))?;
        wanted.push((key, value.as_deref()));
    }
    let (mut done, mut refused) = (Vec::new(), None);
    update(store, service, |settings| {
        done.clear();
        for (key, value) in &wanted {
            let before = key.get(settings);
            if let Err(error) = apply(key, *value, settings) {
                refused = Some(error);
                return false;
            }
            let after = key.get(settings);
            if before != after {
                done.push(Changed { name: key.name, before, after });
            }
        }
        !done.is_empty()
    })
    .await?;
    refused.map_or(Ok(done), Err)
}

fn apply(key: &SettingKey, value: Option<&str>, settings: &mut ServiceSettings) -> Result<(), Error> {
    match value {
        Some(value) => key.set(settings, value).map_err(Error::Value),
        None => {
            key.unset(settings);
            Ok(())
        }
    }
}

/// Reads the settings, lets `change` modify them, and writes them back unless it says that nothing changed; anew when
/// another writer came in between. Settings that are as good as none afterwards are deleted. The revision of the write, if
/// there was one.
pub async fn update(
    store: &dyn Store,
    service: &ServiceName,
    mut change: impl FnMut(&mut ServiceSettings) -> bool + Send,
) -> Result<Option<Revision>, Error> {
    let path = Key::Service(service.clone()).path();
    let unreadable = |source| Error::Unreadable { service: service.clone(), path: path.clone(), source };
    let mut entry = store.get(&path).await?;
    for _ in 0..ATTEMPTS {
        let (expect, mut settings) = match &entry {
            None => (Expect::Absent, ServiceSettings::default()),
            Some(entry) => {
                let settings = serde_json::from_slice(&entry.value).map_err(unreadable)?;
                (Expect::Unchanged(entry.revision), settings)
            }
        };
        if !change(&mut settings) {
            return Ok(None);
        }
        let value = (settings != ServiceSettings::default())
            .then(|| serde_json::to_vec(&settings).map_err(unreadable))
            .transpose()?;
        match store.compare_and_swap(&path, expect, value, None).await? {
            Swap::Done(revision) => return Ok(Some(revision)),
            Swap::Conflict(current) => entry = current,
        }
    }
    Err(Error::Contended { service: service.clone() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::{EmbeddedStore, Metrics};

    fn store() -> EmbeddedStore {
        EmbeddedStore::open(None, Duration::from_secs(5), Metrics::default()).unwrap()
    }

    fn web() -> ServiceName {
        ServiceName::new("web").unwrap()
    }

    async fn text(store: &EmbeddedStore) -> Option<String> {
        let entry = store.get(&Key::Service(web()).path()).await.unwrap();
        entry.map(|entry| String::from_utf8(entry.value).unwrap())
    }

    async fn set(store: &EmbeddedStore, changes: &[(&str, Option<&str>)]) -> Result<Vec<Changed>, Error> {
        let owned = |(name, value): &(&str, Option<&str>)| ((*name).to_owned(), value.map(str::to_owned));
        change(store, &web(), &changes.iter().map(owned).collect::<Vec<_>>()).await
    }

    #[tokio::test]
    async fn what_is_set_and_unset_is_told_and_leaves_nothing() {
        let store = store();
        let done = set(&store, &[("policy", Some("maglev")), ("limits.queue", Some("7"))]).await.unwrap();
        assert_eq!(done.iter().map(|changed| changed.name).collect::<Vec<_>>(), ["policy", "limits.queue"]);
        assert!(set(&store, &[("policy", Some("maglev"))]).await.unwrap().is_empty());
        let done = set(&store, &[("policy", None), ("limits.queue", None)]).await.unwrap();
        assert_eq!((done[0].before.as_deref(), done[0].after.as_deref()), (Some("maglev"), None));
        assert_eq!(text(&store).await, None);
    }

    #[tokio::test]
    async fn one_mistake_and_nothing_is_written() {
        let store = store();
        let error = set(&store, &[("policy", Some("maglev")), ("subset", Some("many"))]).await.unwrap_err();
        assert!(error.to_string().contains("subset: \"many\""), "{error}");
        let error = set(&store, &[("polity", Some("maglev"))]).await.unwrap_err();
        assert!(matches!(error, Error::Unknown { name } if name == "polity"));
        assert_eq!(text(&store).await, None);
    }

    #[tokio::test]
    async fn what_stands_beside_it_is_kept() {
        let store = store();
        let before = br#"{"published":[{"port":8080}],"balance":{"taste":"sweet"},"colour":"red"}"#;
        store.put(&Key::Service(web()).path(), before.to_vec(), None).await.unwrap();
        set(&store, &[("policy", Some("p2c"))]).await.unwrap();
        let after = text(&store).await.unwrap();
        assert!(["8080", "sweet", "red", "p2c"].iter().all(|part| after.contains(part)), "{after}");
    }

    #[tokio::test]
    async fn writers_at_the_same_time_all_get_through() {
        let store = store();
        let names = ["limits.queue", "limits.burst", "subset", "outlier.resets"];
        let changes = names.map(|name| [(name, Some("3"))]);
        let writes = changes.iter().map(|change| set(&store, change));
        assert!(futures_util::future::join_all(writes).await.iter().all(Result::is_ok));
        assert_eq!(text(&store).await.unwrap().matches(":3").count(), 4);
    }
}
