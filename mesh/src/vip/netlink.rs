//! The kernel's routes, read and changed by netlink. Its types stop here.
//!
//! Routes of ours are marked by their protocol number, so that they are found again after a crash and nobody else's is
//! ever touched. The connection is a future that moves while something else is awaited: whoever opens one polls both.

use std::io;
use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use nerve::model::Prefix;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};

use super::plan::{OURS, is_ours};
use crate::netlink::{LOOPBACK, failed, local_route};
use crate::routes::Route;
use crate::routes::netlink::{destination_of, list};

/// What may take a route away or put one in the way. Addresses come as routes of the table `local`; a link that goes down
/// takes its routes along without a word about them.
const GROUPS: [MulticastGroup; 3] =
    [MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route, MulticastGroup::Link];

type Events = Pin<Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Send + Sync>>;

/// An open connection to the kernel.
pub(super) struct Netlink {
    handle: Handle,
    events: Events,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A route to here came, changed or went.
    Route(Prefix),
    /// The loopback interface changed.
    Loopback,
}

impl Netlink {
    /// Opens one; the future must be polled for as long as it is used, and ends when the kernel ends it.
    pub(super) fn open() -> io::Result<(impl Future<Output = ()> + Send, Self)> {
        let (connection, handle, events) = new_multicast_connection(&GROUPS)?;
        Ok((connection, Self { handle, events: Box::pin(events.map(|(message, _)| message)) }))
    }

    /// The next event that may matter; `None` when the connection ended. Cancel-safe.
    pub(super) async fn event(&mut self) -> Option<Event> {
        loop {
            let NetlinkPayload::InnerMessage(message) = self.events.next().await?.payload else { continue };
            match message {
                RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                    if let Some(destination) = destination_of(&route) {
                        return Some(Event::Route(destination));
                    }
                }
                RouteNetlinkMessage::NewLink(link) if link.header.index == LOOPBACK => {
                    return Some(Event::Loopback);
                }
                _ => {}
            }
        }
    }

    /// Every route of every table.
    pub(super) async fn routes(&self) -> io::Result<Vec<Route>> {
        list(&self.handle).await
    }

    /// Makes `range` local: `ip route add local RANGE dev lo proto 80`. Tells whether it was missing.
    pub(super) async fn add(&self, range: Prefix) -> io::Result<bool> {
        match self.handle.route().add(local_route(range, OURS)).execute().await {
            Ok(()) => Ok(true),
            Err(error) => match failed("add", &error) {
                error if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                error => Err(error),
            },
        }
    }

    /// Takes our route to `range` away: `ip route del local RANGE dev lo proto 80`.
    pub(super) async fn remove(&self, range: Prefix) -> io::Result<()> {
        let removed = self.handle.route().del(local_route(range, OURS)).execute().await;
        removed.map_err(|e| failed(&format!("remove the route to {range}"), &e))
    }
}

/// Takes every route of ours away.
pub(super) async fn remove_all() -> io::Result<()> {
    let (connection, netlink) = Netlink::open()?;
    let remove = async {
        for route in netlink.routes().await?.iter().filter(|route| is_ours(route)) {
            netlink.remove(route.destination).await?;
        }
        Ok(())
    };
    tokio::select! {
        removed = remove => removed,
        () = connection => Err(io::Error::other("the kernel ended the netlink connection")),
    }
}
