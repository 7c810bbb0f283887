//! Run-time registrations on disk. A crash of the program loses none; one of the machine at most the last of many.
//!
//! Two files of the state directory. `registrations.json` is written beside its place, synced and renamed: what is in it
//! is durable. Where changes follow one another within a second, the disk is not waited for each time: they overwrite
//! `registrations.recent.json`, which outlives the process, and which the kernel brings to the disk within half a minute.
//! Of the two, whoever reads takes the later one.

use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// The disk is waited for at most this often.
const PERIOD: Duration = Duration::from_secs(1);

/// Where registrations are kept.
#[derive(Debug)]
pub(super) struct Kept {
    files: Arc<Files>,
    synced: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Files {
    durable: PathBuf,
    recent: PathBuf,
}

impl Kept {
    pub(super) fn new(state_directory: &Path) -> Self {
        let at = |name: &str| state_directory.join(name);
        let files = Files { durable: at("registrations.json"), recent: at("registrations.recent.json") };
        Self { files: Arc::new(files), synced: Mutex::default() }
    }

    /// The file that is synced.
    pub(super) fn durable(&self) -> &Path {
        &self.files.durable
    }

    /// The file with the changes since; it may be older, or not be there.
    pub(super) fn recent(&self) -> &Path {
        &self.files.recent
    }

    /// Keeps `text` instead of what was kept before.
    ///
    /// # Errors
    /// The file that cannot be written, and why; what was durable before still is.
    pub(super) async fn write(&self, text: String) -> Result<(), (PathBuf, io::Error)> {
        let mut synced = self.synced.lock().await;
        let is_durable = synced.is_none_or(|at| at.elapsed() >= PERIOD);
        let files = Arc::clone(&self.files);
        let written = tokio::task::spawn_blocking(move || {
            if is_durable { write_durably(&files.durable, &text) } else { overwrite(&files.recent, &text) }
        });
        let target = if is_durable { self.durable() } else { self.recent() };
        let written = written.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        written.map_err(|error| (target.to_owned(), error))?;
        if is_durable {
            *synced = Some(Instant::now());
        }
        Ok(())
    }
}

/// Writes beside the file, syncs that, and renames it into its place.
fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let beside = path.with_extension("json.new");
    let mut file = open(&beside)?;
    file.set_len(0)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    std::fs::File::open(directory)?.sync_all()
}

/// In place: to rename would have file systems write at once.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let mut file = open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

/// For this user alone: checks that are registered may have passwords.
fn open(path: &Path) -> io::Result<std::fs::File> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(path)?;
    // It may have been made by a version that let others read it.
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    Ok(file)
}
