//! A UDP client with a port of its own, as a name server's client or a game has it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::netns::Namespace;

/// A socket that talks to one address, and hears only that one.
#[derive(Debug)]
pub struct Talk(UdpSocket);

impl Talk {
    /// Opens one inside a namespace.
    ///
    /// # Errors
    /// There is no way to the address.
    pub fn open(namespace: &Namespace, to: SocketAddr) -> io::Result<Self> {
        namespace.enter(move || {
            let any: IpAddr =
                if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(to)?;
            Ok(Self(socket))
        })
    }

    /// Where it comes from.
    ///
    /// # Panics
    /// It has no socket any more.
    #[must_use]
    pub fn own_address(&self) -> SocketAddr {
        self.0.local_addr().expect("a socket")
    }

    /// Talks to another address from now on, from the same port.
    ///
    /// # Errors
    /// There is no way to the address.
    pub fn turn_to(&self, to: SocketAddr) -> io::Result<()> {
        self.0.connect(to)
    }

    /// Asks once. `None`: no answer came within that time.
    #[must_use]
    pub fn ask(&self, question: &[u8], within: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(within)).ok()?;
        self.0.send(question).ok()?;
        let mut answer = [0; 2048];
        let length = self.0.recv(&mut answer).ok()?;
        String::from_utf8(answer[..length].to_vec()).ok()
    }

    /// The instance that a [`Backend`](crate::server::backend::Backend) which answers says it is.
    #[must_use]
    pub fn instance(&self, within: Duration) -> Option<String> {
        let answer: serde_json::Value = serde_json::from_str(&self.ask(b"who are you?", within)?).ok()?;
        Some(answer["instance"].as_str()?.to_owned())
    }
}
