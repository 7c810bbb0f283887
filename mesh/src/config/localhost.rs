//! `[[ingress.localhost]]`: a service on a port or a unix socket of this machine alone.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;

use nerve::document::{FromValue, Mismatch, Reported, Section, Text, Value};
use nerve::model::{PortName, ServiceName, UnixPath};
use serde::{Serialize, Serializer};

use crate::ingress::LocalListen;
use crate::socket_file::{Access, Account, Mode};

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Localhost {
    /// Which service.
    pub service: ServiceName,
    /// Where to listen.
    #[serde(flatten)]
    pub listen: Listen,
    /// The port of the instances that it leads to, by name or number; without it, their main port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<PortName>,
}

/// Where one listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Listen {
    /// On a port.
    Port {
        /// The port.
        port: NonZeroU16,
        /// The address, on loopback.
        address: IpAddr,
    },
    /// On a unix socket.
    Socket {
        /// The path of its file.
        socket: UnixPath,
        /// The file's permissions.
        #[serde(serialize_with = "mode_as_text")]
        mode: Mode,
        /// Its owner; without one, the agent's user.
        #[serde(skip_serializing_if = "Option::is_none", serialize_with = "account_as_text")]
        owner: Option<Account>,
        /// Its group; without one, the agent's.
        #[serde(skip_serializing_if = "Option::is_none", serialize_with = "account_as_text")]
        group: Option<Account>,
    },
}

impl Localhost {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let service = section.required("service");
        let (port, socket) = (section.given("port"), section.given("socket"));
        let address = section.or_where(
            "address",
            IpAddr::from(Ipv4Addr::LOCALHOST),
            "a loopback address; `plexus publish` opens ports for other machines",
            IpAddr::is_loopback,
        );
        let mode = section.or("mode", Text(Mode::default())).0;
        let owner: Option<Account> = section.optional("owner");
        let group: Option<Account> = section.optional("group");
        let target = section.optional("target");
        let listen = match (port?, socket?) {
            (Some(port), None) => {
                if let Some(key) = ["mode", "owner", "group"].into_iter().find(|key| section.has(key)) {
                    return Err(section.invalid(key, "a port has none", "a `socket` instead of `port`"));
                }
                Listen::Port { port, address }
            }
            (None, Some(_)) if section.has("address") => {
                return Err(section.invalid("address", "a unix socket has none", "`port` beside `address`"));
            }
            (None, Some(socket)) => Listen::Socket { socket, mode, owner, group },
            (Some(_), Some(_)) => {
                let expected = "one of them; a second table for the other";
                return Err(section.invalid("socket", "there is a `port` too", expected));
            }
            (None, None) => {
                return Err(section.invalid(
                    "port",
                    "it is missing",
                    "a port from 1 to 65535, or a `socket`",
                ));
            }
        };
        Ok(Self { service: service?, listen, target })
    }
}

impl Listen {
    /// What ingress is told.
    pub(super) fn for_ingress(&self) -> LocalListen {
        match self.clone() {
            Self::Port { port, address } => LocalListen::Ip(SocketAddr::new(address, port.get())),
            Self::Socket { socket, mode, owner, group } => {
                LocalListen::Unix(socket, Access { mode, owner, group })
            }
        }
    }
}

impl FromValue for Account {
    fn expected() -> String {
        "a name or a number".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match value.as_integer() {
            Some(_) => u32::from_value(value).map(Self::Number),
            None => value.parse_text(&Self::expected()),
        }
    }
}

pub(super) fn mode_as_text<S: Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(mode)
}

pub(super) fn account_as_text<S: Serializer>(
    account: &Option<Account>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match account {
        Some(account) => serializer.collect_str(account),
        None => serializer.serialize_none(),
    }
}
