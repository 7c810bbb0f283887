//! Publishing: a port that every node listens on for a service, written into the service's settings.
//!
//! A port of an address belongs to one service: the others' settings are read before the write and once more after it, and
//! of two publications that raced the later one takes itself back. That holds for ports of mode `host` too, whose services
//! may well run on the same nodes tomorrow. Never touches instances.

use crate::model::{PortRange, Protocol, PublishedPort, ServiceName, ServiceSettings, VirtualIp};
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
        "port {port} cannot be published for {service}: service {holder} publishes {held}; \
         take another port, or run `plexus unpublish {holder} {}/{}` first", held.range(), held.protocol
    )]
    Taken {
        /// The service that was to have it.
        service: ServiceName,
        /// The port.
        port: Box<PublishedPort>,
        /// The service that has it.
        holder: ServiceName,
        /// What that one publishes.
        held: Box<PublishedPort>,
    },
    /// The service itself publishes some of the ports in another way.
    #[error(
        "port {port} cannot be published for {service}: it publishes {held} already, which has some of the same ports; \
         run `plexus unpublish {service} {}/{}` first", held.range(), held.protocol
    )]
    Overlaps {
        /// The service.
        service: ServiceName,
        /// The port.
        port: Box<PublishedPort>,
        /// What it publishes.
        held: Box<PublishedPort>,
    },
    /// The service's settings were not changed.
    #[error(transparent)]
    Settings(#[from] settings::Error),
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Publishes `port` for `service`. Idempotent; what the service already publishes on just these ports is changed.
pub async fn publish(
    store: &dyn Store,
    service: &ServiceName,
    port: PublishedPort,
) -> Result<Published, Error> {
    refuse_if_taken(store, service, &port, None).await?;
    let mut done = Ok(Published::Unchanged);
    let written = update(store, service, |settings| {
        done = put_port(settings, &port);
        !matches!(done, Ok(Published::Unchanged) | Err(_))
    })
    .await?;
    let done = done.map_err(|held| Error::Overlaps {
        service: service.clone(),
        port: Box::new(port.clone()),
        held: Box::new(held),
    })?;
    if let Some(revision) = written
        && let Err(taken) = refuse_if_taken(store, service, &port, Some(revision)).await
    {
        unpublish(store, service, port.range(), port.protocol).await?;
        return Err(taken);
    }
    Ok(done)
}

/// Switches the virtual address of `service` on or off. Tells whether that changed anything.
pub async fn set_vip(store: &dyn Store, service: &ServiceName, vip: VirtualIp) -> Result<bool, Error> {
    let written = update(store, service, |settings| std::mem::replace(&mut settings.vip, vip) != vip).await?;
    Ok(written.is_some())
}

/// Withdraws a published port or range of `service`, as a whole. Idempotent. Settings that are as good as none afterwards
/// are deleted.
pub async fn unpublish(
    store: &dyn Store,
    service: &ServiceName,
    ports: PortRange,
    protocol: Protocol,
) -> Result<Unpublished, Error> {
    let mut done = Unpublished::Unchanged;
    update(store, service, |settings| {
        done = match settings.published.iter().find(|p| p.is_about(ports, protocol)) {
            Some(published) => Unpublished::Removed(published.clone()),
            None => Unpublished::Unchanged,
        };
        settings.published.retain(|p| !p.is_about(ports, protocol));
        done != Unpublished::Unchanged
    })
    .await?;
    Ok(done)
}

/// Makes `settings` publish `port` and nothing else on just these ports; or tells what has some of them, which whoever
/// wrote it may not mean to lose.
fn put_port(settings: &mut ServiceSettings, port: &PublishedPort) -> Result<Published, PublishedPort> {
    let same_ports = |p: &PublishedPort| p.is_about(port.range(), port.protocol);
    // Addresses do not matter here: on one service, two ways for one port would depend on the node's addresses.
    let overlaps = |p: &PublishedPort| p.protocol == port.protocol && p.range().overlaps(port.range());
    if let Some(held) = settings.published.iter().find(|p| overlaps(p) && !same_ports(p)) {
        return Err(held.clone());
    }
    let before = settings.published.iter().find(|p| same_ports(p)).cloned();
    if before.as_ref() == Some(port) {
        return Ok(Published::Unchanged);
    }
    settings.published.retain(|p| !same_ports(p));
    settings.published.push(port.clone());
    settings.published.sort_unstable();
    Ok(before.map_or(Published::Added, Published::Changed))
}

/// An error if a service other than `service` publishes what collides with `port`. With `ours`, the revision of our own
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
        let Ok((settings, _)) = ServiceSettings::read(&entry.value) else { continue };
        if let Some(held) = settings.published.iter().find(|p| p.collides(port)) {
            return Err(Error::Taken {
                service: service.clone(),
                port: Box::new(port.clone()),
                holder,
                held: Box::new(held.clone()),
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
        let removed = unpublish(&store, &web, port("8080").range(), Protocol::Tcp).await.unwrap();
        assert_eq!(removed, Unpublished::Removed(port("8080:metrics")));
        assert_eq!(settings(&store, "web").await, None);
        let again = unpublish(&store, &web, port("8080").range(), Protocol::Tcp).await.unwrap();
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
    async fn ranges_and_addresses_that_overlap_are_refused() {
        let (store, web, api) = (store(), name("web"), name("api"));
        publish(&store, &web, port("8000-8010")).await.unwrap();
        let error = publish(&store, &api, port("8010")).await.unwrap_err().to_string();
        assert!(error.contains("service web publishes 8000-8010/tcp"), "{error}");
        let error = publish(&store, &web, port("8005")).await.unwrap_err().to_string();
        assert!(error.contains("plexus unpublish web 8000-8010/tcp"), "{error}");
        let on = |address: &str| PublishedPort { addresses: vec![address.parse().unwrap()], ..port("53") };
        publish(&store, &web, on("192.0.2.0/24")).await.unwrap();
        publish(&store, &api, on("198.51.100.1")).await.unwrap();
        let error = publish(&store, &name("dns"), on("192.0.2.53")).await.unwrap_err();
        assert!(matches!(error, Error::Taken { holder, .. } if holder == web));
        assert_eq!(
            publish(&store, &web, port("53")).await.unwrap_err().to_string().matches("service api").count(),
            1
        );
    }

    #[tokio::test]
    async fn a_virtual_address_is_switched_off_and_on_and_leaves_nothing() {
        let (store, web) = (store(), name("web"));
        assert!(!set_vip(&store, &web, VirtualIp::On).await.unwrap());
        assert!(set_vip(&store, &web, VirtualIp::Off).await.unwrap());
        assert_eq!(settings(&store, "web").await.unwrap(), r#"{"vip":false}"#);
        assert!(set_vip(&store, &web, VirtualIp::On).await.unwrap());
        assert_eq!(settings(&store, "web").await, None);
    }

    #[tokio::test]
    async fn what_a_newer_agent_wrote_is_kept() {
        let (store, web) = (store(), name("web"));
        let path = Key::Service(web.clone()).path();
        store.put(&path, br#"{"colour":"red"}"#.to_vec(), None).await.unwrap();
        publish(&store, &web, port("8080")).await.unwrap();
        assert!(settings(&store, "web").await.unwrap().contains("red"));
        unpublish(&store, &web, port("8080").range(), Protocol::Tcp).await.unwrap();
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
