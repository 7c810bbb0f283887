//! The cases: what is asked of each balancer.

use std::fmt;
use std::str::FromStr;

use super::backend::Role;
use super::plan::Load;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    /// Its name in options, tables and files.
    pub(crate) name: &'static str,
    /// What the client does.
    pub(crate) load: Load,
    /// At how many places at a time.
    pub(crate) concurrency: usize,
    /// Endpoints behind the balancer.
    pub(crate) endpoints: usize,
    /// Ports that it listens on.
    pub(crate) listeners: u16,
    /// Are endpoints added and removed meanwhile?
    pub(crate) churns: bool,
}

const fn case(name: &'static str, load: Load, concurrency: usize) -> Case {
    Case { name, load, concurrency, endpoints: 4, listeners: 1, churns: false }
}

/// All of them, in the order in which they run.
pub(crate) const CASES: &[Case] = &[
    case("close-32", Load::Close, 32),
    case("close-512", Load::Close, 512),
    case("pingpong-32", Load::Keep, 32),
    case("pingpong-512", Load::Keep, 512),
    case("stream-1-up", Load::Up, 1),
    case("stream-1-down", Load::Down, 1),
    case("stream-4-up", Load::Up, 4),
    case("stream-4-down", Load::Down, 4),
    case("idle-10000", Load::Idle, 10_000),
    Case { endpoints: 1000, ..case("rate-endpoints-1000", Load::Close, 32) },
    Case { listeners: 10_000, ..case("rate-listeners-10000", Load::Close, 32) },
    Case { churns: true, ..case("churn-100-close", Load::Close, 32) },
    Case { churns: true, ..case("churn-100-pingpong", Load::Keep, 32) },
    case("udp-small-32", Load::Datagram, 32),
    case("udp-small-512", Load::Datagram, 512),
];

/// What work is counted in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Unit {
    /// For rates.
    pub(crate) plural: &'static str,
    /// For costs.
    pub(crate) single: &'static str,
    /// So many of what is counted make one.
    pub(crate) size: f64,
}

impl Case {
    /// The backend's port.
    pub(crate) fn role(&self) -> Role {
        match self.load {
            Load::Close => Role::Close,
            Load::Keep | Load::Datagram | Load::Idle => Role::Keep,
            Load::Up => Role::Sink,
            Load::Down => Role::Source,
        }
    }

    /// What its work is counted in.
    pub(crate) fn unit(&self) -> Unit {
        let (plural, single, size) = match self.load {
            Load::Close => ("connections/s", "connection", 1.0),
            Load::Keep | Load::Datagram => ("exchanges/s", "exchange", 1.0),
            Load::Up | Load::Down => ("GiB/s", "GiB", 1024.0 * 1024.0 * 1024.0),
            Load::Idle => ("connections", "connection", 1.0),
        };
        Unit { plural, single, size }
    }

    /// Is it about streams, where HAProxy is measured with splice and without?
    pub(crate) fn streams(&self) -> bool {
        matches!(self.load, Load::Up | Load::Down)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        CASES.iter().find(|case| case.name == text).copied().ok_or_else(|| {
            let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
            format!("there is no case {text:?}; there are {}", names.join(", "))
        })
    }
}
