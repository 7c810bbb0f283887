//! Socket options and the one way to make each kind of socket.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// Handshakes that the kernel completes ahead of us; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// A peer whose host vanished is noticed by probes; the kernel's defaults would take two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Is nobody else listening there? `SO_REUSEPORT` alone would let two programs of one user share a port silently.
pub(super) fn probe(address: SocketAddr) -> io::Result<()> {
    listening_socket(address)?.bind(&address.into())
}

/// A listening socket that others of ours on the same address share the connections with.
pub(super) fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = listening_socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn listening_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if let SocketAddr::V6(v6) = address {
        // One socket for both families on the wildcard; a concrete address is what it says.
        socket.set_only_v6(!v6.ip().is_unspecified())?;
    }
    Ok(socket)
}

/// Connects; the caller bounds the time.
pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    let stream = socket.connect(address).await?;
    prepare(&stream);
    Ok(stream)
}

/// What every connection gets. Failing to set an option does not make the connection worse than it is.
pub(super) fn prepare(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    let socket = SockRef::from(stream);
    let _ = stream.set_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// Passes on the end of one direction: FIN.
pub(super) fn finish_writing(stream: &TcpStream) -> io::Result<()> {
    match SockRef::from(stream).shutdown(Shutdown::Write) {
        // The peer has gone altogether in the meantime; there is nobody to tell.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        done => done,
    }
}

/// Ends a connection by RST, as the peer on the other side did.
pub(super) fn reset(stream: TcpStream) {
    // Without the option it ends by FIN, which is the next best.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}
