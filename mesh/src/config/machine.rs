//! What the defaults depend on: this machine. Read once and passed in, so that reading a configuration is pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nerve::model::NodeName;

/// Where root's agent keeps its state.
const OF_ROOT: &str = "/var/lib/plexus";

/// The machine, as far as defaults depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its host name, as the kernel has it.
    pub host_name: Option<String>,
    /// Its address on the way to the default route.
    pub address: Option<IpAddr>,
    /// Where an agent of this user keeps its state.
    pub state_dir: Option<PathBuf>,
}

impl Machine {
    /// This machine and this user.
    #[must_use]
    pub fn this() -> Self {
        Self {
            host_name: std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|n| n.trim().to_owned()),
            address: default_route_address(),
            state_dir: state_dir(),
        }
    }

    /// Where agents of this machine keep their state unless they are told otherwise: one of this user, and root's.
    pub(super) fn state_dirs() -> Vec<PathBuf> {
        state_dir().into_iter().chain([PathBuf::from(OF_ROOT)]).collect()
    }

    /// The node name that the host name gives: its first label in lower case.
    pub(super) fn node_name(&self) -> Option<NodeName> {
        let label = self.host_name.as_deref()?.split('.').next()?.to_ascii_lowercase();
        NodeName::new(&label).ok()
    }
}

/// The address that the kernel would send from to somewhere far away. Connecting a UDP socket sends nothing; the
/// addresses are those of RFC 5737 and RFC 3849, which nobody has.
fn default_route_address() -> Option<IpAddr> {
    let towards = |local: IpAddr, far: IpAddr| {
        let socket = UdpSocket::bind(SocketAddr::new(local, 0)).ok()?;
        socket.connect(SocketAddr::new(far, 9)).ok()?;
        let address = socket.local_addr().ok()?.ip();
        (!address.is_unspecified() && !address.is_loopback()).then_some(address)
    };
    towards(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()).or_else(|| {
        towards(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into())
    })
}

/// `/var/lib/plexus` for root, else the user's state directory (XDG base directory specification 0.8).
fn state_dir() -> Option<PathBuf> {
    // The owner of /proc/self is the effective user of this process (proc(5)).
    if std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
        return Some(PathBuf::from(OF_ROOT));
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("plexus"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_gives_its_first_label() {
        let named = |name: &str| Machine { host_name: Some(name.to_owned()), address: None, state_dir: None };
        assert_eq!(named("Web-1.example.com").node_name(), NodeName::new("web-1").ok());
        assert_eq!(named("my_host").node_name(), None);
        assert_eq!(named("").node_name(), None);
    }
}
