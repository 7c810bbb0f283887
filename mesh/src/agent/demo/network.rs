//! The demo's network: one namespace a node, a bridge between them in a namespace of its own, one link to the host.
//!
//! ```text
//! host  plexus-demo0 ── host ┐
//!                            br0 (the switch's namespace)
//! node a  eth0 ──────────  a ┤
//! node b  eth0 ──────────  b ┤   …
//! ```
//!
//! Nothing of it is on the host but one end of a veth pair, whose other end dies with the switch's namespace.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

use futures_util::TryStreamExt;
use nerve::model::NodeName;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::netns::Namespace;

/// The first two octets of every subnet that the demo may take; the third is the first that nothing on the host uses.
const SUBNETS: [u8; 2] = [10, 213];
const PREFIX_LEN: u8 = 24;
const FIRST_NODE: u8 = 11;

/// One node's place in the network.
#[derive(Debug, Clone)]
pub(super) struct NodePlace {
    pub(super) name: NodeName,
    pub(super) address: Ipv4Addr,
    pub(super) namespace: Namespace,
}

/// The whole network. It is gone when this value and the processes in it are.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) nodes: Vec<NodePlace>,
    host_link: String,
    _switch: Namespace,
}

impl Network {
    /// Builds namespaces and links for `names`. Fails with `PermissionDenied` where the process may not.
    pub(super) fn create(names: &[NodeName]) -> io::Result<Self> {
        let switch = Namespace::create()?;
        let host = Namespace::current()?;
        let (subnet, host_link) = host.block_on(|| async {
            let handle = connect()?;
            let subnet = free_subnet(&handle).await?;
            let link = free_link_name(&handle).await?;
            add_veth_into(&handle, &link, "host", &switch).await?;
            give_address(&handle, &link, address(subnet, 1)).await?;
            Ok((subnet, link))
        })?;
        switch.block_on(|| async {
            let handle = connect()?;
            up(&handle, "lo").await?;
            let bridge = LinkBridge::new("br0").up().build();
            handle.link().add(bridge).execute().await.map_err(|e| failed("add bridge br0", &e))?;
            enslave(&handle, "host").await
        })?;
        let mut nodes = Vec::with_capacity(names.len());
        for (name, host_part) in names.iter().zip(FIRST_NODE..) {
            let namespace = Namespace::create()?;
            let address = address(subnet, host_part);
            switch.block_on(|| async {
                let handle = connect()?;
                let port = format!("port-{name}");
                add_veth_into(&handle, &port, "eth0", &namespace).await?;
                enslave(&handle, &port).await
            })?;
            namespace.block_on(|| async {
                let handle = connect()?;
                up(&handle, "lo").await?;
                give_address(&handle, "eth0", address).await?;
                let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(self::address(subnet, 1)).build();
                handle.route().add(route).execute().await.map_err(|e| failed("add the default route", &e))
            })?;
            nodes.push(NodePlace { name: name.clone(), address, namespace });
        }
        Ok(Self { nodes, host_link, _switch: switch })
    }
}

impl Drop for Network {
    /// The kernel would do it a moment after the process has ended; a demo that says it is over leaves no such moment.
    fn drop(&mut self) {
        let removed = Namespace::current().and_then(|host| {
            host.block_on(|| async {
                let handle = connect()?;
                let index = index_of(&handle, &self.host_link).await?;
                handle.link().del(index).execute().await.map_err(|e| failed("remove the demo's link", &e))
            })
        });
        if let Err(error) = removed {
            tracing::warn!(link = self.host_link, %error, "the kernel removes the demo's link when this process ends");
        }
    }
}

fn address(subnet: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(SUBNETS[0], SUBNETS[1], subnet, host)
}

fn connect() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    #[allow(clippy::disallowed_methods, reason = "it ends with the short-lived runtime that block_on makes")]
    tokio::spawn(connection);
    Ok(handle)
}

fn failed(what: &str, error: &rtnetlink::Error) -> io::Error {
    let kind = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("{what}: {error}"))
}

async fn index_of(handle: &Handle, link: &str) -> io::Result<u32> {
    let found = handle.link().get().match_name(link.to_owned()).execute().try_next().await;
    match found.map_err(|e| failed(&format!("find link {link}"), &e))? {
        Some(message) => Ok(message.header.index),
        None => Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no link {link}"))),
    }
}

/// `ip link add NAME type veth peer PEER`, `ip link set PEER netns NAMESPACE`
async fn add_veth_into(handle: &Handle, name: &str, peer: &str, namespace: &Namespace) -> io::Result<()> {
    let peer_message = LinkMessageBuilder::<LinkUnspec>::new()
        .name(peer.to_owned())
        .setns_by_fd(namespace.as_raw_fd())
        .build();
    let veth = LinkVeth::new(name, peer)
        .set_info_data(rtnetlink::packet_route::link::InfoData::Veth(
            rtnetlink::packet_route::link::InfoVeth::Peer(peer_message),
        ))
        .build();
    handle.link().add(veth).execute().await.map_err(|e| failed(&format!("add veth {name}"), &e))
}

/// `ip link set LINK up`
async fn up(handle: &Handle, link: &str) -> io::Result<()> {
    let message = LinkUnspec::new_with_index(index_of(handle, link).await?).up().build();
    handle.link().set(message).execute().await.map_err(|e| failed(&format!("set {link} up"), &e))
}

/// `ip link set LINK master br0 up`
async fn enslave(handle: &Handle, link: &str) -> io::Result<()> {
    let (bridge, port) = (index_of(handle, "br0").await?, index_of(handle, link).await?);
    let message = LinkUnspec::new_with_index(port).controller(bridge).up().build();
    handle.link().set(message).execute().await.map_err(|e| failed(&format!("make {link} a port of br0"), &e))
}

/// `ip address add ADDRESS/24 dev LINK`, `ip link set LINK up`
async fn give_address(handle: &Handle, link: &str, address: Ipv4Addr) -> io::Result<()> {
    let index = index_of(handle, link).await?;
    let request = handle.address().add(index, IpAddr::V4(address), PREFIX_LEN);
    request.execute().await.map_err(|e| failed(&format!("give {address} to {link}"), &e))?;
    up(handle, link).await
}

/// The first subnet that neither an address nor a route of the host lies in.
async fn free_subnet(handle: &Handle) -> io::Result<u8> {
    let mut taken = HashSet::new();
    let mut note = |address: IpAddr| {
        if let IpAddr::V4(v4) = address
            && v4.octets()[..2] == SUBNETS
        {
            taken.insert(v4.octets()[2]);
        }
    };
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await.map_err(|e| failed("list addresses", &e))? {
        for attribute in message.attributes {
            if let AddressAttribute::Address(address) = attribute {
                note(address);
            }
        }
    }
    let mut routes = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    while let Some(message) = routes.try_next().await.map_err(|e| failed("list routes", &e))? {
        for attribute in message.attributes {
            if let RouteAttribute::Destination(RouteAddress::Inet(address)) = attribute {
                note(IpAddr::V4(address));
            }
        }
    }
    (0..=255).find(|subnet| !taken.contains(subnet)).ok_or_else(|| {
        io::Error::other(format!(
            "every subnet of {}.{}.0.0/16 is in use on this host",
            SUBNETS[0], SUBNETS[1]
        ))
    })
}

async fn free_link_name(handle: &Handle) -> io::Result<String> {
    let mut taken = HashSet::new();
    let mut links = handle.link().get().execute();
    while let Some(message) = links.try_next().await.map_err(|e| failed("list links", &e))? {
        taken.extend(message.attributes.into_iter().filter_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        }));
    }
    (0..100)
        .map(|n| format!("plexus-demo{n}"))
        .find(|name| !taken.contains(name))
        .ok_or_else(|| io::Error::other("a hundred demos are running on this host"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn nodes_reach_each_other_and_the_host_reaches_them() {
        let names = ["a", "b"].map(|name| NodeName::new(name).unwrap());
        let network = match Network::create(&names) {
            Ok(network) => network,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                println!("skipped: network namespaces need root ({error})");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let [a, b] = &network.nodes[..] else { panic!("two nodes") };
        let listener = b.namespace.run(|| TcpListener::bind((b.address, 80))).unwrap();
        let answer = std::thread::spawn(move || {
            for _ in 0..2 {
                listener.accept().unwrap().0.write_all(b"b").unwrap();
            }
        });
        let ask = || {
            let mut text = String::new();
            TcpStream::connect((b.address, 80))?.read_to_string(&mut text).map(|_| text)
        };
        assert_eq!(a.namespace.run(ask).unwrap(), "b");
        assert_eq!(ask().unwrap(), "b");
        answer.join().unwrap();
    }
}
