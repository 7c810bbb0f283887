//! The TCP check: something accepts a connection on the port.
//!
//! Keys: `tcp = true` for the instance's main port, `tcp = 8081` for another. It sends nothing and closes at once.

use std::net::SocketAddr;
use std::num::NonZeroU16;

use async_trait::async_trait;
use serde::{Serialize, Serializer};
use tokio::net::TcpStream;

use super::Check;
use crate::document::{FromValue, Mismatch, Reported, Section, Value};

/// Connects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tcp {
    /// Another port than the instance's main one.
    pub port: Option<NonZeroU16>,
}

impl Tcp {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        section.required("tcp")
    }
}

#[async_trait]
impl Check for Tcp {
    fn describe(&self) -> String {
        match self.port {
            None => "tcp".to_owned(),
            Some(port) => format!("tcp port {port}"),
        }
    }

    async fn probe(&self, instance: SocketAddr) -> Result<String, String> {
        let address = SocketAddr::new(instance.ip(), self.port.map_or(instance.port(), NonZeroU16::get));
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Closed with a reset: the closing side would else hold the port pair in TIME_WAIT for a minute.
                let _ = stream.set_zero_linger();
                Ok("connected".to_owned())
            }
            Err(error) => Err(format!("connect to {address}: {error}")),
        }
    }
}

impl FromValue for Tcp {
    fn expected() -> String {
        "true, or a port from 1 to 65535".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match (value.as_bool(), value.as_integer()) {
            (Some(true), _) => Ok(Self { port: None }),
            (_, Some(_)) => NonZeroU16::from_value(value).map(|port| Self { port: Some(port) }),
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
        let mut map = serializer.serialize_map(Some(1))?;
        match self.port {
            None => map.serialize_entry("tcp", &true)?,
            Some(port) => map.serialize_entry("tcp", &port)?,
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn it_passes_where_something_listens_and_fails_where_nothing_does() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(Tcp::default().probe(address).await, Ok("connected".to_owned()));
        let elsewhere = Tcp { port: NonZeroU16::new(address.port()) };
        assert!(elsewhere.probe("127.0.0.1:1".parse().unwrap()).await.is_ok());
        drop(listener);
        let failure = Tcp::default().probe(address).await.unwrap_err();
        assert!(failure.contains(&address.to_string()) && failure.contains("refused"), "{failure}");
    }
}
