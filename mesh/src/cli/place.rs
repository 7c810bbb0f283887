//! Where an agent is asked: at an address of the network, by a unix socket of this machine, or, where nobody has said, at the first of the
//! usual places that lets this user in. What was tried in vain is told with whatever fails later.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use hyper::Uri;
use nerve::model::UnixPath;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

use crate::api;
use crate::config::usual_admin_sockets;

/// An agent on this machine answers a connect at once; one across a network within a round trip.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The kernel says nothing when there is room again in the queue of a unix socket.
const AGAIN: Duration = Duration::from_millis(20);
/// What stands before the path of a socket.
const UNIX: &str = "unix:";

/// Where to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// At this address.
    Http(Address),
    /// By this socket.
    Unix(UnixPath),
    /// By the first of these sockets that can be opened, else at the address.
    Usual(Vec<UnixPath>, Address),
}

/// Of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// `host:port`, as in the `Host` header.
    authority: String,
    host: String,
    port: u16,
}

/// A connection to an agent.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) stream: Either<TcpStream, UnixStream>,
    /// Where it leads, for errors.
    pub(super) name: String,
    /// For the `Host` header.
    pub(super) host: String,
    /// Which places were tried before, and why they were not taken; empty: none.
    pub(super) passed_over: String,
}

impl Place {
    /// Where an agent of this machine is unless told otherwise.
    pub(super) fn usual() -> Self {
        Self::Usual(usual_admin_sockets(), Address::usual())
    }

    /// As it is written in a configuration; `None`: as nobody has said.
    pub(super) fn written(&self) -> Option<String> {
        match self {
            Self::Http(address) => Some(address.to_string()),
            Self::Unix(path) => Some(format!("{UNIX}{path}")),
            Self::Usual(..) => None,
        }
    }

    /// Connects. The error says which places were tried, and why there is no agent there.
    pub(super) async fn connect(&self) -> Result<Reached, String> {
        let mut passed_over = String::new();
        let (sockets, address) = match self {
            Self::Http(address) => (&[][..], Some(address)),
            Self::Unix(path) => (std::slice::from_ref(path), None),
            Self::Usual(sockets, address) => (sockets.as_slice(), Some(address)),
        };
        for path in sockets {
            let name = format!("{UNIX}{path}");
            match within(connect_unix(path)).await {
                Ok(stream) => {
                    let (stream, host) = (Either::Right(stream), "localhost".to_owned());
                    return Ok(Reached { stream, name, host, passed_over });
                }
                Err(why) => also(&mut passed_over, &name, &why),
            }
        }
        if let Some(address) = address {
            match within(TcpStream::connect((address.host.as_str(), address.port))).await {
                Ok(stream) => {
                    let (stream, host) = (Either::Left(stream), address.authority.clone());
                    return Ok(Reached { stream, name: address.to_string(), host, passed_over });
                }
                Err(why) => also(&mut passed_over, &address.to_string(), &why),
            }
        }
        Err(format!("no agent answers at {passed_over}"))
    }
}

fn also(told: &mut String, name: &str, why: &io::Error) {
    let before = if told.is_empty() { "" } else { ", nor at " };
    *told += &format!("{before}{name}: {why}");
}

async fn within<T>(connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {CONNECT_TIMEOUT:?}"));
    tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| late())?
}

/// Waits where many others do.
async fn connect_unix(path: &UnixPath) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path.as_path()).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(AGAIN).await,
            done => return done,
        }
    }
}

impl Address {
    fn usual() -> Self {
        let (host, port) = api::DEFAULT_ADDRESS;
        Self { authority: format!("{host}:{port}"), host: host.to_owned(), port }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

impl FromStr for Place {
    type Err = String;

    /// Reads `unix:/path`, `http://host:port`, `http://host` (port 7070) or `host:port`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix(UNIX) {
            let path = UnixPath::new(path).map_err(|error| error.to_string())?;
            return Ok(Self::Unix(path));
        }
        let usual = Address::usual();
        let wrong = |why: &str| format!("{why}; write http://HOST:PORT, such as {usual}, or unix:/PATH");
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = url.parse().map_err(|e| wrong(&format!("{e}")))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("the admin interface speaks http"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong("it has a path"));
        }
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(|| wrong("it has no host"))?;
        let port = uri.port_u16().unwrap_or(usual.port);
        let authority = format!("{host}:{port}");
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self::Http(Address { authority, host, port }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_address_is_a_url_or_host_and_port_or_a_socket() {
        for (text, authority, host) in [
            ("http://127.0.0.1:7070", "127.0.0.1:7070", "127.0.0.1"),
            ("http://a.example/", "a.example:7070", "a.example"),
            ("localhost:81", "localhost:81", "localhost"),
            ("http://[::1]:7070", "[::1]:7070", "::1"),
        ] {
            let Place::Http(address) = text.parse().unwrap() else { panic!("{text} is an address") };
            assert_eq!((address.authority.as_str(), address.host.as_str()), (authority, host), "{text}");
        }
        for bad in ["https://a:1", "http://a:1/x", "", "http://", "a b"] {
            assert!(bad.parse::<Place>().unwrap_err().contains("write http://HOST:PORT"), "{bad}");
        }
        let socket: Place = "unix:/run/plexus/admin.sock".parse().unwrap();
        assert_eq!(socket.written().as_deref(), Some("unix:/run/plexus/admin.sock"));
        let long = format!("unix:/{}", "x".repeat(107));
        for (bad, why) in [("unix:admin.sock", "write it absolute"), (&long, "at most 107 bytes")] {
            assert!(bad.parse::<Place>().unwrap_err().contains(why), "{bad}");
        }
    }

    #[test]
    fn what_nobody_has_said_is_not_written_down() {
        assert_eq!(Place::usual().written(), None);
        let said: Place = "127.0.0.1:7070".parse().unwrap();
        assert_eq!(said.written().as_deref(), Some("http://127.0.0.1:7070"));
    }

    #[tokio::test]
    async fn the_first_socket_that_lets_us_in_is_asked_and_those_before_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| UnixPath::new(directory.path().join(name).to_str().unwrap()).unwrap();
        let (none, stale, lives) = (at("none.sock"), at("stale.sock"), at("lives.sock"));
        drop(std::os::unix::net::UnixListener::bind(stale.as_path()).unwrap());
        let _listener = std::os::unix::net::UnixListener::bind(lives.as_path()).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let Place::Http(address) = tcp.local_addr().unwrap().to_string().parse().unwrap() else {
            panic!("it is an address")
        };
        let reached = Place::Usual(vec![stale.clone(), lives.clone()], address.clone()).connect().await;
        let reached = reached.unwrap();
        assert_eq!((reached.name, reached.host.as_str()), (format!("unix:{lives}"), "localhost"));
        let reached = Place::Usual(vec![none.clone(), stale.clone()], address.clone()).connect().await;
        let reached = reached.unwrap();
        assert_eq!((&reached.name, &reached.host), (&address.to_string(), &address.authority));
        for said in [format!("unix:{none}: No such file"), format!("nor at unix:{stale}: Connection refused")]
        {
            assert!(reached.passed_over.contains(&said), "{}", reached.passed_over);
        }
        drop(tcp);
        let error = Place::Usual(vec![none], address.clone()).connect().await.unwrap_err();
        assert!(error.starts_with("no agent answers at unix:"), "{error}");
        assert!(error.contains(&format!(", nor at {address}: Connection refused")), "{error}");
        let error = Place::Unix(stale.clone()).connect().await.unwrap_err();
        assert!(
            error.starts_with(&format!("no agent answers at unix:{stale}: Connection refused")),
            "{error}"
        );
    }
}
