//! The socket in the state directory at which the next agent knocks.
//!
//! One path a state directory. A socket is made beside it, given its mode, and renamed over it: so the path always leads to an
//! agent that runs, or to one that was killed, and never to one half-made. Who may connect: the same user and root, by the mode
//! of the file and by what the kernel says of each that does.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

use super::wire::Wire;

/// The socket's name in the state directory.
const FILE: &str = "handover.sock";

/// How long whoever knocks may take to say something.
const SPEAK_WITHIN: Duration = Duration::from_secs(2);

/// Where the next agent connects.
#[derive(Debug)]
pub(in crate::agent) struct Door {
    listener: UnixListener,
    path: PathBuf,
    beside: PathBuf,
    /// Device and number of the socket's file: the path may be another's by the time that this one ends.
    identity: (u64, u64),
    /// The next agent puts its own in the place of the path, maybe at this very moment.
    is_followed: bool,
}

impl Door {
    /// Makes the socket, where nobody looks for it yet.
    ///
    /// # Errors
    /// With what was tried: the directory cannot be written, or its path is too long for a socket's.
    pub(in crate::agent) fn make(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(FILE);
        let beside = state_dir.join(format!("{FILE}.{}", std::process::id()));
        let made = || {
            fs::create_dir_all(state_dir)?;
            // Left by an agent of this process id that was killed.
            let _ = fs::remove_file(&beside);
            let listener = UnixListener::bind(&beside)?;
            fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
            let file = fs::symlink_metadata(&beside)?;
            Ok((listener, (file.dev(), file.ino())))
        };
        let (listener, identity) = made().map_err(|error: io::Error| {
            let what = format!("the socket {} cannot be made: {error}", path.display());
            io::Error::new(error.kind(), what)
        })?;
        Ok(Self { listener, path, beside, identity, is_followed: false })
    }

    /// From now on this is whom the path leads to.
    pub(in crate::agent) fn open(&self) -> io::Result<()> {
        fs::rename(&self.beside, &self.path)
    }

    /// Another agent has taken over: the path is its own to replace, so that nobody removes what it puts there.
    pub(in crate::agent) fn leave_to_the_next(mut self) {
        self.is_followed = true;
    }

    /// The next that knocks, unless it only wanted to know whether anybody is there. Cancel-safe: whoever is forgotten is hung
    /// up on, and nothing was said yet.
    pub(in crate::agent) async fn knock(&self) -> io::Result<Option<Wire>> {
        let (stream, _) = self.listener.accept().await?;
        let wire = Wire::new(stream);
        Ok(wire.speaks(SPEAK_WITHIN).await.then_some(wire))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let path = (!self.is_followed).then_some(&self.path);
        for path in path.into_iter().chain([&self.beside]) {
            if fs::symlink_metadata(path).is_ok_and(|file| (file.dev(), file.ino()) == self.identity) {
                // One that stays is told from one that lives by connecting.
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// A connection to the agent that runs with this state directory; `None` where none does.
///
/// # Errors
/// There may be one, and it cannot be reached.
pub(super) async fn knock_at(state_dir: &Path) -> io::Result<Option<Wire>> {
    let path = state_dir.join(FILE);
    match UnixStream::connect(&path).await {
        Ok(stream) => Ok(Some(Wire::new(stream))),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        // Longer than a socket's path may be: nobody can listen there either.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Message;
    use super::*;

    #[tokio::test]
    async fn the_path_leads_to_the_newest_and_outlives_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        assert!(knock_at(&state).await.unwrap().is_none());
        let first = Door::make(&state).unwrap();
        assert!(knock_at(&state).await.unwrap().is_none(), "not open yet");
        first.open().unwrap();
        let path = state.join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let second = Door::make(&state).unwrap();
        second.open().unwrap();
        drop(first);
        let speaks = async {
            let wire = knock_at(&state).await.unwrap().unwrap();
            wire.send(&Message::Prepare, &[], Duration::from_secs(5)).await.unwrap();
            wire
        };
        let (_wire, heard) = tokio::join!(speaks, second.knock());
        assert!(heard.unwrap().is_some());
        let (_, heard) = tokio::join!(async { drop(knock_at(&state).await) }, second.knock());
        assert!(heard.unwrap().is_none(), "it only wanted to know");
        let third = Door::make(&state).unwrap();
        second.leave_to_the_next();
        assert!(
            path.exists() && knock_at(&state).await.unwrap().is_none(),
            "it leads to nobody for a moment"
        );
        third.open().unwrap();
        drop(third);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_any_more_is_nobody() {
        let directory = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(directory.path().join(FILE)).unwrap());
        assert!(knock_at(directory.path()).await.unwrap().is_none());
        Door::make(directory.path()).unwrap().open().unwrap();
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("x".repeat(120));
        assert!(Door::make(&deep).unwrap_err().to_string().contains("cannot be made"));
        assert!(knock_at(&deep).await.unwrap().is_none());
    }
}
