//! What is remembered of Docker's networks: Docker names them by an id of its own, and says what they are only once.
//!
//! A file each, below the state directory, read when it is asked for: there are few, and another agent may have written it.

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use nerve::model::NetworkName;
use serde::{Deserialize, Serialize};

/// Below the state directory.
const DIRECTORY: &str = "docker-networks";

/// A network of Docker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DockerNetwork {
    /// Which network it is.
    pub(super) network: NetworkName,
    /// Its containers are to have no default route.
    pub(super) internal: bool,
}

/// The directory.
#[derive(Debug, Clone)]
pub(super) struct Kept(PathBuf);

impl Kept {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self(state_dir.join(DIRECTORY))
    }

    /// Remembers a network.
    pub(super) fn write(&self, id: &str, network: &DockerNetwork) -> io::Result<()> {
        let file = self.file(id)?;
        std::fs::create_dir_all(&self.0)?;
        let beside = file.with_extension("new");
        let mut new = std::fs::File::create(&beside)?;
        new.write_all(&serde_json::to_vec(network)?)?;
        std::fs::rename(&beside, file)
    }

    /// What a network is; `None`: nothing is known of it.
    pub(super) fn read(&self, id: &str) -> io::Result<Option<DockerNetwork>> {
        match std::fs::read(self.file(id)?) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Forgets one; one that is not known is no error.
    pub(super) fn remove(&self, id: &str) -> io::Result<()> {
        match std::fs::remove_file(self.file(id)?) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Docker's ids are 64 hexadecimal digits; what could be another path is none.
    fn file(&self, id: &str) -> io::Result<PathBuf> {
        if (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Ok(self.0.join(format!("{id}.json")));
        }
        let shown: String = id.chars().take(150).collect();
        Err(io::Error::new(ErrorKind::InvalidInput, format!("{shown:?} is no id of a network")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_known_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let kept = Kept::new(directory.path());
        let network = DockerNetwork { network: NetworkName::new("blue").unwrap(), internal: true };
        assert_eq!(kept.read("ab12").unwrap(), None);
        kept.write("ab12", &network).unwrap();
        assert_eq!(Kept::new(directory.path()).read("ab12").unwrap(), Some(network));
        kept.remove("ab12").unwrap();
        kept.remove("ab12").unwrap();
        assert_eq!(kept.read("ab12").unwrap(), None);
    }

    #[test]
    fn an_id_is_never_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let kept = Kept::new(directory.path());
        for id in ["", "../x", "a/b", ".", &"a".repeat(129)] {
            assert!(kept.read(id).is_err() && kept.remove(id).is_err(), "{id}");
        }
    }
}
