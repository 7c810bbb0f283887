//! The JSON of libnetwork's plugin protocol, as far as it matters here: `drivers/remote/api` and `ipams/remote/api` in its sources.
//!
//! Docker leaves fields out, or says `null`, where it has nothing to say; what is not known here is another version's.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// `IpamDriver.RequestPool`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct RequestPool {
    /// `--subnet`.
    #[serde(deserialize_with = "or_default")]
    pub(super) pool: String,
    /// `--ip-range`.
    #[serde(deserialize_with = "or_default")]
    pub(super) sub_pool: String,
    /// `--ipam-opt`.
    #[serde(deserialize_with = "or_default")]
    pub(super) options: BTreeMap<String, String>,
    /// Addresses of IPv6?
    #[serde(deserialize_with = "or_default")]
    pub(super) v6: bool,
}

/// `IpamDriver.RequestAddress` and `IpamDriver.ReleaseAddress`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct OfPool {
    #[serde(rename = "PoolID", deserialize_with = "or_default")]
    pub(super) pool_id: String,
    /// Empty where any will do.
    #[serde(deserialize_with = "or_default")]
    pub(super) address: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) options: BTreeMap<String, String>,
}

/// `NetworkDriver.CreateNetwork`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct CreateNetwork {
    #[serde(rename = "NetworkID", deserialize_with = "or_default")]
    pub(super) network_id: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) options: NetworkOptions,
    #[serde(rename = "IPv4Data", deserialize_with = "or_default")]
    pub(super) ipv4_data: Vec<IpamData>,
    #[serde(rename = "IPv6Data", deserialize_with = "or_default")]
    pub(super) ipv6_data: Vec<IpamData>,
}

/// What a network of Docker was created with.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NetworkOptions {
    /// `-o`.
    #[serde(rename = "com.docker.network.generic", deserialize_with = "or_default")]
    pub(super) generic: BTreeMap<String, Value>,
    /// `--internal`.
    #[serde(rename = "com.docker.network.internal", deserialize_with = "or_default")]
    pub(super) internal: bool,
}

/// What the driver for addresses has said.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct IpamData {
    #[serde(deserialize_with = "or_default")]
    pub(super) address_space: String,
    /// With the length of its subnet.
    #[serde(deserialize_with = "or_default")]
    pub(super) gateway: String,
    /// `--aux-address`.
    #[serde(deserialize_with = "or_default")]
    pub(super) aux_addresses: BTreeMap<String, String>,
}

/// `NetworkDriver.DeleteNetwork`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct OfNetwork {
    #[serde(rename = "NetworkID", deserialize_with = "or_default")]
    pub(super) network_id: String,
}

/// `NetworkDriver.Leave`, `NetworkDriver.DeleteEndpoint`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct OfEndpoint {
    #[serde(rename = "EndpointID", deserialize_with = "or_default")]
    pub(super) endpoint_id: String,
}

/// `NetworkDriver.CreateEndpoint`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct CreateEndpoint {
    #[serde(rename = "NetworkID", deserialize_with = "or_default")]
    pub(super) network_id: String,
    #[serde(rename = "EndpointID", deserialize_with = "or_default")]
    pub(super) endpoint_id: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) interface: Interface,
}

/// What an endpoint has; addresses with the length of their subnet.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Interface {
    #[serde(rename = "Address", deserialize_with = "or_default")]
    pub(super) address: String,
    #[serde(rename = "AddressIPv6", deserialize_with = "or_default")]
    pub(super) address_ipv6: String,
    /// `--mac-address`.
    #[serde(rename = "MacAddress", deserialize_with = "or_default")]
    pub(super) mac_address: String,
}

/// `NetworkDriver.Join`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Join {
    #[serde(rename = "NetworkID", deserialize_with = "or_default")]
    pub(super) network_id: String,
    #[serde(rename = "EndpointID", deserialize_with = "or_default")]
    pub(super) endpoint_id: String,
    /// The file of the container's namespace.
    #[serde(deserialize_with = "or_default")]
    pub(super) sandbox_key: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) options: JoinOptions,
}

/// What a container was started with.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct JoinOptions {
    /// `-p`.
    #[serde(rename = "com.docker.network.portmap", deserialize_with = "or_default")]
    pub(super) published: Vec<Value>,
}

/// The answer to `IpamDriver.RequestPool`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PoolAnswer {
    #[serde(rename = "PoolID")]
    pub(super) pool_id: String,
    pub(super) pool: String,
    pub(super) data: BTreeMap<&'static str, String>,
}

/// The answer to `NetworkDriver.Join`.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
pub(super) struct JoinAnswer {
    pub(super) interface_name: InterfaceName,
    pub(super) gateway: String,
    #[serde(rename = "GatewayIPv6")]
    pub(super) gateway_ipv6: String,
    pub(super) static_routes: Vec<StaticRoute>,
    /// Docker is not to look for another way out.
    pub(super) disable_gateway_service: bool,
}

/// Which link Docker is to move, and what it is called afterwards: the prefix, and a number.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InterfaceName {
    pub(super) src_name: String,
    pub(super) dst_prefix: &'static str,
}

/// A route of a container.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StaticRoute {
    pub(super) destination: String,
    /// 0: by a gateway.
    pub(super) route_type: u8,
    pub(super) next_hop: String,
}

/// `null` is nothing.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_leaves_out_or_says_to_be_null_is_nothing() {
        let text = r#"{"AddressSpace":"plexus","Pool":"","SubPool":"","Options":null,"V6":false}"#;
        let request: RequestPool = serde_json::from_str(text).unwrap();
        assert!(request.pool.is_empty() && request.options.is_empty() && !request.v6);
        let text = r#"{"NetworkID":"n","Options":{"com.docker.network.enable_ipv6":false,"com.docker.network.generic":{}},
            "IPv4Data":[{"AddressSpace":"plexus","Gateway":"10.42.3.1/24","Pool":"0.0.0.0/0"}],"IPv6Data":[]}"#;
        let request: CreateNetwork = serde_json::from_str(text).unwrap();
        assert_eq!(
            (request.ipv4_data[0].gateway.as_str(), request.options.internal),
            ("10.42.3.1/24", false)
        );
        let text = r#"{"NetworkID":"n","EndpointID":"e","SandboxKey":"/run/docker/netns/e","Options":
            {"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":8080}],"com.docker.network.endpoint.exposedports":null}}"#;
        assert_eq!(serde_json::from_str::<Join>(text).unwrap().options.published.len(), 1);
        assert!(serde_json::from_str::<Join>(r#"{"Options":null}"#).unwrap().options.published.is_empty());
    }
}
