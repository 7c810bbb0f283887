//! The file of a unix socket that is listened on: made, given to whoever may use it, watched over, and taken away.
//!
//! A file that a dead process left is replaced; one at which somebody listens is never touched, nor one that is no socket. What
//! was made here is known by its inode, so that another's file at the same path is not taken away. Names of users are looked
//! up when the socket is opened. For every room that listens on one; who is behind the socket is theirs to say.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::str::FromStr;

use nerve::model::UnixPath;
use nix::unistd::{Group, User};
use rustix::fs::{AtFlags, CWD, FileType, Gid, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that wait to be accepted; the kernel caps this at `net.core.somaxconn`, and lets further clients wait or try again.
const BACKLOG: i32 = 4096;

/// Who may connect to a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// The file's permissions; connecting needs that of writing.
    pub mode: Mode,
    /// Its owner; the agent's user unless said.
    pub owner: Option<Account>,
    /// Its group; the agent's unless said.
    pub group: Option<Account>,
}

/// Permissions, from 0 to 0777; 0660 unless said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(u32);

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// By number.
    Number(u32),
    /// By name.
    Name(String),
}

/// Why a unix socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on unix:{path}: {problem}")]
pub struct SocketFileError {
    path: UnixPath,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("another program listens there; stop it or take another path")]
    InUse,
    #[error("there is a file that is no socket; remove it or take another path")]
    NoSocket,
    #[error("its directory does not exist; make it (systemd: RuntimeDirectory=)")]
    NoDirectory,
    #[error("there is no {kind} called {name:?} on this host; take another or a number")]
    NoAccount { kind: &'static str, name: String },
    #[error("{what}: {source}{}", hint(source))]
    Failed { what: &'static str, source: io::Error },
}

/// A file of ours.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: UnixPath,
    device: u64,
    inode: u64,
    /// The service manager made it and goes on with it: it stays.
    is_lent: bool,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; the agent's user needs to write to the directory, and to be root or in the group to give the socket away"
        }
        _ => "",
    }
}

fn failed(what: &'static str) -> impl FnOnce(Errno) -> Problem {
    move |error| Problem::Failed { what, source: error.into() }
}

impl SocketFileError {
    fn at(path: &UnixPath) -> impl FnOnce(Problem) -> Self {
        let path = path.clone();
        move |problem| Self { path, problem }
    }

    /// Does somebody else listen there?
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        matches!(self.problem, Problem::InUse)
    }
}

impl SocketFile {
    /// Listens on the path, with a file that only those with `access` can connect to, from its first moment on.
    pub(crate) fn listen(path: &UnixPath, access: &Access) -> Result<(OwnedFd, Self), SocketFileError> {
        let listen = || {
            make_room(path)?;
            let socket = bind(path).map_err(|error| match error {
                Errno::ADDRINUSE => Problem::InUse,
                Errno::NOENT => Problem::NoDirectory,
                error => failed("making the socket")(error),
            })?;
            let file = Self::find(path, false).map_err(failed("looking at the socket"))?;
            // Nobody can connect before it listens.
            let opened = file.grant(access);
            let opened =
                opened.and_then(|()| rustix::net::listen(&socket, BACKLOG).map_err(failed("listening")));
            match opened {
                Ok(()) => Ok((socket, file)),
                Err(problem) => {
                    file.remove();
                    Err(problem)
                }
            }
        };
        listen().map_err(SocketFileError::at(path))
    }

    /// The file of a socket that listens already; `None` where it is gone, so that nobody can connect to it.
    pub(crate) fn adopt(path: &UnixPath, access: &Access, is_lent: bool) -> Option<Self> {
        let file = Self::find(path, is_lent).ok()?;
        if !is_lent && let Err(problem) = file.grant(access) {
            // It goes on as it was: that is better than no socket.
            let error = SocketFileError::at(path)(problem);
            tracing::warn!(%error, "a unix socket that was taken over keeps its owner and mode");
        }
        Some(file)
    }

    fn find(path: &UnixPath, is_lent: bool) -> Result<Self, Errno> {
        let stat = rustix::fs::statat(CWD, path.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Self { path: path.clone(), device: stat.st_dev, inode: stat.st_ino, is_lent })
    }

    /// Is it where clients look for it?
    pub(crate) fn is_there(&self) -> bool {
        Self::find(&self.path, self.is_lent)
            .is_ok_and(|found| (found.device, found.inode) == (self.device, self.inode))
    }

    /// Takes it away, unless it is another's by now or was never ours.
    pub(crate) fn remove(&self) {
        if !self.is_lent && self.is_there() {
            // What cannot be removed is replaced by whoever listens there next.
            let _ = fs::remove_file(self.path.as_path());
        }
    }

    fn grant(&self, access: &Access) -> Result<(), Problem> {
        // By descriptor: who may write to the directory must not lead us to another file meanwhile.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.path.as_str(), flags, rustix::fs::Mode::empty());
        let file = file.map_err(failed("opening the socket's file"))?;
        let stat = rustix::fs::fstat(&file).map_err(failed("looking at the socket"))?;
        if (stat.st_dev, stat.st_ino) != (self.device, self.inode) {
            return Err(Problem::InUse);
        }
        let (owner, group) = (owner(access)?, group(access)?);
        if owner.is_some() || group.is_some() {
            rustix::fs::chownat(&file, "", owner, group, AtFlags::EMPTY_PATH)
                .map_err(failed("giving it to its owner"))?;
        }
        let mode = rustix::fs::Mode::from_raw_mode(access.mode.0);
        rustix::fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), mode)
            .map_err(failed("setting its mode"))
    }
}

/// A socket with the path as its name, at which nobody can connect before it listens.
fn bind(path: &UnixPath) -> Result<OwnedFd, Errno> {
    let socket = socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path.as_str())?)?;
    Ok(socket)
}

fn connect(path: &UnixPath) -> Result<(), Errno> {
    rustix::net::connect(socket()?, &SocketAddrUnix::new(path.as_str())?)
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Removes what a dead process left.
fn make_room(path: &UnixPath) -> Result<(), Problem> {
    let stat = match rustix::fs::statat(CWD, path.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed("looking what is there")(error)),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(Problem::NoSocket);
    }
    match connect(path) {
        Err(Errno::CONNREFUSED) => {}
        // Somebody accepts, is slow to, or is there with a socket of another type.
        Ok(_) | Err(Errno::AGAIN | Errno::PROTOTYPE) => return Err(Problem::InUse),
        Err(error) => return Err(failed("looking who listens there")(error)),
    }
    tracing::info!(%path, "a socket that nobody listens on is replaced");
    match rustix::fs::unlink(path.as_str()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed("removing the socket that nobody listens on")(error)),
    }
}

fn owner(access: &Access) -> Result<Option<Uid>, Problem> {
    let number = |account: &Account| match account {
        Account::Number(number) => Ok(*number),
        Account::Name(name) => match User::from_name(name) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            _ => Err(Problem::NoAccount { kind: "user", name: name.clone() }),
        },
    };
    Ok(access.owner.as_ref().map(number).transpose()?.map(Uid::from_raw))
}

fn group(access: &Access) -> Result<Option<Gid>, Problem> {
    let number = |account: &Account| match account {
        Account::Number(number) => Ok(*number),
        Account::Name(name) => match Group::from_name(name) {
            Ok(Some(group)) => Ok(group.gid.as_raw()),
            _ => Err(Problem::NoAccount { kind: "group", name: name.clone() }),
        },
    };
    Ok(access.group.as_ref().map(number).transpose()?.map(Gid::from_raw))
}

impl Mode {
    /// The owner and root alone.
    pub const PRIVATE: Self = Self(0o600);
}

impl Default for Mode {
    fn default() -> Self {
        Self(0o660)
    }
}

impl FromStr for Mode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777 && !text.starts_with('+'));
        mode.map(Self).ok_or("it is no mode from 0 to 0777, in octal digits")
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl FromStr for Account {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        // As chown(1) reads it.
        if let Ok(number) = text.parse() {
            return Ok(Self::Number(number));
        }
        let is_name = !text.is_empty() && !text.chars().any(|c| c.is_control() || matches!(c, ':' | '/'));
        is_name.then(|| Self::Name(text.to_owned())).ok_or("it is no name of a user or group, and no number")
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.pad(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    fn at(directory: &tempfile::TempDir, name: &str) -> UnixPath {
        UnixPath::new(directory.path().join(name).to_str().unwrap()).unwrap()
    }

    #[test]
    fn a_socket_has_its_mode_and_is_taken_away_with_its_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = at(&directory, "web.sock");
        for mode in ["0660", "600", "0777"] {
            let access = Access { mode: mode.parse().unwrap(), ..Access::default() };
            let (_socket, file) = SocketFile::listen(&path, &access).unwrap();
            let metadata = fs::metadata(path.as_path()).unwrap();
            assert!(metadata.file_type().is_socket());
            assert_eq!(Mode(metadata.permissions().mode() & 0o777), access.mode);
            assert!(UnixStream::connect(path.as_path()).is_ok() && file.is_there());
            file.remove();
            assert!(!path.as_path().exists() && !file.is_there());
        }
    }

    #[test]
    fn what_a_dead_process_left_is_replaced_and_whoever_lives_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = at(&directory, "web.sock");
        let theirs = UnixListener::bind(path.as_path()).unwrap();
        let error = SocketFile::listen(&path, &Access::default()).unwrap_err();
        assert!(error.is_in_use() && error.to_string().contains("another program listens there"), "{error}");
        drop(theirs);
        let (_socket, file) = SocketFile::listen(&path, &Access::default()).unwrap();
        // Another's file at our path is not ours to take away.
        fs::remove_file(path.as_path()).unwrap();
        let _theirs = UnixListener::bind(path.as_path()).unwrap();
        file.remove();
        assert!(UnixStream::connect(path.as_path()).is_ok());
    }

    #[test]
    fn what_is_in_the_way_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let said = |name: &str, access: &Access| {
            SocketFile::listen(&at(&directory, name), access).unwrap_err().to_string()
        };
        fs::write(directory.path().join("file"), "precious").unwrap();
        let _datagrams = UnixDatagram::bind(directory.path().join("datagrams")).unwrap();
        let plain = Access::default();
        assert!(said("file", &plain).ends_with("no socket; remove it or take another path"));
        assert!(said("datagrams", &plain).contains("another program listens there"));
        assert!(said("none/web.sock", &plain).contains("its directory does not exist"));
        let nobody = Access { group: Some("no-such-group".parse().unwrap()), ..plain };
        assert!(said("web.sock", &nobody).contains("there is no group called \"no-such-group\""));
        assert!(!directory.path().join("web.sock").exists(), "nothing is left of a failure");
    }

    #[test]
    fn a_file_that_is_lent_stays_and_one_that_is_gone_is_not_adopted() {
        let directory = tempfile::tempdir().unwrap();
        let path = at(&directory, "web.sock");
        assert!(SocketFile::adopt(&path, &Access::default(), true).is_none());
        let _theirs = UnixListener::bind(path.as_path()).unwrap();
        SocketFile::adopt(&path, &Access::default(), true).unwrap().remove();
        assert!(path.as_path().exists());
        SocketFile::adopt(&path, &Access::default(), false).unwrap().remove();
        assert!(!path.as_path().exists());
    }

    #[test]
    fn modes_and_accounts_are_read_as_chmod_and_chown_read_them() {
        assert_eq!("0660".parse(), Ok(Mode::default()));
        assert_eq!("7".parse::<Mode>().unwrap().to_string(), "0007");
        for wrong in ["", "1777", "8", "-1", "+7", "rw"] {
            assert!(wrong.parse::<Mode>().is_err(), "{wrong}");
        }
        assert_eq!("33".parse(), Ok(Account::Number(33)));
        assert_eq!("www-data".parse(), Ok(Account::Name("www-data".to_owned())));
        for wrong in ["", "a:b", "a/b", "a\n"] {
            assert!(wrong.parse::<Account>().is_err(), "{wrong:?}");
        }
    }
}
