//! Opening listeners for datagrams.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::command::Command;
use super::plane::{DataPlane, Listener, ListenerSpec, Sharing};
use super::{BindError, Transport, socket, udp, udp_route};

impl DataPlane {
    /// Opens a listener for datagrams: a socket a thread, or with [`Sharing::One`] one socket on one thread, since a client's
    /// session must not be on two. When this returns, the port answers. A listener on the same address that has stopped gives
    /// way, with what sessions it has left: its clients are better off with whoever has the port now.
    pub fn open_udp(&self, spec: ListenerSpec) -> Result<Listener, BindError> {
        let failed = |source| BindError { address: spec.address, transport: Transport::Udp, source };
        let sockets = self.udp_sockets(&spec).map_err(failed)?;
        let listener = self.listener(&sockets).map_err(failed)?;
        let (count, threads) = (sockets.len(), self.threads.len());
        let first = if count < threads { listener.id.place(threads) } else { 0 };
        for (offset, socket) in sockets.into_iter().enumerate() {
            let place = (first + offset) % threads;
            let route = udp_route::Route {
                listener: listener.id,
                open: Arc::clone(&listener.open[place]),
                balancer: Arc::clone(&spec.balancer),
                config: Arc::clone(&self.config),
                tally: self.metrics.udp.tally(spec.balancer.service().as_str(), place),
                steering: Arc::clone(&self.steering),
                tunnels: Arc::clone(&self.tunnels),
                access: Arc::clone(&self.access),
            };
            let command = Command::OpenUdp(socket, Box::new(route));
            self.threads[place].seat.inbox.send(command).map_err(|error| failed(io::Error::other(error)))?;
        }
        for offset in count..threads {
            // A thread that has no part in it has nothing to stop.
            listener.open[(first + offset) % threads].stop();
        }
        let mut known = self.udp.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, leaving)| leaving.strong_count() > 0);
        known.extend(
            listener
                .address()
                .ip()
                .map(|address| (address, (listener.id, Arc::downgrade(&listener.is_leaving)))),
        );
        Ok(listener)
    }

    /// Inherited sockets, and as many more as the way of sharing needs; at least one.
    fn udp_sockets(&self, spec: &ListenerSpec) -> io::Result<Vec<Arc<OwnedFd>>> {
        let wanted = match spec.sharing {
            Sharing::PerThread => self.threads.len(),
            Sharing::One => 1,
        };
        let mut sockets = spec.inherited.clone();
        let mut address = match sockets.first() {
            Some(socket) => socket::local_address(socket)?,
            None => spec.address,
        };
        sockets.iter().try_for_each(|socket| udp::adopt(socket, address))?;
        if sockets.is_empty() && !self.has_left(spec) && address.port() != 0 && !spec.overlaps {
            udp::probe(address)?;
        }
        while sockets.len() < wanted {
            match udp::listen(address) {
                Ok(socket) => {
                    address = socket::local_address(&socket)?;
                    sockets.push(Arc::new(socket));
                }
                // Those that were inherited do not share their port: they are on as many threads as there are of them.
                Err(_) if !spec.inherited.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sockets)
    }

    /// Makes a listener of ours that has stopped give the address up. Tells whether there was one: its sockets are closed before
    /// the threads hear of new ones, and until then they share the address.
    fn has_left(&self, spec: &ListenerSpec) -> bool {
        let known = self.udp.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((id, leaving)) = known.get(&spec.address) else { return false };
        let has_stopped = leaving.upgrade().is_some_and(|leaving| leaving.load(Ordering::Acquire));
        if has_stopped {
            for thread in &self.threads {
                // A thread that has ended has closed everything.
                let _ = thread.seat.inbox.send(Command::Reset(*id));
            }
        }
        has_stopped
    }
}
