//! Which place a watcher follows, as it is configured.

use std::path::{Path, PathBuf};

use nerve::document::{Reported, Section};
use serde::Serialize;

use super::file::FilePlace;
use super::fixed::FixedPlace;
use super::options::as_addresses;
use super::place::Place;
use super::server::Server;
use super::zookeeper::{Sessions, ZooKeeper, ZooKeeperPlace};

/// Which place, by its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Servers that stand in the configuration itself.
    Static(#[serde(serialize_with = "as_addresses")] Vec<Server>),
    /// A file that somebody else writes.
    File(PathBuf),
    /// A path of ZooKeeper.
    #[serde(untagged)]
    ZooKeeper(ZooKeeper),
}

/// What places of one kind share.
#[derive(Debug, Clone, Default)]
pub(super) struct Means {
    zookeeper: Sessions,
}

impl Kind {
    /// Reads the key that names the kind. Paths begin at `base`.
    pub(super) fn read(section: &mut Section<'_>, base: &Path) -> Result<Self, Reported> {
        let servers = section.given::<Vec<Server>>("static");
        let file = section.given::<PathBuf>("file");
        let zookeeper = match section.given::<Vec<String>>("zookeeper") {
            Ok(Some(hosts)) => ZooKeeper::read(section, hosts).map(Some),
            Ok(None) => Ok(None),
            Err(reported) => Err(reported),
        };
        let file = file?.map(|file| Self::File(base.join(file)));
        let places = [servers?.map(Self::Static), file, zookeeper?.map(Self::ZooKeeper)];
        let mut places = places.into_iter().flatten();
        match (places.next(), places.next()) {
            (Some(place), None) => Ok(place),
            (None, _) => Err(section.refuse("it names no place", "one of `static`, `file` and `zookeeper`")),
            (Some(_), Some(_)) => Err(section.refuse("it names two places", "a watcher for each")),
        }
    }

    /// The word for it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Static(_) => "static",
            Self::File(_) => "file",
            Self::ZooKeeper(_) => "zookeeper",
        }
    }

    /// Where it is, in words.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Static(_) => "the configuration".to_owned(),
            Self::File(file) => file.display().to_string(),
            Self::ZooKeeper(zookeeper) => zookeeper.place(),
        }
    }

    pub(super) fn open(&self, means: &Means) -> Box<dyn Place> {
        match self {
            Self::Static(servers) => Box::new(FixedPlace(servers.clone())),
            Self::File(file) => Box::new(FilePlace(file.clone())),
            Self::ZooKeeper(config) => {
                Box::new(ZooKeeperPlace { config: config.clone(), sessions: means.zookeeper.clone() })
            }
        }
    }
}
