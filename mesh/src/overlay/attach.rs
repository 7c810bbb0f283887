//! Connecting containers: what runs in a network namespace of its own gets a link, addresses and routes.
//!
//! The order makes a kill harmless: addresses are written down, as something unfinished, before the kernel hears of them, and
//! given back after it has forgotten them. What is written down and was not finished is undone by the agent that comes next
//! (`recover`), so that to be attached means to have been told so, or nearly.
//!
//! What changes a container runs to its end once it has begun, whoever asked for it: one that nobody waits for any more is undone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nerve::model::{Mac, NetworkName, Prefix, ServiceName};
use nerve::tasks::Tasks;
use serde::{Deserialize, Serialize};
use synapse::catalog::Catalog;
use tokio::sync::{oneshot, watch};

use super::keeper::{Place, Ready};
use super::ledger::{Ledger, LedgerError, Owned, Record};
use super::netlink::with_netlink;
use super::plan::gateway;
use super::removal::Removals;
use super::turns::Turns;
use super::veth::{self, LINK, Veth};
use super::{Held, send_if_new};
use crate::netns::Namespace;

/// How long a request waits for what this node needs first.
const READY_WITHIN: Duration = Duration::from_secs(4);
/// Why this node may give no addresses.
const NO_LEASE: &str = "its lease is not renewed; is the store reachable?";
const NO_SUBNET: &str = "it has no subnet of it yet; see plexus status";
/// Below the state directory.
const DIRECTORY: &str = "attachments";

/// What is to be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// By what it is known, unique on the node.
    pub id: String,
    /// To which network.
    pub network: NetworkName,
    /// The file of its network namespace: `/run/netns/NAME`, `/proc/PID/ns/net`.
    pub namespace: PathBuf,
    /// What its end of the link is called in there.
    pub interface: String,
    /// Addresses that it wants, one of a family at most; others are chosen.
    pub addresses: Vec<IpAddr>,
    /// For whom, where a container runtime asks.
    pub owner: Option<Owner>,
    /// What is said of it.
    pub described: Described,
}

/// What is said of something that is attached, for whoever registers it; here nobody knows what it means.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Described {
    /// Labels, as they were given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Names that it is called by.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub aliases: BTreeSet<ServiceName>,
}

/// A container as its runtime knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The name of the runtime's network configuration.
    pub configuration: String,
    /// The runtime's id of the container.
    pub container: String,
    /// The interface that the runtime asked for; what it is called may be something else.
    pub interface: String,
}

/// What is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// By what it is known.
    pub id: String,
    /// To which network.
    pub network: NetworkName,
    /// Its addresses, one of each family of the network.
    pub addresses: Vec<IpAddr>,
    /// The MAC of its end of the link.
    pub mac: Mac,
    /// The file of its network namespace.
    pub namespace: PathBuf,
    /// What its end of the link is called in there.
    pub interface: String,
    /// What the end on this host is called.
    pub link: String,
    /// For whom, where a container runtime asked.
    pub owner: Option<Owner>,
    /// What is said of it.
    pub described: Described,
}

/// Something that was just attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// What it is.
    pub attached: Attached,
    /// Where its addresses are from.
    pub place: Offer,
    /// The routes that it was given: where to, and by which gateway.
    pub routes: Vec<(Prefix, IpAddr)>,
}

/// What this node has to give of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Its subnets, one a family.
    pub subnets: Vec<Prefix>,
    /// The gateway in each of them.
    pub gateways: Vec<IpAddr>,
    /// The largest packet of a container.
    pub mtu: u32,
}

/// Why something was not attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// This node takes part in no network.
    #[error("this node takes part in no overlay network; add [overlay] to its configuration")]
    Off,
    /// There is no such network.
    #[error("there is no network {0}; `plexus network ls` shows those that there are")]
    NoNetwork(NetworkName),
    /// It has no subnet here, or its lease has ended.
    #[error("this node may give no addresses of network {0} now: {1}")]
    NotReady(NetworkName, &'static str),
    /// Another agent has what is attached here, or is about to.
    #[error("this agent is starting, leaving or being replaced; nothing was changed, ask again in a moment")]
    NotOurs,
    /// The container's namespace cannot be opened.
    #[error("cannot open the network namespace {path}: {source}; does what is to be attached run?", path = path.display())]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The name is not one that a link can have.
    #[error("{0:?} cannot be the name of a link: 1 to 15 letters, digits, '-', '_' and '.'")]
    Interface(String),
    /// There is no address.
    #[error(transparent)]
    Address(#[from] Refused),
    /// The kernel said no.
    #[error("{0}")]
    Kernel(#[source] io::Error),
}

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Refused(#[from] LedgerError);

/// What is remembered of an attachment beside its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Details {
    pub(super) namespace: PathBuf,
    pub(super) interface: String,
    pub(super) link: String,
    pub(super) mac: Mac,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) owner: Option<Owner>,
    #[serde(flatten)]
    pub(super) described: Described,
    /// Nobody was told of it yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) unfinished: bool,
    /// Where Docker has the addresses: `docker.rs` looks after them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) docker: Option<Hold>,
}

/// What Docker has an address for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Hold {
    /// It has not said yet.
    Reserved,
    /// For this endpoint.
    Endpoint(String),
}

/// Whose it is to change what is attached here.
#[derive(Debug, Clone)]
pub(super) enum Right {
    /// The agent's before this one, for now.
    Awaited,
    /// This one's, for as long as somebody has this.
    Ours(Arc<Owned>),
    /// The next one's.
    GivenUp,
}

/// The containers of this node. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Attachments {
    /// Held for as long as it takes to write a file, never over work of the kernel.
    ledger: Arc<Mutex<Ledger<Details>>>,
    pub(super) directory: Arc<PathBuf>,
    pub(super) right: Arc<watch::Sender<Right>>,
    pub(super) turns: Turns,
    removals: Removals,
    pub(super) catalog: Catalog,
    pub(super) ready: watch::Receiver<Ready>,
    leased: watch::Receiver<Option<Held>>,
    used: Arc<watch::Sender<BTreeSet<NetworkName>>>,
    described: Arc<watch::Sender<Arc<Vec<Attached>>>>,
    tasks: Tasks,
}

impl Attachments {
    /// Reads what was attached, and looks after it from now on.
    pub(super) fn start(
        state_dir: &std::path::Path,
        catalog: &Catalog,
        ready: watch::Receiver<Ready>,
        leased: watch::Receiver<Option<Held>>,
        tasks: &Tasks,
    ) -> Result<(Self, Vec<String>), Refused> {
        let directory = state_dir.join(DIRECTORY);
        let (ledger, problems) = Ledger::open(directory.clone())?;
        let attachments = Self {
            used: Arc::new(watch::Sender::new(used(&ledger))),
            described: Arc::new(watch::Sender::new(Arc::new(described(&ledger)))),
            ledger: Arc::new(Mutex::new(ledger)),
            directory: Arc::new(directory),
            right: Arc::new(watch::Sender::new(Right::Awaited)),
            turns: Turns::new(),
            removals: Removals::default(),
            catalog: catalog.clone(),
            ready,
            leased,
            tasks: tasks.clone(),
        };
        let looked_after = attachments.clone();
        tasks.spawn_until_stopped("overlay attachments", move || looked_after.clone().look_after());
        Ok((attachments, problems))
    }

    /// The networks that something is attached to.
    pub(super) fn used(&self) -> watch::Receiver<BTreeSet<NetworkName>> {
        self.used.subscribe()
    }

    /// Those of which something is said, for as long as they are attached.
    pub(super) fn described(&self) -> watch::Receiver<Arc<Vec<Attached>>> {
        self.described.subscribe()
    }

    /// To be called after each change of the ledger.
    pub(super) fn note_changed(&self) {
        let ledger = self.ledger();
        let (used, described) = (used(&ledger), described(&ledger));
        send_if_new(&self.used, used);
        // In the order of the changes: the ledger is still held.
        send_if_new(&self.described, Arc::new(described));
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger<Details>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that is attached.
    pub(super) fn all(&self) -> Vec<Attached> {
        self.ledger().all().map(|(id, record)| attached(id, record)).collect()
    }

    /// What one has; `None`: there is none of that name.
    pub(super) fn record(&self, id: &str) -> Option<Record<Details>> {
        self.ledger().get(id).cloned()
    }

    /// What containers of a network would be given here.
    pub(super) async fn offer(&self, network: &NetworkName) -> Result<Offer, AttachError> {
        let _exists = self.ranges(network)?;
        let _ours = self.ours().await?;
        Ok(offer(&self.place(network).await?))
    }

    /// Attaches a container; when this returns, it can be reached.
    pub(super) async fn attach(&self, request: Attach) -> Result<Given, AttachError> {
        if !is_link_name(&request.interface) {
            return Err(AttachError::Interface(request.interface.chars().take(100).collect()));
        }
        let ranges = self.ranges(&request.network)?;
        let ours = self.ours().await?;
        let place = self.place(&request.network).await?;
        let (tell, told) = oneshot::channel();
        let attachments = self.clone();
        self.tasks.spawn("overlay attach", async move {
            let id = request.id.clone();
            let done = attachments.attach_to(&place, ranges, request).await;
            if let Err(Ok(_)) = tell.send(done) {
                tracing::info!(id, "nobody waits any more for what was attached");
                if let Err(error) = attachments.detach_now(&id).await {
                    tracing::warn!(id, %error, "what nobody waits for stays attached");
                }
            }
            drop(ours);
        });
        told.await.unwrap_or(Err(AttachError::NotOurs))
    }

    async fn attach_to(
        &self,
        place: &Place,
        ranges: Vec<Prefix>,
        request: Attach,
    ) -> Result<Given, AttachError> {
        let Attach { id, network, namespace, interface, addresses, owner, described } = request;
        let link = link_name(&id);
        let _turn = self.turns.wait(&link).await;
        if self.tasks.stop_token().is_cancelled() {
            return Err(AttachError::NotOurs);
        }
        let opened = Namespace::open(&namespace)
            .map_err(|source| AttachError::Namespace { path: namespace.clone(), source })?;
        // The MAC follows from the address: what neighbours know of an address is true of its next owner as well.
        let details = |given: &[IpAddr]| Details {
            namespace,
            interface,
            link,
            mac: mac_of(given),
            owner,
            described,
            unfinished: true,
            docker: None,
        };
        let record = {
            let mut ledger = self.ledger();
            let given = ledger.give(&id, &network, &place.subnets, &addresses, details);
            given.map_err(Refused)?.clone()
        };
        self.note_changed();
        let veth = veth(&record, place, ranges);
        let connected = match connect(&veth, place.bridge, opened).await {
            Ok(routes) => {
                let kept = self.ledger().amend(&id, |details| details.unfinished = false);
                kept.map(|()| routes).map_err(|error| AttachError::Address(Refused(error)))
            }
            Err(error) => Err(AttachError::Kernel(error)),
        };
        match connected {
            Ok(routes) => {
                self.note_changed();
                tracing::info!(id, %network, addresses = ?record.addresses, "attached a container");
                Ok(Given { attached: attached(&id, &record), place: offer(place), routes })
            }
            Err(error) => {
                // A link of that name is somebody else's.
                let is_made =
                    !matches!(&error, AttachError::Kernel(e) if e.kind() == io::ErrorKind::AlreadyExists);
                self.undo(&id, Some(veth.link.as_str()).filter(|_| is_made)).await;
                Err(error)
            }
        }
    }

    /// The right to change what is attached here, which is this agent's until what is returned is dropped.
    pub(super) async fn ours(&self) -> Result<Arc<Owned>, AttachError> {
        let mut right = self.right.subscribe();
        let decided = right.wait_for(|right| !matches!(right, Right::Awaited));
        match tokio::time::timeout(READY_WITHIN, decided).await {
            Ok(Ok(right)) => match &*right {
                Right::Ours(owned) => Ok(Arc::clone(owned)),
                Right::Awaited | Right::GivenUp => Err(AttachError::NotOurs),
            },
            Ok(Err(_)) | Err(_) => Err(AttachError::NotOurs),
        }
    }

    /// The ranges of a network.
    pub(super) fn ranges(&self, network: &NetworkName) -> Result<Vec<Prefix>, AttachError> {
        let view = self.catalog.network(network.as_str());
        let view = view.ok_or_else(|| AttachError::NoNetwork(network.clone()))?;
        Ok(view.network.pools.iter().map(|pool| pool.cidr()).collect())
    }

    /// What new containers of a network are attached to here: what is this node's at this moment, by the store's word.
    pub(super) async fn place(&self, network: &NetworkName) -> Result<Place, AttachError> {
        let mut leased = self.leased.clone();
        let claimed =
            leased.wait_for(|leased| leased.as_ref().is_some_and(|held| held.contains_key(network)));
        let claimed = tokio::time::timeout(READY_WITHIN, claimed).await;
        let slot = claimed.ok().and_then(|held| held.ok()?.as_ref()?.get(network).copied());
        let slot = slot.ok_or_else(|| {
            let has_lease = self.leased.borrow().is_some();
            AttachError::NotReady(network.clone(), if has_lease { NO_SUBNET } else { NO_LEASE })
        })?;
        let view = self.catalog.network(network.as_str());
        let view = view.ok_or_else(|| AttachError::NoNetwork(network.clone()))?;
        let subnets = view.network.subnets(slot);
        self.place_if(network, |place| place.subnets == subnets).await
    }

    /// What containers of a network are attached to here; a network that was just made is waited for.
    pub(super) async fn place_of(&self, network: &NetworkName) -> Result<Place, AttachError> {
        self.place_if(network, |_| true).await
    }

    async fn place_if(
        &self,
        network: &NetworkName,
        is_right: impl Fn(&Place) -> bool,
    ) -> Result<Place, AttachError> {
        let mut ready = self.ready.clone();
        let found = ready.wait_for(|ready| ready.get(network).is_some_and(&is_right));
        let found = tokio::time::timeout(READY_WITHIN, found).await;
        let place = found.ok().and_then(|ready| ready.ok()?.get(network).cloned());
        place.ok_or(AttachError::NotReady(network.clone(), NO_SUBNET))
    }

    /// Takes away the link of one whose turn it is, if it was made, and gives back what it had.
    pub(super) async fn undo(&self, id: &str, link: Option<&str>) {
        let removed = match link {
            Some(link) => with_netlink(async |netlink| netlink.remove_veth(link).await).await,
            None => Ok(()),
        };
        match removed.map(|()| self.ledger().take_back(id)) {
            Ok(Ok(_)) => self.note_changed(),
            Ok(Err(error)) => {
                tracing::warn!(id, %error, "the address of a container that was not attached stays taken")
            }
            Err(error) => {
                tracing::warn!(id, %error, "the link of a container that was not attached stays behind for now")
            }
        }
    }

    /// Detaches a container; `None`: there is none.
    pub(super) async fn detach(&self, id: &str) -> Result<Option<Attached>, AttachError> {
        let ours = self.ours().await?;
        let (tell, told) = oneshot::channel();
        let (attachments, id) = (self.clone(), id.to_owned());
        self.tasks.spawn("overlay detach", async move {
            // Whether somebody still waits for that or not, it is done.
            let _ = tell.send(attachments.detach_now(&id).await);
            drop(ours);
        });
        told.await.unwrap_or(Err(AttachError::NotOurs))
    }

    async fn detach_now(&self, id: &str) -> Result<Option<Attached>, AttachError> {
        let link = link_name(id);
        let _turn = self.turns.wait_among_many(&link).await;
        let Some(record) = self.record(id) else { return Ok(None) };
        self.removals.remove(&link).await.map_err(AttachError::Kernel)?;
        self.ledger().take_back(id).map_err(Refused)?;
        self.note_changed();
        tracing::info!(id, network = %record.network, "detached a container");
        Ok(Some(attached(id, &record)))
    }
}

fn offer(place: &Place) -> Offer {
    let gateways = place.subnets.iter().filter_map(|subnet| gateway(*subnet)).collect();
    Offer { subnets: place.subnets.clone(), gateways, mtu: place.mtu }
}

/// In the order of the networks' names: of what is on several, the first counts.
fn described(ledger: &Ledger<Details>) -> Vec<Attached> {
    let is_described = |details: &Details| !details.unfinished && details.described != Described::default();
    let told = ledger.all().filter(|(_, record)| is_described(&record.details));
    let mut told: Vec<Attached> = told.map(|(id, record)| attached(id, record)).collect();
    told.sort_by(|a, b| (&a.network, &a.id).cmp(&(&b.network, &b.id)));
    told
}

fn used(ledger: &Ledger<Details>) -> BTreeSet<NetworkName> {
    ledger.all().map(|(_, record)| record.network.clone()).collect()
}

async fn connect(veth: &Veth, bridge: u32, namespace: Namespace) -> io::Result<Vec<(Prefix, IpAddr)>> {
    with_netlink(async |netlink| netlink.add_veth(veth, bridge, Some(&namespace)).await).await?;
    let inside = veth.clone();
    let set_up = tokio::task::spawn_blocking(move || veth::set_up(&namespace, &inside));
    let routes = set_up.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
    with_netlink(async |netlink| netlink.wait_until_it_passes(&veth.link).await).await?;
    Ok(routes)
}

pub(super) fn veth(record: &Record<Details>, place: &Place, ranges: Vec<Prefix>) -> Veth {
    let with_gateway = |address: &IpAddr| {
        let subnet = place.subnets.iter().find(|subnet| subnet.contains(*address))?;
        Some((*address, subnet.length(), gateway(*subnet)?))
    };
    Veth {
        link: record.details.link.clone(),
        interface: record.details.interface.clone(),
        mac: record.details.mac,
        mtu: place.mtu,
        // What comes after us in a chain of CNI's may want the place for itself: `bandwidth` does.
        programs: place.programs && record.details.owner.is_none(),
        addresses: record.addresses.iter().filter_map(with_gateway).collect(),
        ranges,
    }
}

pub(super) fn attached(id: &str, record: &Record<Details>) -> Attached {
    let Details { namespace, interface, link, mac, owner, described, .. } = record.details.clone();
    let (id, network, addresses) = (id.to_owned(), record.network.clone(), record.addresses.clone());
    Attached { id, network, addresses, mac, namespace, interface, link, owner, described }
}

/// Locally administered, from the last four octets of the first address.
pub(super) fn mac_of(addresses: &[IpAddr]) -> Mac {
    let last = match addresses.first() {
        Some(IpAddr::V4(v4)) => v4.octets(),
        Some(IpAddr::V6(v6)) => {
            let [.., a, b, c, d] = v6.octets();
            [a, b, c, d]
        }
        None => [0; 4],
    };
    let [a, b, c, d] = last;
    Mac([0x0a, 0x58, a, b, c, d])
}

/// The end on this host: what it is an end of stands in the ledger.
pub(super) fn link_name(id: &str) -> String {
    format!("{LINK}{:011x}", nerve::hash::of(id) & 0xfff_ffff_ffff)
}

fn is_link_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=15).contains(&name.len()) && name.bytes().all(is_plain) && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it was written before anything could be said of an attachment.
    const PLAIN: &str = r#"{"network":"default","addresses":["10.42.3.2"],"namespace":"/run/netns/one","interface":"eth0","link":"plxe1","mac":"0a:58:0a:2a:03:02"}"#;

    #[test]
    fn what_is_said_is_kept_and_what_was_written_before_is_read() {
        let plain: Record<Details> = serde_json::from_str(PLAIN).unwrap();
        assert_eq!(plain.details.described, Described::default());
        assert_eq!(serde_json::to_string(&plain).unwrap(), PLAIN);
        let labels = BTreeMap::from([("plexus.port".to_owned(), "80".to_owned())]);
        let described = Described { labels, aliases: BTreeSet::from(["web".parse().unwrap()]) };
        let details = Details { described, ..plain.details.clone() };
        let said = Record { details, ..plain };
        let written = serde_json::to_string(&said).unwrap();
        assert!(written.contains(r#""labels":{"plexus.port":"80"},"aliases":["web"]"#), "{written}");
        assert_eq!(serde_json::from_str::<Record<Details>>(&written).unwrap(), said);
    }

    #[test]
    fn what_is_attached_and_described_is_told_in_the_order_of_the_networks() {
        let directory = tempfile::tempdir().unwrap();
        let plain: Record<Details> = serde_json::from_str(PLAIN).unwrap();
        let mut ledger = Ledger::open(directory.path().to_owned()).unwrap().0;
        let described_as =
            Described { aliases: BTreeSet::from(["web".parse().unwrap()]), ..Described::default() };
        for (id, network, described, unfinished) in [
            ("a", "red", described_as.clone(), false),
            ("b", "blue", described_as.clone(), false),
            ("c", "blue", described_as, true),
            ("d", "blue", Described::default(), false),
        ] {
            let details = |_: &[IpAddr]| Details { described, unfinished, ..plain.details.clone() };
            let subnet = ["10.42.3.0/24".parse().unwrap()];
            ledger.give(id, &network.parse().unwrap(), &subnet, &[], details).unwrap();
        }
        let told: Vec<String> = described(&ledger).into_iter().map(|attached| attached.id).collect();
        assert_eq!(told, ["b", "a"]);
    }
}
