//! The place that is Kubernetes: the endpoint slices of a service, listed once and watched from there on, with a service account's token.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::num::NonZeroU16;
use std::time::Duration;

use async_trait::async_trait;
use nerve::document::{Reported, Section};
use nerve::http::{Client, FilePath, Tls, Url, encoded};
use nerve::model::Zone;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use super::place::{Place, Refused, Tell};
use super::server::Server;

/// So many slices are listed at a time.
const PAGE: usize = 500;
/// So many are kept; each has a thousand endpoints at the most.
const MOST: usize = 1_000;
/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(30);
/// The API is to end a watch after so long; one that does not has been lost on the way.
const WATCH: Duration = Duration::from_secs(300);
const BEYOND: Duration = Duration::from_secs(30);
/// Watches begin no sooner after each other.
const PAUSE: Duration = Duration::from_secs(1);

/// Which service of which cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kubernetes {
    /// Its API.
    #[serde(rename = "kubernetes")]
    pub url: Url,
    /// The namespace.
    pub namespace: String,
    /// What the service is called there.
    #[serde(rename = "kubernetes_service")]
    pub service: String,
    /// Which of its ports; without it, the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_name: Option<String>,
    /// A file whose first line is the token; read each time, for it is exchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<FilePath>,
    #[serde(flatten)]
    tls: Tls,
}

impl Kubernetes {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>, usual: &str) -> Result<Self, Reported> {
        let url = section.required::<Url>("kubernetes");
        let namespace = section.or("namespace", "default".to_owned());
        let service = section.or("kubernetes_service", usual.to_owned());
        let port_name = section.given::<String>("port_name");
        let token_file = section.given::<FilePath>("token_file");
        let tls = Tls::read(section);
        let (url, tls) = (url?, tls?);
        for (key, name) in [("namespace", &namespace), ("kubernetes_service", &service)] {
            // RFC 1123, as Kubernetes has it for both.
            let is_label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if name.is_empty() || name.len() > 63 || !name.chars().all(is_label) {
                return Err(section.invalid(
                    key,
                    format!("{name:?} is no name of Kubernetes"),
                    "a DNS label",
                ));
            }
        }
        if !tls.is_default() && !url.is_secure() {
            return Err(section.invalid(
                "kubernetes",
                "there are keys of TLS, and it is no https:// URL",
                "an https:// URL",
            ));
        }
        Ok(Self { url, namespace, service, port_name: port_name?, token_file: token_file?, tls })
    }

    pub(super) fn place(&self) -> String {
        format!("{}/{}/{}", self.url, self.namespace, self.service)
    }

    /// The slices of the service, with a further parameter.
    fn path(&self, more: &str) -> String {
        let Self { namespace, service, .. } = self;
        format!(
            "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{service}{more}"
        )
    }
}

/// The service, and who is asked.
#[derive(Debug)]
pub(super) struct KubernetesPlace {
    config: Kubernetes,
    client: Client,
}

/// The slices by their names.
type Slices = BTreeMap<String, Slice>;

/// How a watch ended.
enum Ended {
    /// As it is to: it goes on from this version.
    At(String),
    /// What it would go on from is forgotten there.
    Expired,
}

#[async_trait]
impl Place for KubernetesPlace {
    async fn follow(&self, told: &dyn Tell) -> Result<Infallible, String> {
        loop {
            let (mut slices, mut version) = self.list().await?;
            loop {
                self.tell(&slices, told).await;
                let began = Instant::now();
                match self.watch(&mut slices, version, told).await? {
                    Ended::At(last) => version = last,
                    Ended::Expired => break,
                }
                tokio::time::sleep_until(began + PAUSE).await;
            }
            told.pace().before_another_look().await;
        }
    }
}

impl KubernetesPlace {
    pub(super) fn new(config: Kubernetes) -> Self {
        let client = Client::new(config.url.clone(), config.tls.clone());
        Self { config, client }
    }

    async fn token(&self) -> Result<Option<String>, String> {
        let Some(file) = &self.config.token_file else { return Ok(None) };
        let token = file.first_line().await.map_err(|error| error.to_string())?;
        Ok(Some(format!("Bearer {token}")))
    }

    /// All slices, page by page, and the version that they stand at.
    async fn list(&self) -> Result<(Slices, String), String> {
        let token = self.token().await?;
        let headers: Vec<(&str, &str)> =
            token.iter().map(|token| ("authorization", token.as_str())).collect();
        let (mut slices, mut page) = (Slices::new(), String::new());
        loop {
            let path = self.config.path(&format!("&limit={PAGE}{page}"));
            let answer = self.client.get(&path, &headers, WITHIN).await?;
            let List { metadata, items } = answer.json()?;
            slices.extend(items.into_iter().map(|slice| (slice.metadata.name.clone(), slice)));
            match metadata.next.filter(|next| !next.is_empty() && slices.len() < MOST) {
                Some(next) => page = format!("&continue={}", encoded(&next)),
                None => return Ok((slices, metadata.resource_version)),
            }
        }
    }

    async fn watch(
        &self,
        slices: &mut Slices,
        mut version: String,
        told: &dyn Tell,
    ) -> Result<Ended, String> {
        let token = self.token().await?;
        let headers: Vec<(&str, &str)> =
            token.iter().map(|token| ("authorization", token.as_str())).collect();
        let more = format!(
            "&watch=1&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}",
            WATCH.as_secs(),
            encoded(&version)
        );
        let mut lines = self.client.lines(&self.config.path(&more), &headers, WITHIN).await?;
        let until = Instant::now() + WATCH + BEYOND;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // It ends by itself after a while; where it broke off, the next one says why.
            let Ok(Ok(line)) = timeout(left, lines.next()).await else { return Ok(Ended::At(version)) };
            let event: Event = serde_json::from_slice(&line)
                .map_err(|error| format!("it tells what cannot be read: {error}"))?;
            match event.kind.as_str() {
                "ERROR" => return Ok(Ended::Expired),
                "BOOKMARK" => {}
                "DELETED" => drop(slices.remove(&event.object.metadata.name)),
                _ if slices.len() < MOST || slices.contains_key(&event.object.metadata.name) => {
                    slices.insert(event.object.metadata.name.clone(), event.object.clone());
                }
                _ => {}
            }
            version.clone_from(&event.object.metadata.resource_version);
            if event.kind != "BOOKMARK" {
                self.tell(slices, told).await;
            }
        }
    }

    async fn tell(&self, slices: &Slices, told: &dyn Tell) {
        let (mut servers, mut refused) = (Vec::new(), Vec::new());
        for slice in slices.values() {
            slice.servers(self.config.port_name.as_deref(), &mut servers, &mut refused);
        }
        told.found(servers, refused).await;
    }
}

#[derive(Debug, Deserialize)]
struct List {
    metadata: ListMetadata,
    #[serde(default)]
    items: Vec<Slice>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Slice,
}

/// An `EndpointSlice` of discovery.k8s.io/v1; of an error, a `Status`, which has none of it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Slice {
    metadata: Metadata,
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    resource_version: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Endpoint {
    addresses: Vec<String>,
    conditions: Conditions,
    node_name: Option<String>,
    target_ref: Option<Reference>,
    zone: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Reference {
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Port {
    name: Option<String>,
    port: Option<u16>,
}

impl Slice {
    fn servers(&self, port_name: Option<&str>, servers: &mut Vec<Server>, refused: &mut Vec<Refused>) {
        let is_it = |port: &&Port| port_name.is_none_or(|name| port.name.as_deref() == Some(name));
        let port = self.ports.iter().flatten().find(is_it).and_then(|port| NonZeroU16::new(port.port?));
        for endpoint in self.endpoints.iter().flatten() {
            // Not said is ready, by the API's own words.
            if endpoint.conditions.ready == Some(false) {
                continue;
            }
            let name = endpoint.target_ref.as_ref().map(|target| target.name.clone());
            // All of one endpoint are the same one; more than one are for those who know.
            let address = endpoint.addresses.first();
            let what =
                || name.clone().or_else(|| address.cloned()).unwrap_or_else(|| self.metadata.name.clone());
            let Some(port) = port else {
                refused.push((what(), "it has no such port".to_owned()));
                continue;
            };
            match address.ok_or_else(|| "it has no address".to_owned()).and_then(|address| address.parse()) {
                Ok(host) => {
                    let mut server = Server { name, ..Server::at(host, port) };
                    server.zone = endpoint.zone.as_deref().and_then(|zone| Zone::new(zone).ok());
                    server
                        .labels
                        .extend(endpoint.node_name.iter().map(|node| ("node".to_owned(), node.clone())));
                    servers.push(server);
                }
                Err(why) => refused.push((what(), why)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;
    use serde_json::json;

    use super::*;
    use crate::watch::stub::{Written, api};

    fn read(text: &str) -> Result<Kubernetes, String> {
        let read = |section: &mut Section<'_>| Kubernetes::read(section, "web");
        Document::parse("x", text).unwrap().decode(read).map_err(|errors| errors.to_string())
    }

    fn slice(name: &str, version: u32, endpoints: &[(&str, Option<bool>)]) -> serde_json::Value {
        let endpoint = |(address, ready): &(&str, Option<bool>)| json!({"addresses": [address], "conditions": {"ready": ready}, "nodeName": "n", "zone": "eu-1a", "targetRef": {"kind": "Pod", "name": "web-0"}});
        json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "shop", "resourceVersion": version.to_string()},
            "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": [{"name": "metrics", "port": 9100, "protocol": "TCP"}, {"name": "http", "port": 80, "protocol": "TCP"}],
        })
    }

    #[tokio::test]
    async fn slices_are_listed_by_pages_watched_and_listed_again_when_their_version_is_forgotten() {
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), "s3cret\n").unwrap();
        let ok = || "200 OK\r\ncontent-type: application/json\r\n".to_owned();
        let list = |items: &[serde_json::Value], version: &str, next: &str| {
            let metadata = json!({"resourceVersion": version, "continue": next});
            (ok(), json!({"kind": "EndpointSliceList", "metadata": metadata, "items": items}).to_string())
        };
        let event =
            |kind: &str, object: serde_json::Value| format!("{}\n", json!({"type": kind, "object": object}));
        let bookmark = json!({"kind": "EndpointSlice", "metadata": {"resourceVersion": "15"}});
        let gone = json!({"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410});
        let answers = vec![
            list(&[slice("a", 1, &[("192.0.2.1", None)])], "9", "next/page"),
            list(&[slice("b", 2, &[("192.0.2.2", Some(true)), ("x y", Some(true))])], "10", ""),
            (
                ok(),
                event("MODIFIED", slice("a", 12, &[("192.0.2.1", Some(false))]))
                    + &event("BOOKMARK", bookmark),
            ),
            (ok(), event("DELETED", slice("b", 16, &[])) + &event("ERROR", gone)),
            list(&[slice("c", 20, &[("192.0.2.3", Some(true))])], "20", ""),
            ("403 Forbidden\r\n".to_owned(), String::new()),
        ];
        let (url, serve) = api(answers).await;
        let text = format!(
            "kubernetes = \"{url}\"\nnamespace = \"shop\"\nport_name = \"http\"\ntoken_file = \"{}\"",
            token.path().display()
        );
        let (place, written) = (KubernetesPlace::new(read(&text).unwrap()), Written::default());
        let (asked, ended) = tokio::join!(serve, place.follow(&written));
        assert!(ended.unwrap_err().contains("403"));
        assert_eq!(
            written.lines(),
            ["192.0.2.1:80 192.0.2.2:80 1", "192.0.2.2:80 1", "192.0.2.2:80 1", " 0", "192.0.2.3:80 0",]
        );
        assert!(asked.iter().all(|head| head.contains("authorization: Bearer s3cret\r\n")), "{asked:?}");
        for (at, part) in [
            (1, "&continue=next%2Fpage "),
            (2, "&resourceVersion=10 "),
            (3, "&resourceVersion=15 "),
            (5, "&resourceVersion=20 "),
        ] {
            assert!(asked[at].contains(part), "{}", asked[at]);
        }
        assert!(asked[0].starts_with("GET /apis/discovery.k8s.io/v1/namespaces/shop/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dweb&limit="), "{}", asked[0]);
    }

    #[test]
    fn names_are_those_that_kubernetes_has() {
        assert_eq!(
            read("kubernetes = \"https://10.96.0.1\"").unwrap().place(),
            "https://10.96.0.1:443/default/web"
        );
        for bad in [
            "kubernetes = \"10.96.0.1\"",
            "kubernetes = \"http://a\"\nnamespace = \"A\"",
            "kubernetes = \"http://a\"\ninsecure = true",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_slice_without_the_port_is_refused_by_endpoint() {
        let read: Slice = serde_json::from_value(slice("a", 1, &[("192.0.2.1", None)])).unwrap();
        let (mut servers, mut refused) = (Vec::new(), Vec::new());
        read.servers(Some("grpc"), &mut servers, &mut refused);
        assert_eq!((servers.len(), refused.len()), (0, 1));
        read.servers(None, &mut servers, &mut refused);
        assert_eq!(
            (servers[0].to_string().as_str(), servers[0].zone.as_ref().map(Zone::as_str)),
            ("192.0.2.1:9100", Some("eu-1a"))
        );
        assert_eq!((servers[0].name.as_deref(), servers[0].labels["node"].as_str()), (Some("web-0"), "n"));
    }
}
