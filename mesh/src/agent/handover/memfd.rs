//! What is too long for a line: a file without a name, in memory, whose descriptor is passed.
//!
//! The catalog of a large fleet is hundreds of megabytes. The disk has no part in it: a state directory that is full must
//! not be in the way of an upgrade that makes room.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, memfd_create};

use super::Error;

/// The longest that is read, in bytes: what a registrar or an embedded store of 100,000 instances comes to.
const MAX_BYTES: u64 = 512 * 1024 * 1024;

/// A file that `write` fills, in the background: it may take long, and tasks of this thread have other things to do.
pub(in crate::agent) async fn filled(
    name: &'static str,
    write: impl FnOnce(&mut File) -> io::Result<()> + Send + 'static,
) -> Result<OwnedFd, Error> {
    in_background(move || {
        let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
        write(&mut file)?;
        file.flush()?;
        Ok(file.into())
    })
    .await
}

/// All that is in it.
pub(super) async fn read(descriptor: OwnedFd) -> Result<Vec<u8>, Error> {
    in_background(move || {
        let mut file = File::from(descriptor);
        // Both processes have one file position.
        file.seek(SeekFrom::Start(0))?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(io::Error::other(format!("it is longer than the {MAX_BYTES} bytes that are read")));
        }
        Ok(bytes)
    })
    .await
}

pub(super) async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(io::Error::other)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_filled_in_is_read_from_the_beginning() {
        let file = filled("test", |file| file.write_all(b"all of it")).await.unwrap();
        let copy = file.try_clone().unwrap();
        assert_eq!(read(file).await.unwrap(), b"all of it");
        assert_eq!(read(copy).await.unwrap(), b"all of it");
    }
}
