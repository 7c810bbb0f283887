//! Claims on virtual addresses: which service has which, decided by the store.
//!
//! An address belongs to whoever wrote its key first; agents only ever create and delete claims by compare-and-swap, so
//! no two services have one address, whatever raced. Which address a service should have is decided elsewhere
//! (`mesh::vip`). Never overwrites a claim.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::{ServiceName, ServiceSettings, VipClaim};
use crate::store::{self, Entry, Expect, Key, Store, Swap};

/// How a claim ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The service has the address now.
    Done,
    /// Another service has it, or this one already had; `None` where what stands there cannot be read.
    Taken(Option<ServiceName>),
}

/// How giving back ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// Nobody has the address now.
    Done,
    /// The service is there, or the address is someone else's, or nobody's: nothing was changed.
    Kept,
}

/// Every claim that stands in the store at this moment. One whose record cannot be read is nobody's: the address is taken,
/// and nobody has it.
pub async fn list(store: &dyn Store) -> store::Result<BTreeMap<IpAddr, Option<ServiceName>>> {
    let entries = store.list(&Key::vips()).await?.entries;
    Ok(entries.iter().filter_map(|entry| Some((address(entry)?, holder(entry)))).collect())
}

/// Gives `address` to `service` unless it is taken.
pub async fn claim(store: &dyn Store, address: IpAddr, service: &ServiceName) -> store::Result<Claimed> {
    // Names and nothing else: it has a JSON form.
    let value = serde_json::to_vec(&VipClaim::new(service.clone())).unwrap_or_default();
    match store.compare_and_swap(&Key::Vip(address).path(), Expect::Absent, Some(value), None).await? {
        Swap::Done(_) => Ok(Claimed::Done),
        Swap::Conflict(found) => Ok(Claimed::Taken(found.as_ref().and_then(holder))),
    }
}

/// Takes `address` back from `service`. Where `is_gone` says that the service is no more, that is looked up first: it may
/// have come back.
pub async fn release(
    store: &dyn Store,
    address: IpAddr,
    service: &ServiceName,
    is_gone: bool,
) -> store::Result<Released> {
    let path = Key::Vip(address).path();
    let Some(entry) = store.get(&path).await?.filter(|entry| holder(entry).as_ref() == Some(service)) else {
        return Ok(Released::Kept);
    };
    if is_gone && exists(store, service).await? {
        return Ok(Released::Kept);
    }
    match store.compare_and_swap(&path, Expect::Unchanged(entry.revision), None, None).await? {
        Swap::Done(_) => Ok(Released::Done),
        Swap::Conflict(_) => Ok(Released::Kept),
    }
}

/// Has the service instances, or settings that do not themselves say that it is to have no address?
async fn exists(store: &dyn Store, service: &ServiceName) -> store::Result<bool> {
    if let Some(settings) = store.get(&Key::Service(service.clone()).path()).await? {
        let settings = serde_json::from_slice::<ServiceSettings>(&settings.value);
        return Ok(settings.is_err() || settings.is_ok_and(|settings| settings.wants_vip()));
    }
    Ok(!store.list(&Key::instances_of(service)).await?.entries.is_empty())
}

fn address(entry: &Entry) -> Option<IpAddr> {
    match Key::parse(&entry.path)? {
        Key::Vip(address) => Some(address),
        _ => None,
    }
}

fn holder(entry: &Entry) -> Option<ServiceName> {
    serde_json::from_slice::<VipClaim>(&entry.value).ok().map(|claim| claim.service)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::{EmbeddedStore, Metrics, Path};

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1));

    fn store() -> EmbeddedStore {
        EmbeddedStore::open(None, Duration::from_secs(5), Metrics::default()).unwrap()
    }

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).unwrap()
    }

    #[tokio::test]
    async fn of_two_that_race_for_an_address_one_gets_it_and_the_other_is_told_who() {
        let (store, web, api) = (store(), name("web"), name("api"));
        let (first, second) = tokio::join!(claim(&store, ADDRESS, &web), claim(&store, ADDRESS, &api));
        let outcomes = [first.unwrap(), second.unwrap()];
        let (winner, loser) =
            if outcomes[0] == Claimed::Done { (web, &outcomes[1]) } else { (api, &outcomes[0]) };
        assert_eq!(*loser, Claimed::Taken(Some(winner.clone())));
        assert_eq!(list(&store).await.unwrap(), BTreeMap::from([(ADDRESS, Some(winner))]));
    }

    #[tokio::test]
    async fn an_address_is_taken_back_from_a_service_that_is_gone_and_from_no_other() {
        let (store, web) = (store(), name("web"));
        claim(&store, ADDRESS, &web).await.unwrap();
        let instance = Path::new("instances/web/1").unwrap();
        store.put(&instance, b"{}".to_vec(), None).await.unwrap();
        assert_eq!(release(&store, ADDRESS, &web, true).await.unwrap(), Released::Kept);
        store.delete(&instance).await.unwrap();
        assert_eq!(release(&store, ADDRESS, &name("api"), true).await.unwrap(), Released::Kept);
        let settings = Key::Service(web.clone()).path();
        store.put(&settings, br#"{"published":[{"port":80}]}"#.to_vec(), None).await.unwrap();
        assert_eq!(release(&store, ADDRESS, &web, true).await.unwrap(), Released::Kept);
        store.put(&settings, br#"{"vip":false}"#.to_vec(), None).await.unwrap();
        assert_eq!(release(&store, ADDRESS, &web, true).await.unwrap(), Released::Done);
        assert!(list(&store).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_claim_that_cannot_be_read_is_left_alone() {
        let (store, web) = (store(), name("web"));
        store.put(&Key::Vip(ADDRESS).path(), b"{".to_vec(), None).await.unwrap();
        assert_eq!(claim(&store, ADDRESS, &web).await.unwrap(), Claimed::Taken(None));
        assert_eq!(release(&store, ADDRESS, &web, false).await.unwrap(), Released::Kept);
        assert_eq!(list(&store).await.unwrap(), BTreeMap::from([(ADDRESS, None)]));
    }
}
