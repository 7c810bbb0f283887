//! Taking everything of networks out of this node's kernel: for when its agent is gone for good.
//!
//! What is ours is known by its names and numbers alone, so no agent, no store and no state is needed. Twice is once.

use std::collections::BTreeSet;
use std::io;

use super::netlink::Netlink;
use super::plan::Entry;
use super::{TABLE, fast_path, foreign, returns, sealed};

/// What was there and is not any more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    /// The names of links: bridges, VXLAN devices, and ends of containers' links, which took their other ends along.
    pub links: Vec<String>,
    /// Routes that led to peers without a tunnel, in words; the others went with their links.
    pub routes: Vec<String>,
    /// Routing rules, so many.
    pub rules: usize,
    /// The tables of the packet filter that were there.
    pub tables: Vec<String>,
}

/// Removes all of it.
///
/// # Errors
/// The kernel refuses, or there is no `nft` and it cannot be told whether there are rules. What was removed until then stays removed.
pub async fn cleanup() -> io::Result<Removed> {
    let (connection, netlink) = Netlink::open()?;
    let mut removed = tokio::select! {
        removed = of_kernel(&netlink) => removed?,
        () = connection => return Err(io::Error::other("the kernel ended the netlink connection")),
    };
    // Last: until then nothing gets where it may not.
    foreign::pass(false).await?;
    for table in [fast_path::TABLE, returns::INSIDE, returns::OUTSIDE, sealed::TABLE, TABLE] {
        if table.list().await.map_err(io::Error::other)?.is_some() {
            table.remove().await.map_err(io::Error::other)?;
            removed.tables.push(table.to_string());
        }
    }
    Ok(removed)
}

async fn of_kernel(netlink: &Netlink) -> io::Result<Removed> {
    let mut removed = Removed::default();
    for (link, _) in netlink.container_links().await? {
        netlink.remove_veth(&link).await?;
        removed.links.push(link);
    }
    for route in netlink.direct_routes().await? {
        netlink.remove(0, &[route]).await?;
        if let Entry::Direct { subnet, via, .. } = route {
            removed.routes.push(format!("{subnet} via {via}"));
        }
    }
    removed.rules = netlink.remove_rules().await?;
    for (name, link) in netlink.links().await? {
        netlink.remove_link(link.index).await?;
        removed.links.push(name);
    }
    removed.links.extend(sealed::link_names(sealed::remove_links(netlink).await?));
    netlink.ensure_held(&BTreeSet::new(), false).await?;
    Ok(removed)
}
