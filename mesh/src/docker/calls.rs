//! Which call is whose, and how it is refused: with what libnetwork shows to its user, `{"Err": "…"}`.

use nerve::model::NetworkName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::kept::Kept;
use super::{Metrics, ipam, network};
use crate::overlay::{DockerError, DockerLinks};

/// A call that there is none of has this label.
const UNKNOWN: &str = "unknown";

/// What calls are answered from.
#[derive(Debug, Clone)]
pub(super) struct Driver {
    pub(super) links: DockerLinks,
    pub(super) kept: Kept,
    metrics: Metrics,
}

/// What a call is answered with.
pub(super) type Answer = Result<Value, Refused>;

/// Why a call is not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// There is no such call.
    #[error("there is no call {0}: this is the plugin of Plexus for networks and addresses")]
    NoCall(String),
    /// It is not JSON, or not of this form.
    #[error("the request cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// What the user of Docker is to do otherwise.
    #[error("{0}")]
    Wrong(String),
    /// The overlay does not do it.
    #[error(transparent)]
    Overlay(#[from] DockerError),
    /// What is remembered cannot be read or written.
    #[error("cannot keep what Docker's network {id} is: {source}")]
    Kept {
        /// Its id.
        id: String,
        /// Why not.
        source: std::io::Error,
    },
}

impl Driver {
    pub(super) fn new(links: DockerLinks, kept: Kept, metrics: Metrics) -> Self {
        Self { links, kept, metrics }
    }

    /// Answers a call: `NetworkDriver.Join`.
    pub(super) async fn call(&self, name: &str, body: &[u8]) -> Answer {
        let answer = self.answer(name, body).await;
        let label = match &answer {
            Err(Refused::NoCall(_)) => UNKNOWN,
            _ => name,
        };
        let outcome = if answer.is_ok() { "done" } else { "refused" };
        self.metrics.calls.with_label_values(&[label, outcome]).inc();
        if let Err(error) = &answer {
            tracing::warn!(call = label, %error, "refused a call of Docker");
        }
        answer
    }

    async fn answer(&self, name: &str, body: &[u8]) -> Answer {
        match name {
            "Plugin.Activate" => Ok(json!({"Implements": ["NetworkDriver", "IpamDriver"]})),
            "IpamDriver.GetCapabilities" => Ok(ipam::capabilities()),
            "IpamDriver.GetDefaultAddressSpaces" => Ok(ipam::address_spaces()),
            "IpamDriver.RequestPool" => ipam::request_pool(self, read(body)?).await,
            "IpamDriver.RequestAddress" => ipam::request_address(self, read(body)?).await,
            "IpamDriver.ReleaseAddress" => ipam::release_address(self, read(body)?).await,
            "NetworkDriver.GetCapabilities" => Ok(network::capabilities()),
            "NetworkDriver.CreateNetwork" => network::create(self, read(body)?).await,
            "NetworkDriver.DeleteNetwork" => network::delete(self, read(body)?),
            "NetworkDriver.CreateEndpoint" => network::create_endpoint(self, read(body)?).await,
            "NetworkDriver.EndpointOperInfo" => Ok(json!({"Value": {}})),
            "NetworkDriver.Join" => network::join(self, read(body)?).await,
            "NetworkDriver.Leave" | "NetworkDriver.DeleteEndpoint" => network::leave(self, read(body)?).await,
            // A pool is a part of a network that is there anyway. Networks of a swarm are made by its managers, which asks for a
            // driver of the scope `global`. What other nodes have, the agent knows from the store. Ports are published by Docker
            // itself, on a network of its own (see `network::join`).
            "IpamDriver.ReleasePool"
            | "NetworkDriver.AllocateNetwork"
            | "NetworkDriver.FreeNetwork"
            | "NetworkDriver.DiscoverNew"
            | "NetworkDriver.DiscoverDelete"
            | "NetworkDriver.ProgramExternalConnectivity"
            | "NetworkDriver.RevokeExternalConnectivity" => Ok(json!({})),
            _ => Err(Refused::NoCall(name.chars().take(100).collect())),
        }
    }

    /// What a network of Docker is.
    pub(super) fn known(&self, id: &str) -> Result<super::kept::DockerNetwork, Refused> {
        let known = self.kept.read(id).map_err(|source| Refused::Kept { id: id.to_owned(), source })?;
        known.ok_or_else(|| {
            Refused::Wrong(format!(
                "this node's agent does not know Docker's network {id}; remove it (docker network rm) and create it again"
            ))
        })
    }
}

impl Refused {
    pub(super) fn wrong(why: impl Into<String>) -> Self {
        Self::Wrong(why.into())
    }
}

/// A network's name as a user has written it.
pub(super) fn network_name(text: &str) -> Result<NetworkName, Refused> {
    NetworkName::new(text).map_err(|error| Refused::wrong(error.to_string()))
}

/// An answer that has a form of its own.
pub(super) fn answer(answer: impl Serialize) -> Answer {
    Ok(serde_json::to_value(answer)?)
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    Ok(serde_json::from_slice(body)?)
}
