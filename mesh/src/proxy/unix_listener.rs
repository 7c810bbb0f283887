//! Opening listeners on unix sockets.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nerve::model::{Address, UnixPath};

use super::plane::{DataPlane, Listener};
use crate::balance::Balancer;
use crate::socket_file::{Access, SocketFile, SocketFileError};

/// A unix socket to listen on, and for whom.
#[derive(Debug, Clone)]
pub struct UnixListenerSpec {
    /// Where.
    pub path: UnixPath,
    /// Who may connect.
    pub access: Access,
    /// Who gets the connections.
    pub balancer: Arc<Balancer>,
    /// Sockets that listen there already. They are used as long as their file is there.
    pub inherited: Vec<Arc<OwnedFd>>,
    /// They are the service manager's, whose file stays when the listener closes.
    pub is_lent: bool,
}

/// A listener that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum UnixListenError {
    /// The socket or its file cannot be had.
    #[error(transparent)]
    File(#[from] SocketFileError),
    /// A data-plane thread does not take it.
    #[error("cannot listen on unix:{path}: {source}")]
    Thread {
        /// The path asked for.
        path: UnixPath,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl DataPlane {
    /// Opens a listener on a unix socket, which all threads share: paths have no `SO_REUSEPORT`. When this returns, it answers.
    pub fn open_unix(&self, spec: UnixListenerSpec) -> Result<Listener, UnixListenError> {
        let UnixListenerSpec { path, access, balancer, inherited, is_lent } = spec;
        let failed = |source| UnixListenError::Thread { path: path.clone(), source };
        let adopted = (!inherited.is_empty()).then(|| SocketFile::adopt(&path, &access, is_lent)).flatten();
        let (sockets, file) = match adopted {
            Some(file) => (inherited, file),
            None => {
                let (socket, file) = SocketFile::listen(&path, &access)?;
                (vec![Arc::new(socket)], file)
            }
        };
        for socket in &sockets {
            rustix::io::ioctl_fionbio(socket, true).map_err(|error| failed(error.into()))?;
        }
        let listener = self.listener_at(Address::Unix(path.clone()), &sockets, Some(file));
        self.serve(&balancer, &listener, &sockets).map_err(failed)?;
        Ok(listener)
    }
}
