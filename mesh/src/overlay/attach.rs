//! Connecting containers: what runs in a network namespace of its own gets a link, addresses and routes.
//!
//! The order makes a kill harmless: addresses are written down before the kernel hears of them, and given back after it has
//! forgotten them. What is written down and has no link is given back, by the next look; a link that nobody has written down is
//! removed.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nerve::model::{Mac, NetworkName, Prefix};
use nerve::tasks::Tasks;
use serde::{Deserialize, Serialize};
use synapse::catalog::Catalog;
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::MissedTickBehavior;

use super::keeper::{Place, Ready};
use super::ledger::{Ledger, LedgerError, Record};
use super::netlink::Netlink;
use super::plan::gateway;
use super::veth::{self, LINK, Veth};
use crate::netns::Namespace;

/// How long a request waits for what this node needs first.
const READY_WITHIN: Duration = Duration::from_secs(4);
/// How often it is looked whether containers are gone.
const TICK: Duration = Duration::from_secs(5);
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

/// The containers of this node. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Attachments {
    ledger: Arc<Mutex<Ledger<Details>>>,
    pub(super) catalog: Catalog,
    ready: watch::Receiver<Ready>,
    leased: watch::Receiver<bool>,
    used: Arc<watch::Sender<BTreeSet<NetworkName>>>,
}

impl Attachments {
    /// Reads what was attached, and looks after it from now on.
    pub(super) fn start(
        state_dir: &std::path::Path,
        catalog: &Catalog,
        ready: watch::Receiver<Ready>,
        leased: watch::Receiver<bool>,
        tasks: &Tasks,
    ) -> Result<(Self, Vec<String>), Refused> {
        let (ledger, problems) = Ledger::open(state_dir.join(DIRECTORY))?;
        let used = Arc::new(watch::Sender::new(used(&ledger)));
        let (ledger, catalog) = (Arc::new(Mutex::new(ledger)), catalog.clone());
        let attachments = Self { ledger, catalog, ready, leased, used };
        let looked_after = attachments.clone();
        tasks.spawn_until_stopped("overlay attachments", move || looked_after.clone().look_after());
        Ok((attachments, problems))
    }

    /// The networks that something is attached to.
    pub(super) fn used(&self) -> watch::Receiver<BTreeSet<NetworkName>> {
        self.used.subscribe()
    }

    pub(super) fn note_used(&self, ledger: &Ledger<Details>) {
        let used = used(ledger);
        self.used.send_if_modified(|known| {
            let is_new = *known != used;
            *known = used;
            is_new
        });
    }

    pub(super) async fn ledger(&self) -> Result<MutexGuard<'_, Ledger<Details>>, LedgerError> {
        let mut ledger = self.ledger.lock().await;
        ledger.refresh()?;
        Ok(ledger)
    }

    /// Everything that is attached.
    pub(super) async fn all(&self) -> Vec<Attached> {
        self.ledger.lock().await.all().map(|(id, record)| attached(id, record)).collect()
    }

    /// Attaches a container; when this returns, it can be reached.
    pub(super) async fn attach(&self, request: Attach) -> Result<Attached, AttachError> {
        let Attach { id, network, namespace, interface, addresses } = request;
        if !is_link_name(&interface) {
            return Err(AttachError::Interface(interface.chars().take(100).collect()));
        }
        let view =
            self.catalog.network(network.as_str()).ok_or_else(|| AttachError::NoNetwork(network.clone()))?;
        let place = self.place(&network).await?;
        let opened = Namespace::open(&namespace)
            .map_err(|source| AttachError::Namespace { path: namespace.clone(), source })?;
        let mut ledger = self.ledger().await.map_err(Refused)?;
        let link = link_name(&id);
        // The MAC follows from the address: what neighbours know of an address is true of its next owner as well.
        let details =
            |given: &[IpAddr]| Details { namespace, interface, link, mac: mac_of(given), docker: None };
        let given = ledger.give(&id, &network, &place.subnets, &addresses, details);
        let record = given.map_err(Refused)?.clone();
        let ranges: Vec<Prefix> = view.network.pools.iter().map(|pool| pool.cidr()).collect();
        let veth = veth(&record, &place.subnets, place.mtu, ranges);
        if let Err(error) = connect(&veth, place.bridge, opened).await {
            self.undo(&mut ledger, &id, &veth.link).await;
            return Err(AttachError::Kernel(error));
        }
        self.note_used(&ledger);
        tracing::info!(id, %network, addresses = ?record.addresses, "attached a container");
        Ok(attached(&id, &record))
    }

    /// What containers of a network are attached to here; a network that was just made is waited for.
    pub(super) async fn place(&self, network: &NetworkName) -> Result<Place, AttachError> {
        let (mut leased, mut ready) = (self.leased.clone(), self.ready.clone());
        let in_time = tokio::time::timeout(READY_WITHIN, leased.wait_for(|leased| *leased)).await;
        let is_leased = in_time.is_ok_and(|leased| leased.is_ok());
        if !is_leased {
            return Err(AttachError::NotReady(
                network.clone(),
                "its lease is not renewed; is the store reachable?",
            ));
        }
        let found =
            tokio::time::timeout(READY_WITHIN, ready.wait_for(|ready| ready.contains_key(network))).await;
        let place = found.ok().and_then(|ready| ready.ok()?.get(network).cloned());
        place.ok_or(AttachError::NotReady(network.clone(), "it has no subnet of it yet; see plexus status"))
    }

    async fn undo(&self, ledger: &mut Ledger<Details>, id: &str, link: &str) {
        let removed = with_netlink(async |netlink| netlink.remove_veth(link).await).await;
        match removed.map(|()| ledger.take_back(id)) {
            Ok(Ok(_)) => {}
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
        let mut ledger = self.ledger().await.map_err(Refused)?;
        let Some(record) = ledger.get(id).cloned() else { return Ok(None) };
        with_netlink(async |netlink| netlink.remove_veth(&record.details.link).await)
            .await
            .map_err(AttachError::Kernel)?;
        ledger.take_back(id).map_err(Refused)?;
        self.note_used(&ledger);
        tracing::info!(id, network = %record.network, "detached a container");
        Ok(Some(attached(id, &record)))
    }

    async fn look_after(self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ready = self.ready.clone();
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Ok(()) = ready.changed() => {}
            }
            if let Err(error) = self.compare().await {
                tracing::debug!(%error, "containers are looked at again later");
            }
        }
    }

    /// Gives back what vanished containers had, removes links that are nobody's, and puts the others on their bridges.
    async fn compare(&self) -> io::Result<()> {
        let mut ledger = self.ledger().await.map_err(io::Error::other)?;
        with_netlink(async |netlink| {
            let mut links = netlink.container_links().await?;
            let known: Vec<(String, Record<Details>)> =
                ledger.all().map(|(id, record)| (id.clone(), record.clone())).collect();
            for (id, record) in known {
                let Some(link) = links.remove(&record.details.link) else {
                    if record.details.docker.is_some() {
                        continue;
                    }
                    ledger.take_back(&id).map_err(io::Error::other)?;
                    self.note_used(&ledger);
                    tracing::info!(id, network = %record.network, "a container is gone; its addresses are free");
                    continue;
                };
                let bridge = self.ready.borrow().get(&record.network).map(|place| place.bridge);
                if let Some(bridge) = bridge.filter(|bridge| link.bridge != Some(*bridge)) {
                    netlink.enslave(link.index, bridge).await?;
                }
            }
            if !links.is_empty() {
                // An agent that this one replaces may have made them for what was read before.
                ledger.reread().map_err(io::Error::other)?;
            }
            for (name, _) in links {
                if ledger.all().any(|(_, record)| record.details.link == name) {
                    continue;
                }
                netlink.remove_veth(&name).await?;
                tracing::info!(link = name, "removed a link of a container that was never attached");
            }
            Ok(())
        })
        .await
    }
}

fn used(ledger: &Ledger<Details>) -> BTreeSet<NetworkName> {
    ledger.all().map(|(_, record)| record.network.clone()).collect()
}

async fn connect(veth: &Veth, bridge: u32, namespace: Namespace) -> io::Result<()> {
    with_netlink(async |netlink| netlink.add_veth(veth, bridge, Some(&namespace)).await).await?;
    let veth = veth.clone();
    let set_up = tokio::task::spawn_blocking(move || veth::set_up(&namespace, &veth));
    set_up.await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

pub(super) async fn with_netlink<T>(work: impl AsyncFnOnce(&Netlink) -> io::Result<T>) -> io::Result<T> {
    let (connection, netlink) = Netlink::open()?;
    tokio::select! {
        done = work(&netlink) => done,
        () = connection => Err(io::Error::other("the kernel ended the netlink connection")),
    }
}

pub(super) fn veth(record: &Record<Details>, subnets: &[Prefix], mtu: u32, ranges: Vec<Prefix>) -> Veth {
    let with_gateway = |address: &IpAddr| {
        let subnet = subnets.iter().find(|subnet| subnet.contains(*address))?;
        Some((*address, subnet.length(), gateway(*subnet)?))
    };
    Veth {
        link: record.details.link.clone(),
        interface: record.details.interface.clone(),
        mac: record.details.mac,
        mtu,
        addresses: record.addresses.iter().filter_map(with_gateway).collect(),
        ranges,
    }
}

fn attached(id: &str, record: &Record<Details>) -> Attached {
    let Details { namespace, interface, link, mac, .. } = record.details.clone();
    let (id, network, addresses) = (id.to_owned(), record.network.clone(), record.addresses.clone());
    Attached { id, network, addresses, mac, namespace, interface, link }
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
