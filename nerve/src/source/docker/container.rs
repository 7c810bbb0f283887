//! Which instances a container is (pure): what `docker inspect` shows of it, read as definitions.
//!
//! It is an instance of every name that it has on its network, as Docker's own resolver has them: aliases, Compose's services, or
//! without either the name of the container. Labels say otherwise: `plexus.service` the names, `plexus.port` the port, `plexus.tags` tags, `plexus.check` a
//! check. Without a label, the port is the lowest of TCP that the image or `--expose` names; without any there is nothing to connect
//! to, and it is no instance. One whose own health check does not pass is none either, until it does.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::document::Document;
use crate::model::ServiceName;
use crate::source::{Definition, Draft, Local};

/// The names of the services; `none` for none.
const SERVICE: &str = "plexus.service";
const PORT: &str = "plexus.port";
const TAGS: &str = "plexus.tags";
/// `tcp`, or the path of an HTTP check.
const CHECK: &str = "plexus.check";
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

    /// Its instances on these networks of Docker; on several, by the first one's address.
    pub(super) fn instances(&self, networks: &BTreeSet<String>, local: &Local) -> Instances {
        let connected = self.network_settings.networks.iter().flat_map(BTreeMap::values);
        let mut connected = connected.filter(|on| networks.contains(&on.network) && !on.address.is_empty());
        let is_well =
            self.state.health.as_ref().is_none_or(|health| matches!(&*health.status, "healthy" | "none"));
        let Some(on) = connected.next().filter(|_| self.state.running && is_well) else {
            return Instances::default();
        };
        match self.definitions(on, local) {
            Ok(definitions) => Instances { definitions, problem: None },
            Err(problem) => Instances { definitions: Vec::new(), problem: Some(problem) },
        }
    }

    fn label(&self, label: &str) -> Option<&str> {
        self.config.labels.as_ref()?.get(label).map(String::as_str)
    }

    fn definitions(&self, on: &Connected, local: &Local) -> Result<Vec<Definition>, String> {
        let services = self.services(on)?;
        let Some(port) = self.port()? else {
            return match self.label(SERVICE).filter(|_| !services.is_empty()) {
                Some(service) => {
                    Err(format!("it has the label {SERVICE}={service} and no port; add the label {PORT}"))
                }
                None => Ok(Vec::new()),
            };
        };
        services.into_iter().map(|service| self.definition(&service, on, port, local)).collect()
    }

    /// By the reader of `[[service]]` tables, so that the same holds for both.
    fn definition(
        &self,
        service: &ServiceName,
        on: &Connected,
        port: u16,
        local: &Local,
    ) -> Result<Definition, String> {
        let check = match self.label(CHECK) {
            None => json!([]),
            Some("tcp") => json!([{"tcp": true}]),
            Some(path) => json!([{"http": path}]),
        };
        let listed =
            |label| self.label(label).map(|tags| words(tags).collect::<Vec<_>>()).unwrap_or_default();
        let draft = json!({
            "name": service,
            "id": format!("{service}-{}-{}", local.node, self.short()),
            "address": on.address,
            "port": port,
            "tags": listed(TAGS),
            "labels": {"container": self.name()},
            "check": check,
        });
        let document = Document::parse_json("labels", &draft.to_string());
        let draft = document.and_then(|document| document.decode(Draft::read));
        let draft = draft.map_err(|errors| errors.to_string().replace('\n', "; "))?;
        draft.resolve(local).map_err(|error| error.to_string())
    }

    fn services(&self, on: &Connected) -> Result<BTreeSet<ServiceName>, String> {
        if let Some(label) = self.label(SERVICE) {
            let named = words(label).filter(|word| *word != "none");
            return named
                .map(|name| ServiceName::new(name).map_err(|error| format!("{SERVICE}: {error}")))
                .collect();
        }
        let own = [self.short(), self.name()];
        let aliases = on.aliases.iter().flatten().map(String::as_str).filter(|alias| !own.contains(alias));
        let named: Vec<&str> = aliases.chain(self.label(COMPOSE)).collect();
        let named = if named.is_empty() { vec![self.name()] } else { named };
        // Docker takes names that are no DNS labels: nobody can ask for these.
        Ok(named.into_iter().filter_map(|name| ServiceName::new(name).ok()).collect())
    }

    fn port(&self) -> Result<Option<u16>, String> {
        if let Some(label) = self.label(PORT) {
            let port = label.trim().parse::<u16>().ok().filter(|port| *port > 0);
            return port.map(Some).ok_or_else(|| format!("{PORT}: {label:?} is no port"));
        }
        let exposed = self.config.exposed_ports.iter().flat_map(BTreeMap::keys);
        let tcp = exposed.filter_map(|port| port.strip_suffix("/tcp")?.parse::<u16>().ok());
        Ok(tcp.filter(|port| *port > 0).min())
    }

    fn short(&self) -> &str {
        self.id.get(..SHORT).unwrap_or(&self.id)
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ' ']).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
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
        assert_eq!(first.port.map(std::num::NonZeroU16::get), Some(8443));
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
            (json!({"plexus.service": "web", "plexus.port": "http"}), "plexus.port: \"http\" is no port"),
            (
                json!({"plexus.service": "web", "plexus.port": "80", "plexus.check": "healthz"}),
                "does not begin with",
            ),
        ] {
            let problem = instances(&container(&labels, &[], &[])).problem.unwrap_or_default();
            assert!(problem.contains(said), "{labels}: {problem}");
        }
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
