//! Registrator's conventions (pure): what `SERVICE_NAME`, `SERVICE_80_TAGS` and the like say of a container, in its environment and its
//! labels, as gliderlabs/registrator reads them.
//!
//! Each port is a service, by the name of the image unless one is given. What is said of a port goes before what is said of all, and
//! labels go before the environment. What has no meaning of its own is data that travels along.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use serde_json::{Map, Value, json};

use super::inspected::{Container, Port};
use super::reach::Reach;
use crate::document::Document;
use crate::model::InstanceId;
use crate::source::{Definition, Draft, Local};

const PREFIX: &str = "SERVICE_";
/// Keys that make a container one of Registrator's: programs have variables of their own that begin so.
const KNOWN: [&str; 4] = ["name", "id", "tags", "ignore"];
const CHECK: &str = "check_";
/// What says how a check is done, whatever its kind.
const OF_CHECKS: [&str; 3] = ["interval", "timeout", "initial_status"];

/// What is said, by key in lower case and without the prefix.
#[derive(Debug, Default)]
pub(super) struct Conventions<'a> {
    of_all: BTreeMap<String, &'a str>,
    of_port: BTreeMap<NonZeroU16, BTreeMap<String, &'a str>>,
}

/// What is said of one port.
struct Said<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Conventions<'a> {
    /// Of this container; `None`: it says nothing in Registrator's words.
    pub(super) fn read(container: &'a Container) -> Option<Self> {
        let environment = container.config.env.iter().flatten().filter_map(|pair| pair.split_once('='));
        let labels = container.config.labels.iter().flatten().map(|(k, v)| (k.as_str(), v.as_str()));
        let mut read = Self::default();
        for (key, value) in environment.chain(labels) {
            let Some(key) = key.strip_prefix(PREFIX) else { continue };
            let key = key.to_lowercase();
            let of_port =
                key.split_once('_').and_then(|(port, key)| Some((port.parse().ok()?, key.to_owned())));
            match of_port {
                Some((port, key)) => read.of_port.entry(port).or_default().insert(key, value),
                None => read.of_all.insert(key, value),
            };
        }
        let mut keys = read.of_all.keys().chain(read.of_port.values().flat_map(BTreeMap::keys));
        keys.any(|key| KNOWN.contains(&key.as_str()) || key.starts_with(CHECK)).then_some(read)
    }

    fn of(&self, port: NonZeroU16) -> Said<'_> {
        let of_port = self.of_port.get(&port).into_iter().flatten();
        Said(self.of_all.iter().chain(of_port).map(|(key, value)| (key.as_str(), *value)).collect())
    }

    /// The instances that the container is by its ports.
    ///
    /// # Errors
    /// What cannot be what it is, in words that name it.
    pub(super) fn instances(
        &self,
        container: &Container,
        reach: &Reach<'_>,
        local: &Local,
    ) -> Result<Vec<Definition>, String> {
        let Some(own) = reach.places.values().next().map(|place| place.address) else {
            return Ok(Vec::new());
        };
        let is_group = reach.ports.len() > 1;
        let mut instances = Vec::new();
        for (port, at) in &reach.ports {
            let said = self.of(port.number);
            if said.get("ignore").is_some() {
                continue;
            }
            let mut name = match said.get("name") {
                Some(name) => name.to_owned(),
                None => base(&container.config.image).to_owned(),
            };
            if is_group && !self.of_port.get(&port.number).is_some_and(|own| own.contains_key("name")) {
                name = format!("{name}-{}", port.number);
            }
            let at = at.unwrap_or((own, port.number));
            let definition = said.definition(&name, *port, at, is_group, container, local);
            let definition = definition.map_err(|why| format!("{PREFIX}… of port {}: {why}", port.number))?;
            instances.push(definition);
        }
        Ok(instances)
    }
}

impl Said<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).copied().filter(|value| !value.is_empty())
    }

    fn definition(
        &self,
        name: &str,
        port: Port,
        (address, number): (IpAddr, NonZeroU16),
        is_group: bool,
        container: &Container,
        local: &Local,
    ) -> Result<Definition, String> {
        let id = match self.get("id") {
            // As with Consul, to which Registrator gives it, it is unique on its node alone.
            Some(id) => format!("{id}@{}", local.node),
            None => {
                let port = match (is_group, port.is_udp) {
                    (true, true) => format!("-{}-udp", port.number),
                    (true, false) => format!("-{}", port.number),
                    (false, _) => String::new(),
                };
                format!("{name}-{}-{}{port}", local.node, container.short())
            }
        };
        let id = InstanceId::new(&id).map_err(|error| error.to_string())?;
        let tags = self.get("tags").unwrap_or_default().split(',').map(str::trim);
        let udp = port.is_udp.then_some("udp");
        let tags: Vec<&str> = tags.filter(|tag| !tag.is_empty()).chain(udp).collect();
        let is_data = |key: &str| !KNOWN.contains(&key) && !key.starts_with(CHECK);
        let mut data: BTreeMap<&str, &str> =
            self.0.iter().filter(|(key, _)| is_data(key)).map(|(key, value)| (*key, *value)).collect();
        data.entry("container").or_insert(container.name());
        let written = json!({
            "name": name, "id": id, "address": address, "port": number, "tags": tags, "labels": data,
            "check": self.checks()?,
        });
        let read = Document::parse_json("labels", &written.to_string())
            .and_then(|document| document.decode(Draft::read))
            .map_err(|errors| {
                errors
                    .iter()
                    .next()
                    .map_or_else(String::new, |wrong| format!("{}: {}", wrong.key, wrong.message))
            })?;
        read.resolve(local).map_err(|error| error.to_string())
    }

    /// Its check, as a table of `check` would have it.
    fn checks(&self) -> Result<Vec<Value>, String> {
        let mut check = Map::new();
        for (key, value) in &self.0 {
            let Some(kind) = key.strip_prefix(CHECK).filter(|_| !value.is_empty()) else { continue };
            if OF_CHECKS.contains(&kind) {
                continue;
            }
            match kind {
                "http" | "https" => {
                    check.insert(kind.to_owned(), (*value).into());
                }
                "http_method" | "https_method" => {
                    check.insert("method".to_owned(), (*value).into());
                }
                "tcp" | "grpc" => {
                    check.insert(kind.to_owned(), true.into());
                }
                "grpc_use_tls" => {
                    check.insert("tls".to_owned(), true.into());
                }
                "ttl" => {
                    check.insert(kind.to_owned(), (*value).into());
                    return Ok(vec![check.into()]);
                }
                "script" | "cmd" | "docker" | "args" => {
                    return Err(format!(
                        "{PREFIX}CHECK_{}: it runs a program, and only the node's own files may say which; define the \
                         instance in services.d",
                        kind.to_uppercase()
                    ));
                }
                other => {
                    return Err(format!("{PREFIX}CHECK_{}: it is not known here", other.to_uppercase()));
                }
            }
        }
        if check.is_empty() {
            return Ok(Vec::new());
        }
        // As Consul has them: the first result decides, and every ten seconds is often enough.
        check.insert("interval".to_owned(), self.get("check_interval").unwrap_or("10s").into());
        if let Some(timeout) = self.get("check_timeout") {
            check.insert("timeout".to_owned(), timeout.into());
        }
        check.insert("rise".to_owned(), 1.into());
        check.insert("fall".to_owned(), 1.into());
        Ok(vec![check.into()])
    }
}

/// What Registrator calls a service by its image: `nginx` of `registry:5000/shop/nginx:1.25`.
fn base(image: &str) -> &str {
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split([':', '@']).next().unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::reach::DockerAddress;
    use super::*;

    fn local() -> Local {
        Local { node: "a".parse().unwrap(), address: "192.0.2.1".parse().unwrap() }
    }

    /// What a container of nginx with this environment and these labels is by the ports that it has published.
    fn instances(
        environment: &[&str],
        labels: &Value,
        ports: &[(&str, &str)],
    ) -> Result<Vec<Definition>, String> {
        let binding =
            |(port, at): &(&str, &str)| ((*port).to_owned(), json!([{"HostIp": "0.0.0.0", "HostPort": at}]));
        let inspected = json!({
            "Id": "0123456789abcdef", "Name": "/front",
            "Config": {"Env": environment, "Labels": labels, "Image": "registry:5000/shop/nginx:1.25"},
            "NetworkSettings": {
                "Networks": {"bridge": {"NetworkID": "b", "IPAddress": "172.17.0.2"}},
                "Ports": ports.iter().map(binding).collect::<Map<_, _>>(),
            },
        });
        let container: Container = serde_json::from_value(inspected).unwrap();
        let reach = Reach::of(&container, DockerAddress::Published, &BTreeSet::new(), local().address);
        Conventions::read(&container)
            .map_or(Ok(Vec::new()), |said| said.instances(&container, &reach, &local()))
    }

    fn shown(environment: &[&str], labels: &Value, ports: &[(&str, &str)]) -> Vec<String> {
        let told = instances(environment, labels, ports).unwrap();
        told.iter().map(|one| format!("{} {}", one.key, one.listens_on())).collect()
    }

    const WEB: [(&str, &str); 1] = [("80/tcp", "32768")];

    #[test]
    fn one_port_is_a_service_by_its_name_or_by_its_image_s() {
        let id = "a-0123456789ab";
        assert_eq!(
            shown(&["SERVICE_NAME=web"], &Value::Null, &WEB),
            [format!("web/web-{id} 192.0.2.1:32768")]
        );
        assert_eq!(
            shown(&["SERVICE_TAGS=v2"], &Value::Null, &WEB),
            [format!("nginx/nginx-{id} 192.0.2.1:32768")]
        );
        // A label goes before the environment, and an id is unique on its node.
        let labels = json!({"SERVICE_NAME": "shop", "SERVICE_ID": "shop1"});
        assert_eq!(shown(&["SERVICE_NAME=web"], &labels, &WEB), ["shop/shop1@a 192.0.2.1:32768"]);
        assert_eq!(shown(&["SERVICE_IGNORE=yes", "SERVICE_NAME=web"], &Value::Null, &WEB), [""; 0]);
    }

    #[test]
    fn several_ports_are_several_services() {
        let ports = [("80/tcp", "1080"), ("443/tcp", "1443"), ("53/udp", "1053")];
        let said = ["SERVICE_NAME=web", "SERVICE_443_NAME=secure", "SERVICE_53_IGNORE=1"];
        let id = "a-0123456789ab";
        assert_eq!(
            shown(&said, &Value::Null, &ports),
            [
                format!("web-80/web-80-{id}-80 192.0.2.1:1080"),
                format!("secure/secure-{id}-443 192.0.2.1:1443"),
            ]
        );
        let dns = instances(&["SERVICE_NAME=dns", "SERVICE_TAGS=a, b"], &Value::Null, &[("53/udp", "1053")])
            .unwrap();
        assert_eq!(dns[0].tags.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a", "b", "udp"]);
    }

    #[test]
    fn checks_are_done_and_the_rest_travels_along() {
        let said = [
            "SERVICE_NAME=web",
            "SERVICE_80_CHECK_HTTP=/healthz",
            "SERVICE_CHECK_INTERVAL=15s",
            "SERVICE_REGION=eu",
            "SERVICE_CHECK_TIMEOUT=2s",
        ];
        let told = instances(&said, &Value::Null, &WEB).unwrap();
        let check = &told[0].checks[0];
        assert_eq!(
            (check.probe.kind(), check.timing.interval().as_secs(), check.timing.fall().get()),
            ("http", 15, 1)
        );
        assert_eq!(
            (told[0].labels["region"].as_str(), told[0].labels["container"].as_str()),
            ("eu", "front")
        );
        let ttl = instances(&["SERVICE_CHECK_TTL=30s"], &Value::Null, &WEB).unwrap();
        assert_eq!(ttl[0].checks[0].probe.kind(), "ttl");
    }

    #[test]
    fn what_is_wrong_is_said_and_what_is_somebody_else_s_is_none_of_it() {
        for (said, why) in [
            (["SERVICE_NAME=my_web"], "SERVICE_… of port 80: name: \"my_web\" is no service name"),
            (["SERVICE_CHECK_SCRIPT=nc $SERVICE_IP 80"], "SERVICE_CHECK_SCRIPT: it runs a program"),
            (["SERVICE_CHECK_HTTPP=/"], "SERVICE_CHECK_HTTPP: it is not known here"),
        ] {
            let told = instances(&said, &Value::Null, &WEB).unwrap_err();
            assert!(told.contains(why), "{told}");
        }
        assert_eq!(shown(&["SERVICE_URL=http://example.com", "PATH=/bin"], &Value::Null, &WEB), [""; 0]);
    }
}
