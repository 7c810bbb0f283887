//! The file by which Docker finds the driver: a unix socket that is put in its place whole, in one step, so that whoever looks finds
//! one that is listened on. An agent that takes over replaces the file of the one before; nothing else that lives is replaced.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nerve::model::UnixPath;

/// Whoever may connect may attach containers: root alone, as Docker is.
const MODE: u32 = 0o600;

/// Why Docker is not served.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("another program listens on {0}: stop it, or set another [docker] plugin")]
    InUse(UnixPath),
    #[error("{0} is no socket: remove it, or set another [docker] plugin")]
    NoSocket(UnixPath),
    #[error("Docker finds no driver for networks: cannot listen on {path}: {source}")]
    Failed { path: UnixPath, source: io::Error },
}

/// The file, as it was made here.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Listens on the path. `replaces`: whoever else does is to be replaced.
pub(super) fn listen(path: &UnixPath, replaces: bool) -> Result<(UnixListener, SocketFile), FileError> {
    let failed = |source| FileError::Failed { path: path.clone(), source };
    match std::fs::symlink_metadata(path.as_path()) {
        Ok(there) if !there.file_type().is_socket() => return Err(FileError::NoSocket(path.clone())),
        Ok(_) if !replaces && UnixStream::connect(path.as_path()).is_ok() => {
            return Err(FileError::InUse(path.clone()));
        }
        _ => {}
    }
    if let Some(directory) = path.as_path().parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    // Docker looks for names that end in `.sock` and `.spec`.
    let beside = PathBuf::from(format!("{path}.new"));
    put(&beside, path.as_path()).map_err(failed)
}

fn put(beside: &Path, path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    match std::fs::remove_file(beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(beside)?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(beside, std::fs::Permissions::from_mode(MODE))?;
    let made = std::fs::symlink_metadata(beside)?;
    std::fs::rename(beside, path)?;
    Ok((listener, SocketFile { path: path.to_owned(), device: made.dev(), inode: made.ino() }))
}

impl SocketFile {
    /// Is it where Docker looks for it?
    pub(super) fn is_there(&self) -> bool {
        std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode))
    }

    /// Takes it away, unless it is another agent's by now.
    pub(super) fn remove(&self) {
        if self.is_there() {
            // What stays is replaced by the next agent.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_agent_left_is_replaced_and_what_lives_only_by_its_successor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plugins/plexus.sock");
        let path = UnixPath::new(path.to_str().unwrap()).unwrap();
        let (listener, first) = listen(&path, false).unwrap();
        assert!(first.is_there());
        assert_eq!(std::fs::metadata(path.as_path()).unwrap().mode() & 0o777, MODE);
        assert!(listen(&path, false).unwrap_err().to_string().contains("another program listens"));
        let (next, second) = listen(&path, true).unwrap();
        assert!(second.is_there() && !first.is_there());
        first.remove();
        assert!(second.is_there());
        drop((listener, next));
        let (_listener, third) = listen(&path, false).unwrap();
        third.remove();
        assert!(!third.is_there());
        std::fs::write(path.as_path(), "").unwrap();
        assert!(listen(&path, true).unwrap_err().to_string().contains("is no socket"));
    }
}
