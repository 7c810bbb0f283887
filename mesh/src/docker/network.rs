//! The driver for networks: which overlay network one of Docker is, and the links of its containers.

use std::net::IpAddr;
use std::path::PathBuf;

use nerve::model::{Mac, NetworkName};
use serde_json::{Value, json};

use super::driver::{Answer, Driver, Refused, answer};
use super::ipam::{ADDRESS_SPACE, NETWORK};
use super::kept::DockerNetwork;
use super::message::{
    CreateEndpoint, CreateNetwork, InterfaceName, IpamData, Join, JoinAnswer, OfEndpoint, OfNetwork,
    StaticRoute,
};
use crate::overlay::Joined;

/// What interfaces are called in containers, with a number behind it.
const INTERFACE: &str = "eth";
/// A route by a gateway: libnetwork's `types.NEXTHOP`.
const NEXT_HOP: u8 = 0;

/// Each Docker has its own networks, and containers of all nodes reach each other.
pub(super) fn capabilities() -> Value {
    json!({"Scope": "local", "ConnectivityScope": "global"})
}

pub(super) async fn create(driver: &Driver, request: CreateNetwork) -> Answer {
    let CreateNetwork { network_id, options, ipv4_data, ipv6_data } = request;
    for pools in [&ipv4_data, &ipv6_data] {
        if pools.len() > 1 {
            return Err(Refused::wrong("a network has one range of each family; give one --subnet of each"));
        }
    }
    let mut network: Option<NetworkName> = None;
    for pool in ipv4_data.iter().chain(&ipv6_data) {
        let of_pool = network_of(driver, pool)?;
        if let Some(other) = network.as_ref().filter(|network| **network != of_pool) {
            return Err(Refused::wrong(format!(
                "one range is of network {other}, the other one of {of_pool}; name one by --ipam-opt {NETWORK}=NAME"
            )));
        }
        network = Some(of_pool);
    }
    let network =
        network.ok_or_else(|| Refused::wrong("it has no addresses; create it with --ipam-driver plexus"))?;
    for (option, value) in &options.generic {
        if option != NETWORK {
            return Err(Refused::wrong(format!("-o {option} is not known; there is {NETWORK}=NAME")));
        }
        if value.as_str() != Some(network.as_str()) {
            return Err(Refused::wrong(format!(
                "its addresses are of network {network}; name the network by --ipam-opt {NETWORK}={} as well",
                value.as_str().unwrap_or("NAME")
            )));
        }
    }
    let known = DockerNetwork { network: network.clone(), internal: options.internal };
    let kept = driver.kept.write(&network_id, &known);
    kept.map_err(|source| Refused::Kept { id: network_id.clone(), source })?;
    tracing::info!(id = network_id, %network, internal = options.internal, "a network of Docker was created");
    Ok(json!({}))
}

/// The network that a pool was taken from.
fn network_of(driver: &Driver, pool: &IpamData) -> Result<NetworkName, Refused> {
    if pool.address_space != ADDRESS_SPACE {
        return Err(Refused::wrong(
            "its addresses are not of Plexus, and nobody would reach them; create it with --ipam-driver plexus",
        ));
    }
    if let Some(name) = pool.aux_addresses.keys().next() {
        return Err(Refused::wrong(format!(
            "--aux-address {name} is not for networks of Plexus: each node has other addresses; leave it away"
        )));
    }
    let gateway = without_length(&pool.gateway)?;
    let network = gateway.and_then(|gateway| driver.links.network_of(gateway));
    network.ok_or_else(|| {
        Refused::wrong(format!(
            "its gateway {:?} is of no network; the network may just have been removed",
            pool.gateway
        ))
    })
}

pub(super) fn delete(driver: &Driver, request: OfNetwork) -> Answer {
    let OfNetwork { network_id } = request;
    let removed = driver.kept.remove(&network_id);
    removed.map_err(|source| Refused::Kept { id: network_id.clone(), source })?;
    tracing::info!(id = network_id, "a network of Docker was removed");
    Ok(json!({}))
}

pub(super) async fn create_endpoint(driver: &Driver, request: CreateEndpoint) -> Answer {
    let CreateEndpoint { network_id, endpoint_id, interface } = request;
    let network = driver.known(&network_id)?.network;
    let mut addresses = Vec::new();
    for text in [&interface.address, &interface.address_ipv6] {
        addresses.extend(without_length(text)?);
    }
    if addresses.is_empty() {
        return Err(Refused::wrong("the container has no address; is the network's --ipam-driver plexus?"));
    }
    if let Some(stray) =
        addresses.iter().find(|address| driver.links.network_of(**address) != Some(network.clone()))
    {
        return Err(Refused::wrong(format!("{stray} is no address of network {network}")));
    }
    let asked: Option<Mac> = match interface.mac_address.as_str() {
        "" => None,
        text => Some(text.parse().map_err(Refused::Wrong)?),
    };
    let mac = driver.links.assign(&endpoint_id, &addresses, asked).await?;
    // Docker takes back what it has said itself as an attempt to change it.
    Ok(if asked.is_some() { json!({}) } else { json!({"Interface": {"MacAddress": mac}}) })
}

pub(super) async fn join(driver: &Driver, request: Join) -> Answer {
    let Join { network_id, endpoint_id, sandbox_key, options } = request;
    let internal = driver.known(&network_id)?.internal;
    let joined = driver.links.join(&endpoint_id, PathBuf::from(sandbox_key)).await?;
    answer(setup(joined, internal, !options.published.is_empty()))
}

/// What Docker is to set in the container.
///
/// Where ports are published (`-p`), it is left to Docker to find a way out: it connects the container to a bridge of its own
/// (`docker_gwbridge`), and publishes the ports there, as it does for its own networks of several hosts. Of IPv6, that bridge knows nothing.
fn setup(joined: Joined, internal: bool, publishes: bool) -> JoinAnswer {
    let Joined { interface, gateways, ranges } = joined;
    let gateway = |v4: bool| gateways.iter().find(|gateway| gateway.is_ipv4() == v4);
    let route = |destination: String, gateway: &IpAddr| StaticRoute {
        destination,
        route_type: NEXT_HOP,
        next_hop: gateway.to_string(),
    };
    let mut static_routes: Vec<StaticRoute> =
        ranges.iter().filter_map(|range| Some(route(range.to_string(), gateway(range.is_ipv4())?))).collect();
    if publishes && !internal {
        static_routes.extend(gateway(false).map(|gateway| route("::/0".to_owned(), gateway)));
    }
    let shown = |v4: bool| {
        let leads_out = !internal && !publishes;
        gateway(v4).filter(|_| leads_out).map_or_else(String::new, ToString::to_string)
    };
    JoinAnswer {
        interface_name: InterfaceName { src_name: interface, dst_prefix: INTERFACE },
        gateway: shown(true),
        gateway_ipv6: shown(false),
        static_routes,
        disable_gateway_service: internal,
    }
}

pub(super) async fn leave(driver: &Driver, request: OfEndpoint) -> Answer {
    driver.links.leave(&request.endpoint_id).await?;
    Ok(json!({}))
}

/// `10.42.3.1/24` → `10.42.3.1`; `None` of nothing.
fn without_length(text: &str) -> Result<Option<IpAddr>, Refused> {
    let (address, _) = text.split_once('/').unwrap_or((text, ""));
    if address.is_empty() {
        return Ok(None);
    }
    address.parse().map(Some).map_err(|_| {
        let shown: String = text.chars().take(100).collect();
        Refused::wrong(format!("{shown:?} is no address"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined() -> Joined {
        Joined {
            interface: "plxc1".to_owned(),
            gateways: vec!["10.42.3.1".parse().unwrap(), "fd00:42:0:3::1".parse().unwrap()],
            ranges: vec!["10.42.0.0/16".parse().unwrap(), "fd00:42::/48".parse().unwrap()],
        }
    }

    #[test]
    fn a_container_has_routes_to_its_network_and_a_way_out() {
        let answer = serde_json::to_value(setup(joined(), false, false)).unwrap();
        assert_eq!(
            answer,
            json!({
                "InterfaceName": {"SrcName": "plxc1", "DstPrefix": "eth"},
                "Gateway": "10.42.3.1",
                "GatewayIPv6": "fd00:42:0:3::1",
                "StaticRoutes": [
                    {"Destination": "10.42.0.0/16", "RouteType": 0, "NextHop": "10.42.3.1"},
                    {"Destination": "fd00:42::/48", "RouteType": 0, "NextHop": "fd00:42:0:3::1"},
                ],
                "DisableGatewayService": false,
            })
        );
    }

    #[test]
    fn the_way_out_is_dockers_where_ports_are_published_and_nobodys_of_an_internal_network() {
        let published = setup(joined(), false, true);
        assert!(published.gateway.is_empty() && published.gateway_ipv6.is_empty());
        assert!(!published.disable_gateway_service);
        assert!(published.static_routes.iter().any(|route| route.destination == "::/0"));
        for publishes in [false, true] {
            let internal = setup(joined(), true, publishes);
            assert!(internal.gateway.is_empty() && internal.gateway_ipv6.is_empty());
            assert!(internal.disable_gateway_service && internal.static_routes.len() == 2);
        }
    }

    #[test]
    fn addresses_come_with_the_length_of_their_subnet() {
        assert_eq!(without_length("10.42.3.1/24").unwrap(), Some("10.42.3.1".parse().unwrap()));
        assert_eq!(without_length("fd00::1/64").unwrap(), Some("fd00::1".parse().unwrap()));
        assert_eq!(without_length("").unwrap(), None);
        assert!(without_length("x/24").is_err());
    }
}
