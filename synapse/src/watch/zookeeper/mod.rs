//! The place that is a path of ZooKeeper: its children are servers, as Nerve registers them or as Finagle's server sets.
//!
//! Children are read once, since a registration that changes is another child; one whose name holds its data is not read at all.

mod data;
mod follow;
mod sessions;

use std::collections::BTreeMap;
use std::convert::Infallible;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use nerve::document::{FromValue, Mismatch, Reported, Section, Value};
use serde::Serialize;
use zookeeper_client::{Client, Error, OneshotWatcher};

use super::decode;
use super::place::{Place, Refused, Tell};
use super::server::Server;
pub use data::{Data, Znode};
use follow::{Watched, answered, appears, follow};
pub(super) use sessions::Sessions;

/// So many children are read at a time.
const READS_AT_ONCE: usize = 32;
/// So many children are read; further ones are left out.
const MOST: usize = 20_000;

/// Which path of which ensemble, and what its children are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ZooKeeper {
    /// `host:port` of its servers.
    #[serde(rename = "zookeeper")]
    pub hosts: Vec<String>,
    /// The parent of the registrations.
    pub path: String,
    /// What they are.
    pub decode: Decode,
    /// Of a server set, the additional endpoint that is the server; else its main one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_name: Option<String>,
}

/// What is wrong with one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The key, as it is called in a `[[watch]]` table.
    pub key: &'static str,
    /// What is wrong with it.
    pub message: String,
    /// What would be right.
    pub expected: &'static str,
}

/// What the children of a path are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decode {
    /// Registrations of SmartStack's Nerve.
    #[default]
    Nerve,
    /// Members of one of Finagle's server sets.
    Serverset,
}

impl FromValue for Decode {
    fn expected() -> String {
        "\"nerve\" or \"serverset\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match value.as_text() {
            Some("nerve") => Ok(Self::Nerve),
            Some("serverset") => Ok(Self::Serverset),
            _ => Err(value.wrong_kind(Self::expected())),
        }
    }
}

impl ZooKeeper {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let hosts = section.required::<Vec<String>>("zookeeper");
        let path = section.required::<String>("path");
        let decode = section.or("decode", Decode::default());
        let endpoint_name = section.optional::<String>("endpoint_name");
        Self::new(hosts?, path?, decode, endpoint_name)
            .map_err(|Wrong { key, message, expected }| section.invalid(key, message, expected))
    }

    /// Validates them.
    ///
    /// # Errors
    /// What is wrong with one.
    pub fn new(
        hosts: Vec<String>,
        path: String,
        decode: Decode,
        endpoint_name: Option<String>,
    ) -> Result<Self, Wrong> {
        let wrong = |key, message: &str, expected| Err(Wrong { key, message: message.to_owned(), expected });
        if hosts.is_empty() || hosts.iter().any(|host| host.is_empty() || host.contains([',', '/'])) {
            let expected = "servers such as [\"zk1:2181\", \"zk2:2181\"]";
            return wrong("zookeeper", "it names no server, or something else", expected);
        }
        check_path(&path)?;
        if endpoint_name.is_some() && decode == Decode::Nerve {
            let expected = "`decode = \"serverset\"`";
            return wrong("endpoint_name", "Nerve's registrations have one endpoint", expected);
        }
        Ok(Self { hosts, path, decode, endpoint_name })
    }

    /// The servers, as the library takes them.
    fn ensemble(&self) -> String {
        self.hosts.join(",")
    }

    pub(super) fn place(&self) -> String {
        format!("zookeeper://{}{}", self.ensemble(), self.path)
    }
}

fn check_path(path: &str) -> Result<(), Wrong> {
    if path.starts_with('/') && path.len() > 1 && !path.ends_with('/') && !path.contains("//") {
        return Ok(());
    }
    let message = format!("{path:?} is no path of ZooKeeper");
    Err(Wrong { key: "path", message, expected: "such as \"/nerve/web\"" })
}

/// The path, and the sessions that watchers share.
#[derive(Debug)]
pub(super) struct ZooKeeperPlace {
    pub(super) config: ZooKeeper,
    pub(super) sessions: Sessions,
}

/// What a child is: a server, or why it is none.
type Child = Result<Option<Server>, String>;

#[async_trait]
impl Place for ZooKeeperPlace {
    async fn follow(&self, told: &dyn Tell) -> Result<Infallible, String> {
        let client = self.sessions.client(&self.config.ensemble()).await?;
        follow(&client, &mut Children { place: self, known: BTreeMap::new(), told }).await
    }
}

/// What was read of them, and whom it is told.
struct Children<'a> {
    place: &'a ZooKeeperPlace,
    known: BTreeMap<String, Child>,
    told: &'a dyn Tell,
}

#[async_trait]
impl Watched for Children<'_> {
    async fn look(&mut self, client: &Client) -> Result<OneshotWatcher, String> {
        let watcher = self.place.look(client, &mut self.known).await?;
        let (servers, refused) = self.place.judged(&self.known);
        self.told.found(servers, refused).await;
        Ok(watcher)
    }

    async fn failed(&mut self, error: String) {
        self.told.failed(error).await;
    }

    fn forget(&mut self) {
        self.known.clear();
    }

    async fn pause(&self) {
        self.told.pace().before_another_look().await;
    }
}

impl ZooKeeperPlace {
    /// Reads what is new, and forgets what is gone.
    async fn look(
        &self,
        client: &Client,
        known: &mut BTreeMap<String, Child>,
    ) -> Result<OneshotWatcher, String> {
        let path = &self.config.path;
        let (mut children, watcher) = match answered(client.list_and_watch_children(path)).await? {
            Ok(listed) => listed,
            // It may appear: nobody has registered anything there.
            Err(Error::NoNode) => {
                known.clear();
                return appears(client, path).await;
            }
            Err(error) => return Err(format!("list {path}: {error}")),
        };
        children.sort_unstable();
        children.truncate(MOST);
        known.retain(|child, _| children.binary_search(child).is_ok());
        let new = children.into_iter().filter(|child| !known.contains_key(child)).collect::<Vec<_>>();
        let read = |child: String| async move {
            let read = self.read(client, &child).await;
            (child, read)
        };
        let mut reads = stream::iter(new).map(read).buffer_unordered(READS_AT_ONCE);
        while let Some((child, read)) = reads.next().await {
            // `None`: it was gone before it could be read.
            if let Some(read) = read? {
                known.insert(child, read);
            }
        }
        Ok(watcher)
    }

    async fn read(&self, client: &Client, child: &str) -> Result<Option<Child>, String> {
        let ZooKeeper { path, decode, endpoint_name, .. } = &self.config;
        if *decode == Decode::Nerve
            && let Some(data) = decode::of_name(child)
        {
            return Ok(Some(data.and_then(|data| decode::nerve(&data)).map(Some)));
        }
        let node = format!("{path}/{child}");
        match answered(client.get_data(&node)).await? {
            Ok((data, _)) => Ok(Some(match decode {
                Decode::Nerve => decode::nerve(&data).map(Some),
                Decode::Serverset => decode::serverset(&data, endpoint_name.as_deref()),
            })),
            Err(Error::NoNode) => Ok(None),
            Err(error) => Err(format!("read {node}: {error}")),
        }
    }

    fn judged(&self, known: &BTreeMap<String, Child>) -> (Vec<Server>, Vec<Refused>) {
        let (mut servers, mut refused) = (Vec::new(), Vec::new());
        for (child, read) in known {
            match read {
                Ok(server) => {
                    let numbered = |server| Server { number: decode::number_of(child), ..server };
                    servers.extend(server.clone().map(numbered));
                }
                Err(why) => {
                    let shown: String = child.chars().take(80).collect();
                    refused.push((format!("{}/{shown}", self.config.path), why.clone()));
                }
            }
        }
        (servers, refused)
    }
}
