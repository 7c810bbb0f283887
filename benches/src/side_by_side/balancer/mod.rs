//! The balancers under test: each is configured as somebody who knows it well would for this machine and this many threads.
//!
//! All of them pass connections on as they are: no PROXY protocol, no checks, no logs, round robin (nginx's and HAProxy's
//! default), timeouts longer than a measurement.

mod haproxy;
mod nginx;
mod pairs;
mod plexus;

use std::fmt;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
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
    /// Two data planes of this repository with a tunnel between them.
    Tunnel,
    /// Two HAProxys with mutual TLS between them.
    HaproxyTls,
}

impl Peer {
    /// Those that are measured unless others are asked for.
    pub(crate) const USUAL: [Self; 5] =
        [Self::Direct, Self::Plexus, Self::Haproxy, Self::HaproxyCopy, Self::Nginx];

    /// All of them.
    const ALL: [Self; 7] = [
        Self::Direct,
        Self::Plexus,
        Self::Haproxy,
        Self::HaproxyCopy,
        Self::Nginx,
        Self::Tunnel,
        Self::HaproxyTls,
    ];

    /// Its name in options, tables and files.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Plexus => "plexus",
            Self::Haproxy => "haproxy",
            Self::HaproxyCopy => "haproxy-copy",
            Self::Nginx => "nginx",
            Self::Tunnel => "tunnel",
            Self::HaproxyTls => "haproxy-tls",
        }
    }

    /// The program that must be installed.
    #[must_use]
    pub(crate) fn program(self) -> Option<&'static str> {
        match self {
            Self::Haproxy | Self::HaproxyCopy | Self::HaproxyTls => Some("haproxy"),
            Self::Nginx => Some("nginx"),
            Self::Direct | Self::Plexus | Self::Tunnel => None,
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
    /// Endpoints that come and go.
    pub(crate) spares: Vec<SocketAddrV4>,
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
    /// Killed when dropped; none for `direct`, two for pairs.
    processes: Vec<Process>,
}

/// Starts a peer. It answers or will soon: the caller waits for that.
pub(crate) fn start(peer: Peer, lab: &Lab, setup: &Setup) -> anyhow::Result<Result<Balancer, Unable>> {
    if let Some(unable) = has_no_part(peer, setup) {
        return Ok(Err(unable));
    }
    let processes = match peer {
        Peer::Direct => Vec::new(),
        Peer::Plexus => match plexus::start(lab, setup)? {
            Ok(process) => vec![process],
            Err(unable) => return Ok(Err(unable)),
        },
        Peer::Haproxy => vec![haproxy::start(lab, setup, true)?],
        Peer::HaproxyCopy => vec![haproxy::start(lab, setup, false)?],
        Peer::Nginx => vec![nginx::start(lab, setup)?],
        Peer::Tunnel => pairs::tunnel(lab, setup)?,
        Peer::HaproxyTls => pairs::haproxy(lab, setup)?,
    };
    let targets = match peer {
        Peer::Direct => setup.endpoints.clone(),
        _ => (FIRST_PORT..FIRST_PORT + setup.listeners).flat_map(lab::front).collect(),
    };
    Ok(Ok(Balancer { targets, processes }))
}

fn has_no_part(peer: Peer, setup: &Setup) -> Option<Unable> {
    let why = match peer {
        Peer::Tunnel | Peer::HaproxyTls if setup.datagrams || !setup.spares.is_empty() => {
            "pairs carry connections, and have no way to change their endpoints"
        }
        Peer::Haproxy | Peer::HaproxyCopy if setup.datagrams => "HAProxy balances no UDP",
        Peer::Direct if !setup.spares.is_empty() => "nobody chooses, so nobody needs to know of changes",
        Peer::Nginx if !setup.spares.is_empty() => {
            "nginx learns of endpoints by a reload, which starts new worker processes: not a hundred times a second"
        }
        _ => return None,
    };
    Some(Unable(why.to_owned()))
}

impl Balancer {
    /// The end of its log, and an error if it has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        for process in &mut self.processes {
            if let Some(status) = process.status() {
                bail!("{} ended ({status}) and said: {}", process.name(), process.output());
            }
        }
        Ok(())
    }
}

/// The way in which a balancer learns of endpoints that come and go.
pub(crate) enum Control {
    Plexus(plexus::Control),
    Haproxy(haproxy::Control),
}

impl Control {
    /// Opens it; to be called on a thread inside the balancer's namespace.
    pub(crate) fn open(peer: Peer, socket: &Path) -> anyhow::Result<Self> {
        match peer {
            Peer::Plexus => Ok(Self::Plexus(plexus::Control::open()?)),
            Peer::Haproxy | Peer::HaproxyCopy => Ok(Self::Haproxy(haproxy::Control::open(socket)?)),
            Peer::Direct | Peer::Nginx | Peer::Tunnel | Peer::HaproxyTls => {
                bail!("{peer} has no way to change its endpoints")
            }
        }
    }

    /// The socket, of those who have one.
    pub(crate) fn path(lab: &Lab) -> PathBuf {
        haproxy::Control::path(lab)
    }

    /// Adds a spare endpoint or takes it out.
    pub(crate) fn change(
        &mut self,
        spare: usize,
        endpoint: SocketAddrV4,
        present: bool,
    ) -> anyhow::Result<()> {
        match self {
            Self::Plexus(control) => control.change(spare, endpoint, present),
            Self::Haproxy(control) => control.change(spare, present),
        }
    }
}

/// Writes a configuration into the lab's directory.
fn write(lab: &Lab, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = lab.directory().join(name);
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path)
}
