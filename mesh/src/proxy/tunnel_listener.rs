//! Opening the port that other nodes' tunnels come to.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::command::Command;
use super::plane::{DataPlane, Listener};
use super::tunnel_route::{TunnelRoute, TunnelTargets};
use super::{BindError, Transport};

/// What to listen on for other nodes, and where their clients may go.
#[derive(Debug, Clone)]
pub struct TunnelListenerSpec {
    /// The address; a wildcard IPv6 address takes both families.
    pub address: SocketAddr,
    /// Says where what arrives may go.
    pub targets: Arc<dyn TunnelTargets>,
    /// Sockets that listen there already, from an earlier process.
    pub inherited: Vec<Arc<OwnedFd>>,
}

impl DataPlane {
    /// Opens the tunnel port on every thread. When this returns, it answers; whether handshakes succeed is a matter of the
    /// [credentials](super::TunnelTable::set_credentials). The listener's connections are the streams that have arrived.
    pub fn open_tunnel(&self, spec: TunnelListenerSpec) -> Result<Listener, BindError> {
        let TunnelListenerSpec { address, targets, inherited } = spec;
        let failed = |source| BindError { address, transport: Transport::Tcp, source };
        let sockets = self.sockets_at(address, self.threads.len(), &inherited, false).map_err(failed)?;
        let listener = self.listener(&sockets).map_err(failed)?;
        let is_shared = sockets.len() < self.threads.len();
        for (index, thread) in self.threads.iter().enumerate() {
            let route = Arc::new(TunnelRoute {
                listener: listener.id,
                open: Arc::clone(&listener.open[index]),
                targets: Arc::clone(&targets),
                config: Arc::clone(&self.config),
                load: Arc::clone(&thread.seat.load),
            });
            let own =
                sockets.iter().enumerate().filter(|(n, _)| is_shared || n % self.threads.len() == index);
            for (_, socket) in own {
                let command = Command::OpenTunnels(Arc::clone(socket), Arc::clone(&route));
                thread.seat.inbox.send(command).map_err(|error| failed(io::Error::other(error)))?;
            }
        }
        Ok(listener)
    }
}
