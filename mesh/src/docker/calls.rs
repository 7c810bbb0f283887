//! Which call is whose.

use serde::de::DeserializeOwned;
use serde_json::json;

use super::driver::{Answer, Driver, Refused};
use super::{ipam, network};

/// A call that there is none of has this label.
const UNKNOWN: &str = "unknown";

/// Answers a call: `NetworkDriver.Join`.
pub(super) async fn call(driver: &Driver, name: &str, body: &[u8]) -> Answer {
    let answer = answer(driver, name, body).await;
    let label = match &answer {
        Err(Refused::NoCall(_)) => UNKNOWN,
        _ => name,
    };
    let outcome = if answer.is_ok() { "done" } else { "refused" };
    driver.metrics.calls.with_label_values(&[label, outcome]).inc();
    if let Err(error) = &answer {
        tracing::warn!(call = label, %error, "refused a call of Docker");
    }
    answer
}

async fn answer(driver: &Driver, name: &str, body: &[u8]) -> Answer {
    match name {
        "Plugin.Activate" => Ok(json!({"Implements": ["NetworkDriver", "IpamDriver"]})),
        "IpamDriver.GetCapabilities" => Ok(ipam::capabilities()),
        "IpamDriver.GetDefaultAddressSpaces" => Ok(ipam::address_spaces()),
        "IpamDriver.RequestPool" => ipam::request_pool(driver, read(body)?).await,
        "IpamDriver.RequestAddress" => ipam::request_address(driver, read(body)?).await,
        "IpamDriver.ReleaseAddress" => ipam::release_address(driver, read(body)?).await,
        "NetworkDriver.GetCapabilities" => Ok(network::capabilities()),
        "NetworkDriver.CreateNetwork" => network::create(driver, read(body)?).await,
        "NetworkDriver.DeleteNetwork" => network::delete(driver, read(body)?),
        "NetworkDriver.CreateEndpoint" => network::create_endpoint(driver, read(body)?).await,
        "NetworkDriver.EndpointOperInfo" => Ok(json!({"Value": {}})),
        "NetworkDriver.Join" => network::join(driver, read(body)?).await,
        "NetworkDriver.Leave" | "NetworkDriver.DeleteEndpoint" => network::leave(driver, read(body)?).await,
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

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    if body.is_empty() {
        return Err(Refused::Empty);
    }
    Ok(serde_json::from_slice(body)?)
}
