//! The place that is Docker, or several of them: their containers by image or labels, as Synapse finds them. On this host a container is
//! at its own address; on another one at the port that is published there.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::time::Duration;

use async_trait::async_trait;
use nerve::document::{Reported, Section};
use nerve::http::{Client, Tls, Url};
use nerve::model::Health;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout, timeout_at};

use super::parts::{Parts, Union};
use super::place::{Place, Refused, Tell};
use super::server::{Host, Server};

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(10);
/// Quiet for so long after an event, it is looked again; at the latest so long after the first.
const DEBOUNCE: Duration = Duration::from_millis(50);
const LATEST: Duration = Duration::from_secs(1);
/// It is looked so often without any event.
const TICK: Duration = Duration::from_secs(15);
/// Of containers: `{"type": ["container"]}`.
const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%7D";

/// Which containers of which Dockers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Docker {
    /// Their APIs.
    #[serde(rename = "docker")]
    pub engines: Vec<Url>,
    /// Of this image, in any version unless one is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// With these labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub container_labels: BTreeMap<String, String>,
    /// The port that they listen on.
    pub container_port: NonZeroU16,
    #[serde(flatten)]
    tls: Tls,
}

impl Docker {
    /// Of an image, in any version, at engines that are asked without TLS.
    #[must_use]
    pub fn of_image(engines: Vec<Url>, image: String, container_port: NonZeroU16) -> Self {
        let (container_labels, tls) = (BTreeMap::new(), Tls::default());
        Self { engines, image: Some(image), container_labels, container_port, tls }
    }

    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let engines = section.required::<Vec<Url>>("docker");
        let image = section.given::<String>("image");
        let container_labels = section.or("container_labels", BTreeMap::new());
        let container_port = section.required::<NonZeroU16>("container_port");
        let tls = Tls::read(section);
        let (engines, image, container_port, tls) = (engines?, image?, container_port?, tls?);
        if engines.is_empty() {
            return Err(section.invalid(
                "docker",
                "it names no Docker",
                "such as [\"unix:///run/docker.sock\"]",
            ));
        }
        if image.is_none() && container_labels.is_empty() {
            return Err(section.refuse("it would be every container", "an `image`, or `container_labels`"));
        }
        Ok(Self { engines, image, container_labels, container_port, tls })
    }

    pub(super) fn place(&self) -> String {
        let engines: Vec<String> = self.engines.iter().map(ToString::to_string).collect();
        engines.join(" ")
    }

    fn matches(&self, container: &Listed) -> bool {
        let of_image =
            |image: &String| *image == container.image || image == without_version(&container.image);
        self.image.as_ref().is_none_or(of_image)
            && self.container_labels.iter().all(|(key, value)| {
                container.labels.as_ref().is_some_and(|labels| labels.get(key) == Some(value))
            })
    }
}

/// `registry:5000/shop/nginx` of `registry:5000/shop/nginx:1.25`.
fn without_version(image: &str) -> &str {
    let image = image.split_once('@').map_or(image, |(name, _)| name);
    match image.rsplit_once(':') {
        Some((name, version)) if !version.contains('/') => name,
        _ => image,
    }
}

/// The Dockers.
pub(super) struct DockerPlace {
    names: Vec<String>,
    engines: Vec<Box<dyn Place>>,
}

impl DockerPlace {
    pub(super) fn new(config: Docker) -> Self {
        let engine = |url: &Url| -> Box<dyn Place> {
            let client = Client::new(url.clone(), config.tls.clone());
            Box::new(Engine { client, config: config.clone() })
        };
        Self {
            names: config.engines.iter().map(ToString::to_string).collect(),
            engines: config.engines.iter().map(engine).collect(),
        }
    }
}

#[async_trait]
impl Place for DockerPlace {
    async fn follow(&self, told: &dyn Tell) -> Result<Infallible, String> {
        match Parts::new(self.names.clone(), &Union, told).follow(&self.engines).await {}
    }
}

/// One of them.
struct Engine {
    client: Client,
    config: Docker,
}

#[async_trait]
impl Place for Engine {
    async fn follow(&self, told: &dyn Tell) -> Result<Infallible, String> {
        // Before the first look, so that nothing happens between the two unheard.
        let mut events = self.client.lines(EVENTS, &[], WITHIN).await?;
        loop {
            let answer = self.client.get("/containers/json", &[], WITHIN).await?;
            let (servers, refused) = self.judged(answer.json()?);
            told.found(servers, refused).await;
            if let Ok(event) = timeout(TICK, events.next()).await {
                event?;
                // A container that starts tells several.
                let latest = Instant::now() + LATEST;
                while let Ok(Ok(event)) = timeout_at(latest, timeout(DEBOUNCE, events.next())).await {
                    event?;
                }
                told.pace().before_another_look().await;
            }
        }
    }
}

impl Engine {
    fn judged(&self, listed: Vec<Listed>) -> (Vec<Server>, Vec<Refused>) {
        let (mut servers, mut refused) = (Vec::new(), Vec::new());
        for container in listed.into_iter().filter(|container| self.config.matches(container)) {
            if container.state != "running" {
                continue;
            }
            match self.at(&container) {
                Ok((host, port)) => servers.push(Server {
                    name: Some(container.name().to_owned()),
                    health: container.health(),
                    labels: container.labels.unwrap_or_default(),
                    ..Server::at(host, port)
                }),
                Err(why) => refused.push((container.name().to_owned(), why)),
            }
        }
        (servers, refused)
    }

    /// Where it is reached from here.
    fn at(&self, container: &Listed) -> Result<(Host, NonZeroU16), String> {
        let port = self.config.container_port;
        let networks = container.network_settings.networks.as_ref();
        let is_on_host = networks.is_some_and(|networks| networks.contains_key("host"));
        match self.client.url().host() {
            // This host, which reaches every network of it.
            None if is_on_host => Ok((Host::Address(Ipv4Addr::LOCALHOST.into()), port)),
            None => {
                let mut addresses =
                    networks.into_iter().flatten().filter_map(|(_, on)| on.address.parse::<IpAddr>().ok());
                let address = addresses.next().ok_or("it has no address on any network")?;
                Ok((Host::Address(address), port))
            }
            Some(host) if is_on_host => Ok((host.parse()?, port)),
            Some(host) => {
                let published = container
                    .ports
                    .iter()
                    .flatten()
                    .filter(|binding| binding.private_port == port.get() && binding.protocol == "tcp");
                let mut at = published.filter_map(|binding| {
                    let port = NonZeroU16::new(binding.public_port?)?;
                    match binding.ip.parse::<IpAddr>() {
                        Ok(address) if address.is_loopback() => None,
                        Ok(address) if !address.is_unspecified() => Some((Host::Address(address), port)),
                        _ => Some((host.parse().ok()?, port)),
                    }
                });
                at.next().ok_or_else(|| format!("its port {port} is not published to other hosts"))
            }
        }
    }
}

/// A container of Docker's list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    image: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    ports: Option<Vec<Binding>>,
    #[serde(default)]
    state: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    network_settings: Networks,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Binding {
    #[serde(rename = "IP", default)]
    ip: String,
    private_port: u16,
    public_port: Option<u16>,
    #[serde(rename = "Type", default)]
    protocol: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Networks {
    #[serde(default)]
    networks: Option<BTreeMap<String, On>>,
}

#[derive(Debug, Deserialize)]
struct On {
    #[serde(rename = "IPAddress", default)]
    address: String,
}

impl Listed {
    fn name(&self) -> &str {
        let first = self.names.iter().flatten().next();
        first.map_or(self.id.as_str(), |name| name.trim_start_matches('/'))
    }

    /// In this list Docker tells it in words for people alone: `Up 2 hours (unhealthy)`.
    fn health(&self) -> Health {
        if self.status.ends_with("(unhealthy)") {
            Health::Critical
        } else if self.status.ends_with("(health: starting)") {
            Health::Starting
        } else {
            Health::Passing
        }
    }
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;

    use super::*;

    fn engine(text: &str) -> Result<Engine, String> {
        let config =
            Document::parse("x", text).unwrap().decode(Docker::read).map_err(|errors| errors.to_string())?;
        Ok(Engine { client: Client::new(config.engines[0].clone(), Tls::default()), config })
    }

    const LISTED: &str = r#"[
        {"Id": "1", "Names": ["/web-1"], "Image": "registry:5000/shop/web:7", "Labels": {"app": "web"}, "State": "running", "Status": "Up 2 hours (healthy)",
         "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}, {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}],
         "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2"}}}},
        {"Id": "2", "Names": ["/web-2"], "Image": "registry:5000/shop/web", "State": "running", "Status": "Up 2 hours (unhealthy)",
         "Ports": [{"PrivatePort": 80, "Type": "tcp"}, {"IP": "127.0.0.1", "PrivatePort": 80, "PublicPort": 8081, "Type": "tcp"}],
         "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.3"}}}},
        {"Id": "3", "Names": null, "Image": "registry:5000/shop/web@sha256:0123", "State": "running", "Status": "Up 1 second",
         "Ports": [], "NetworkSettings": {"Networks": {"host": {"IPAddress": ""}}}},
        {"Id": "4", "Image": "registry:5000/shop/web", "State": "paused", "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.4"}}}},
        {"Id": "5", "Image": "registry:5000/shop/other", "State": "running"}
    ]"#;

    fn found(text: &str) -> (Vec<String>, Vec<Refused>) {
        let (servers, refused) = engine(text).unwrap().judged(serde_json::from_str(LISTED).unwrap());
        (servers.iter().map(|server| format!("{server} {:?}", server.health)).collect(), refused)
    }

    #[test]
    fn a_container_of_this_host_is_at_its_own_address() {
        let (servers, refused) = found(
            "docker = [\"unix:///run/docker.sock\"]\nimage = \"registry:5000/shop/web\"\ncontainer_port = 80",
        );
        assert_eq!(servers, ["172.17.0.2:80 Passing", "172.17.0.3:80 Critical", "127.0.0.1:80 Passing"]);
        assert_eq!(refused, []);
    }

    #[test]
    fn a_container_of_another_host_is_at_the_port_that_is_published_there() {
        let (servers, refused) = found(
            "docker = [\"tcp://192.0.2.7:2375\"]\nimage = \"registry:5000/shop/web\"\ncontainer_port = 80",
        );
        assert_eq!(servers, ["192.0.2.7:8080 Passing", "192.0.2.7:80 Passing"]);
        assert_eq!(refused, [("web-2".to_owned(), "its port 80 is not published to other hosts".to_owned())]);
    }

    #[test]
    fn images_have_a_version_or_any_and_labels_are_all_there() {
        let with =
            |what: &str| found(&format!("docker = [\"unix:///d\"]\ncontainer_port = 80\n{what}")).0.len();
        assert_eq!(with("image = \"registry:5000/shop/web:7\""), 1);
        assert_eq!(with("image = \"registry:5000/shop/web:8\""), 0);
        assert_eq!(with("container_labels = { app = \"web\" }"), 1);
        assert_eq!(with("container_labels = { app = \"web\", tier = \"x\" }"), 0);
        for bad in ["container_port = 80", "image = \"x\""] {
            assert!(engine(&format!("docker = [\"unix:///d\"]\n{bad}")).is_err(), "{bad}");
        }
    }
}
