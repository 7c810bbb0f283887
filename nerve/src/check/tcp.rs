//! The TCP check: something accepts a connection.
//!
//! Keys: `tcp = true` for where the instance listens, its unix socket before its main port; `tcp = 8081` for another port;
//! `unix` beside `tcp = true` for another socket. It sends nothing and closes at once.

use std::num::NonZeroU16;

use async_trait::async_trait;
use serde::{Serialize, Serializer};

use super::Check;
use super::connect::{Stream, Target, connect};
use crate::document::{FromValue, Mismatch, Reported, Section, Value};
use crate::model::{ListensOn, UnixPath};

/// Connects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tcp {
    target: Target,
}

/// The value of `tcp`: a port, or none.
struct Port(Option<NonZeroU16>);

impl Tcp {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let (port, unix) = (section.required::<Port>("tcp"), section.given::<UnixPath>("unix"));
        let (Port(port), unix) = (port?, unix?);
        if port.is_some() && unix.is_some() {
            return Err(section.invalid("unix", "`tcp` names a port", "`tcp = true` beside a socket"));
        }
        Ok(Self { target: Target { port, unix } })
    }
}

#[async_trait]
impl Check for Tcp {
    fn describe(&self) -> String {
        match &self.target {
            Target { unix: Some(unix), .. } => format!("tcp unix:{unix}"),
            Target { port: Some(port), .. } => format!("tcp port {port}"),
            Target { port: None, unix: None } => "tcp".to_owned(),
        }
    }

    async fn probe(&self, instance: &ListensOn) -> Result<String, String> {
        if let Stream::Tcp(stream) = connect(&self.target.of(instance)?).await? {
            // Closed with a reset: the closing side would else hold the port pair in TIME_WAIT for a minute.
            let _ = stream.set_zero_linger();
        }
        Ok("connected".to_owned())
    }
}

impl FromValue for Port {
    fn expected() -> String {
        "true, or a port from 1 to 65535".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match (value.as_bool(), value.as_integer()) {
            (Some(true), _) => Ok(Self(None)),
            (_, Some(_)) => NonZeroU16::from_value(value).map(|port| Self(Some(port))),
            (Some(false), _) => {
                Err(value.mismatch("a check cannot be switched off; leave it out", Self::expected()))
            }
            _ => Err(value.wrong_kind(Self::expected())),
        }
    }
}

impl Serialize for Tcp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(None)?;
        match self.target.port {
            None => map.serialize_entry("tcp", &true)?,
            Some(port) => map.serialize_entry("tcp", &port)?,
        }
        if let Some(unix) = &self.target.unix {
            map.serialize_entry("unix", unix)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::net::{TcpListener, UnixListener};

    use super::*;

    #[tokio::test]
    async fn it_passes_where_something_listens_and_fails_where_nothing_does() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(Tcp::default().probe(&address.into()).await, Ok("connected".to_owned()));
        let elsewhere = Tcp { target: Target { port: NonZeroU16::new(address.port()), unix: None } };
        assert!(elsewhere.probe(&nowhere().into()).await.is_ok());
        drop(listener);
        let failure = Tcp::default().probe(&address.into()).await.unwrap_err();
        assert!(failure.contains(&address.to_string()) && failure.contains("refused"), "{failure}");
    }

    fn nowhere() -> SocketAddr {
        "127.0.0.1:1".parse().unwrap()
    }

    #[tokio::test]
    async fn it_asks_the_socket_of_the_instance_or_the_one_that_it_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let socket = UnixPath::new(path.to_str().unwrap()).unwrap();
        let own = ListensOn { socket: Some(socket.clone()), ..nowhere().into() };
        assert_eq!(Tcp::default().probe(&own).await, Ok("connected".to_owned()));
        let named = Tcp { target: Target { port: None, unix: Some(socket.clone()) } };
        assert_eq!(named.probe(&nowhere().into()).await, Ok("connected".to_owned()));
        assert_eq!(named.describe(), format!("tcp unix:{socket}"));
        std::fs::remove_file(&path).unwrap();
        let failure = Tcp::default().probe(&own).await.unwrap_err();
        assert!(failure.starts_with(&format!("connect to unix:{socket}: No such file")), "{failure}");
    }
}
