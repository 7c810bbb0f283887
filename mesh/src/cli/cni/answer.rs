//! What a container runtime is told of a container that was attached: the result, in the form of its version.

use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::call::address_of;
use super::configuration::Configuration;
use super::failure::{Code, Failure};
use super::version::Version;
use crate::api::{Attachment, NewAttachment};

/// What a plugin that has addresses to give has given.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub(super) struct Delegated {
    #[serde(default)]
    ips: Vec<DelegatedIp>,
    #[serde(default)]
    routes: Vec<DelegatedRoute>,
    dns: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct DelegatedIp {
    address: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct DelegatedRoute {
    dst: String,
}

impl Delegated {
    /// The addresses that it gave.
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>, Failure> {
        let of = |ip: &DelegatedIp| address_of(&ip.address).map_err(|why| Failure::new(Code::Decoding, why));
        self.ips.iter().map(of).collect()
    }

    /// Containers get the routes of their network. A default route is among them unless they have one; whatever else a plugin
    /// wants would be missing, and nobody would know.
    pub(super) fn refuse_routes(&self) -> Result<(), Failure> {
        let is_default = |dst: &str| matches!(dst, "0.0.0.0/0" | "::/0");
        match self.routes.iter().find(|route| !is_default(&route.dst)) {
            None => Ok(()),
            Some(route) => {
                let why = format!("the configuration's key `ipam.routes`: no route to {} is made", route.dst);
                let details = "containers get routes to their network, and a default route if they have none";
                Err(Failure::new(Code::Configuration, why).details(details))
            }
        }
    }
}

/// The result of `ADD`, after what plugins before this one have done.
pub(super) fn result(
    configuration: &Configuration,
    delegated: &Delegated,
    namespace: &Path,
    done: &NewAttachment,
) -> Value {
    let version = configuration.version;
    let mut whole = configuration.before.clone().filter(Value::is_object).unwrap_or_else(|| json!({}));
    whole["cniVersion"] = json!(version.as_str());
    let Attachment { interface, link, mac, addresses, .. } = &done.attachment;
    let mut inside = json!({"name": interface, "mac": mac, "sandbox": namespace});
    if version >= Version::V1_1_0 {
        inside["mtu"] = json!(done.place.mtu);
    }
    let index = append(&mut whole, "interfaces", [json!({"name": link}), inside]) - 1;
    let given = addresses.iter().zip(done.place.subnets.iter().zip(&done.place.gateways));
    let ips = given.map(|(address, (subnet, gateway))| {
        let with_length = format!("{address}/{}", subnet.length());
        let mut ip = json!({"interface": index, "address": with_length, "gateway": gateway});
        if version < Version::V1_0_0 {
            ip["version"] = json!(if address.is_ipv4() { "4" } else { "6" });
        }
        ip
    });
    append(&mut whole, "ips", ips);
    let routes = done.routes.iter().map(|route| json!({"dst": route.to, "gw": route.via}));
    append(&mut whole, "routes", routes);
    if let Some(dns) = configuration.dns.as_ref().or(delegated.dns.as_ref()) {
        whole["dns"] = dns.clone();
    } else if whole["dns"].is_null() {
        whole["dns"] = json!({});
    }
    whole
}

/// What of the result of `ADD` is not true of what is attached, a sentence each.
pub(super) fn differences(before: &Value, attachment: &Attachment) -> Vec<String> {
    let empty = Vec::new();
    let listed = |key: &str| before[key].as_array().unwrap_or(&empty).iter();
    let name = &attachment.interface;
    let told = listed("interfaces").any(|told| {
        let is_inside = told["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty());
        is_inside && told["name"] == json!(name) && is_mac(&told["mac"], attachment)
    });
    let mut problems = Vec::new();
    if !told {
        problems.push(format!("prevResult has no interface {name} with the MAC {}", attachment.mac));
    }
    let addresses: Vec<IpAddr> =
        listed("ips").filter_map(|ip| address_of(ip["address"].as_str()?).ok()).collect();
    let missing = attachment.addresses.iter().filter(|address| !addresses.contains(address));
    problems.extend(missing.map(|address| format!("prevResult has not the address {address} of {name}")));
    problems
}

fn is_mac(told: &Value, attachment: &Attachment) -> bool {
    told.as_str().is_some_and(|told| told.eq_ignore_ascii_case(&attachment.mac.to_string()))
}

/// Puts entries at the end of a list of the result, which is made where there is none, and tells its length.
fn append(whole: &mut Value, key: &str, entries: impl IntoIterator<Item = Value>) -> usize {
    let mut list = match whole[key].take() {
        Value::Array(list) => list,
        _ => Vec::new(),
    };
    list.extend(entries);
    let length = list.len();
    whole[key] = Value::Array(list);
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(more: &Value) -> Configuration {
        let mut whole = json!({"cniVersion": "1.0.0", "name": "blue", "type": "plexus"});
        for (key, value) in more.as_object().unwrap() {
            whole[key] = value.clone();
        }
        Configuration::read(whole.to_string().as_bytes()).unwrap()
    }

    fn done() -> NewAttachment {
        serde_json::from_value(json!({
            "id": "c1@eth0", "network": "blue", "addresses": ["10.42.3.7", "fd42:0:0:3::7"],
            "mac": "0a:58:0a:2a:03:07", "namespace": "/run/netns/c1", "interface": "eth0", "link": "plxe1",
            "subnets": ["10.42.3.0/24", "fd42:0:0:3::/64"], "gateways": ["10.42.3.1", "fd42:0:0:3::1"], "mtu": 1450,
            "routes": [{"to": "10.42.0.0/16", "via": "10.42.3.1"}, {"to": "0.0.0.0/0", "via": "10.42.3.1"}]
        }))
        .unwrap()
    }

    fn of(more: &Value, delegated: &Delegated) -> Value {
        result(&configuration(more), delegated, Path::new("/run/netns/c1"), &done())
    }

    #[test]
    fn a_result_has_the_form_of_its_version() {
        let plain = of(&json!({}), &Delegated::default());
        let expected = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "plxe1"},
                {"name": "eth0", "mac": "0a:58:0a:2a:03:07", "sandbox": "/run/netns/c1"}
            ],
            "ips": [
                {"interface": 1, "address": "10.42.3.7/24", "gateway": "10.42.3.1"},
                {"interface": 1, "address": "fd42:0:0:3::7/64", "gateway": "fd42:0:0:3::1"}
            ],
            "routes": [{"dst": "10.42.0.0/16", "gw": "10.42.3.1"}, {"dst": "0.0.0.0/0", "gw": "10.42.3.1"}],
            "dns": {}
        });
        assert_eq!(plain, expected);
        for old in ["0.3.1", "0.4.0"] {
            let result = of(&json!({"cniVersion": old}), &Delegated::default());
            assert_eq!(
                (&result["ips"][0]["version"], &result["ips"][1]["version"]),
                (&json!("4"), &json!("6"))
            );
        }
        let new = of(&json!({"cniVersion": "1.1.0"}), &Delegated::default());
        assert_eq!((&new["interfaces"][1]["mtu"], &new["cniVersion"]), (&json!(1450), &json!("1.1.0")));
    }

    #[test]
    fn what_plugins_before_have_done_is_passed_on() {
        let before = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/c1"}],
            "ips": [{"interface": 0, "address": "192.0.2.7/24"}],
            "dns": {"nameservers": ["192.0.2.53"]},
            "theirs": 7
        });
        let result = of(&json!({"prevResult": before, "interface": "mesh0"}), &Delegated::default());
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
        assert_eq!(result["ips"][0], before["ips"][0]);
        assert_eq!(result["ips"][1]["interface"], 2);
        assert_eq!((&result["dns"], &result["theirs"]), (&before["dns"], &json!(7)));
    }

    #[test]
    fn resolvers_are_those_of_the_configuration_or_else_the_delegate_s() {
        let delegated: Delegated =
            serde_json::from_value(json!({"ips": [], "dns": {"nameservers": ["192.0.2.1"]}})).unwrap();
        assert_eq!(of(&json!({}), &delegated)["dns"]["nameservers"], json!(["192.0.2.1"]));
        let own = json!({"dns": {"nameservers": ["192.0.2.2"], "search": ["mesh.internal"]}});
        assert_eq!(of(&own, &delegated)["dns"], own["dns"]);
    }

    #[test]
    fn of_a_delegate_its_addresses_are_taken_and_routes_that_are_made_anyway() {
        let of = |json: Value| serde_json::from_value::<Delegated>(json).unwrap();
        let ips = json!([{"version": "4", "address": "10.42.3.7/24", "gateway": "10.42.3.1"}]);
        let given =
            of(json!({"cniVersion": "0.4.0", "ips": ips, "routes": [{"dst": "0.0.0.0/0"}], "dns": {}}));
        assert_eq!(given.addresses().unwrap(), ["10.42.3.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(given.refuse_routes(), Ok(()));
        let more = of(json!({"routes": [{"dst": "192.0.2.0/24", "gw": "10.42.3.9"}]}));
        assert!(more.refuse_routes().unwrap_err().to_string().contains("192.0.2.0/24"));
    }

    #[test]
    fn a_result_is_true_of_what_was_attached_and_of_nothing_else() {
        let result = of(&json!({}), &Delegated::default());
        let mut attachment = done().attachment;
        assert_eq!(differences(&result, &attachment), Vec::<String>::new());
        attachment.addresses[0] = "10.42.3.8".parse().unwrap();
        assert_eq!(differences(&result, &attachment), ["prevResult has not the address 10.42.3.8 of eth0"]);
        attachment.mac.0[5] = 9;
        assert_eq!(differences(&result, &attachment).len(), 2);
    }
}
