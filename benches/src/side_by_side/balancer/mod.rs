//! The balancers under test: each is configured as somebody who knows it well would for this machine and this many threads.
//!
//! All of them pass connections on as they are: no PROXY protocol, no checks, no logs, round robin (nginx's and HAProxy's
//! default), timeouts longer than a measurement.

mod haproxy;
mod nginx;
mod plexus;

use std::fmt;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use plexus_tests::Process;

use super::lab::{self, Lab};

/// The first port that balancers listen on.
pub(crate) const FIRST_PORT: u16 = 20_000;

/// Who stands between client and backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Peer {
    /// Nobody: the machine in the middle forwards packets. The limit of this machine and this generator.
    Direct,
    /// The program that this repository makes.
    Plexus,
    /// HAProxy in TCP mode, `option splice-auto`.
    Haproxy,
    /// The same without: better where streams are short or the kernel's copies cheap.
    HaproxyCopy,
    /// nginx's stream module.
    Nginx,
}

impl Peer {
    /// All of them.
    pub(crate) const ALL: [Self; 5] =
        [Self::Direct, Self::Plexus, Self::Haproxy, Self::HaproxyCopy, Self::Nginx];

    /// Its name in options, tables and files.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Plexus => "plexus",
            Self::Haproxy => "haproxy",
            Self::HaproxyCopy => "haproxy-copy",
            Self::Nginx => "nginx",
        }
    }

    /// The program that must be installed.
    #[must_use]
    pub(crate) fn program(self) -> Option<&'static str> {
        match self {
            Self::Haproxy | Self::HaproxyCopy => Some("haproxy"),
            Self::Nginx => Some("nginx"),
            Self::Direct | Self::Plexus => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|peer| peer.name() == text).ok_or_else(|| {
            format!("there is no peer {text:?}; there are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// What a balancer has to do in a case.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// Data-plane threads; worker processes of nginx.
    pub(crate) threads: usize,
    /// Where connections go.
    pub(crate) endpoints: Vec<SocketAddrV4>,
    /// Ports that it listens on, from [`FIRST_PORT`].
    pub(crate) listeners: u16,
    /// Datagrams instead of connections.
    pub(crate) datagrams: bool,
    /// Connections that it must be able to have open.
    pub(crate) connections: usize,
    /// The program of [`Peer::Plexus`].
    pub(crate) plexus: PathBuf,
}

/// Why a peer has no part in a case.
#[derive(Debug)]
pub(crate) struct Unable(pub(crate) String);

/// One that runs, in the lab's namespace in the middle.
#[derive(Debug)]
pub(crate) struct Balancer {
    /// Where clients go.
    pub(crate) targets: Vec<SocketAddrV4>,
    /// Killed when dropped; none for `direct`.
    process: Option<Process>,
}

/// Starts a peer. It answers or will soon: the caller waits for that.
pub(crate) fn start(peer: Peer, lab: &Lab, setup: &Setup) -> anyhow::Result<Result<Balancer, Unable>> {
    let process = match peer {
        Peer::Direct => None,
        Peer::Plexus => match plexus::start(lab, setup)? {
            Ok(process) => Some(process),
            Err(unable) => return Ok(Err(unable)),
        },
        Peer::Haproxy | Peer::HaproxyCopy if setup.datagrams => {
            return Ok(Err(Unable("HAProxy balances no UDP".to_owned())));
        }
        Peer::Haproxy => Some(haproxy::start(lab, setup, true)?),
        Peer::HaproxyCopy => Some(haproxy::start(lab, setup, false)?),
        Peer::Nginx => Some(nginx::start(lab, setup)?),
    };
    let targets = match peer {
        Peer::Direct => setup.endpoints.clone(),
        _ => (FIRST_PORT..FIRST_PORT + setup.listeners).flat_map(lab::front).collect(),
    };
    Ok(Ok(Balancer { targets, process }))
}

impl Balancer {
    /// The end of its log, and an error if it has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        if let Some(status) = process.status() {
            bail!("{} ended ({status}) and said: {}", process.name(), process.output());
        }
        Ok(())
    }
}

/// Writes a configuration into the lab's directory.
fn write(lab: &Lab, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = lab.directory().join(name);
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path)
}
