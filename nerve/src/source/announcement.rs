//! A registration in the form of another system, beside the record in the store: for those who still read that.

use std::num::NonZeroU32;
use std::time::Duration;

/// What an instance is announced as while it is well.
#[derive(Debug, Clone, PartialEq)]
pub struct Announcement {
    /// Where.
    pub registry: Registry,
    /// The name that the entry of it begins with; no `/` in it.
    pub name: String,
    /// What the entry holds: JSON.
    pub data: String,
    /// How often it may come and go.
    pub limit: Limit,
}

// Rates are finite by construction, so equality is one.
impl Eq for Announcement {}

/// Where a system looks for instances.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Registry {
    /// Znodes of Nerve's form, one an instance.
    ZooKeeper {
        /// `host:port,host:port`, with what is to be the root behind it if there is such.
        ensemble: String,
        /// The absolute path of the znode that instances are children of.
        path: String,
        /// What kind of znode.
        mode: NodeMode,
        /// The znode's name holds its data.
        encoded: bool,
        /// A persistent znode is written again so often.
        renewed: Option<Duration>,
    },
    /// Keys under a lease, one an instance.
    Etcd {
        /// `host:port`.
        server: String,
        /// The absolute path that keys stand below.
        path: String,
    },
}

/// The kinds of znodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeMode {
    /// It ends with its session.
    pub ephemeral: bool,
    /// ZooKeeper numbers it.
    pub sequential: bool,
}

/// How often an announcement may change: tokens, one a change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    /// What is too often is counted, and done.
    pub only_counted: bool,
    /// So many tokens come a second; `None`: no limit.
    pub average_rate: Option<f64>,
    /// So many are kept at most.
    pub max_burst: Option<NonZeroU32>,
}

impl Default for Limit {
    fn default() -> Self {
        Self { only_counted: true, average_rate: None, max_burst: None }
    }
}
