//! Telling the service manager where we stand: the `sd_notify(3)` protocol, datagrams to the socket in `NOTIFY_SOCKET`.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The way to the service manager, or to nobody.
#[derive(Debug, Default)]
pub(super) struct Notifier(Option<(UnixDatagram, SocketAddr)>);

impl Notifier {
    /// Reads `NOTIFY_SOCKET`, a path or, with a leading `@`, an abstract name. Without it, notifications go nowhere.
    #[must_use]
    pub(super) fn from_env() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        match Self::to(&name) {
            Ok(notifier) => notifier,
            Err(error) => {
                tracing::warn!(socket = ?name, %error, "the service manager cannot be notified: NOTIFY_SOCKET is not usable");
                Self::default()
            }
        }
    }

    fn to(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self(Some((socket, address))))
    }

    /// `READY=1`: start-up is complete.
    pub(super) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// The same of an agent that took over from another one: this process is the service's main one from now on
    /// (`MAINPID=`; the unit needs `NotifyAccess=all`, since the message comes from a process that systemd did not start).
    pub(super) fn ready_instead(&self, status: &str) {
        self.send(&format!("MAINPID={}\nREADY=1\nSTATUS={status}", std::process::id()));
    }

    /// `RELOADING=1`, to be followed by `ready`. systemd wants the monotonic time with it (`sd_notify(3)`).
    pub(super) fn reloading(&self) {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
            .map_or(0, |t| i128::from(t.tv_sec()) * 1_000_000 + i128::from(t.tv_nsec()) / 1000);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    }

    /// `STOPPING=1`: shutdown has begun.
    pub(super) fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={status}"));
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.0
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            tracing::debug!(%error, "the service manager did not take a notification");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_at_the_socket_that_was_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(path.as_os_str()).unwrap();
        notifier.ready("serving 3 services");
        notifier.reloading();
        notifier.ready_instead("took over");
        let mut buffer = [0; 200];
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1\nSTATUS=serving 3 services");
        let length = manager.recv(&mut buffer).unwrap();
        assert!(buffer[..length].starts_with(b"RELOADING=1\nMONOTONIC_USEC="));
        let length = manager.recv(&mut buffer).unwrap();
        let expected = format!("MAINPID={}\nREADY=1\nSTATUS=took over", std::process::id());
        assert_eq!(&buffer[..length], expected.as_bytes());
    }
}
