//! Which instances a container is (pure): what Docker shows of it, read as definitions.
//!
//! It is an instance of every name that it has: aliases on its networks, Compose's and Swarm's services, or without any of them the name of
//! the container. Labels say otherwise (`labels.rs`), or Registrator's conventions do (`registrator`). Without a label, the
//! port is the lowest of TCP that the image or `--expose` names, or that is published where that is how it is reached; without any
//! there is nothing to connect to, and it is no instance. One whose own health check does not pass is none either, until it
//! does, nor is one that is paused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::inspected::Container;
use super::reach::{DockerAddress, Reach};
use super::registrator::Conventions;
use crate::model::ServiceName;
use crate::source::labels::{self, Labels, Rest};
use crate::source::{Client, Definition, Local};

/// What Compose calls the service.
const COMPOSE: &str = "com.docker.compose.service";
/// What Swarm calls the service of a task.
const SWARM: &str = "com.docker.swarm.service.name";

/// How a container becomes instances.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules<'a> {
    /// The ids of the networks of the mesh.
    pub(super) networks: &'a BTreeSet<String>,
    /// Where it is reached, unless a label says otherwise.
    pub(super) address: DockerAddress,
    /// Do Registrator's conventions hold?
    pub(super) registrator: bool,
    pub(super) local: &'a Local,
}

/// What a container is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Instances {
    pub(super) definitions: Vec<Definition>,
    /// A label that cannot be what it is.
    pub(super) problem: Option<String>,
}

impl Container {
    /// Its instances.
    pub(super) fn instances(&self, rules: Rules<'_>) -> Instances {
        if !self.runs_well() {
            return Instances::default();
        }
        match self.definitions(rules) {
            Ok(definitions) => Instances { definitions, problem: None },
            Err(problem) => Instances { definitions: Vec::new(), problem: Some(problem) },
        }
    }

    /// What it is as a client, by whatever network; `None` where it has no address of its own, or cannot be told. What it is an
    /// instance of, and without that what it is called.
    pub(super) fn client(&self, rules: Rules<'_>) -> Option<Client> {
        let addresses = self.own_addresses();
        if !self.runs() || self.is_on_host() || addresses.is_empty() {
            return None;
        }
        // One that is to serve and has no port is a client all the same.
        let definitions = self.definitions(rules).unwrap_or_default();
        let none = BTreeMap::new();
        let own = self.config.labels.as_ref().unwrap_or(&none);
        let (mut services, mut labels) = (BTreeSet::new(), labels::free(own));
        labels.entry("container".to_owned()).or_insert_with(|| self.name().to_owned());
        for definition in definitions {
            services.insert(definition.key.service);
            labels.extend(definition.labels);
        }
        if services.is_empty() {
            let said = Labels::read(own, &[labels::NETWORK, labels::ADDRESS]).ok()?.services().ok()?;
            let reach = Reach::of(self, DockerAddress::Container, rules.networks, rules.local.address);
            services = said.unwrap_or_else(|| self.called(&reach).into_keys().collect());
        }
        (!services.is_empty()).then_some(Client { services, addresses, labels })
    }

    fn definitions(&self, rules: Rules<'_>) -> Result<Vec<Definition>, String> {
        let none = BTreeMap::new();
        let own = self.config.labels.as_ref().unwrap_or(&none);
        let known = [labels::NETWORK, labels::ADDRESS];
        let labels = Labels::read(own, &known).map_err(|error| error.to_string())?;
        let by = match labels.get(labels::ADDRESS) {
            None => rules.address,
            Some(text) => {
                text.trim().parse().map_err(|why| format!("{}{}: {why}", labels::PREFIX, labels::ADDRESS))?
            }
        };
        let mut reach = Reach::of(self, by, rules.networks, rules.local.address);
        if reach.places.is_empty() {
            return match labels.get(labels::ADDRESS) {
                None => Ok(Vec::new()),
                Some(_) => {
                    Err(format!("{}{}: it has no address of that kind", labels::PREFIX, labels::ADDRESS))
                }
            };
        }
        if let Some(network) = labels.get(labels::NETWORK) {
            let known: Vec<&str> = reach.places.keys().copied().collect();
            let known = known.join(", ");
            reach.places.retain(|name, _| *name == network);
            if reach.places.is_empty() {
                let label = format!("{}{}", labels::PREFIX, labels::NETWORK);
                let of_the_mesh = if by == DockerAddress::Overlay { " of the mesh" } else { "" };
                return Err(format!(
                    "{label}: it is not on a network {network}{of_the_mesh}, only on {known}"
                ));
            }
        }
        if rules.registrator
            && labels.is_silent()
            && let Some(conventions) = Conventions::read(self)
        {
            return conventions.instances(self, &reach, rules.local);
        }
        let named = labels.services().map_err(|error| error.to_string())?;
        let services = match (named, reach.places.values().next()) {
            (Some(named), Some(first)) => named.into_iter().map(|name| (name, first.address)).collect(),
            _ => self.called(&reach),
        };
        let free = BTreeMap::from([("container".to_owned(), self.name().to_owned())]);
        let (port, reached) = (reach.main_port(), reach.reached());
        let rest = Rest { container: self.short(), port, free, reached };
        labels.instances(&services, &rest, rules.local).map_err(|error| error.to_string())
    }

    /// What it is called on its networks, at the address of the first one, by their names, that it is called so on.
    fn called(&self, reach: &Reach<'_>) -> BTreeMap<ServiceName, IpAddr> {
        let own = [self.short(), self.name()];
        let swarm = self.label(SWARM).and_then(|service| ServiceName::of_swarm(service).ok());
        let services = || self.label(COMPOSE).into_iter().chain(swarm.as_ref().map(ServiceName::as_str));
        let mut named: Vec<(&str, IpAddr)> = Vec::new();
        for place in reach.places.values() {
            let aliases = place.aliases.iter().map(String::as_str).filter(|alias| !own.contains(alias));
            named.extend(aliases.chain(services()).map(|name| (name, place.address)));
        }
        if named.is_empty() {
            named.extend(reach.places.values().next().map(|first| (self.name(), first.address)));
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
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use serde_json::{Value, json};

    use super::super::inspected::{Connected, Health, State};
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
            "NetworkSettings": {
                "Networks": {
                    "bridge": {"NetworkID": "b", "IPAddress": "172.17.0.2", "Aliases": null},
                    "mynet": {"NetworkID": "n", "IPAddress": "10.42.3.5", "Aliases": aliases},
                },
                "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "443/tcp": null},
            },
        });
        serde_json::from_value(inspected).unwrap()
    }

    fn instances(container: &Container) -> Instances {
        by(container, DockerAddress::Overlay)
    }

    fn by(container: &Container, address: DockerAddress) -> Instances {
        let networks = BTreeSet::from(["n".to_owned()]);
        container.instances(Rules { networks: &networks, address, registrator: true, local: &local() })
    }

    fn shown(container: &Container) -> Vec<String> {
        shown_by(container, DockerAddress::Overlay)
    }

    fn shown_by(container: &Container, address: DockerAddress) -> Vec<String> {
        let Instances { definitions, problem } = by(container, address);
        assert_eq!(problem, None);
        definitions.iter().map(|one| format!("{} {}", one.key, one.listens_on())).collect()
    }

    #[test]
    fn a_container_is_a_client_by_every_address_of_its_own_however_it_is() {
        let client = |container: &Container| {
            let networks = BTreeSet::from(["n".to_owned()]);
            let (address, local) = (DockerAddress::Overlay, &local());
            container.client(Rules { networks: &networks, address, registrator: true, local })
        };
        let addresses = BTreeSet::from(["172.17.0.2", "10.42.3.5"].map(|address| address.parse().unwrap()));
        let shown = |container: &Container| {
            let Client { services, addresses: own, labels } = client(container).unwrap();
            assert_eq!((own, labels["container"].as_str()), (addresses.clone(), "shop_web_1"));
            services.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let compose = json!({"com.docker.compose.service": "web", "env": "prod"});
        let mut web = container(&compose, &["www"], &["80/tcp"]);
        assert_eq!(shown(&web), ["web", "www"]);
        assert_eq!(client(&web).unwrap().labels["env"], "prod");
        web.state.health = Some(Health { status: "starting".to_owned() });
        assert_eq!(
            (instances(&web).definitions.len(), shown(&web)),
            (0, vec!["web".to_owned(), "www".to_owned()])
        );
        // It listens on nothing.
        assert_eq!(shown(&container(&compose, &[], &[])), ["web"]);
        assert_eq!(shown(&container(&json!({"plexus.service": "batch"}), &["web"], &[])), ["batch"]);
        web.state = State::default();
        assert_eq!(client(&web), None);
        let mut on_host = container(&compose, &[], &["80/tcp"]);
        let host = (String::from("host"), Connected::default());
        on_host.network_settings.networks = Some([host].into());
        assert_eq!(client(&on_host), None);
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
                address_v6: String::new(),
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
            let state = State { running, health: Some(Health { status: status.to_owned() }), paused: false };
            shown(&Container { state, ..web.clone() }).len()
        };
        assert_eq!([with(true, "healthy"), with(true, "none"), with(true, "starting")], [1, 1, 0]);
        assert_eq!([with(true, "unhealthy"), with(false, "healthy")], [0, 0]);
        let state = State { running: true, paused: true, health: None };
        assert_eq!(shown(&Container { state, ..web.clone() }), [""; 0]);
        let other = BTreeSet::from(["other".to_owned()]);
        let (local, address) = (local(), DockerAddress::Overlay);
        let rules = Rules { networks: &other, address, registrator: true, local: &local };
        assert_eq!(web.instances(rules), Instances::default());
        // Without a port there is nothing to connect to.
        assert_eq!(shown(&container(&Value::Null, &["web"], &["53/udp"])), [""; 0]);
    }
    #[test]
    fn it_is_reached_where_it_is_published_or_at_its_own_address() {
        let web = container(&Value::Null, &["web"], &["80/tcp", "443/tcp"]);
        let id = "web/web-a-0123456789ab";
        assert_eq!(shown_by(&web, DockerAddress::Published), [format!("{id} 192.0.2.1:8080")]);
        // Of several networks, the first by name that it is called so on.
        assert_eq!(shown_by(&web, DockerAddress::Container), [format!("{id} 10.42.3.5:80")]);
        let labels =
            json!({"plexus.service": "web", "plexus.address": "published", "plexus.check": "tcp=80"});
        let told = instances(&container(&labels, &[], &["80/tcp"]));
        assert_eq!(told.definitions[0].listens_on().to_string(), "192.0.2.1:8080");
        let check = serde_json::to_value(&told.definitions[0].checks[0]).unwrap();
        assert_eq!(check["tcp"], 8080);
        for (labels, said) in [
            (json!({"plexus.address": "nowhere"}), "plexus.address: \"nowhere\" is none of"),
            (
                json!({"plexus.service": "web", "plexus.port": "443"}),
                "port 443 of the container is not published",
            ),
        ] {
            let told = by(&container(&labels, &[], &[]), DockerAddress::Published);
            assert!(told.problem.as_ref().is_some_and(|why| why.contains(said)), "{told:?}");
        }
    }

    #[test]
    fn a_task_of_a_swarm_is_an_instance_of_its_service() {
        let task = json!({"com.docker.swarm.service.name": "shop_web"});
        let task = Container {
            name: "/shop_web.1.x7".to_owned(),
            ..container(&task, &["0123456789ab"], &["80/tcp"])
        };
        assert_eq!(
            shown_by(&task, DockerAddress::Published),
            ["shop-web/shop-web-a-0123456789ab 192.0.2.1:8080"]
        );
    }

    #[test]
    fn registrator_s_words_hold_unless_ours_are_said_or_it_is_turned_off() {
        let said = json!({"SERVICE_NAME": "front"});
        let front = container(&said, &["web"], &["80/tcp"]);
        let shown = |container: &Container, registrator| {
            let (networks, local) = (BTreeSet::from(["n".to_owned()]), local());
            let rules =
                Rules { networks: &networks, address: DockerAddress::Overlay, registrator, local: &local };
            container.instances(rules).definitions.iter().map(|one| one.key.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(shown(&front, true), ["front/front-a-0123456789ab"]);
        assert_eq!(shown(&front, false), ["web/web-a-0123456789ab"]);
        let both = json!({"SERVICE_NAME": "front", "plexus.service": "ours"});
        assert_eq!(shown(&container(&both, &["web"], &["80/tcp"]), true), ["ours/ours-a-0123456789ab"]);
    }
}
