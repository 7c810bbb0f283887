//! The TCP check: something accepts a connection.
//!
//! Keys: `tcp = true` for where the instance listens, its unix socket before its main port; `tcp = 8081` for another port;
//! `unix` beside `tcp = true` for another socket. It sends nothing and closes at once.

use async_trait::async_trait;
use serde::Serialize;

use super::connect::{Target, knock};
use super::{Check, Liberty};
use crate::document::{Reported, Section};
use crate::model::ListensOn;

/// Connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Tcp {
    target: Target,
}

impl Tcp {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        Ok(Self { target: Target::read(section, "tcp")? })
    }
}

impl Default for Tcp {
    fn default() -> Self {
        Self { target: Target::nearest("tcp") }
    }
}

#[async_trait]
impl Check for Tcp {
    fn describe(&self) -> String {
        self.target.to_string()
    }

    fn liberty(&self) -> Option<Liberty> {
        self.target.liberty()
    }

    async fn probe(&self, instance: &ListensOn) -> Result<String, String> {
        knock(&self.target.of(instance)?).await?;
        Ok("connected".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::num::NonZeroU16;

    use tokio::net::{TcpListener, UnixListener};

    use super::*;
    use crate::model::UnixPath;

    #[tokio::test]
    async fn it_passes_where_something_listens_and_fails_where_nothing_does() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(Tcp::default().probe(&address.into()).await, Ok("connected".to_owned()));
        let elsewhere =
            Tcp { target: Target { port: NonZeroU16::new(address.port()), ..Target::nearest("tcp") } };
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
        let named = Tcp { target: Target { unix: Some(socket.clone()), ..Target::nearest("tcp") } };
        assert_eq!(named.probe(&nowhere().into()).await, Ok("connected".to_owned()));
        assert_eq!(named.describe(), format!("tcp unix:{socket}"));
        std::fs::remove_file(&path).unwrap();
        let failure = Tcp::default().probe(&own).await.unwrap_err();
        assert!(failure.starts_with(&format!("connect to unix:{socket}: No such file")), "{failure}");
    }
}
