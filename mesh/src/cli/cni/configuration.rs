//! What stands on standard input: the configuration of a network, as the runtime hands it to one of its plugins.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use nerve::model::NetworkName;
use serde::Deserialize;
use serde_json::Value;

use super::call::{address_of, is_for_mesh, is_interface, not_an_interface};
use super::failure::{Code, Failure};
use super::version::Version;
use crate::cli::client::Client;

/// The configuration, as far as it matters here. A runtime adds keys of its own, so that others are left out.
#[derive(Debug, Deserialize)]
struct Written {
    #[serde(rename = "cniVersion")]
    cni_version: Option<String>,
    name: Option<String>,
    network: Option<String>,
    interface: Option<String>,
    admin: Option<String>,
    token_file: Option<PathBuf>,
    #[serde(default)]
    ipam: Ipam,
    dns: Option<Value>,
    #[serde(rename = "runtimeConfig", default)]
    runtime: Runtime,
    #[serde(default)]
    args: Args,
    #[serde(rename = "prevResult")]
    before: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Valid>>,
}

#[derive(Debug, Default, Deserialize)]
struct Ipam {
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// "Dynamic information supplied by the runtime", by capabilities.
#[derive(Debug, Default, Deserialize)]
struct Runtime {
    #[serde(default)]
    ips: Vec<String>,
    /// By the name of the network.
    #[serde(default)]
    aliases: BTreeMap<String, Vec<String>>,
    /// Of a pod, where the runtime serves Kubernetes.
    #[serde(rename = "io.kubernetes.cri.pod-annotations", default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
struct Args {
    #[serde(default)]
    cni: Conventional,
}

/// What a user says, as CNI's conventions have it.
#[derive(Debug, Default, Deserialize)]
struct Conventional {
    #[serde(default)]
    ips: Vec<String>,
    #[serde(default)]
    labels: Vec<Label>,
}

#[derive(Debug, Deserialize)]
struct Label {
    key: String,
    value: String,
}

/// A container that is known to the runtime.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Valid {
    #[serde(rename = "containerID")]
    pub(super) container: String,
    #[serde(rename = "ifname")]
    pub(super) interface: String,
}

/// What is to be done to containers of a network.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Configuration {
    pub(super) version: Version,
    /// Of the configuration: the runtime's name of the network.
    pub(super) name: String,
    /// Whose addresses containers get.
    pub(super) network: NetworkName,
    /// What the interface is called, if not as the runtime asks.
    pub(super) interface: Option<String>,
    /// Where the agent is, if it is not where it is unless told otherwise.
    pub(super) admin: Option<Client>,
    /// The file whose token it is shown.
    pub(super) token_file: Option<PathBuf>,
    /// The plugin that gives addresses; `None`: the agent does.
    pub(super) ipam: Option<String>,
    pub(super) dns: Option<Value>,
    /// Addresses that the container is to have.
    pub(super) addresses: Vec<IpAddr>,
    /// What the container is called on this network, as the runtime has it.
    pub(super) aliases: Vec<String>,
    /// What is said of it.
    pub(super) labels: BTreeMap<String, String>,
    /// What the plugins before this one have done.
    pub(super) before: Option<Value>,
    /// Who is attached as far as the runtime knows.
    pub(super) valid: Option<BTreeSet<Valid>>,
}

impl Configuration {
    pub(super) fn read(text: &[u8]) -> Result<Self, Failure> {
        let written: Written = serde_json::from_slice(text).map_err(|error| undecodable(&error))?;
        let said = written.cni_version.as_deref();
        let version = Version::read(said).ok_or_else(|| not_spoken(said))?;
        Self::of(version, written).map_err(|failure| failure.of(version))
    }

    fn of(version: Version, written: Written) -> Result<Self, Failure> {
        let Written { name, network, interface, admin, token_file, ipam, dns, before, valid, .. } = written;
        let (mut runtime, args) = (written.runtime, written.args.cni);
        let name = name.filter(|name| !name.is_empty()).ok_or_else(|| wrong("name", "it is missing"))?;
        let network = match network {
            Some(network) => NetworkName::new(&network).map_err(|error| wrong("network", error))?,
            None => NetworkName::new(&name).map_err(|error| {
                wrong(
                    "network",
                    format!("it is missing, and `name` is no name of an overlay network: {error}"),
                )
            })?,
        };
        if let Some(bad) = interface.as_ref().filter(|name| !is_interface(name)) {
            return Err(wrong("interface", not_an_interface(bad)));
        }
        let admin =
            admin.map(|url| url.parse()).transpose().map_err(|error: String| wrong("admin", error))?;
        let ipam = ipam.kind.filter(|kind| !kind.is_empty());
        if let Some(bad) = ipam.as_ref().filter(|kind| kind.contains('/')) {
            return Err(wrong("ipam.type", format!("{bad:?} is not the name of a program")));
        }
        let asked = runtime.ips.iter().chain(&args.ips);
        let addresses: Result<Vec<IpAddr>, String> = asked.map(|text| address_of(text)).collect();
        let addresses = addresses.map_err(|error| wrong("ips", error))?;
        let aliases = runtime.aliases.remove(&name).unwrap_or_default();
        // Pods have annotations for everything; those of a pod go before what is said of all containers of the network.
        let of_pod = runtime.annotations.into_iter().filter(|(key, _)| is_for_mesh(key));
        let of_all = args.labels.into_iter().map(|Label { key, value }| (key, value));
        let labels = of_all.chain(of_pod).collect();
        let valid = valid.map(|valid| valid.into_iter().collect());
        Ok(Self {
            version,
            name,
            network,
            interface,
            admin,
            token_file,
            ipam,
            dns,
            addresses,
            aliases,
            labels,
            before,
            valid,
        })
    }
}

/// What `VERSION` is asked in, if that is said.
pub(super) fn version_asked(text: &[u8]) -> Option<String> {
    serde_json::from_slice::<Value>(text).ok()?["cniVersion"].as_str().map(str::to_owned)
}

fn not_spoken(version: Option<&str>) -> Failure {
    let known = Version::ALL.map(Version::as_str).join(", ");
    let why = match version {
        Some(version) => format!("version {version} of CNI is not spoken here"),
        None => "the configuration does not say of which version of CNI it is".to_owned(),
    };
    Failure::new(Code::IncompatibleVersion, why).details(format!("`cniVersion` can be {known}"))
}

fn undecodable(error: &serde_json::Error) -> Failure {
    Failure::new(Code::Decoding, format!("the configuration on standard input cannot be read: {error}"))
}

fn wrong(key: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(Code::Configuration, format!("the configuration's key `{key}`: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(more: &Value) -> Result<Configuration, String> {
        let mut whole = json!({"cniVersion": "1.0.0", "name": "blue", "type": "plexus"});
        for (key, value) in more.as_object().unwrap() {
            whole[key] = value.clone();
        }
        Configuration::read(whole.to_string().as_bytes()).map_err(|failure| failure.json().to_string())
    }

    #[test]
    fn a_configuration_needs_no_more_than_a_name() {
        let configuration = read(&json!({"capabilities": {"ips": true}, "ipam": {}})).unwrap();
        assert_eq!(configuration.network.as_str(), "blue");
        assert_eq!((configuration.version, configuration.ipam), (Version::V1_0_0, None));
        let named = read(&json!({"name": "Podman_1", "network": "blue"})).unwrap();
        assert_eq!((named.name.as_str(), named.network.as_str()), ("Podman_1", "blue"));
    }

    #[test]
    fn addresses_are_asked_for_by_the_runtime_and_by_conventions() {
        let by_both =
            json!({"runtimeConfig": {"ips": ["10.42.3.7/24"]}, "args": {"cni": {"ips": ["fd42::7"]}}});
        let addresses: Vec<IpAddr> = ["10.42.3.7", "fd42::7"].map(|text| text.parse().unwrap()).into();
        assert_eq!(read(&by_both).unwrap().addresses, addresses);
    }

    #[test]
    fn labels_are_those_of_conventions_and_annotations_and_aliases_those_of_the_network() {
        let labels = json!([{"key": "plexus.port", "value": "80"}, {"key": "role", "value": "x"}]);
        let aliases = json!({"blue": ["web", "0123456789ab"], "red": ["other"]});
        let annotations = json!({"plexus.port": "8080", "example.org/large": "{}"});
        let read = read(&json!({
            "args": {"cni": {"labels": labels}},
            "runtimeConfig": {"aliases": aliases, "io.kubernetes.cri.pod-annotations": annotations},
        }));
        let read = read.unwrap();
        assert_eq!(read.aliases, ["web", "0123456789ab"]);
        let labels: Vec<(&str, &str)> = read.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(labels, [("plexus.port", "8080"), ("role", "x")]);
    }

    #[test]
    fn who_is_valid_is_told_or_not() {
        assert_eq!(read(&json!({})).unwrap().valid, None);
        let two = json!([{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth1"}]);
        let valid = read(&json!({"cni.dev/valid-attachments": two})).unwrap().valid.unwrap();
        assert!(valid.contains(&Valid { container: "b".to_owned(), interface: "eth1".to_owned() }));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_key_in_the_version_of_the_configuration() {
        for (more, key) in [
            (json!({"name": ""}), "`name`"),
            (json!({"name": "No_Network"}), "`network`"),
            (json!({"network": "No Network"}), "`network`"),
            (json!({"interface": "a/b"}), "`interface`"),
            (json!({"admin": "https://a"}), "`admin`"),
            (json!({"ipam": {"type": "../sh"}}), "`ipam.type`"),
            (json!({"runtimeConfig": {"ips": ["ten"]}}), "`ips`"),
        ] {
            let failure = read(&more).unwrap_err();
            let is_named = failure.contains(key) && failure.contains("\"code\":7");
            assert!(is_named && failure.contains("\"cniVersion\":\"1.0.0\""), "{failure}");
        }
        let failure = Configuration::read(b"{").unwrap_err().json();
        assert_eq!(failure["code"], 6);
        assert!(read(&json!({"cniVersion": "0.2.0"})).unwrap_err().contains("\"code\":1,"));
    }

    #[test]
    fn a_version_is_asked_in_a_version_or_not() {
        assert_eq!(version_asked(b"{\"cniVersion\": \"0.4.0\"}").as_deref(), Some("0.4.0"));
        assert_eq!((version_asked(b""), version_asked(b"{}")), (None, None));
    }
}
