//! The data of nodes, as text, for whoever keeps a configuration there. What was last read stays while an ensemble is out of reach, and
//! over a restart: it is kept in a file.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use nerve::tasks::Tasks;
use serde::{Deserialize, Serialize};
use tokio::sync::watch as signal;
use tokio_util::sync::{CancellationToken, DropGuard};
use zookeeper_client::{Client, Error, OneshotWatcher};

use super::follow::{Watched, answered, appears, follow};
use super::sessions::Sessions;
use super::{Wrong, ZooKeeper};
use crate::watch::lock::lock;
use crate::watch::pace::Pace;
use crate::whole_file;

const FORMAT: u32 = 1;
/// The most text that is taken of a node, in bytes: what an ensemble takes unless it is told otherwise.
const MOST: usize = 1024 * 1024;
/// The largest file that is read or written.
const MOST_KEPT: u64 = 64 * 1024 * 1024;

/// A node of an ensemble.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Znode {
    ensemble: String,
    path: String,
}

impl Znode {
    /// That of the registrations themselves, or the one of this path in the same ensemble.
    ///
    /// # Errors
    /// It is no path.
    pub fn beside(place: &ZooKeeper, path: Option<String>) -> Result<Self, Wrong> {
        let path = path.unwrap_or_else(|| place.path.clone());
        super::check_path(&path)?;
        Ok(Self { ensemble: place.ensemble(), path })
    }
}

impl fmt::Display for Znode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zookeeper://{}{}", self.ensemble, self.path)
    }
}

/// Nodes whose data is followed. Clones share them.
#[derive(Debug, Clone)]
pub struct Data(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sessions: Sessions,
    tasks: Tasks,
    file: PathBuf,
    nodes: Mutex<BTreeMap<Znode, Followed>>,
    /// What an earlier run read.
    recalled: BTreeMap<Znode, Arc<str>>,
    saving: tokio::sync::Mutex<()>,
    /// Counts changes of texts.
    changes: signal::Sender<u64>,
    spoke: signal::Sender<()>,
}

#[derive(Debug)]
struct Followed {
    /// Nothing where the node is not there.
    text: Arc<str>,
    /// It was read, or could not be.
    spoke: bool,
    error: Option<String>,
    _wanted: DropGuard,
}

#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    format: u32,
    nodes: Vec<SavedNode>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedNode {
    #[serde(flatten)]
    node: Znode,
    text: Arc<str>,
}

impl Data {
    /// None yet. What is read is kept in `file`, and what stands there is what is known at first.
    pub(in crate::watch) fn new(sessions: Sessions, file: &Path, tasks: &Tasks) -> Self {
        let recalled = recalled(file).unwrap_or_else(|error| {
            tracing::warn!(file = %file.display(), error, "what nodes of ZooKeeper said cannot be read; starting without");
            BTreeMap::new()
        });
        Self(Arc::new(Shared {
            sessions,
            tasks: tasks.clone(),
            file: file.to_owned(),
            nodes: Mutex::default(),
            recalled,
            saving: tokio::sync::Mutex::default(),
            changes: signal::Sender::new(0),
            spoke: signal::Sender::new(()),
        }))
    }

    /// Follows these from now on, and no others.
    pub fn follow(&self, nodes: &BTreeSet<Znode>) {
        let mut followed = lock(&self.0.nodes);
        followed.retain(|node, _| nodes.contains(node));
        for node in nodes {
            if !followed.contains_key(node) {
                followed.insert(node.clone(), self.start(node));
            }
        }
    }

    /// What stands in each; nothing: it is empty, not there, or was never heard.
    #[must_use]
    pub fn texts(&self) -> BTreeMap<Znode, Arc<str>> {
        let nodes = lock(&self.0.nodes);
        nodes.iter().map(|(node, followed)| (node.clone(), Arc::clone(&followed.text))).collect()
    }

    /// Which cannot be read now, and why.
    #[must_use]
    pub fn failures(&self) -> Vec<(Znode, String)> {
        let nodes = lock(&self.0.nodes);
        nodes.iter().filter_map(|(node, followed)| Some((node.clone(), followed.error.clone()?))).collect()
    }

    /// Changes whenever a text does.
    #[must_use]
    pub fn changes(&self) -> signal::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Waits until each was read, or could not be; for at most so long.
    pub async fn first_words(&self, within: Duration) {
        let mut spoke = self.0.spoke.subscribe();
        let all = spoke.wait_for(|()| lock(&self.0.nodes).values().all(|followed| followed.spoke));
        // Who has not spoken by then does so later.
        let _ = tokio::time::timeout(within, all).await;
    }

    fn start(&self, node: &Znode) -> Followed {
        let wanted = CancellationToken::new();
        let (data, is_wanted, of) = (self.clone(), wanted.clone(), node.clone());
        self.0.tasks.spawn_until_done("data of a node of ZooKeeper", move || {
            let (reader, wanted) = (Reader { data: data.clone(), node: of.clone() }, is_wanted.clone());
            async move {
                let _ = wanted.run_until_cancelled(reader.follow_always()).await;
            }
        });
        let text = self.0.recalled.get(node).cloned().unwrap_or_default();
        Followed { text, spoke: false, error: None, _wanted: wanted.drop_guard() }
    }

    /// Notes what one said. Is that new?
    fn note(&self, node: &Znode, said: Result<Arc<str>, String>) -> bool {
        let mut nodes = lock(&self.0.nodes);
        let Some(followed) = nodes.get_mut(node) else { return false };
        followed.spoke = true;
        let before = Arc::clone(&followed.text);
        match said {
            Ok(text) => {
                followed.error = None;
                followed.text = text;
            }
            Err(error) => {
                if followed.error.is_none() {
                    tracing::warn!(%node, error, "a node of ZooKeeper cannot be read; what it last said stays");
                }
                followed.error = Some(error);
            }
        }
        followed.text != before
    }

    /// Tells who waits, and writes down what is new.
    async fn tell(&self, is_new: bool) {
        if is_new {
            self.0.changes.send_modify(|changes| *changes += 1);
        }
        self.0.spoke.send_replace(());
        if !is_new {
            return;
        }
        // One after the other: each writes what then is.
        let _saving = self.0.saving.lock().await;
        let nodes = self.texts().into_iter().filter(|(_, text)| !text.is_empty());
        let nodes = nodes.map(|(node, text)| SavedNode { node, text }).collect();
        let (saved, file) = (Saved { format: FORMAT, nodes }, self.0.file.clone());
        let written = tokio::task::spawn_blocking(move || whole_file::write(&file, MOST_KEPT, &saved)).await;
        let error = match written {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic.to_string(),
        };
        tracing::warn!(file = %self.0.file.display(), error, "what nodes of ZooKeeper say cannot be saved; check state_dir");
    }
}

fn recalled(file: &Path) -> Result<BTreeMap<Znode, Arc<str>>, String> {
    let text = match whole_file::read(file, MOST_KEPT) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.to_string()),
    };
    match serde_json::from_slice(&text) {
        Ok(Saved { format: FORMAT, nodes }) => {
            Ok(nodes.into_iter().map(|SavedNode { node, text }| (node, text)).collect())
        }
        Ok(Saved { format, .. }) => Err(format!("it is of format {format}, this version reads {FORMAT}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads one node.
#[derive(Debug)]
struct Reader {
    data: Data,
    node: Znode,
}

impl Reader {
    async fn follow_always(mut self) -> Infallible {
        let mut pauses = Pace::default().pauses();
        loop {
            let Err(error) = self.follow().await;
            self.failed(error).await;
            tokio::time::sleep(pauses.next()).await;
        }
    }

    async fn follow(&mut self) -> Result<Infallible, String> {
        let client = self.data.0.sessions.client(&self.node.ensemble).await?;
        follow(&client, self).await
    }
}

#[async_trait]
impl Watched for Reader {
    async fn look(&mut self, client: &Client) -> Result<OneshotWatcher, String> {
        let path = &self.node.path;
        let (data, watcher) = match answered(client.get_and_watch_data(path)).await? {
            Ok((data, _, watcher)) => (data, watcher),
            Err(Error::NoNode) => (Vec::new(), appears(client, path).await?),
            Err(error) => return Err(format!("read {path}: {error}")),
        };
        let text = match String::from_utf8(data) {
            Ok(text) if text.len() <= MOST => Ok(Arc::from(text)),
            Ok(_) => Err(format!("its data is longer than {MOST} bytes")),
            Err(_) => Err("its data is no text".to_owned()),
        };
        let is_new = self.data.note(&self.node, text);
        self.data.tell(is_new).await;
        Ok(watcher)
    }

    async fn failed(&mut self, error: String) {
        self.data.note(&self.node, Err(error));
        self.data.tell(false).await;
    }

    fn forget(&mut self) {}

    async fn pause(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(path: &str) -> Znode {
        let place =
            ZooKeeper::new(vec!["192.0.2.1:2181".to_owned()], "/a".to_owned(), Default::default(), None);
        Znode::beside(&place.unwrap(), Some(path.to_owned())).unwrap()
    }

    #[tokio::test]
    async fn what_was_read_is_known_after_a_restart_and_errors_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("deep/data.json");
        let (one, two) = (node("/one"), node("/two"));
        let tasks = Tasks::new();
        let data = Data::new(Sessions::default(), &file, &tasks);
        data.follow(&[one.clone(), two.clone()].into());
        let changes = data.changes();
        assert!(data.note(&one, Ok("{}".into())));
        assert!(!data.note(&one, Ok("{}".into())));
        assert!(!data.note(&one, Err("away".to_owned())));
        // Nobody has looked yet: that is done where this waits.
        assert_eq!(data.failures(), [(one.clone(), "away".to_owned())]);
        data.tell(true).await;
        assert!(changes.has_changed().unwrap());
        assert_eq!(data.texts()[&one].as_ref(), "{}");
        data.follow(&[two.clone()].into());
        assert!(!data.note(&one, Ok("late".into())));
        tasks.shutdown().await;
        let tasks = Tasks::new();
        let data = Data::new(Sessions::default(), &file, &tasks);
        data.follow(&[one.clone(), two.clone()].into());
        assert_eq!(data.texts(), BTreeMap::from([(one, "{}".into()), (two, "".into())]));
        tasks.shutdown().await;
        std::fs::write(&file, "{\"format\": 9, \"nodes\": []}").unwrap();
        assert!(recalled(&file).unwrap_err().contains("format 9"));
    }

    #[test]
    fn a_node_is_that_of_the_registrations_unless_another_is_said() {
        let place = ZooKeeper::new(
            vec!["zk1:2181".to_owned(), "zk2:2181".to_owned()],
            "/nerve/web".to_owned(),
            Default::default(),
            None,
        );
        let place = place.unwrap();
        let shown =
            |path: Option<&str>| Znode::beside(&place, path.map(str::to_owned)).map(|node| node.to_string());
        assert_eq!(shown(None).unwrap(), "zookeeper://zk1:2181,zk2:2181/nerve/web");
        assert_eq!(shown(Some("/conf/web")).unwrap(), "zookeeper://zk1:2181,zk2:2181/conf/web");
        assert!(shown(Some("conf")).is_err());
    }
}
