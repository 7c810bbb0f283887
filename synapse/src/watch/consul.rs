//! The place that is a service of Consul's: its health endpoint, asked with blocking queries.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::num::NonZeroU16;
use std::time::Duration;

use async_trait::async_trait;
use nerve::document::{Reported, Section};
use nerve::http::{Client, FilePath, Tls, Url};
use nerve::model::{Health, Tag, Weight};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::place::{Place, Refused, Tell};
use super::server::Server;

/// A query waits so long for a change.
const WAIT: Duration = Duration::from_secs(300);
/// How long its answer may take beyond that: Consul adds up to a sixteenth, and then it travels.
const BEYOND: Duration = Duration::from_secs(30);
/// A service that changes all the time is asked no more often than this.
const PAUSE: Duration = Duration::from_millis(100);
/// A server that does not let queries wait is asked so often.
const POLL: Duration = Duration::from_secs(10);
/// The index of the first query.
const BEGINNING: u64 = 0;

/// Which service of which Consul.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Consul {
    /// Its HTTP API: of an agent of this node, mostly.
    #[serde(rename = "consul")]
    pub url: Url,
    /// What the service is called there.
    #[serde(rename = "consul_service")]
    pub service: String,
    /// The datacenter, if it is not the one of the agent that is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<String>,
    /// A file whose first line is the token; read each time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<FilePath>,
    /// Only instances all of whose checks pass; else warnings count as well.
    pub only_passing: bool,
    #[serde(flatten)]
    tls: Tls,
}

impl Consul {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>, usual: &str) -> Result<Self, Reported> {
        let url = section.required::<Url>("consul");
        let service = section.given::<String>("consul_service");
        let datacenter = section.given::<String>("datacenter");
        let token_file = section.given::<FilePath>("token_file");
        let only_passing = section.or("only_passing", true);
        let tls = Tls::read(section);
        let (url, service, datacenter, tls) = (url?, service?, datacenter?, tls?);
        for (key, text) in [("consul_service", &service), ("datacenter", &datacenter)] {
            let is_plain = |text: &str| {
                !text.is_empty()
                    && text.len() <= 255
                    && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte))
            };
            if text.as_deref().is_some_and(|text| !is_plain(text)) {
                return Err(section.invalid(
                    key,
                    "it is no name that Consul's API takes",
                    "letters, digits, \"-\", \"_\" and \".\"",
                ));
            }
        }
        if !tls.is_default() && !url.is_secure() {
            return Err(section.invalid(
                "consul",
                "there are keys of TLS, and it is no https:// URL",
                "an https:// URL",
            ));
        }
        let service = service.unwrap_or_else(|| usual.to_owned());
        Ok(Self { url, service, datacenter, token_file: token_file?, only_passing, tls })
    }

    pub(super) fn place(&self) -> String {
        let datacenter = self.datacenter.as_ref().map(|name| format!("?dc={name}")).unwrap_or_default();
        format!("{}/{}{datacenter}", self.url, self.service)
    }

    fn path(&self, index: u64) -> String {
        let mut path = format!("/v1/health/service/{}?index={index}&wait={}s", self.service, WAIT.as_secs());
        if self.only_passing {
            path.push_str("&passing=1");
        }
        if let Some(datacenter) = &self.datacenter {
            path = format!("{path}&dc={datacenter}");
        }
        path
    }
}

/// The service, and who is asked.
#[derive(Debug)]
pub(super) struct ConsulPlace {
    config: Consul,
    client: Client,
}

impl ConsulPlace {
    pub(super) fn new(config: Consul) -> Self {
        let client = Client::new(config.url.clone(), config.tls.clone());
        Self { config, client }
    }

    async fn ask(&self, index: u64) -> Result<(Vec<Listed>, u64), String> {
        let token = match &self.config.token_file {
            Some(file) => Some(file.first_line().await.map_err(|error| error.to_string())?),
            None => None,
        };
        let headers: Vec<(&str, &str)> =
            token.iter().map(|token| ("x-consul-token", token.as_str())).collect();
        let within = if index == BEGINNING { BEYOND } else { WAIT + WAIT / 16 + BEYOND };
        let answer = self.client.get(&self.config.path(index), &headers, within).await?;
        let index = answer.header("x-consul-index").and_then(|index| index.parse().ok()).unwrap_or(BEGINNING);
        Ok((answer.json()?, index))
    }
}

#[async_trait]
impl Place for ConsulPlace {
    async fn follow(&self, told: &dyn Tell) -> Result<Infallible, String> {
        let mut index = BEGINNING;
        loop {
            let asked = Instant::now();
            let (listed, now) = self.ask(index).await?;
            let (servers, refused) = judged(listed, self.config.only_passing);
            told.found(servers, refused).await;
            // One that goes back was reset: its documentation says to begin anew.
            index = if now < index { BEGINNING } else { now };
            let pause = if now == BEGINNING { POLL } else { PAUSE };
            tokio::time::sleep_until(asked + pause).await;
            told.pace().before_another_look().await;
        }
    }
}

/// An element of the answer, as far as it matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    node: Node,
    service: Service,
    #[serde(default)]
    checks: Option<Vec<Check>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    node: String,
    address: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID")]
    id: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    port: u16,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
    #[serde(default)]
    weights: Option<Weights>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u16,
    warning: u16,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(default)]
    status: String,
}

impl Listed {
    fn health(&self) -> Health {
        let worst = |check: &Check| match check.status.as_str() {
            "passing" => Health::Passing,
            "warning" => Health::Warning,
            _ => Health::Critical,
        };
        self.checks.iter().flatten().map(worst).max().unwrap_or_default()
    }

    fn server(self) -> Result<Server, String> {
        let health = self.health();
        let Self { node, service, .. } = self;
        // Consul has it so: without an address of its own it is at its node's.
        let host = if service.address.is_empty() { &node.address } else { &service.address };
        let port = NonZeroU16::new(service.port).ok_or("it has no port")?;
        let mut server = Server::at(host.parse()?, port);
        server.health = health;
        server.name = Some(service.id);
        server.tags = service.tags.into_iter().flatten().filter_map(|tag| Tag::new(&tag).ok()).collect();
        server.labels = service.meta.unwrap_or_default();
        server.labels.entry("node".to_owned()).or_insert(node.node);
        let weight = service
            .weights
            .map(|weights| if health == Health::Passing { weights.passing } else { weights.warning });
        server.weight = weight.and_then(NonZeroU16::new).map_or_else(Weight::default, Weight);
        Ok(server)
    }
}

fn judged(listed: Vec<Listed>, only_passing: bool) -> (Vec<Server>, Vec<Refused>) {
    let (mut servers, mut refused) = (Vec::new(), Vec::new());
    for one in listed {
        let what = one.service.id.clone();
        match one.server() {
            // A server that does not know `passing` lists the others, too.
            Ok(server) if only_passing && server.health != Health::Passing => {}
            Ok(server) => servers.push(server),
            Err(why) => refused.push((what, why)),
        }
    }
    (servers, refused)
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;

    use super::*;
    use crate::watch::stub::{Written, api};

    fn read(text: &str) -> Result<Consul, String> {
        let read = |section: &mut Section<'_>| Consul::read(section, "web");
        Document::parse("x", text).unwrap().decode(read).map_err(|errors| errors.to_string())
    }

    #[test]
    fn what_is_asked_is_what_was_configured() {
        let plain = read("consul = \"http://127.0.0.1:8500\"").unwrap();
        assert_eq!(plain.path(7), "/v1/health/service/web?index=7&wait=300s&passing=1");
        let other = read("consul = \"https://consul.example\"\nconsul_service = \"Web_1\"\ndatacenter = \"dc2\"\nonly_passing = false\ninsecure = true").unwrap();
        assert_eq!(other.path(0), "/v1/health/service/Web_1?index=0&wait=300s&dc=dc2");
        assert_eq!(other.place(), "https://consul.example:443/Web_1?dc=dc2");
        for bad in [
            "consul = \"127.0.0.1:8500\"",
            "consul = \"http://a\"\nconsul_service = \"a/b\"",
            "consul = \"http://a\"\ninsecure = true",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_instance_is_at_its_own_address_or_its_node_s() {
        let listed = r#"[
            {"Node": {"Node": "n1", "Address": "192.0.2.1"}, "Checks": [{"Status": "passing"}],
             "Service": {"ID": "web-1", "Address": "", "Port": 80, "Tags": ["v2"], "Meta": {"az": "a"}, "Weights": {"Passing": 7, "Warning": 1}}},
            {"Node": {"Node": "n2", "Address": "192.0.2.2"}, "Checks": [{"Status": "passing"}, {"Status": "warning"}],
             "Service": {"ID": "web-2", "Address": "198.51.100.2", "Port": 81, "Tags": null, "Weights": {"Passing": 7, "Warning": 1}}},
            {"Node": {"Node": "n3", "Address": "192.0.2.3"}, "Service": {"ID": "web-3", "Port": 0}},
            {"Node": {"Node": "n4", "Address": "192.0.2.4"}, "Checks": [{"Status": "critical"}], "Service": {"ID": "web-4", "Port": 80}}
        ]"#;
        let judged = |only_passing| {
            let (servers, refused) = judged(serde_json::from_str(listed).unwrap(), only_passing);
            let shown: Vec<String> =
                servers.iter().map(|server| format!("{server} {}", server.weight.0)).collect();
            (shown, refused, servers)
        };
        let (shown, refused, servers) = judged(true);
        assert_eq!(shown, ["192.0.2.1:80 7"]);
        assert_eq!(refused, [("web-3".to_owned(), "it has no port".to_owned())]);
        assert_eq!((servers[0].labels["az"].as_str(), servers[0].labels["node"].as_str()), ("a", "n1"));
        assert!(servers[0].tags.iter().any(|tag| tag.as_str() == "v2"));
        let (shown, _, servers) = judged(false);
        assert_eq!(shown, ["192.0.2.1:80 7", "198.51.100.2:81 1", "192.0.2.4:80 100"]);
        assert_eq!((servers[1].health, servers[2].health), (Health::Warning, Health::Critical));
    }

    #[tokio::test]
    async fn an_index_that_goes_back_is_begun_anew_and_an_answer_that_is_none_ends_it() {
        let one = r#"[{"Node": {"Node": "n", "Address": "192.0.2.1"}, "Service": {"ID": "a", "Port": 80}}]"#;
        let answers = [
            ("200 OK", 7, one),
            ("200 OK", 3, "[]"),
            ("200 OK", 9, one),
            ("500 Internal", 0, "No cluster leader"),
        ];
        let answers = answers.map(|(status, index, body)| {
            (format!("{status}\r\nx-consul-index: {index}\r\n"), body.to_owned())
        });
        let (url, serve) = api(answers.into()).await;
        let (place, written) =
            (ConsulPlace::new(read(&format!("consul = \"{url}\"")).unwrap()), Written::default());
        let (asked, ended) = tokio::join!(serve, place.follow(&written));
        let index =
            |head: &String| head.split_once("index=").unwrap().1.split('&').next().unwrap().to_owned();
        assert_eq!(asked.iter().map(index).collect::<Vec<_>>(), ["0", "7", "0", "9"]);
        assert_eq!(ended.unwrap_err(), "status 500: No cluster leader");
        assert_eq!(written.lines(), ["192.0.2.1:80 0", " 0", "192.0.2.1:80 0"]);
    }
}
