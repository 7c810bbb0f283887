//! The route that makes the address local, made and removed by netlink. Its types stop here.

use std::io;
use std::net::Ipv4Addr;

use nerve::model::Prefix;
use rtnetlink::{Handle, new_connection};

use crate::netlink::{failed, local_route};
use crate::routes::netlink::list;

/// Marks our route (`ip route show table local proto 83`); nothing in iproute2's `rt_protos` has it.
const OURS: u8 = 83;

/// Sees to it that `wanted`, and nothing else of ours, is local here. Tells whether it was missing.
pub(super) async fn keep(wanted: Option<Ipv4Addr>) -> io::Result<bool> {
    let wanted = wanted.map(|address| Prefix::from(std::net::IpAddr::from(address)));
    let (connection, handle, _) = new_connection()?;
    tokio::select! {
        kept = compare(&handle, wanted) => kept,
        () = connection => Err(io::Error::other("the kernel ended the netlink connection")),
    }
}

async fn compare(handle: &Handle, wanted: Option<Prefix>) -> io::Result<bool> {
    for route in list(handle).await?.into_iter().filter(|route| route.protocol == OURS) {
        if Some(route.destination) != wanted {
            let removed = handle.route().del(local_route(route.destination, OURS)).execute().await;
            removed.map_err(|e| failed(&format!("remove the route to {}", route.destination), &e))?;
        }
    }
    let Some(wanted) = wanted else { return Ok(false) };
    match handle.route().add(local_route(wanted, OURS)).execute().await {
        Ok(()) => Ok(true),
        Err(error) => match failed(&format!("add the route `local {wanted} dev lo`"), &error) {
            // Ours, or an address that an interface has.
            error if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            error => Err(error),
        },
    }
}
