//! The place that is a file: JSON or YAML that somebody else writes, in the form of Prometheus' `file_sd`, of Synapse's backends, or plain
//! addresses.
//!
//! Its directory is watched, since files are replaced by renaming; an event only says *look again*, and a slow tick looks without any. A
//! file that is gone or cannot be read keeps what it last said in force.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use nerve::document::Document;
use nerve::model::{Region, Tag, Weight, Zone};
use nerve::watched::Watched;
use serde::Deserialize;

use super::place::{Place, Refused, Tell};
use super::server::Server;

/// It is read so often without any event.
const TICK: Duration = Duration::from_secs(5);

/// This file.
#[derive(Debug)]
pub(super) struct FilePlace(pub(super) PathBuf);

#[async_trait]
impl Place for FilePlace {
    async fn follow(&self, told: &dyn Tell) -> Result<Infallible, String> {
        let (mut watched, mut last) = (Watched::files([self.0.as_path()]), None);
        loop {
            match read(&self.0).await {
                Ok(text) if last.as_ref() == Some(&text) => {}
                Ok(text) => match parse(&self.0.display().to_string(), &text) {
                    Ok((servers, refused)) => {
                        told.found(servers, refused).await;
                        last = Some(text);
                    }
                    Err(error) => last = failed(told, error).await,
                },
                Err(error) => last = failed(told, error).await,
            }
            if watched.changed(TICK).await {
                told.pace().before_another_look().await;
                watched.forget();
            }
        }
    }
}

/// What it says next is news, be it what it said before.
async fn failed(told: &dyn Tell, error: String) -> Option<String> {
    told.failed(error).await;
    None
}

/// Off the control thread: a file may be on a network.
async fn read(file: &Path) -> Result<String, String> {
    let path = file.to_owned();
    let read = tokio::task::spawn_blocking(move || nerve::document::read_text(&path));
    read.await.map_err(|error| error.to_string())?.map_err(|errors| errors.to_string())
}

/// What may stand in the list.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Written {
    Address(String),
    /// Prometheus' `file_sd`.
    Targets {
        targets: Vec<String>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
    },
    Server(Box<WrittenServer>),
}

/// Synapse's backends, and what Nerve writes.
#[derive(Debug, Deserialize)]
struct WrittenServer {
    host: String,
    port: NonZeroU16,
    name: Option<String>,
    weight: Option<u16>,
    #[serde(default)]
    tags: BTreeSet<Tag>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    backup: bool,
    region: Option<Region>,
    zone: Option<Zone>,
}

impl Written {
    fn servers(self) -> Result<Vec<Server>, String> {
        match self {
            Self::Address(text) => Ok(vec![text.parse()?]),
            Self::Targets { targets, labels } => targets
                .iter()
                .map(|target| Ok(Server { labels: labels.clone(), ..target.parse()? }))
                .collect(),
            Self::Server(server) => {
                let WrittenServer { host, port, name, weight, tags, labels, backup, region, zone } = *server;
                // 0, which is none here, counts as the default.
                let weight = weight.and_then(NonZeroU16::new).map_or_else(Weight::default, Weight);
                let plain = Server::at(host.parse()?, port);
                Ok(vec![Server { name, weight, tags, labels, backup, region, zone, ..plain }])
            }
        }
    }
}

/// The servers of a text, and what of it is none, with why.
fn parse(file: &str, text: &str) -> Result<(Vec<Server>, Vec<Refused>), String> {
    let value = Document::parse_yaml_value(file, text).map_err(|errors| errors.to_string())?;
    let value = value.map_or(Ok(serde_json::Value::Array(Vec::new())), serde_json::to_value);
    let list = match value.map_err(|error| error.to_string())? {
        serde_json::Value::Null => Vec::new(),
        serde_json::Value::Array(list) => list,
        serde_json::Value::Object(mut map) => match map.remove("servers") {
            Some(serde_json::Value::Array(list)) => list,
            _ => return Err(format!("{file}: it is a mapping without a list of `servers`")),
        },
        _ => return Err(format!("{file}: it is neither a list of servers nor a mapping with `servers`")),
    };
    let (mut servers, mut refused) = (Vec::new(), Vec::new());
    for (place, element) in list.into_iter().enumerate() {
        let shown: String = element.to_string().chars().take(120).collect();
        let read = serde_json::from_value::<Written>(element)
            .map_err(|_| "it is no address, no `targets`, and no `host` and `port`".to_owned());
        match read.and_then(Written::servers) {
            Ok(read) => servers.extend(read),
            Err(why) => refused.push((format!("{file}[{place}]"), format!("{why}: {shown}"))),
        }
    }
    Ok((servers, refused))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> (Vec<String>, usize) {
        let (servers, refused) = parse("x", text).unwrap();
        (servers.iter().map(ToString::to_string).collect(), refused.len())
    }

    #[test]
    fn every_form_is_read_and_what_is_malformed_costs_itself_alone() {
        for text in [
            "[\"192.0.2.1:80\", \"192.0.2.2:80\"]",
            "- 192.0.2.1:80\n- 192.0.2.2:80\n",
            "servers: [{host: 192.0.2.1, port: 80, name: a, weight: 7}, {host: 192.0.2.2, port: 80, weight: 0}]",
            "[{\"targets\": [\"192.0.2.1:80\", \"192.0.2.2:80\"], \"labels\": {\"az\": \"a\"}}]",
            "[{\"host\": \"192.0.2.1\", \"port\": 80}, \"192.0.2.2:80\", {\"host\": \"192.0.2.3\"}, 7, \"x\"]",
        ] {
            let (servers, refused) = shown(text);
            assert_eq!(servers, ["192.0.2.1:80", "192.0.2.2:80"], "{text}");
            assert_eq!(refused, if text.contains("\"x\"") { 3 } else { 0 }, "{text}");
        }
        assert_eq!(shown(""), (Vec::new(), 0));
        let (servers, _) =
            parse("x", "[{\"targets\": [\"a.example:80\"], \"labels\": {\"az\": \"a\"}}]").unwrap();
        assert_eq!(servers[0].labels["az"], "a");
        for text in ["{", "7", "{\"hosts\": []}"] {
            assert!(parse("x", text).is_err(), "{text}");
        }
    }
}
