//! Files that are replaced whole: written beside, then renamed, so that nobody reads a half.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The text of a file that is not larger than that.
pub(super) async fn read(path: &Path, max: u64) -> io::Result<String> {
    let path = path.to_owned();
    in_background(move || {
        let mut text = String::new();
        File::open(path)?.take(max + 1).read_to_string(&mut text)?;
        if text.len() as u64 > max {
            return Err(io::Error::other(format!("it is larger than the {max} bytes that are read")));
        }
        Ok(text)
    })
    .await
}

/// Puts `text` where `path` leads, with the permissions of what stood there.
pub(super) async fn replace(path: &Path, text: &str) -> io::Result<()> {
    let (path, text) = (path.to_owned(), text.to_owned());
    in_background(move || {
        // A link stays one.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let beside = beside(&path)?;
        let written = write(&beside, &text, Some(&path)).and_then(|()| fs::rename(&beside, &path));
        written.inspect_err(|_| drop(fs::remove_file(&beside)))
    })
    .await
}

/// Writes `text` to `path`, as it is: what another program only reads once this is done. Who may read `like` may read it.
pub(super) async fn put(path: &Path, text: &str, like: Option<&Path>) -> io::Result<()> {
    let (path, text, like) = (path.to_owned(), text.to_owned(), like.map(Path::to_owned));
    in_background(move || write(&path, &text, like.as_deref())).await
}

fn write(path: &Path, text: &str, like: Option<&Path>) -> io::Result<()> {
    let permissions = like.and_then(|like| fs::metadata(like).ok()).map(|before| before.permissions());
    let mode = permissions.as_ref().map_or(0o666, |permissions| permissions.mode() & 0o777);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    if let Some(permissions) = permissions {
        file.set_permissions(permissions)?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// A hidden name in the same directory.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::other("it names no file"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".plexus");
    Ok(path.with_file_name(hidden))
}

async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_replaced_whole_with_its_permissions_and_through_links() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("a"), directory.path().join("b"));
        replace(&file, "1").await.unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        replace(&link, "2").await.unwrap();
        assert_eq!(read(&file, 10).await.unwrap(), "2");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        assert!(read(&file, 0).await.is_err() && replace(&directory.path().join("x/y"), "").await.is_err());
    }
}
