//! HAProxy's configuration on disk: replaced by one that has passed the check, and by nothing else.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::config::Config;
use super::metrics::{Failure, Metrics};
use super::{file, shell};

/// The largest configuration that is read back.
const MAX_BYTES: u64 = 256 * 1024 * 1024;
/// How long a check may take.
const CHECK_WITHIN: Duration = Duration::from_secs(60);
/// What failed is tried again after this, be it the same: a certificate may be there now.
const TRY_AGAIN: Duration = Duration::from_secs(15);
/// The shortest time between two files. HAProxy is told at once; the file is for its next start.
const PACE: Duration = Duration::from_secs(1);

/// What is on disk.
#[derive(Debug, Default)]
pub(super) struct Disk {
    text: Option<String>,
    tried: Option<Instant>,
    failed: Option<Instant>,
}

/// How it stands after a try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is there.
    Current,
    /// It will be tried at this moment.
    Later(Instant),
}

impl Disk {
    /// Reads what is there: somebody else may have written it.
    pub(super) async fn look(&mut self, path: &Path) -> Option<&str> {
        self.text = file::read(path, MAX_BYTES).await.ok();
        self.text.as_deref()
    }

    /// Is this what is there?
    pub(super) fn has(&self, text: &str) -> bool {
        self.text.as_deref() == Some(text)
    }

    /// When the next text may be put there; `None`: now.
    pub(super) fn waits_until(&self, now: Instant) -> Option<Instant> {
        self.tried.map(|tried| tried + PACE).filter(|next| *next > now)
    }

    /// Puts `text` there, if it is another and passes.
    ///
    /// # Errors
    /// It does not pass, or cannot be written. What was there is there yet.
    pub(super) async fn put(
        &mut self,
        text: &str,
        is_new: bool,
        config: &Config,
        metrics: &Metrics,
    ) -> Result<Outcome, String> {
        let Some(path) = &config.config_file_path else { return Ok(Outcome::Current) };
        if self.has(text) {
            return Ok(Outcome::Current);
        }
        let now = Instant::now();
        if let Some(next) = self.again().filter(|next| !is_new && *next > now) {
            return Ok(Outcome::Later(next));
        }
        self.tried = Some(now);
        let put = self.checked(text, path, config).await;
        self.failed = put.is_err().then(Instant::now);
        match put {
            Ok(()) => {
                metrics.writes.inc();
                self.text = Some(text.to_owned());
                Ok(Outcome::Current)
            }
            Err((failure, error)) => {
                metrics.failed(failure);
                Err(error)
            }
        }
    }

    /// When what failed is tried again.
    pub(super) fn again(&self) -> Option<Instant> {
        self.failed.map(|failed| failed + TRY_AGAIN)
    }

    async fn checked(&self, text: &str, path: &Path, config: &Config) -> Result<(), (Failure, String)> {
        let unwritten = |path: &Path, error| {
            (Failure::Write, format!("{} cannot be written: {error}; what was there is used", path.display()))
        };
        let check = config.check_command.as_ref().filter(|_| config.do_checks).zip(config.candidate());
        if let Some((command, candidate)) = check {
            file::put(&candidate, text, Some(path)).await.map_err(|error| unwritten(&candidate, error))?;
            shell::run(command, CHECK_WITHIN).await.map_err(|error| {
                let told = format!(
                    "the configuration in {} does not pass the check: {error}; {} stays as it is",
                    candidate.display(),
                    path.display()
                );
                (Failure::Check, told)
            })?;
        }
        file::replace(path, text).await.map_err(|error| unwritten(path, error))
    }
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;

    use super::*;

    fn config(directory: &Path, check: &str) -> Config {
        let text = format!(
            "{{global: [], defaults: [], do_socket: false, do_reloads: false, config_file_path: h.cfg, do_checks: true,
               check_command: \"{check}\"}}"
        );
        let document = Document::parse_yaml("x", &text).unwrap();
        document.decode(Config::read).unwrap().with_paths_from(directory)
    }

    #[tokio::test]
    async fn only_what_passes_replaces_what_is_there_and_only_if_it_is_another() {
        let (directory, metrics) = (tempfile::tempdir().unwrap(), Metrics::new().unwrap());
        let path = directory.path().join("h.cfg");
        let config = config(directory.path(), &format!("grep -q good {}.tmp", path.display()));
        let mut disk = Disk::default();
        assert_eq!(disk.put("good 1\n", true, &config, &metrics).await, Ok(Outcome::Current));
        assert_eq!(disk.put("good 1\n", true, &config, &metrics).await, Ok(Outcome::Current));
        assert_eq!((metrics.writes.get(), std::fs::read_to_string(&path).unwrap().as_str()), (1, "good 1\n"));
        let now = Instant::now();
        assert!(disk.waits_until(now).is_some() && disk.waits_until(now + PACE).is_none());
        let told = disk.put("bad\n", true, &config, &metrics).await.unwrap_err();
        assert!(told.contains("does not pass") && told.contains("h.cfg stays as it is"), "{told}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "good 1\n");
        assert!(matches!(disk.put("bad\n", false, &config, &metrics).await, Ok(Outcome::Later(_))));
        assert_eq!(disk.put("good 2\n", true, &config, &metrics).await, Ok(Outcome::Current));
        // Somebody else writes it.
        std::fs::write(&path, "x").unwrap();
        assert_eq!(disk.look(&path).await, Some("x"));
        assert!(!disk.has("good 2\n"));
    }
}
