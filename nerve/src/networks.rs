//! Creating and removing overlay networks: what an operator changes of them in the store.
//!
//! A network number and an address belong to one network: the others are read before the write and once more after it, and
//! of two creations that raced the later one takes itself back. A network is never changed: who wants it otherwise removes
//! it and creates another. Never touches subnets; whether a host uses the addresses is asked elsewhere (`mesh::routes`).

use std::collections::BTreeSet;

use crate::hash;
use crate::model::{Mtu, Network, NetworkName, NodeName, Pool, PoolsError, Prefix, Transport, Vni};
use crate::store::{self, Entry, Expect, Key, Revision, Store, Swap};
use crate::subnets;

/// The first number that is given to a network that asks for none; those below are left to people.
const FIRST_VNI: u32 = 4096;

/// A network that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The ranges of its addresses: one, or one of each family.
    pub pools: Vec<Pool>,
    /// Its number; one that is free unless given.
    pub vni: Option<Vni>,
    /// The largest packet of its containers; made of the underlay's unless given.
    pub mtu: Option<Mtu>,
    /// Networks that it is to reach.
    pub reaches: BTreeSet<NetworkName>,
    /// How its packets are to travel between nodes.
    pub transport: Transport,
}

/// A network that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// What stands in the store.
    pub network: Network,
    /// It was not there before.
    pub new: bool,
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// The network was this; `None` where its record could not be read.
    Done(Option<Network>),
    /// There was none.
    Unchanged,
}

/// A network as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: NetworkName,
    /// When it was written.
    pub revision: Revision,
    /// What it is; `None` where the record cannot be read.
    pub network: Option<Network>,
}

/// Why a network could not be created or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ranges are not those of a network.
    #[error("network {name} cannot be created: {source}")]
    Pools {
        /// The network.
        name: NetworkName,
        /// Why.
        source: PoolsError,
    },
    /// Another network has this name.
    #[error(
        "network {name} cannot be created: there is one of this name, which is {}; take another name, or run `plexus network rm {name}` first",
        held.as_ref().map_or_else(|| "unreadable here".to_owned(), |held| described(held))
    )]
    Exists {
        /// The name.
        name: NetworkName,
        /// What is there; `None` where it cannot be read.
        held: Option<Box<Network>>,
    },
    /// Another network has the number.
    #[error(
        "network {name} cannot have VNI {vni}: network {holder} has it; take another one, or leave it away to get a free one"
    )]
    VniTaken {
        /// The network.
        name: NetworkName,
        /// The number.
        vni: Vni,
        /// Who has it.
        holder: NetworkName,
    },
    /// Every number is another network's.
    #[error("network {name} cannot be created: every VNI from {FIRST_VNI} on is taken; give it one below")]
    NoVni {
        /// The network.
        name: NetworkName,
    },
    /// Another network has some of the addresses.
    #[error("network {name} cannot have {range}: network {holder} has {held}; take a range that is free")]
    Overlaps {
        /// The network.
        name: NetworkName,
        /// What it was to have.
        range: Prefix,
        /// Who has addresses of it.
        holder: NetworkName,
        /// What that one has.
        held: Prefix,
    },
    /// One is encrypted and the other is not: what they say to each other would be in the clear.
    #[error(
        "network {name} cannot be created: of it and network {other} one reaches the other and only one is encrypted, so that what they \
         say to each other would not be; make both with --encrypted, or leave --reach away"
    )]
    InTheClear {
        /// The network.
        name: NetworkName,
        /// The other one.
        other: NetworkName,
    },
    /// Containers are attached to it.
    #[error(
        "network {name} cannot be removed: containers are attached to it on {}; detach them first, or remove it with --force",
        listed(nodes)
    )]
    Held {
        /// The network.
        name: NetworkName,
        /// Their nodes.
        nodes: BTreeSet<NodeName>,
    },
    /// It was written while it was being removed.
    #[error("network {name} was changed by somebody else at this moment; nothing was removed, try again")]
    Contended {
        /// The network.
        name: NetworkName,
    },
    /// The network has no form in JSON, which all of them have.
    #[error("network {name} cannot be written: {source}")]
    Form {
        /// The network.
        name: NetworkName,
        /// What the writer says.
        source: serde_json::Error,
    },
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Every network, in the order of their names.
pub async fn list(store: &dyn Store) -> store::Result<Vec<Listed>> {
    let entries = store.list(&Key::networks()).await?.entries;
    let listed = entries.iter().filter_map(|entry| match Key::parse(&entry.path)? {
        Key::Network(name) => Some(Listed { name, revision: entry.revision, network: read(entry) }),
        _ => None,
    });
    Ok(listed.collect())
}

/// Creates a network. Idempotent: one that is there and is what is wanted is left as it is.
///
/// # Errors
/// There is another one of this name, its number or its addresses are another's, or the store did not do it.
pub async fn create(store: &dyn Store, name: &NetworkName, draft: Draft) -> Result<Created, Error> {
    Network::check_pools(&draft.pools).map_err(|source| Error::Pools { name: name.clone(), source })?;
    let known = list(store).await?;
    if let Some(there) = known.iter().find(|known| known.name == *name) {
        return draft.or_same(name, there.network.clone());
    }
    let network = draft.network(name, &known)?;
    refuse_collision(name, &network, &known, None)?;
    let path = Key::Network(name.clone()).path();
    let value = serde_json::to_vec(&network).map_err(|source| Error::Form { name: name.clone(), source })?;
    let written = match store.compare_and_swap(&path, Expect::Absent, Some(value), None).await? {
        Swap::Done(revision) => revision,
        Swap::Conflict(found) => return draft.or_same(name, found.as_ref().and_then(read)),
    };
    let others = list(store).await.map_err(Error::from);
    match others.and_then(|known| refuse_collision(name, &network, &known, Some(written))) {
        Ok(()) => Ok(Created { network, new: true }),
        Err(error) => {
            store.compare_and_swap(&path, Expect::Unchanged(written), None, None).await?;
            Err(error)
        }
    }
}

/// Removes a network that no container is attached to, or with `force` any. Idempotent. Its nodes are told by the store, and let
/// go of it.
///
/// # Errors
/// Nodes take part in it, or the store did not do it.
pub async fn remove(store: &dyn Store, name: &NetworkName, force: bool) -> Result<Removed, Error> {
    let path = Key::Network(name.clone()).path();
    let Some(entry) = store.get(&path).await? else { return Ok(Removed::Unchanged) };
    if !force {
        let held = subnets::list(store, name).await?;
        let in_use = held.into_values().flatten().filter(|subnet| subnet.in_use);
        let nodes: BTreeSet<NodeName> = in_use.map(|subnet| subnet.node).collect();
        if !nodes.is_empty() {
            return Err(Error::Held { name: name.clone(), nodes });
        }
    }
    match store.compare_and_swap(&path, Expect::Unchanged(entry.revision), None, None).await? {
        Swap::Done(_) => Ok(Removed::Done(read(&entry))),
        Swap::Conflict(None) => Ok(Removed::Unchanged),
        Swap::Conflict(Some(_)) => Err(Error::Contended { name: name.clone() }),
    }
}

impl Draft {
    /// What is to be written.
    fn network(&self, name: &NetworkName, known: &[Listed]) -> Result<Network, Error> {
        let taken: BTreeSet<Vni> =
            known.iter().filter_map(|known| known.network.as_ref()).map(|network| network.vni).collect();
        let vni = self.vni.or_else(|| free_vni(name, &taken));
        Ok(Network {
            vni: vni.ok_or_else(|| Error::NoVni { name: name.clone() })?,
            pools: self.pools.clone(),
            mtu: self.mtu,
            reaches: self.reaches.clone(),
            transport: self.transport,
            unknown: Default::default(),
        })
    }

    /// What is there, if it is what is wanted.
    fn or_same(&self, name: &NetworkName, there: Option<Network>) -> Result<Created, Error> {
        match there {
            Some(network) if self.asks_for(&network) => Ok(Created { network, new: false }),
            held => Err(Error::Exists { name: name.clone(), held: held.map(Box::new) }),
        }
    }

    fn asks_for(&self, network: &Network) -> bool {
        let Self { pools, vni, mtu, reaches, transport } = self;
        let is_same_range = |pool| network.pools.contains(pool);
        pools.len() == network.pools.len()
            && pools.iter().all(is_same_range)
            && vni.is_none_or(|vni| vni == network.vni)
            && (mtu, reaches, transport) == (&network.mtu, &network.reaches, &network.transport)
    }
}

/// The first number that is free, from the network's own place on: two networks that are created at once rarely try the same.
fn free_vni(name: &NetworkName, taken: &BTreeSet<Vni>) -> Option<Vni> {
    let count = u64::from(Vni::MAX.get() - FIRST_VNI) + 1;
    let first = hash::of(name.as_str()) % count;
    let numbers = (0..count).filter_map(|step| u32::try_from((first + step) % count).ok());
    numbers.filter_map(|number| Vni::new(FIRST_VNI + number)).find(|vni| !taken.contains(vni))
}

/// An error if another network has the number or some of the addresses of this one. With `ours`, when this one was written,
/// only those count that were there before, so that of two that raced exactly one stays.
fn refuse_collision(
    name: &NetworkName,
    network: &Network,
    known: &[Listed],
    ours: Option<Revision>,
) -> Result<(), Error> {
    let counts = |other: &&Listed| other.name != *name && ours.is_none_or(|ours| other.revision < ours);
    for other in known.iter().filter(counts) {
        // A record that cannot be read holds nothing: no agent makes that network either.
        let Some(held) = &other.network else { continue };
        let (name, holder) = (name.clone(), other.name.clone());
        let is_reached = network.reaches.contains(&holder) || held.reaches.contains(&name);
        if is_reached && held.is_encrypted() != network.is_encrypted() {
            return Err(Error::InTheClear { name, other: holder });
        }
        if held.vni == network.vni {
            return Err(Error::VniTaken { name, vni: held.vni, holder });
        }
        for range in network.pools.iter().map(Pool::cidr) {
            if let Some(held) = held.pools.iter().map(Pool::cidr).find(|held| held.overlaps(&range)) {
                return Err(Error::Overlaps { name, range, holder, held });
            }
        }
    }
    Ok(())
}

fn read(entry: &Entry) -> Option<Network> {
    serde_json::from_slice(&entry.value).ok()
}

fn described(network: &Network) -> String {
    let Network { vni, pools, mtu, reaches, transport, .. } = network;
    let mut text = pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    text.push_str(&format!(", VNI {vni}"));
    if let Some(mtu) = mtu {
        text.push_str(&format!(", MTU {mtu}"));
    }
    if !reaches.is_empty() {
        text.push_str(&format!(", reaching {}", listed(reaches)));
    }
    match transport {
        Transport::Tunnel => {}
        Transport::Direct => text.push_str(", without a tunnel on one link (--direct)"),
        Transport::Encrypted => text.push_str(", encrypted (--encrypted)"),
    }
    text
}

/// A few of them by name, and how many there are besides.
fn listed<T: ToString>(names: &BTreeSet<T>) -> String {
    const SHOWN: usize = 10;
    let mut shown: Vec<String> = names.iter().take(SHOWN).map(ToString::to_string).collect();
    if names.len() > SHOWN {
        shown.push(format!("and {} more", names.len() - SHOWN));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Mac, Slot, Subnet};
    use crate::store::{EmbeddedStore, Metrics};

    fn store() -> EmbeddedStore {
        EmbeddedStore::open(None, Duration::from_secs(5), Metrics::default()).unwrap()
    }

    fn name(text: &str) -> NetworkName {
        NetworkName::new(text).unwrap()
    }

    fn draft(cidrs: &[&str]) -> Draft {
        let pool = |cidr: &&str| {
            let cidr = cidr.parse().unwrap();
            Pool::new(cidr, Pool::usual_subnet_length(cidr)).unwrap()
        };
        let pools = cidrs.iter().map(pool).collect();
        Draft { pools, vni: None, mtu: None, reaches: BTreeSet::new(), transport: Transport::Tunnel }
    }

    async fn names(store: &EmbeddedStore) -> Vec<String> {
        list(store).await.unwrap().iter().map(|known| known.name.to_string()).collect()
    }

    #[tokio::test]
    async fn creating_twice_creates_once_and_removing_leaves_nothing() {
        let (store, blue) = (store(), name("blue"));
        let wanted = draft(&["10.42.0.0/16", "fd42::/48"]);
        let created = create(&store, &blue, wanted.clone()).await.unwrap();
        assert!(created.new && created.network.vni >= Vni::new(FIRST_VNI).unwrap());
        let again = Draft { vni: Some(created.network.vni), ..wanted.clone() };
        for same in [wanted, again] {
            let found = create(&store, &blue, same).await.unwrap();
            assert_eq!(found, Created { new: false, ..created.clone() });
        }
        assert_eq!(remove(&store, &blue, false).await.unwrap(), Removed::Done(Some(created.network)));
        assert_eq!(remove(&store, &blue, false).await.unwrap(), Removed::Unchanged);
        assert_eq!(names(&store).await, [""; 0]);
    }

    #[tokio::test]
    async fn what_differs_from_the_network_of_that_name_is_refused_and_shown() {
        let (store, blue) = (store(), name("blue"));
        let wanted = Draft { vni: Some(Vni::new(7).unwrap()), ..draft(&["10.42.0.0/16"]) };
        create(&store, &blue, wanted.clone()).await.unwrap();
        for other in [
            draft(&["10.43.0.0/16"]),
            draft(&["10.42.0.0/16", "fd42::/48"]),
            Draft { mtu: Mtu::new(1400), ..wanted.clone() },
            Draft { transport: Transport::Direct, ..wanted.clone() },
            Draft { transport: Transport::Encrypted, ..wanted.clone() },
            Draft { reaches: BTreeSet::from([name("red")]), ..wanted.clone() },
            Draft { vni: Vni::new(8), ..wanted.clone() },
        ] {
            let error = create(&store, &blue, other).await.unwrap_err().to_string();
            assert!(error.contains("which is 10.42.0.0/16 in /24, VNI 7; take another name"), "{error}");
        }
        assert!(!create(&store, &blue, wanted).await.unwrap().new);
    }

    #[tokio::test]
    async fn a_number_and_an_address_belong_to_one_network_and_the_error_names_it() {
        let store = store();
        let first = Draft { vni: Vni::new(7), ..draft(&["10.42.0.0/16", "fd42::/48"]) };
        create(&store, &name("blue"), first).await.unwrap();
        let taken = Draft { vni: Vni::new(7), ..draft(&["10.43.0.0/16"]) };
        let error = create(&store, &name("red"), taken).await.unwrap_err().to_string();
        assert!(error.contains("network red cannot have VNI 7: network blue has it"), "{error}");
        for (range, held) in [("10.0.0.0/8", "10.42.0.0/16"), ("fd42::/56", "fd42::/48")] {
            let error = create(&store, &name("red"), draft(&[range])).await.unwrap_err().to_string();
            let said = format!("network red cannot have {range}: network blue has {held}");
            assert!(error.contains(&said), "{error}");
        }
        let error = create(&store, &name("red"), draft(&[])).await.unwrap_err().to_string();
        assert!(error.contains("a network has a range"), "{error}");
        assert_eq!(names(&store).await, ["blue"]);
    }

    #[tokio::test]
    async fn of_two_that_race_for_a_number_or_an_address_exactly_one_stays() {
        for (one, other) in [
            (draft(&["10.42.0.0/16"]), draft(&["10.42.7.0/24"])),
            (
                Draft { vni: Vni::new(7), ..draft(&["10.42.0.0/16"]) },
                Draft { vni: Vni::new(7), ..draft(&["10.43.0.0/16"]) },
            ),
        ] {
            let (store, blue, red) = (store(), name("blue"), name("red"));
            let (first, second) = tokio::join!(create(&store, &blue, one), create(&store, &red, other));
            assert_eq!(usize::from(first.is_ok()) + usize::from(second.is_ok()), 1);
            assert_eq!(names(&store).await.len(), 1);
        }
    }

    #[test]
    fn one_that_was_written_later_is_in_nobodys_way() {
        let (blue, red) = (name("blue"), name("red"));
        let network = draft(&["10.42.0.0/16"]).network(&blue, &[]).unwrap();
        let at = |revision| Listed {
            name: red.clone(),
            revision: Revision(revision),
            network: Some(network.clone()),
        };
        assert!(refuse_collision(&blue, &network, &[at(8)], Some(Revision(7))).is_ok());
        assert!(refuse_collision(&blue, &network, &[at(6)], Some(Revision(7))).is_err());
    }

    #[tokio::test]
    async fn a_network_that_containers_are_attached_to_is_removed_by_force_alone() {
        let (store, blue) = (store(), name("blue"));
        create(&store, &blue, draft(&["10.42.0.0/16"])).await.unwrap();
        let session = store.open_session(Duration::from_secs(10)).await.unwrap();
        for slot in 0..13 {
            // Of the first one, nothing is attached.
            let node = NodeName::new(&format!("n{slot:02}")).unwrap();
            let held = Subnet::new(node, "192.0.2.1".parse().unwrap(), Mac([2, 0, 0, 0, 0, 1]));
            let subnet = Subnet { in_use: slot > 0, ..held };
            subnets::claim(&store, &session, &blue, Slot(slot), &subnet).await.unwrap();
        }
        let error = remove(&store, &blue, false).await.unwrap_err().to_string();
        assert!(error.contains("on n01, n02,") && error.contains("n10, and 2 more;"), "{error}");
        assert_eq!(names(&store).await, ["blue"]);
        assert!(matches!(remove(&store, &blue, true).await.unwrap(), Removed::Done(Some(_))));
        assert_eq!(names(&store).await, [""; 0]);
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_is_in_the_way_of_its_name_alone_and_can_be_removed() {
        let (store, blue) = (store(), name("blue"));
        store.put(&Key::Network(blue.clone()).path(), b"{".to_vec(), None).await.unwrap();
        let error = create(&store, &blue, draft(&["10.42.0.0/16"])).await.unwrap_err().to_string();
        assert!(error.contains("unreadable here") && error.contains("plexus network rm blue"), "{error}");
        create(&store, &name("red"), draft(&["10.42.0.0/16"])).await.unwrap();
        assert_eq!(remove(&store, &blue, false).await.unwrap(), Removed::Done(None));
    }

    #[test]
    fn a_free_number_is_found_from_the_networks_own_place_on() {
        let first = free_vni(&name("blue"), &BTreeSet::new()).unwrap();
        let next = free_vni(&name("blue"), &BTreeSet::from([first])).unwrap();
        assert_eq!(next.get(), first.get() + 1);
        assert_ne!(free_vni(&name("red"), &BTreeSet::new()), Some(first));
        let mut taken = BTreeSet::new();
        for number in 0..1000 {
            let vni = free_vni(&name(&format!("n{number}")), &taken).unwrap();
            assert!(vni.get() >= FIRST_VNI && taken.insert(vni));
        }
    }
}
