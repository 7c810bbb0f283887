//! What to do about a socket that cannot be opened. One text for every room that listens.

use std::io;
use std::net::SocketAddr;

/// The end of an error message: `; …`, or nothing where there is nothing to advise.
pub(crate) fn on_bind(error: &io::Error, address: SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "; another program listens there: `ss -lntup 'sport = :{}'` names it; stop it or take another port",
            address.port()
        ),
        io::ErrorKind::PermissionDenied => "; ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned(),
        io::ErrorKind::AddrNotAvailable => {
            format!("; {} is no address of this host: `ip address` lists them", address.ip())
        }
        _ => String::new(),
    }
}
