//! A world: everything that one test makes, under one name, removed as a whole.
//!
//! `plexus-<pid>-<n>` names the namespaces and the directory, so that worlds stand side by side and what a killed run
//! left behind can be told from what a live one uses. `PLEXUS_TEST_KEEP=1` leaves a world standing and prints how to
//! step inside; the next run sweeps it away.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::netns;
use crate::process::run;
use crate::program::repository;
use crate::server::docker;

const PREFIX: &str = "plexus-";

/// The name and the directory of one test's things. Dropping it removes them, also after a panic.
#[derive(Debug)]
pub struct World {
    name: String,
    directory: PathBuf,
}

impl World {
    /// A new world; the first of a process sweeps away what dead ones left.
    ///
    /// # Panics
    /// Its directory cannot be made.
    #[must_use]
    pub fn new() -> Self {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(1);
        SWEEP.call_once(sweep);
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir_all(directory.join("logs")).expect("the world's directory");
        Self { name, directory }
    }

    /// Its name, the beginning of all its namespaces' names.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory of its own.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A log file of its own.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.directory.join("logs").join(format!("{name}.log"))
    }

    /// Should worlds be left standing?
    #[must_use]
    pub fn keeps() -> bool {
        std::env::var_os("PLEXUS_TEST_KEEP").is_some_and(|value| value == "1")
    }

    /// Copies its logs to where they outlast it, and prints where that is.
    pub fn keep_logs(&self) {
        let test = std::thread::current().name().unwrap_or("test").replace("::", "-");
        let kept = repository().join("tests/logs").join(format!("{test}-{}", &self.name[PREFIX.len()..]));
        let moved = fs::create_dir_all(&kept).and_then(|()| {
            for log in fs::read_dir(self.directory.join("logs"))? {
                let log = log?;
                fs::copy(log.path(), kept.join(log.file_name()))?;
            }
            Ok(())
        });
        match moved {
            Ok(()) => eprintln!("logs: {}", kept.display()),
            Err(error) => eprintln!("the logs could not be kept in {}: {error}", kept.display()),
        }
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_logs();
        }
        if Self::keeps() {
            eprintln!("kept {} and {}; step inside with", self.name, self.directory.display());
            for namespace in netns::named(&format!("{}-", self.name)) {
                eprintln!("  nsenter --net=/run/netns/{namespace}");
            }
            return;
        }
        remove(&self.name);
    }
}

/// Removes the worlds of processes that are no more.
fn sweep() {
    let alive = |pid: &str| Path::new("/proc").join(pid).exists();
    let of_the_dead = |name: &str| {
        let mut parts = name.strip_prefix(PREFIX)?.split('-');
        let (pid, number) = (parts.next()?, parts.next()?);
        let numbers = [pid, number].iter().all(|part| part.parse::<u32>().is_ok());
        (numbers && !alive(pid)).then(|| format!("{PREFIX}{pid}-{number}"))
    };
    let directories = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let directories = directories.filter_map(|entry| entry.file_name().into_string().ok());
    let names = netns::named(PREFIX).into_iter().chain(directories);
    let dead: std::collections::BTreeSet<String> = names.filter_map(|name| of_the_dead(&name)).collect();
    for world in dead {
        remove(&world);
    }
}

/// Ends what runs in the namespaces of a world, removes them and its directory.
fn remove(world: &str) {
    for namespace in netns::named(&format!("{world}-")) {
        netns::remove(&namespace);
    }
    docker::remove_groups(&format!("{world}-"));
    let directory = std::env::temp_dir().join(world);
    if directory.exists() && fs::remove_dir_all(&directory).is_err() {
        // Something was still writing; once more without the race, and say so if that fails as well.
        let _ = run(&["rm", "-rf", &directory.to_string_lossy()]);
    }
}
