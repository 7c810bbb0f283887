//! Overlay networks: containers of all nodes reach each other by their own addresses.
//!
//! Four parts. `claims` holds one subnet of every network for this node, in the store, by compare-and-swap, under a lease of its own that
//! outlives restarts of the agent. `keeper` makes the kernel's links, routes, neighbours and forwarding entries what `plan` says, and the
//! packet filter's table what `firewall` says, and puts back what somebody takes away: `due` says what is to be compared, by what `events`
//! tells of the kernel and what is `here`. `attach` connects containers, whose addresses
//! `ledger` gives and remembers, `docker` those that Docker connects; `sealed` has what encrypts; `recover` puts in order what vanishes, and what a killed agent leaves; `inspect` compares with
//! the kernel, `removal` takes links away together. `probe` asks peers what passes between them and this node, and answers theirs.
//!
//! While the store is out of reach nothing is taken away: what the kernel has goes on passing packets. Without `CAP_NET_ADMIN`
//! networks are not for this node, that is said, and the rest of the agent does not notice.

mod addresses;
mod attach;
mod claims;
mod cleanup;
mod docker;
mod due;
mod events;
mod fast_path;
mod firewall;
mod foreign;
mod here;
mod inspect;
mod keeper;
mod ledger;
mod messages;
mod metrics;
mod names;
mod netlink;
mod plan;
mod probe;
mod programs;
mod recover;
mod removal;
mod returns;
mod rules;
mod sealed;
mod sysctl;
mod turns;
mod underlay;
mod veth;
mod ways;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nerve::model::{NetworkName, NodeName, Prefix, Slot};
use nerve::store::Store;
use nerve::tasks::Tasks;
use serde::Serialize;
use synapse::catalog::Catalog;
use tokio::sync::watch;

use attach::Attachments;

pub use attach::{Attach, AttachError, Attached, Described, Given, Offer, Owner, Refused};
pub use cleanup::{Removed, cleanup};
pub use docker::{DockerError, DockerLinks, Joined, Pool};
pub(crate) use firewall::TABLE;
pub(crate) use messages::PROTOCOL;
pub use metrics::Metrics;
pub use probe::{Outcome, Path, Peer, Prober, Underlay, Way, port as probe_port};
pub use ways::{Way as EncryptedWay, Ways};

/// How this node takes part in overlay networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This node.
    pub node: NodeName,
    /// Where other nodes send its packets.
    pub address: IpAddr,
    /// The ranges of the network `default`, which is made where it is not there; none: it is not.
    pub default: Vec<Prefix>,
    /// The UDP port of the tunnels, the same on every node; 4789 is VXLAN's (RFC 7348).
    pub port: u16,
    /// The first UDP port of what encrypts networks.
    pub encryption_port: u16,
    /// The age at which a key of encrypted networks is followed by the next one.
    pub key_lifetime: Duration,
    /// How long a node that has fallen silent keeps its subnets.
    pub lease: Duration,
    /// Where it is kept which subnets this node had.
    pub state_dir: PathBuf,
    /// The way of packets between containers of different nodes through this host.
    pub fast_path: FastPath,
}

/// The way of packets between containers of different nodes through their hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FastPath {
    /// All of it, as that of any packet.
    Off,
    /// Rules of the packet filter send them on before all other ones.
    Filter,
    /// Programs in the kernel do, and those rules what programs leave.
    #[default]
    Programs,
}

impl FromStr for FastPath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "filter" => Ok(Self::Filter),
            "programs" => Ok(Self::Programs),
            _ => Err("no such way"),
        }
    }
}

/// Whether what arrives by tunnels takes the usual way through this host, which whoever looks at sockets needs it to.
#[derive(Debug)]
pub struct UsualWay {
    /// It is to.
    pub asked: watch::Receiver<bool>,
    /// It does.
    pub given: watch::Sender<bool>,
}

/// What the names of all links of networks begin with.
pub(crate) const LINKS: &str = "plx";

/// The subnet that this node holds of each network.
type Held = BTreeMap<NetworkName, Slot>;

/// How it stands, for readers. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Handle {
    problems: Arc<Problems>,
    /// `None` where this node takes part in no network.
    attachments: Option<Attachments>,
    docker: Option<DockerLinks>,
    prober: Option<Prober>,
    ways: Option<watch::Receiver<Arc<Ways>>>,
}

/// What fails, in words, by the part that it is of.
#[derive(Debug, Default)]
struct Problems {
    claims: Mutex<Vec<String>>,
    kernel: Mutex<Vec<String>>,
}

/// Starts all of it; nothing where this node takes part in no network.
///
/// # Errors
/// The addresses that were given cannot be read.
pub fn start(
    config: Option<Config>,
    catalog: &Catalog,
    store: &Arc<dyn Store>,
    usual_way: UsualWay,
    metrics: &Metrics,
    tasks: &Tasks,
) -> std::io::Result<Handle> {
    let Some(config) = config else { return Ok(Handle::default()) };
    let ((tell_held, held), (tell_leased, leased)) = (watch::channel(Held::new()), watch::channel(None));
    let (tell_ready, ready) = watch::channel(keeper::Ready::new());
    let (tell_returning, returning) = watch::channel(None);
    let (tell_link, link) = watch::channel(None);
    let (tell_keys, keys) = watch::channel(None);
    let (tell_ways, ways) = watch::channel(Arc::default());
    let (attachments, unread) = Attachments::start(&config.state_dir, catalog, ready.clone(), leased, tasks)
        .map_err(std::io::Error::other)?;
    unread.iter().for_each(|problem| tracing::error!("{problem}"));
    let docker = Some(DockerLinks::start(attachments.clone(), tasks));
    let config = Arc::new(config);
    let prober = Some(Prober::new(&config, catalog, ready.clone(), link.clone()));
    let handle =
        Handle { problems: Arc::default(), attachments: Some(attachments), docker, prober, ways: Some(ways) };
    probe::start(&config, catalog, ready, metrics, tasks);
    let (tell_held, tell_leased) = (Arc::new(tell_held), Arc::new(tell_leased));
    let channels = claims::Channels { held: tell_held, leased: tell_leased, returning, link, keys };
    claims::start(&config, catalog, store, channels, &handle, metrics, tasks);
    let (ready, returning, link) = (Arc::new(tell_ready), Arc::new(tell_returning), Arc::new(tell_link));
    let (keys, ways) = (Arc::new(tell_keys), Arc::new(tell_ways));
    let tell = keeper::Tell { ready, returning, link, usual_way: Arc::new(usual_way.given), keys, ways };
    let listen = keeper::Listen { held, usual_way: usual_way.asked };
    keeper::start(&config, catalog, listen, tell, &handle, metrics, tasks);
    Ok(handle)
}

impl Handle {
    /// What fails, a sentence each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let list = |part: &Mutex<Vec<String>>| part.lock().unwrap_or_else(PoisonError::into_inner).clone();
        [list(&self.problems.claims), list(&self.problems.kernel)].concat()
    }

    /// How packets to peers in encrypted networks are encrypted, by each peer's name and address.
    #[must_use]
    pub fn ways(&self) -> Arc<Ways> {
        self.ways.as_ref().map(|ways| Arc::clone(&ways.borrow())).unwrap_or_default()
    }

    /// Can this node encrypt what it sends to others?
    ///
    /// # Errors
    /// Why not.
    pub async fn can_encrypt(&self) -> Result<(), String> {
        if self.attachments.is_none() {
            return Err("overlay networks are off on this node (overlay.enabled)".to_owned());
        }
        let checked = netlink::with_netlink(async |netlink| Ok(sealed::check(netlink).await)).await;
        checked.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Attaches a container; when this returns, it can be reached.
    ///
    /// # Errors
    /// There is no such network or namespace, no address, or the kernel refuses. Then nothing was changed.
    pub async fn attach(&self, request: Attach) -> Result<Given, AttachError> {
        self.attachments.as_ref().ok_or(AttachError::Off)?.attach(request).await
    }

    /// Detaches a container; `None`: there is none of that name.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn detach(&self, id: &str) -> Result<Option<Attached>, AttachError> {
        self.attachments.as_ref().ok_or(AttachError::Off)?.detach(id).await
    }

    /// What is done for Docker; `None` where this node takes part in no network.
    #[must_use]
    pub fn docker(&self) -> Option<&DockerLinks> {
        self.docker.as_ref()
    }

    /// What of an attachment is not as it was made, a sentence each; `None`: there is none of that name.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub async fn check(&self, id: &str) -> Result<Option<(Attached, Vec<String>)>, AttachError> {
        self.attachments.as_ref().ok_or(AttachError::Off)?.check(id).await
    }

    /// What containers of a network would be given here.
    ///
    /// # Errors
    /// There is no such network, or nothing can be attached to it now.
    pub async fn offer(&self, network: &NetworkName) -> Result<Offer, AttachError> {
        self.attachments.as_ref().ok_or(AttachError::Off)?.offer(network).await
    }

    /// Asks peers what passes between them and this node; `None` where it takes part in no network.
    #[must_use]
    pub fn prober(&self) -> Option<&Prober> {
        self.prober.as_ref()
    }

    /// The containers that are attached here and of which something is said, and word of changes; `None` where this node takes part
    /// in no network.
    #[must_use]
    pub fn described(&self) -> Option<watch::Receiver<Arc<Vec<Attached>>>> {
        self.attachments.as_ref().map(Attachments::described)
    }

    /// The containers that are attached here.
    #[must_use]
    pub fn attached(&self) -> Vec<Attached> {
        self.attachments.as_ref().map_or_else(Vec::new, Attachments::all)
    }
}

/// Tells a value, where it is another one than was told before.
fn send_if_new<T: PartialEq>(to: &watch::Sender<T>, value: T) {
    to.send_if_modified(|known| {
        let is_new = *known != value;
        *known = value;
        is_new
    });
}

impl Problems {
    fn set(part: &Mutex<Vec<String>>, problems: Vec<String>) {
        let mut known = part.lock().unwrap_or_else(PoisonError::into_inner);
        for problem in problems.iter().filter(|problem| !known.contains(problem)) {
            tracing::error!("{problem}");
        }
        *known = problems;
    }
}
