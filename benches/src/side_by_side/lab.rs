//! Three machines in a row: client — balancer — backend, each a network namespace, joined by two cables.
//!
//! Balancer and backend answer on whole networks (a route makes them local), so a thousand endpoints need no thousand
//! addresses to be configured, and connections spread over several addresses do not run out of ports. The balancer's
//! machine also forwards, which is the way of `direct`. Every measurement has a lab of its own: no connection that waits
//! out its `TIME_WAIT`, no socket, no process of the one before is left in the next.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use anyhow::{Context as _, ensure};
use plexus_tests::{Namespace, World, run};

/// Addresses that the balancer answers on.
const FRONT: [u8; 2] = [10, 91];
/// Addresses that the backend answers on.
const BACK: [u8; 2] = [10, 90];
/// Endpoints for each value of the third octet.
const ENDPOINTS_A_NETWORK: usize = 250;
/// Addresses of the balancer that clients spread over.
const FRONT_ADDRESSES: u8 = 4;
/// The first address that the backend's machine answers datagrams on; the others follow.
pub(crate) const DATAGRAM_ENDPOINTS: usize = 4;

/// The machines. All of it is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) client: Namespace,
    pub(crate) balancer: Namespace,
    pub(crate) backend: Namespace,
    /// Dropped last: it ends every process in the namespaces and removes them.
    world: World,
}

impl Lab {
    /// Cables laid, addresses given, routes set.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let world = World::new();
        let machine = |name: &str, address| Namespace::add(format!("{}-{name}", world.name()), address);
        let lab = Self {
            client: machine("client", Ipv4Addr::new(10, 88, 1, 1)),
            balancer: machine("balancer", Ipv4Addr::new(10, 88, 1, 254)),
            backend: machine("backend", Ipv4Addr::new(10, 88, 2, 1)),
            world,
        };
        lab.cable()?;
        for namespace in [&lab.client, &lab.balancer, &lab.backend] {
            namespace.enter(tune).context("set the kernel's parameters of a namespace")?;
        }
        Ok(lab)
    }

    /// Files of this lab.
    pub(crate) fn directory(&self) -> &Path {
        self.world.directory()
    }

    /// Where a process of this lab logs.
    pub(crate) fn log(&self, name: &str) -> std::path::PathBuf {
        self.world.log(name)
    }

    fn cable(&self) -> anyhow::Result<()> {
        let (client, balancer, backend) = (self.client.name(), self.balancer.name(), self.backend.name());
        let [front_a, front_b] = FRONT;
        let [back_a, back_b] = BACK;
        let commands = format!(
            "link add eth0 netns {client} type veth peer name front netns {balancer}\n\
             link add eth0 netns {backend} type veth peer name back netns {balancer}\n\
             @{client} address add 10.88.1.1/24 dev eth0\n\
             @{balancer} address add 10.88.1.254/24 dev front\n\
             @{balancer} address add 10.88.2.254/24 dev back\n\
             @{backend} address add 10.88.2.1/24 dev eth0\n\
             @{client} link set eth0 up\n\
             @{balancer} link set front up\n\
             @{balancer} link set back up\n\
             @{backend} link set eth0 up\n\
             @{client} route add default via 10.88.1.254\n\
             @{backend} route add default via 10.88.2.254\n\
             @{balancer} route add {back_a}.{back_b}.0.0/16 via 10.88.2.1\n\
             @{balancer} route add local {front_a}.{front_b}.0.0/16 dev lo\n\
             @{backend} route add local {back_a}.{back_b}.0.0/16 dev lo"
        );
        for command in commands.lines() {
            let mut words: Vec<&str> = command.split_whitespace().collect();
            let inside = words[0].strip_prefix('@').map(|namespace| ["-n", namespace]);
            if let Some(inside) = &inside {
                words.splice(0..1, inside.iter().copied());
            }
            words.insert(0, "ip");
            let ran = run(&words).context("start ip (iproute2)")?;
            ensure!(ran.success(), "{ran}");
        }
        Ok(())
    }
}

/// The address of an endpoint on the backend's machine, counted from 0.
pub(crate) fn endpoint(index: usize, port: u16) -> SocketAddrV4 {
    let octet = |value: usize| u8::try_from(value).unwrap_or(u8::MAX);
    let (third, fourth) = (octet(index / ENDPOINTS_A_NETWORK), octet(1 + index % ENDPOINTS_A_NETWORK));
    SocketAddrV4::new(Ipv4Addr::new(BACK[0], BACK[1], third, fourth), port)
}

/// What clients ask of the balancer where it listens on this port.
pub(crate) fn front(port: u16) -> impl Iterator<Item = SocketAddrV4> {
    (1..=FRONT_ADDRESSES).map(move |last| SocketAddrV4::new(Ipv4Addr::new(FRONT[0], FRONT[1], 0, last), port))
}

/// As a machine for many connections is set up. A thread that stands inside sees its namespace's parameters.
fn tune() -> std::io::Result<()> {
    for (name, value) in [
        ("ip_forward", "1"),
        ("conf/all/rp_filter", "0"),
        ("ip_local_port_range", "1024 65535"),
        // Where balancers listen: their own connections are not to take those ports.
        ("ip_local_reserved_ports", "20000-30000"),
        ("tcp_tw_reuse", "1"),
        ("tcp_max_syn_backlog", "16384"),
        ("tcp_syncookies", "0"),
        // What was learnt of one connection's path is not to be the beginning of the next one's.
        ("tcp_no_metrics_save", "1"),
    ] {
        fs::write(format!("/proc/sys/net/ipv4/{name}"), value)?;
    }
    Ok(())
}
