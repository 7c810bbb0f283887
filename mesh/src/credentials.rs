//! Whose process is at the other end of a unix socket, as it was when that end connected: the kernel says so, and nobody can say
//! otherwise. What the process may do is for each room to say.

use std::io;

use tokio::net::UnixStream;

/// A process that has connected, or that was connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its user, as this process's namespace numbers users.
    pub(crate) uid: u32,
    /// Its number; `None` where it is not seen from here, as that of a container with numbers of its own.
    pub(crate) pid: Option<u32>,
}

impl Peer {
    /// Of a connection.
    ///
    /// # Errors
    /// The kernel does not say.
    pub(crate) fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        Ok(Self { uid: credentials.uid(), pid })
    }

    /// Is it a process of this user, or of root? It could do by itself what it has this process do.
    pub(crate) fn is_own(self) -> bool {
        is_own(self.uid, own_user())
    }
}

/// Whose process this is.
pub(crate) fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn is_own(uid: u32, own: u32) -> bool {
    uid == own || uid == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_says_whose_process_it_is() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer, Peer { uid: own_user(), pid: Some(std::process::id()) });
        assert!(peer.is_own());
    }

    #[test]
    fn only_the_same_user_and_root_are_our_own() {
        assert!(is_own(1000, 1000) && is_own(0, 1000) && is_own(0, 0));
        assert!(!is_own(1000, 0) && !is_own(1000, 1001));
    }
}
