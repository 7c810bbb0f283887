//! Tunnels: connections to endpoints of other nodes by mutual TLS between the nodes (`docs/tunnel.md`).
//!
//! A client's connection is a stream on a TLS connection between two nodes, which carries one stream after the other. The
//! sender keeps some warm, so that a stream begins with one record and without a handshake; the receiver asks who may go where,
//! connects, and answers. [`Tunnels`] are those of one thread, which owns them without a lock.
//!
//! `handshake` makes a tunnel by rustls, `record` protects what is sent with its keys; `frame` and `header` are what the nodes
//! say; `connection` is a tunnel and `stream` moves the octets; `pool` is the sender's side, `delivery` the receiver's. *Never*
//! connects anywhere but to where its owner's [`TunnelTargets`](super::TunnelTargets) say.

mod backlog;
mod connection;
mod delivery;
mod frame;
mod handshake;
mod handshakes;
pub mod header;
mod home;
mod pool;
mod ports;
mod record;
mod stream;
mod tunnels;

pub(super) use connection::{Answer, Fault, Tunnel};
pub(super) use tunnels::{Offer, Tunnels};
