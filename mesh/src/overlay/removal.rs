//! Links of containers, taken away together.
//!
//! Each time that links are removed the kernel waits until no processor uses them any more, and whoever wants to change another link
//! waits for that. One by one, hundreds take many seconds; at once, hardly longer than one. So what is to go while others are
//! going waits for these and goes with the rest: the links get a group of their own, which is removed as one.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::LinkAttribute;
use tokio::sync::oneshot;

use super::netlink::{Netlink, failed, or_gone, with_netlink};

/// The group of links that are about to go: `plxe` in ASCII, which nobody takes by accident.
const GOING: u32 = 0x706c_7865;

/// Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Removals(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    waiting: Mutex<Vec<Wanted>>,
    going: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Wanted {
    link: String,
    tell: oneshot::Sender<io::Result<()>>,
}

impl Removals {
    /// Removes a container's link with both of its ends; one that is gone is no error.
    pub(super) async fn remove(&self, link: &str) -> io::Result<()> {
        let (tell, mut told) = oneshot::channel();
        self.waiting().push(Wanted { link: link.to_owned(), tell });
        tokio::select! {
            biased;
            done = &mut told => return done.unwrap_or_else(|_| Err(broken_off())),
            _going = self.0.going.lock() => {
                let wanted = std::mem::take(&mut *self.waiting());
                remove_all(wanted).await;
            }
        }
        told.await.unwrap_or_else(|_| Err(broken_off()))
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Wanted>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn remove_all(wanted: Vec<Wanted>) {
    let links: Vec<&str> = wanted.iter().map(|wanted| wanted.link.as_str()).collect();
    let done = with_netlink(async |netlink| netlink.remove_veths(&links).await).await;
    for Wanted { tell, .. } in wanted {
        let done = match &done {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        // Who does not wait any more needs no telling.
        let _ = tell.send(done);
    }
}

fn broken_off() -> io::Error {
    io::Error::other("the links were not removed; this is a bug")
}

impl Netlink {
    /// Removes containers' links: `ip link set LINK group GROUP` for each of them, and `ip link del group GROUP`.
    async fn remove_veths(&self, links: &[&str]) -> io::Result<()> {
        let (mut last, mut count) = (None, 0);
        for link in links {
            let Some(found) = self.container_link(link).await? else { continue };
            let mut message = LinkUnspec::new_with_index(found.index).build();
            message.attributes.push(LinkAttribute::Group(GOING));
            or_gone(self.handle.link().set(message).execute().await)
                .map_err(|e| failed(&format!("set the group of {link}"), &e))?;
            (last, count) = (Some(found.index), count + 1);
        }
        match (last, count) {
            (None, _) => return Ok(()),
            (Some(index), 1) => return self.remove_link(index).await,
            _ => {}
        }
        let mut request = self.handle.link().del(0);
        request.message_mut().attributes.push(LinkAttribute::Group(GOING));
        or_gone(request.execute().await).map_err(|e| failed("remove the links of containers", &e))
    }
}
