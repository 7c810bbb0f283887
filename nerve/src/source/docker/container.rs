//! Which instances a container is (pure): what `docker inspect` shows of it, read as definitions.
//!
//! It is an instance of every name that it has on a network of the mesh, as Docker's own resolver has them: aliases, Compose's services, or
//! without either the name of the container. Labels say otherwise (`labels.rs`). Without one, the port is the lowest of TCP that
//! the image or `--expose` names; without any there is nothing to connect to, and it is no instance. One whose own health check
//! does not pass is none either, until it does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use serde::Deserialize;
use serde_json::Value;

use crate::model::ServiceName;
use crate::source::labels::{self, Labels, Rest};
use crate::source::{Definition, Local};

/// What Compose calls the service.
const COMPOSE: &str = "com.docker.compose.service";
/// So many characters of its id Docker gives to a container as an alias.
const SHORT: usize = 12;

/// A container, as far as it matters here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Container {
    id: String,
    /// With a `/` before it.
    name: String,
    state: State,
    config: Configuration,
    network_settings: NetworkSettings,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct State {
    running: bool,
    health: Option<Health>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Health {
    status: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Configuration {
    labels: Option<BTreeMap<String, String>>,
    /// `80/tcp`.
    exposed_ports: Option<BTreeMap<String, Value>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct NetworkSettings {
    networks: Option<BTreeMap<String, Connected>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Connected {
    #[serde(rename = "NetworkID")]
    network: String,
    #[serde(rename = "IPAddress")]
    address: String,
    #[serde(rename = "Aliases")]
    aliases: Option<Vec<String>>,
}

/// Where a container is on a network.
struct Place<'a> {
    address: IpAddr,
    aliases: &'a [String],
}

/// What a container is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Instances {
    pub(super) definitions: Vec<Definition>,
    /// A label that cannot be what it is.
    pub(super) problem: Option<String>,
}

impl Container {
    /// What it is called.
    pub(super) fn name(&self) -> &str {
        self.name.trim_start_matches('/')
    }

    /// Its instances on these networks of Docker.
    pub(super) fn instances(&self, networks: &BTreeSet<String>, local: &Local) -> Instances {
        let is_well =
            self.state.health.as_ref().is_none_or(|health| matches!(&*health.status, "healthy" | "none"));
        let connected = self.network_settings.networks.iter().flatten();
        let connected = connected.filter_map(|(name, on)| {
            let address = on.address.parse().ok().filter(|_| networks.contains(&on.network))?;
            Some((name.as_str(), Place { address, aliases: on.aliases.as_deref().unwrap_or_default() }))
        });
        let places: BTreeMap<&str, Place<'_>> = connected.collect();
        if places.is_empty() || !self.state.running || !is_well {
            return Instances::default();
        }
        match self.definitions(places, local) {
            Ok(definitions) => Instances { definitions, problem: None },
            Err(problem) => Instances { definitions: Vec::new(), problem: Some(problem) },
        }
    }

    fn definitions(
        &self,
        mut places: BTreeMap<&str, Place<'_>>,
        local: &Local,
    ) -> Result<Vec<Definition>, String> {
        let none = BTreeMap::new();
        let own = self.config.labels.as_ref().unwrap_or(&none);
        let labels = Labels::read(own, &[labels::NETWORK]).map_err(|error| error.to_string())?;
        if let Some(network) = labels.get(labels::NETWORK) {
            let known: Vec<&str> = places.keys().copied().collect();
            let known = known.join(", ");
            places.retain(|name, _| *name == network);
            if places.is_empty() {
                let label = format!("{}{}", labels::PREFIX, labels::NETWORK);
                return Err(format!(
                    "{label}: it is not on a network {network} of the mesh, only on {known}"
                ));
            }
        }
        let named = labels.services().map_err(|error| error.to_string())?;
        let services = match (named, places.values().next()) {
            (Some(named), Some(first)) => named.into_iter().map(|name| (name, first.address)).collect(),
            _ => self.called(&places),
        };
        let free = BTreeMap::from([("container".to_owned(), self.name().to_owned())]);
        let rest = Rest { container: self.short(), port: self.exposed(), free };
        labels.instances(&services, &rest, local).map_err(|error| error.to_string())
    }

    /// What it is called on its networks, at the address of the first one, by their names, that it is called so on.
    fn called(&self, places: &BTreeMap<&str, Place<'_>>) -> BTreeMap<ServiceName, IpAddr> {
        let own = [self.short(), self.name()];
        let compose = self.config.labels.as_ref().and_then(|labels| labels.get(COMPOSE)).map(String::as_str);
        let mut named: Vec<(&str, IpAddr)> = Vec::new();
        for place in places.values() {
            let aliases = place.aliases.iter().map(String::as_str).filter(|alias| !own.contains(alias));
            named.extend(aliases.chain(compose).map(|name| (name, place.address)));
        }
        if named.is_empty() {
            named.extend(places.values().next().map(|first| (self.name(), first.address)));
        }
        let mut services = BTreeMap::new();
        for (name, address) in named {
            // Docker takes names that are no DNS labels: nobody can ask for these.
            if let Ok(name) = ServiceName::new(name) {
                services.entry(name).or_insert(address);
            }
        }
        services
    }

    /// The lowest port of TCP that the image has.
    fn exposed(&self) -> Option<NonZeroU16> {
        let exposed = self.config.exposed_ports.iter().flat_map(BTreeMap::keys);
        exposed.filter_map(|port| port.strip_suffix("/tcp")?.parse().ok()).min()
    }

    fn short(&self) -> &str {
        self.id.get(..SHORT).unwrap_or(&self.id)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn local() -> Local {
        Local { node: "a".parse().unwrap(), address: "192.0.2.1".parse().unwrap() }
    }

    /// A container on two networks, of which one is ours, with these labels, aliases and exposed ports.
    fn container(labels: &Value, aliases: &[&str], ports: &[&str]) -> Container {
        let ports: BTreeMap<&str, Value> = ports.iter().map(|port| (*port, json!({}))).collect();
        let inspected = json!({
            "Id": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "Name": "/shop_web_1",
            "State": {"Running": true},
            "Config": {"Labels": labels, "ExposedPorts": ports},
            "NetworkSettings": {"Networks": {
                "bridge": {"NetworkID": "b", "IPAddress": "172.17.0.2", "Aliases": null},
                "mynet": {"NetworkID": "n", "IPAddress": "10.42.3.5", "Aliases": aliases},
            }},
        });
        serde_json::from_value(inspected).unwrap()
    }

    fn instances(container: &Container) -> Instances {
        container.instances(&BTreeSet::from(["n".to_owned()]), &local())
    }

    fn shown(container: &Container) -> Vec<String> {
        let Instances { definitions, problem } = instances(container);
        assert_eq!(problem, None);
        definitions.iter().map(|one| format!("{} {}", one.key, one.listens_on())).collect()
    }

    #[test]
    fn a_container_is_an_instance_of_what_it_is_called_on_the_network() {
        let compose = json!({"com.docker.compose.service": "web"});
        let web = container(&compose, &["web", "www", "0123456789ab"], &["443/tcp", "80/tcp", "53/udp"]);
        assert_eq!(
            shown(&web),
            ["web/web-a-0123456789ab 10.42.3.5:80", "www/www-a-0123456789ab 10.42.3.5:80"]
        );
        assert_eq!(shown(&container(&compose, &[], &["80/tcp"])), ["web/web-a-0123456789ab 10.42.3.5:80"]);
        // Its own name is no name that can be asked for here.
        assert_eq!(shown(&container(&json!({}), &["0123456789ab"], &["80/tcp"])), [""; 0]);
        let named = Container { name: "/db".to_owned(), ..container(&Value::Null, &[], &["5432/tcp"]) };
        assert_eq!(shown(&named), ["db/db-a-0123456789ab 10.42.3.5:5432"]);
    }

    #[test]
    fn labels_say_otherwise() {
        let labels = json!({
            "plexus.service": "api, rpc", "plexus.port": "8443", "plexus.tags": "v2", "plexus.check": "/healthz",
            "com.docker.compose.service": "web",
        });
        let told = instances(&container(&labels, &["web"], &["80/tcp"]));
        let services: Vec<&str> = told.definitions.iter().map(|one| one.key.service.as_str()).collect();
        assert_eq!(services, ["api", "rpc"]);
        let first = &told.definitions[0];
        assert_eq!(first.port.map(NonZeroU16::get), Some(8443));
        assert_eq!(
            (first.checks.len(), first.tags.len(), first.labels["container"].as_str()),
            (1, 1, "shop_web_1")
        );
        assert_eq!(shown(&container(&json!({"plexus.service": "none"}), &["web"], &["80/tcp"])), [""; 0]);
        for (labels, said) in [
            (
                json!({"plexus.service": "My_Web", "plexus.port": "80"}),
                "plexus.service: \"My_Web\" is no service name",
            ),
            (json!({"plexus.service": "web"}), "add the label plexus.port"),
            (json!({"plexus.network": "back"}), "plexus.network: it is not on a network back"),
        ] {
            let problem = instances(&container(&labels, &[], &[])).problem.unwrap_or_default();
            assert!(problem.contains(said), "{labels}: {problem}");
        }
    }

    #[test]
    fn on_several_networks_each_name_has_the_address_that_it_is_called_so_at() {
        let on = |labels: &Value| {
            let mut container = container(labels, &[], &["80/tcp"]);
            let connected = |network: &str, address: &str, aliases: &[&str]| Connected {
                network: network.to_owned(),
                address: address.to_owned(),
                aliases: Some(aliases.iter().map(|alias| (*alias).to_owned()).collect()),
            };
            container.network_settings.networks = Some(BTreeMap::from([
                ("back".to_owned(), connected("n", "10.43.3.5", &["db", "both"])),
                ("front".to_owned(), connected("n", "10.42.3.5", &["web", "both"])),
            ]));
            shown(&container)
        };
        let id = "a-0123456789ab";
        let called = [format!("both/both-{id} 10.43.3.5:80"), format!("db/db-{id} 10.43.3.5:80")];
        let called: Vec<String> = called.into_iter().chain([format!("web/web-{id} 10.42.3.5:80")]).collect();
        assert_eq!(on(&json!({})), called);
        let one = |address: &str| [format!("web/web-{id} {address}:80")];
        assert_eq!(on(&json!({"plexus.service": "web"})), one("10.43.3.5"));
        assert_eq!(on(&json!({"plexus.service": "web", "plexus.network": "front"})), one("10.42.3.5"));
    }

    #[test]
    fn what_does_not_run_well_or_is_elsewhere_is_no_instance() {
        let web = container(&json!({"plexus.port": "80"}), &["web"], &[]);
        assert_eq!(shown(&web).len(), 1);
        let with = |running, status: &str| {
            let state = State { running, health: Some(Health { status: status.to_owned() }) };
            shown(&Container { state, ..web.clone() }).len()
        };
        assert_eq!([with(true, "healthy"), with(true, "none"), with(true, "starting")], [1, 1, 0]);
        assert_eq!([with(true, "unhealthy"), with(false, "healthy")], [0, 0]);
        assert_eq!(web.instances(&BTreeSet::from(["other".to_owned()]), &local()), Instances::default());
        // Without a port there is nothing to connect to.
        assert_eq!(shown(&container(&Value::Null, &["web"], &["53/udp"])), [""; 0]);
    }
}
