//! Publishing: a port that every node listens on for a service, written into the service's settings.
//!
//! A port belongs to one service: the others' settings are read before the write and
//! once more after it, and of two publications that raced the later one takes itself back. Never touches instances.

use std::num::NonZeroU16;

use crate::model::{Protocol, PublishedPort, ServiceName, ServiceSettings};
use crate::settings::{self, update};
use crate::store::{self, Key, Revision, Store};

/// What a publication changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// The port was not published; now it is.
    Added,
    /// The port led elsewhere before: to this.
    Changed(PublishedPort),
    /// It was published just so.
    Unchanged,
}

/// What a withdrawal changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unpublished {
    /// The port was published as this; now it is not.
    Removed(PublishedPort),
    /// It was not published.
    Unchanged,
}

/// Why a port could not be published or withdrawn.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another service has the port.
    #[error(
        "port {port}/{protocol} cannot be published for {service}: service {holder} publishes it; \
         take another port, or run `plexus unpublish {holder} {port}/{protocol}` first"
    )]
    Taken {
        /// The service that was to have it.
        service: ServiceName,
        /// The port.
        port: NonZeroU16,
        /// Its transport.
        protocol: Protocol,
        /// The service that has it.
        holder: ServiceName,
    },
    /// The service's settings were not changed.
    #[error(transparent)]
    Settings(#[from] settings::Error),
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Publishes `port` for `service`. Idempotent; a port that the service already publishes for another target is changed.
pub async fn publish(
    store: &dyn Store,
    service: &ServiceName,
    port: PublishedPort,
) -> Result<Published, Error> {
    refuse_if_taken(store, service, &port, None).await?;
    let mut done = Published::Unchanged;
    let written = update(store, service, |settings| {
        done = put_port(settings, &port);
        done != Published::Unchanged
    })
    .await?;
    if let Some(revision) = written
        && let Err(taken) = refuse_if_taken(store, service, &port, Some(revision)).await
    {
        unpublish(store, service, port.port, port.protocol).await?;
        return Err(taken);
    }
    Ok(done)
}

/// Withdraws a published port of `service`. Idempotent. Settings that are as good as none afterwards are deleted.
pub async fn unpublish(
    store: &dyn Store,
    service: &ServiceName,
    port: NonZeroU16,
    protocol: Protocol,
) -> Result<Unpublished, Error> {
    let mut done = Unpublished::Unchanged;
    update(store, service, |settings| {
        done = match settings.published.iter().find(|p| p.port == port && p.protocol == protocol) {
            Some(published) => Unpublished::Removed(published.clone()),
            None => Unpublished::Unchanged,
        };
        settings.published.retain(|p| p.port != port || p.protocol != protocol);
        done != Unpublished::Unchanged
    })
    .await?;
    Ok(done)
}

/// Makes `settings` publish `port` and nothing else on the same port and transport.
fn put_port(settings: &mut ServiceSettings, port: &PublishedPort) -> Published {
    let same_listener = |p: &PublishedPort| p.port == port.port && p.protocol == port.protocol;
    let before = settings.published.iter().find(|p| same_listener(p)).cloned();
    if before.as_ref() == Some(port) {
        return Published::Unchanged;
    }
    settings.published.retain(|p| !same_listener(p));
    settings.published.push(port.clone());
    settings.published.sort_unstable();
    before.map_or(Published::Added, Published::Changed)
}

/// An error if a service other than `service` publishes the listener of `port`. With `ours`, the revision of our own
/// publication, only a service that had it before counts, so that of two that raced exactly one stays.
async fn refuse_if_taken(
    store: &dyn Store,
    service: &ServiceName,
    port: &PublishedPort,
    ours: Option<Revision>,
) -> Result<(), Error> {
    for entry in store.list(&Key::services()).await?.entries {
        let Some(Key::Service(holder)) = Key::parse(&entry.path) else { continue };
        if holder == *service || ours.is_some_and(|ours| ours < entry.revision) {
            continue;
        }
        // Settings that cannot be read hold nothing: the agents do not listen for them either.
        let Ok(settings) = serde_json::from_slice::<ServiceSettings>(&entry.value) else { continue };
        if settings.published.iter().any(|p| p.port == port.port && p.protocol == port.protocol) {
            return Err(Error::Taken {
                service: service.clone(),
                port: port.port,
                protocol: port.protocol,
                holder,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::{EmbeddedStore, Metrics};

    fn store() -> EmbeddedStore {
        EmbeddedStore::open(None, Duration::from_secs(5), Metrics::default()).unwrap()
    }

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).unwrap()
    }

    fn port(text: &str) -> PublishedPort {
        text.parse().unwrap()
    }

    async fn settings(store: &EmbeddedStore, service: &str) -> Option<String> {
        let entry = store.get(&Key::Service(name(service)).path()).await.unwrap();
        entry.map(|entry| String::from_utf8(entry.value).unwrap())
    }

    #[tokio::test]
    async fn publishing_twice_changes_once_and_unpublishing_leaves_nothing() {
        let (store, web) = (store(), name("web"));
        assert_eq!(publish(&store, &web, port("8080")).await.unwrap(), Published::Added);
        assert_eq!(publish(&store, &web, port("8080")).await.unwrap(), Published::Unchanged);
        let moved = publish(&store, &web, port("8080:metrics")).await.unwrap();
        assert_eq!(moved, Published::Changed(port("8080")));
        let removed = unpublish(&store, &web, port("8080").port, Protocol::Tcp).await.unwrap();
        assert_eq!(removed, Unpublished::Removed(port("8080:metrics")));
        assert_eq!(settings(&store, "web").await, None);
        let again = unpublish(&store, &web, port("8080").port, Protocol::Tcp).await.unwrap();
        assert_eq!(again, Unpublished::Unchanged);
    }

    #[tokio::test]
    async fn a_port_belongs_to_one_service_and_the_error_names_it() {
        let store = store();
        publish(&store, &name("web"), port("53")).await.unwrap();
        publish(&store, &name("dns"), port("53/udp")).await.unwrap();
        let error = publish(&store, &name("api"), port("53:metrics")).await.unwrap_err();
        assert!(matches!(&error, Error::Taken { holder, .. } if *holder == name("web")));
        assert!(error.to_string().contains("plexus unpublish web 53/tcp"), "{error}");
        assert_eq!(settings(&store, "api").await, None);
    }

    #[tokio::test]
    async fn what_a_newer_agent_wrote_is_kept() {
        let (store, web) = (store(), name("web"));
        let path = Key::Service(web.clone()).path();
        store.put(&path, br#"{"colour":"red"}"#.to_vec(), None).await.unwrap();
        publish(&store, &web, port("8080")).await.unwrap();
        assert!(settings(&store, "web").await.unwrap().contains("red"));
        unpublish(&store, &web, port("8080").port, Protocol::Tcp).await.unwrap();
        assert_eq!(settings(&store, "web").await.unwrap(), r#"{"colour":"red"}"#);
    }

    #[tokio::test]
    async fn unreadable_settings_are_refused_and_left_alone() {
        let (store, web) = (store(), name("web"));
        store.put(&Key::Service(web.clone()).path(), b"{".to_vec(), None).await.unwrap();
        let error = publish(&store, &web, port("8080")).await.unwrap_err();
        assert!(error.to_string().contains("services/web"), "{error}");
        assert_eq!(settings(&store, "web").await.unwrap(), "{");
        publish(&store, &name("api"), port("8080")).await.unwrap();
    }

    #[tokio::test]
    async fn writers_at_the_same_time_all_get_through() {
        let (store, web) = (store(), name("web"));
        let publications = (1..=8).map(|n| publish(&store, &web, port(&n.to_string())));
        for outcome in futures_util::future::join_all(publications).await {
            assert_eq!(outcome.unwrap(), Published::Added);
        }
        assert_eq!(settings(&store, "web").await.unwrap().matches("port").count(), 8);
    }

    #[tokio::test]
    async fn of_two_that_race_for_a_port_at_most_one_stays() {
        let store = store();
        let (web, api) = (name("web"), name("api"));
        let (first, second) =
            tokio::join!(publish(&store, &web, port("8080")), publish(&store, &api, port("8080")));
        assert_eq!(usize::from(first.is_ok()) + usize::from(second.is_ok()), 1);
        let holders = [settings(&store, "web").await, settings(&store, "api").await];
        assert_eq!(holders.iter().flatten().count(), 1);
    }
}
