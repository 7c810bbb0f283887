//! Where a check connects to, and connecting there.

use std::num::NonZeroU16;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::model::{Address, ListensOn, UnixPath};

/// A unix socket whose backlog is full tells nobody when there is room (connect(2), `EAGAIN`): it is asked again.
const AGAIN_AFTER: Duration = Duration::from_millis(10);

/// What a check says of where it connects to: nothing, and then it is as the balancer of this node does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Target {
    /// Another port than the instance's main one.
    pub(super) port: Option<NonZeroU16>,
    /// Another unix socket than the instance's.
    pub(super) unix: Option<UnixPath>,
}

/// A connection of either kind.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What a connection can do.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

impl Target {
    /// The address that it means for `instance`.
    pub(super) fn of(&self, instance: &ListensOn) -> Result<Address, String> {
        let named = match (&self.unix, self.port) {
            (Some(unix), _) => Some(Address::Unix(unix.clone())),
            (None, Some(port)) => Some(Address::Ip((instance.address, port.get()).into())),
            (None, None) => instance.nearest(),
        };
        named.ok_or_else(|| "the instance has neither a port nor a socket".to_owned())
    }
}

/// Connects. Takes as long as it takes: the probe's timeout ends it.
pub(super) async fn connect(address: &Address) -> Result<Stream, String> {
    let connected = match address {
        Address::Ip(address) => TcpStream::connect(address).await.map(Stream::Tcp),
        Address::Unix(path) => loop {
            match UnixStream::connect(path.as_path()).await {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
                connected => break connected.map(Stream::Unix),
            }
        },
    };
    connected.map_err(|error| format!("connect to {address}: {error}"))
}

impl Stream {
    /// As what both kinds are.
    pub(super) fn boxed(self) -> Box<dyn Duplex> {
        match self {
            Self::Tcp(stream) => Box::new(stream),
            Self::Unix(stream) => Box::new(stream),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_full_backlog_is_waited_for_and_is_no_failure() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let address = Address::Unix(UnixPath::new(path.to_str().unwrap()).unwrap());
        // Whatever backlog std asks for is filled up.
        let mut waiting = Vec::new();
        loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => waiting.push(stream),
                Err(error) => break assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
        let accepting = async {
            tokio::task::yield_now().await;
            listener.accept().unwrap()
        };
        let (connected, _accepted) = tokio::join!(connect(&address), accepting);
        assert!(connected.is_ok(), "{:?}", connected.err());
    }
}
