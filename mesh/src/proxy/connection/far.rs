//! How a connection's endpoint is reached: by a socket of its own, or by a stream of a tunnel to its node.

use crate::proxy::TcpOptions;
use crate::proxy::side::Side;
use crate::proxy::tunnel::Tunnel;

/// The endpoint's side of a connection.
#[derive(Debug)]
pub(super) enum Far {
    /// Its socket.
    Plain(Side),
    /// A stream to its node.
    Tunnel(Box<Tunnel>),
}

impl Far {
    /// Is there something that it has not taken, or that it has brought and nobody has taken?
    pub(super) fn holds(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tunnel(tunnel) => tunnel.holds(),
        }
    }

    /// Has an endpoint that vanishes without a word noticed. Of nodes that do, tunnels know themselves.
    pub(super) fn keep_alive(&self, options: &TcpOptions) {
        if let Self::Plain(side) = self {
            side.keep_alive(options);
        }
    }

    /// The stream is over, and the tunnel may have the next one.
    pub(super) fn finish(self) {
        if let Self::Tunnel(tunnel) = self
            && tunnel.is_over()
        {
            tunnel.give_back();
        }
    }

    /// Ends it by RST.
    pub(super) fn reset(self) {
        match self {
            Self::Plain(side) => side.reset(),
            Self::Tunnel(tunnel) => tunnel.reset(),
        }
    }
}
