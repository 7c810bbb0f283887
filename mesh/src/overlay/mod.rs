//! Overlay networks: containers of all nodes reach each other by their own addresses.
//!
//! Three parts. `claims` holds one subnet of every network for this node, in the store, by compare-and-swap, under a lease of its own that
//! outlives restarts of the agent. `keeper` makes the kernel's links, routes, neighbours and forwarding entries what `plan` says, and the
//! packet filter's table what `firewall` says, and puts back what somebody takes away. `attach` connects containers, whose addresses
//! `ledger` gives and remembers. `probe` asks peers what passes between them and this node, and answers theirs.
//!
//! While the store is out of reach nothing is taken away: what the kernel has goes on passing packets. Without `CAP_NET_ADMIN`
//! networks are not for this node, that is said, and the rest of the agent does not notice.

mod attach;
mod claims;
mod cleanup;
mod firewall;
mod keeper;
mod ledger;
mod metrics;
mod netlink;
mod plan;
mod probe;
mod sysctl;
mod underlay;
mod veth;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nerve::model::{NetworkName, NodeName, Prefix, Slot};
use nerve::store::Store;
use nerve::tasks::Tasks;
use synapse::catalog::Catalog;
use tokio::sync::watch;

use attach::Attachments;

pub use attach::{Attach, AttachError, Attached, Refused};
pub use cleanup::{Removed, cleanup};
pub(crate) use firewall::TABLE;
pub use metrics::Metrics;
pub(crate) use netlink::PROTOCOL;
pub use probe::{Outcome, Path, Peer, Prober, Underlay, Way, port as probe_port};

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
    /// How long a node that has fallen silent keeps its subnets.
    pub lease: Duration,
    /// Where it is kept which subnets this node had.
    pub state_dir: PathBuf,
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
    prober: Option<Prober>,
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
    metrics: &Metrics,
    tasks: &Tasks,
) -> std::io::Result<Handle> {
    let Some(config) = config else { return Ok(Handle::default()) };
    let ((tell_held, held), (tell_leased, leased)) = (watch::channel(Held::new()), watch::channel(false));
    let (tell_ready, ready) = watch::channel(keeper::Ready::new());
    let (tell_link, link) = watch::channel(None);
    let (attachments, unread) = Attachments::start(&config.state_dir, catalog, ready.clone(), leased, tasks)
        .map_err(std::io::Error::other)?;
    unread.iter().for_each(|problem| tracing::error!("{problem}"));
    let config = Arc::new(config);
    let prober = Some(Prober::new(&config, catalog, ready.clone(), link.clone()));
    let handle = Handle { problems: Arc::default(), attachments: Some(attachments), prober };
    probe::start(&config, catalog, ready, metrics, tasks);
    claims::start(&config, (catalog, store), (tell_held, tell_leased), &link, &handle, metrics, tasks);
    keeper::start(&config, catalog, held, (tell_ready, tell_link), &handle, metrics, tasks);
    Ok(handle)
}

impl Handle {
    /// What fails, a sentence each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let list = |part: &Mutex<Vec<String>>| part.lock().unwrap_or_else(PoisonError::into_inner).clone();
        [list(&self.problems.claims), list(&self.problems.kernel)].concat()
    }

    /// Attaches a container; when this returns, it can be reached.
    ///
    /// # Errors
    /// There is no such network or namespace, no address, or the kernel refuses. Then nothing was changed.
    pub async fn attach(&self, request: Attach) -> Result<Attached, AttachError> {
        self.attachments.as_ref().ok_or(AttachError::Off)?.attach(request).await
    }

    /// Detaches a container; `None`: there is none of that name.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn detach(&self, id: &str) -> Result<Option<Attached>, AttachError> {
        self.attachments.as_ref().ok_or(AttachError::Off)?.detach(id).await
    }

    /// Asks peers what passes between them and this node; `None` where it takes part in no network.
    #[must_use]
    pub fn prober(&self) -> Option<&Prober> {
        self.prober.as_ref()
    }

    /// The containers that are attached here.
    pub async fn attached(&self) -> Vec<Attached> {
        match &self.attachments {
            Some(attachments) => attachments.all().await,
            None => Vec::new(),
        }
    }
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
