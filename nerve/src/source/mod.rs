//! Where the definitions of this node's instances come from, and what holds when several say different things.
//!
//! A [`Source`] yields whole [`Snapshot`]s, the newest of which counts: nobody has to know what changed. [`merge`] joins the
//! snapshots of all sources. The first source that defines an instance owns it; a second definition is refused and
//! stays visible as a problem that names both places.
//!
//! What a source never does: check, or write to the store.

mod announcement;
mod api;
mod attached;
mod definition;
mod directory;
mod docker;
mod file;
mod kept;
mod labels;
mod metrics;
mod smartstack;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;

use crate::document::{Reported, Section};
use crate::model::ServiceName;

pub use announcement::{Announcement, Limit, NodeMode, Registry};
pub use api::{ApiError, ApiSource, Drains, Trust};
pub use attached::{Attached, AttachedSource};
pub use definition::{Definition, Draft, DraftError, InstanceKey, Local};
pub use docker::{DockerAddress, DockerConfig, DockerSource};
pub use file::FileSource;
pub use labels::LabelError;
pub use metrics::Metrics;
pub use smartstack::{SmartstackConfig, SmartstackSource};

/// Where a definition stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the agent's configuration, at this line.
    Config {
        /// The file.
        file: Arc<str>,
        /// The line, from 1.
        line: usize,
    },
    /// In a file of services.d, at this line.
    File {
        /// The file.
        file: Arc<str>,
        /// The line, from 1.
        line: usize,
    },
    /// In a configuration of SmartStack's Nerve, at this line.
    Nerve {
        /// The file.
        file: Arc<str>,
        /// The line, from 1.
        line: usize,
    },
    /// A container of this node's Docker.
    Docker {
        /// Its name.
        container: Arc<str>,
    },
    /// Something that is attached to an overlay network here.
    Attachment {
        /// By what it is known.
        id: Arc<str>,
    },
    /// It was registered at run time.
    Api,
}

impl Origin {
    /// The word for the kind of source: `config`, `file`, `nerve`, `docker`, `attachment`, `api`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Config { .. } => "config",
            Self::File { .. } => "file",
            Self::Nerve { .. } => "nerve",
            Self::Docker { .. } => "docker",
            Self::Attachment { .. } => "attachment",
            Self::Api => "api",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config { file, line } | Self::File { file, line } | Self::Nerve { file, line } => {
                write!(f, "{file}:{line}")
            }
            Self::Docker { container } => write!(f, "Docker's container {container}"),
            Self::Attachment { id } => write!(f, "the attachment {id}"),
            Self::Api => f.write_str("the run-time registrations"),
        }
    }
}

/// A definition and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// What is defined.
    pub definition: Definition,
    /// Where.
    pub origin: Origin,
}

/// Something wrong with a source that people should see until it is mended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceProblem {
    /// A file, or `the run-time registrations`.
    pub place: String,
    /// What is wrong, and what is in force instead.
    pub message: String,
}

/// All that a source says at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// In the order of precedence within the source.
    pub definitions: Vec<Arc<Located>>,
    /// What has addresses of its own, whether it serves anything or not.
    pub clients: Vec<Client>,
    /// What is wrong.
    pub problems: Vec<SourceProblem>,
}

/// Something that runs here and comes from addresses that nobody else has: a container, however it is, and whatever it listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// What it is an instance of, or would be if it served.
    pub services: BTreeSet<ServiceName>,
    /// Where its connections come from.
    pub addresses: BTreeSet<IpAddr>,
    /// Its data, as its instances have it.
    pub labels: BTreeMap<String, String>,
}

/// Something that defines instances.
pub trait Source: fmt::Debug + Send + Sync {
    /// Its newest snapshot, and word of newer ones.
    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>>;
}

/// The `[[service]]` tables of the agent's configuration. Clones share it.
#[derive(Debug, Clone)]
pub struct ConfigSource(Arc<watch::Sender<Arc<Snapshot>>>);

impl ConfigSource {
    /// A source of these definitions, as [`read_config`] returns them.
    #[must_use]
    pub fn new(definitions: Vec<Located>) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(Snapshot::of(definitions)))))
    }

    /// Puts the definitions of a reloaded configuration in force.
    pub fn replace(&self, definitions: Vec<Located>) {
        self.0.send_replace(Arc::new(Snapshot::of(definitions)));
    }
}

impl Source for ConfigSource {
    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.subscribe()
    }
}

impl Snapshot {
    fn of(definitions: Vec<Located>) -> Self {
        Self { definitions: definitions.into_iter().map(Arc::new).collect(), ..Self::default() }
    }
}

/// Reads the `[[service]]` tables of the agent's configuration from its root.
///
/// # Errors
/// What is wrong was reported.
pub fn read_config(root: &mut Section<'_>, local: &Local) -> Result<Vec<Located>, Reported> {
    read_services(root, local, |file, line| Origin::Config { file, line })
}

fn read_services(
    root: &mut Section<'_>,
    local: &Local,
    origin: impl Fn(Arc<str>, usize) -> Origin,
) -> Result<Vec<Located>, Reported> {
    let file: Arc<str> = root.file().into();
    let read = root.list("service", |section| {
        let definition = Definition::read(section, local)?;
        let line = section.position().map_or(0, |position| position.line);
        Ok(Located { definition, origin: origin(Arc::clone(&file), line) })
    });
    read.into_iter().collect()
}

/// What holds over several sources.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Merged {
    /// Each instance once.
    pub definitions: BTreeMap<InstanceKey, Arc<Located>>,
    /// What is wrong with the sources, as they have said themselves.
    pub problems: Vec<SourceProblem>,
    /// Second definitions of an instance, which are not in force.
    pub refused: Vec<SourceProblem>,
}

/// Joins snapshots; earlier ones take precedence.
#[must_use]
pub fn merge(snapshots: &[Arc<Snapshot>]) -> Merged {
    let mut merged = Merged::default();
    for snapshot in snapshots {
        merged.problems.extend(snapshot.problems.iter().cloned());
        for located in &snapshot.definitions {
            match merged.definitions.entry(located.definition.key.clone()) {
                Entry::Vacant(vacant) => {
                    vacant.insert(Arc::clone(located));
                }
                Entry::Occupied(first) => {
                    merged.refused.push(SourceProblem {
                        place: located.origin.to_string(),
                        message: format!(
                            "instance {} is already defined in {}, which stays in force; give one of them another id",
                            first.key(),
                            first.get().origin
                        ),
                    });
                }
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn local() -> Local {
        Local { node: "a".parse().unwrap(), address: "192.0.2.1".parse().unwrap() }
    }

    #[test]
    fn the_first_definition_of_an_instance_wins_and_the_second_names_both_places() {
        let text =
            "[[service]]\nname = \"web\"\nport = 1\n[[service]]\nname = \"web\"\nport = 1\nweight = 7\n";
        let document = Document::parse("plexus.toml", text).unwrap();
        let config = ConfigSource::new(document.decode(|root| read_config(root, &local())).unwrap());
        let merged = merge(&[Arc::clone(&config.snapshots().borrow())]);
        assert_eq!((merged.definitions.len(), merged.refused.len()), (1, 1));
        let problem = &merged.refused[0];
        assert_eq!(problem.place, "plexus.toml:4");
        assert!(
            problem.message.starts_with("instance web/web-a-1 is already defined in plexus.toml:1"),
            "{problem:?}"
        );
        assert!(merged.definitions.values().all(|located| located.definition.weight.0.get() == 100));
        config.replace(Vec::new());
        assert!(merge(&[Arc::clone(&config.snapshots().borrow())]).definitions.is_empty());
    }
}
