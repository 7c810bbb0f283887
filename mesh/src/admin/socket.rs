//! The admin interface on a unix socket: for who may open its file, and for nobody by way of a network or a web page.
//!
//! It is there from the start and comes back by itself: what stands in its way is a problem that the agent shows, and is tried again.
//! The next agent of this node gets the very same socket, and then its file is that one's. Never replaces a socket that somebody
//! listens on.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use nerve::model::{UnixPath, UnixPathError};
use tokio::net::UnixListener;
use tokio::time::MissedTickBehavior;

use super::access::Origin;
use super::server::{ACCEPT_PAUSE, Server};
use crate::credentials::Peer;
use crate::drain::DrainWatcher;
use crate::inherited::Inherited;
use crate::socket_file::{Access, SocketFile, SocketFileError};

/// How often it is looked whether the file is there, and how soon what failed is tried again.
const TICK: Duration = Duration::from_secs(5);

/// Which socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// Its file.
    pub path: PathBuf,
    /// Who may open that.
    pub access: Access,
}

/// How it stands, for who hands it over and who tells of it. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct SocketHandle(Arc<Mutex<Standing>>);

#[derive(Debug, Default)]
struct Standing {
    /// Weak: who only looks must not keep alive what clients would wait at in vain.
    open: Weak<Open>,
    problem: Option<String>,
    /// Another agent goes on with it.
    is_followed: bool,
}

/// The socket, whether it listens at the moment or not.
#[derive(Debug)]
pub(super) struct Socket {
    config: SocketConfig,
    handle: SocketHandle,
    open: Option<Arc<Open>>,
}

#[derive(Debug)]
struct Open {
    listener: UnixListener,
    file: SocketFile,
}

/// Why nobody is listened to.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}, or set [admin] socket")]
    Path(#[from] UnixPathError),
    #[error("the directory {} cannot be made: {source}", .directory.display())]
    Directory { directory: PathBuf, source: io::Error },
    #[error("{0}")]
    File(#[from] SocketFileError),
    #[error("it cannot be waited at: {0}")]
    Wait(#[from] io::Error),
}

impl SocketHandle {
    fn lock(&self) -> MutexGuard<'_, Standing> {
        // Whole between any two calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it does not listen, while it does not.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// A copy for another process to accept from as well; none where the file is not this socket's any more.
    #[must_use]
    pub fn socket(&self) -> Option<OwnedFd> {
        let open = self.lock().open.upgrade().filter(|open| open.file.is_there())?;
        open.listener.as_fd().try_clone_to_owned().ok()
    }

    /// Another agent has it from now on: its file stays.
    pub fn leave_to_the_next(&self) {
        self.lock().is_followed = true;
    }

    fn note(&self, opened: &Result<Arc<Open>, Failure>) {
        let mut standing = self.lock();
        standing.open = opened.as_ref().map(Arc::downgrade).unwrap_or_default();
        let problem = opened.as_ref().err().map(|error| format!("the interface has no unix socket: {error}"));
        if let Some(problem) = problem.as_ref().filter(|problem| Some(*problem) != standing.problem.as_ref())
        {
            tracing::error!("{problem}");
        }
        standing.problem = problem;
    }
}

impl Socket {
    /// Listens, with the socket that is `inherited` where there is one. Nobody is accepted yet.
    pub(super) fn new(config: SocketConfig, inherited: &Inherited) -> Self {
        let mut socket = Self { config, handle: SocketHandle::default(), open: None };
        socket.open(inherited);
        socket
    }

    pub(super) fn handle(&self) -> SocketHandle {
        self.handle.clone()
    }

    /// Serves until the drain, and takes the file away unless another agent goes on with it.
    pub(super) async fn run(mut self, server: &Server, mut drain: DrainWatcher) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is at once, and everything has just been tried.
        tick.tick().await;
        loop {
            let accepted = tokio::select! {
                () = drain.signaled() => break,
                _ = tick.tick() => {
                    self.look_after();
                    continue;
                }
                accepted = accept(self.open.as_deref()) => accepted,
            };
            match accepted.and_then(|stream| Ok((Peer::of(&stream)?, stream))) {
                Ok((peer, stream)) => server.serve(stream, Origin::Socket(peer), drain.clone()),
                Err(error) => {
                    server.note_not_accepted(&error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        if let Some(open) = self.open.take()
            && !self.handle.lock().is_followed
        {
            open.file.remove();
        }
    }

    fn look_after(&mut self) {
        if self.open.as_ref().is_some_and(|open| open.file.is_there()) {
            return;
        }
        if self.open.take().is_some() {
            tracing::warn!(
                socket = %self.config.path.display(),
                "somebody removed the socket of the admin interface; it is made again"
            );
        }
        self.open(&Inherited::default());
    }

    fn open(&mut self, inherited: &Inherited) {
        let opened = open(&self.config, inherited).map(Arc::new);
        self.handle.note(&opened);
        self.open = opened.ok();
    }
}

/// The next connection; none ever where nobody listens. Cancel-safe.
async fn accept(open: Option<&Open>) -> io::Result<tokio::net::UnixStream> {
    match open {
        Some(open) => open.listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

fn open(config: &SocketConfig, inherited: &Inherited) -> Result<Open, Failure> {
    let path = unix_path(&config.path)?;
    let (given, is_lent) = inherited.take_unix(&path);
    let given = given.into_iter().next();
    let adopted = given.and_then(|socket| Some((socket, SocketFile::adopt(&path, &config.access, is_lent)?)));
    let (socket, file) = match adopted {
        Some(adopted) => adopted,
        None => {
            if let Some(directory) = path.as_path().parent() {
                let failed = |source| Failure::Directory { directory: directory.to_owned(), source };
                std::fs::create_dir_all(directory).map_err(failed)?;
            }
            SocketFile::listen(&path, &config.access)?
        }
    };
    let listener = std::os::unix::net::UnixListener::from(socket);
    let waited_at = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    match waited_at {
        Ok(listener) => Ok(Open { listener, file }),
        Err(error) => {
            file.remove();
            Err(error.into())
        }
    }
}

/// As it is written, or as it is where that is relative or has more than one spelling: the state directory may be written so.
fn unix_path(path: &Path) -> Result<UnixPath, UnixPathError> {
    let text = |path: &Path| match path.to_str() {
        Some(path) => UnixPath::new(path),
        None => Err(UnixPathError { value: path.display().to_string(), rule: "it is not UTF-8" }),
    };
    text(path).or_else(|error| {
        let (Some(directory), Some(file)) = (path.parent(), path.file_name()) else { return Err(error) };
        let absolute = std::fs::canonicalize(directory).or_else(|_| std::path::absolute(directory));
        absolute.map_or(Err(error), |directory| text(&directory.join(file)))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::socket_file::Mode;

    fn at(path: PathBuf) -> SocketConfig {
        SocketConfig { path, access: Access { mode: Mode::PRIVATE, ..Access::default() } }
    }

    #[test]
    fn a_directory_may_be_written_in_any_way_and_leads_to_one_socket() {
        let directory = tempfile::tempdir().unwrap();
        let whole = directory.path().canonicalize().unwrap();
        std::fs::create_dir(whole.join("state")).unwrap();
        let socket = whole.join("state/admin.sock");
        for written in ["state/admin.sock", "state/../state/admin.sock"] {
            assert_eq!(unix_path(&whole.join(written)).unwrap().as_path(), socket);
        }
        let own = std::env::current_dir().unwrap().canonicalize().unwrap();
        assert_eq!(unix_path(Path::new("./admin.sock")).unwrap().as_path(), own.join("admin.sock"));
        let deep = whole.join("x".repeat(107)).join("admin.sock");
        assert!(unix_path(&deep).unwrap_err().to_string().contains("at most 107 bytes"));
    }

    #[tokio::test]
    async fn what_is_in_the_way_is_told_until_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut socket = Socket::new(at(path.clone()), &Inherited::default());
        let handle = socket.handle();
        let told = handle.problem().unwrap();
        assert!(told.contains("another program listens there") && handle.socket().is_none(), "{told}");
        drop(theirs);
        socket.look_after();
        assert!(handle.problem().is_none() && handle.socket().is_some());
        // Also where somebody has taken its file away.
        std::fs::remove_file(&path).unwrap();
        assert!(handle.socket().is_none(), "there is nothing to hand over");
        socket.look_after();
        assert!(UnixStream::connect(&path).is_ok());
        // Nobody is kept waiting by who only looks.
        drop(socket);
        assert!(handle.socket().is_none() && UnixStream::connect(&path).is_err());
    }

    #[tokio::test]
    async fn the_next_agent_has_the_very_same_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/admin.sock");
        let first = Socket::new(at(path.clone()), &Inherited::default());
        let inode = std::fs::metadata(&path).unwrap().ino();
        let inherited = Inherited::default();
        inherited.add(first.handle().socket().unwrap()).unwrap();
        let waiting = UnixStream::connect(&path).unwrap();
        let second = Socket::new(at(path.clone()), &inherited);
        drop(first);
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
        assert!(second.handle().problem().is_none());
        assert!(accept(second.open.as_deref()).await.is_ok(), "who has waited is served");
        drop(waiting);
    }
}
