//! Anonymous network namespaces.
//!
//! A namespace here has no name under `/run/netns`: it lives as long as a descriptor or a thread of this process holds
//! it. However the process ends, also by SIGKILL, the kernel removes the namespace with every link in it.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use nix::sched::CloneFlags;

/// A network namespace. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Namespace(Arc<File>);

impl Namespace {
    /// Makes an empty one: `unshare --net`.
    pub(crate) fn create() -> io::Result<Self> {
        on_thread("netns-make", || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })
    }

    /// The one that this file stands for: `/run/netns/NAME`, `/proc/PID/ns/net`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(File::open(path)?)))
    }

    /// The one that the calling thread is in.
    pub(crate) fn current() -> io::Result<Self> {
        Ok(Self(Arc::new(File::open("/proc/thread-self/ns/net")?)))
    }

    /// Runs `work` on a thread of its own inside: what it opens, and what it starts, belongs to the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_thread("netns", || {
            nix::sched::setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// Runs an asynchronous `work` inside, on a runtime of its own.
    pub(crate) fn block_on<T: Send, F: Future<Output = io::Result<T>>>(
        &self,
        work: impl FnOnce() -> F + Send,
    ) -> io::Result<T> {
        self.run(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work()))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Namespace {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The namespace of a thread is that thread's alone: changing it on a thread that ends afterwards changes nothing else.
fn on_thread<T: Send>(name: &str, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}
