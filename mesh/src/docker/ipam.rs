//! The driver for addresses: this node's subnet of a network is the pool, and the agent's ledger has the addresses.
//!
//! Without `--subnet`, Docker asks again and again for a pool that no route of the host leads to, and never finds that of an overlay
//! network to be one (libnetwork's `requestPoolHelper`). Only `0.0.0.0/0` it takes as it is: so this is what the IPv4 pool is called then.
//! For IPv6 it looks at no routes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nerve::model::{NetworkName, Prefix};
use serde_json::{Value, json};

use super::driver::{Answer, Driver, Refused, answer, network_name};
use super::message::{OfPool, PoolAnswer, RequestPool};
use crate::overlay::Pool;

/// What tells the driver for networks that addresses are ours.
pub(super) const ADDRESS_SPACE: &str = "plexus";
/// The option that names the network.
pub(super) const NETWORK: &str = "network";
/// The network that is meant where nothing is said.
const DEFAULT: &str = "default";
/// What Docker takes without a look at the host's routes.
const ANY_V4: &str = "0.0.0.0/0";
/// libnetwork's `netlabel.Gateway`: a key of a pool's data, and the type of a request for an address.
const GATEWAY: &str = "com.docker.network.gateway";
/// libnetwork's `ipamapi.RequestAddressType`.
const ADDRESS_TYPE: &str = "RequestAddressType";

/// Addresses are on disk: Docker need not tell them again after a restart, nor which MAC they are for.
pub(super) fn capabilities() -> Value {
    json!({"RequiresMACAddress": false, "RequiresRequestReplay": false})
}

pub(super) fn address_spaces() -> Value {
    json!({"LocalDefaultAddressSpace": ADDRESS_SPACE, "GlobalDefaultAddressSpace": ADDRESS_SPACE})
}

pub(super) async fn request_pool(driver: &Driver, request: RequestPool) -> Answer {
    let RequestPool { pool: asked, sub_pool, options, v6 } = request;
    if !sub_pool.is_empty() {
        return Err(Refused::wrong(format!(
            "--ip-range {sub_pool} is not for networks of Plexus: each node has a subnet of its own; leave it away"
        )));
    }
    if let Some(unknown) = options.keys().find(|key| *key != NETWORK) {
        return Err(Refused::wrong(format!("--ipam-opt {unknown} is not known; there is {NETWORK}=NAME")));
    }
    let range = if asked.is_empty() { None } else { Some(range(&asked)?) };
    let named = options.get(NETWORK).map(|name| network_name(name)).transpose()?;
    let network = match (named, range) {
        (Some(name), _) => name,
        (None, Some(range)) => driver.links.network_of_range(range).ok_or_else(|| {
            Refused::wrong(format!(
                "no network has the range {range}; `plexus network ls` shows those that there are, and \
                 `plexus network create NAME --cidr {range}` makes one, once for all nodes"
            ))
        })?,
        (None, None) => network_name(DEFAULT)?,
    };
    let Pool { range: whole, subnet, gateway } = driver.links.pool(&network, !v6).await?;
    if let Some(other) = range.filter(|range| *range != whole) {
        return Err(Refused::wrong(format!(
            "network {network} has the range {whole}, not {other}; leave --subnet away, or write that one"
        )));
    }
    let pool = if v6 || range.is_some() { whole.to_string() } else { ANY_V4.to_owned() };
    let data = BTreeMap::from([(GATEWAY, format!("{gateway}/{}", subnet.length()))]);
    answer(PoolAnswer { pool_id: pool_id(&network, !v6), pool, data })
}

pub(super) async fn request_address(driver: &Driver, request: OfPool) -> Answer {
    let (network, v4) = of_pool(&request.pool_id)?;
    let asked = if request.address.is_empty() { None } else { Some(ip(&request.address)?) };
    if request.options.get(ADDRESS_TYPE).is_some_and(|kind| kind == GATEWAY) {
        let Pool { subnet, gateway, .. } = driver.links.pool(&network, v4).await?;
        if let Some(other) = asked.filter(|asked| *asked != gateway) {
            return Err(Refused::wrong(format!(
                "the gateway of network {network} on this node is {gateway}, not {other}; leave --gateway away"
            )));
        }
        return Ok(address(gateway, subnet.length()));
    }
    let (given, length) = driver.links.reserve(&network, v4, asked).await?;
    Ok(address(given, length))
}

pub(super) async fn release_address(driver: &Driver, request: OfPool) -> Answer {
    // The gateway is the bridge's: it is nobody's in the ledger.
    driver.links.release(ip(&request.address)?).await?;
    Ok(json!({}))
}

fn address(address: IpAddr, length: u8) -> Value {
    json!({"Address": format!("{address}/{length}"), "Data": {}})
}

/// Says everything about the pool, so that nothing need be remembered.
fn pool_id(network: &NetworkName, v4: bool) -> String {
    format!("{network}/{}", if v4 { "4" } else { "6" })
}

fn of_pool(id: &str) -> Result<(NetworkName, bool), Refused> {
    let unknown = || {
        let shown: String = id.chars().take(100).collect();
        Refused::wrong(format!("{shown:?} is no pool of Plexus"))
    };
    let (network, family) = id.split_once('/').ok_or_else(unknown)?;
    let v4 = match family {
        "4" => true,
        "6" => false,
        _ => return Err(unknown()),
    };
    Ok((NetworkName::new(network).map_err(|_| unknown())?, v4))
}

fn range(text: &str) -> Result<Prefix, Refused> {
    text.parse().map_err(Refused::Wrong)
}

fn ip(text: &str) -> Result<IpAddr, Refused> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(100).collect();
        Refused::wrong(format!("{shown:?} is no address"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_known_by_its_id() {
        let network = NetworkName::new("blue").unwrap();
        for v4 in [true, false] {
            assert_eq!(of_pool(&pool_id(&network, v4)).unwrap(), (network.clone(), v4));
        }
        for id in ["", "blue", "blue/5", "Blue/4", "/4"] {
            assert!(of_pool(id).unwrap_err().to_string().contains("is no pool of Plexus"), "{id}");
        }
    }
}
