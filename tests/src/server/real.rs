//! A server as Debian has it: a program with its arguments, started, stopped, frozen and started again on one machine.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::netns::Namespace;
use crate::process::{Process, Signal, run};
use crate::world::World;

/// Who servers run as that refuse to be root.
const NOBODY: [&str; 4] = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"];

/// A server. Killed when dropped, with what it has started.
#[derive(Debug)]
pub struct Server {
    name: String,
    namespace: Namespace,
    command: Vec<String>,
    variables: Vec<(String, String)>,
    directory: PathBuf,
    log: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Server {
    /// A server that is not started yet, with a directory of its own.
    ///
    /// # Panics
    /// The directory cannot be made.
    #[must_use]
    pub fn new(world: &World, namespace: &Namespace, name: &str) -> Self {
        let directory = world.directory().join(format!("server-{name}"));
        fs::create_dir_all(&directory).expect("a directory");
        Self {
            name: name.to_owned(),
            namespace: namespace.clone(),
            command: Vec::new(),
            variables: Vec::new(),
            directory,
            log: world.log(name),
            process: Mutex::default(),
        }
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// With this program and these arguments.
    #[must_use]
    pub fn command(mut self, command: &[&str]) -> Self {
        self.command.extend(command.iter().map(|&word| word.to_owned()));
        self
    }

    /// With a further variable in its environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// As nobody, who has its directory as well.
    ///
    /// # Panics
    /// This machine does not let us.
    #[must_use]
    pub fn as_nobody(self) -> Self {
        let _ =
            run(&["chown", "-R", "nobody:nogroup", &self.directory.to_string_lossy()]).expect("chown").ok();
        self.command(&NOBODY)
    }

    /// Writes a file into its directory, and says where it is.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn file(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.directory.join(name);
        fs::write(&path, text).expect("a file");
        path.to_string_lossy().into_owned()
    }

    /// Runs it.
    #[must_use]
    pub fn started(self) -> Self {
        self.start();
        self
    }

    /// Starts it.
    pub fn start(&self) {
        let mut command = self.namespace.command(&self.command[0]);
        command.args(&self.command[1..]).current_dir(&self.directory).process_group(0);
        command.env("HOME", &self.directory);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        *self.process() = Some(Process::start(&self.name, &mut command, &self.log));
    }

    /// Stops it, as a service manager does.
    #[track_caller]
    pub fn stop(&self) {
        if let Some(mut process) = self.process().take() {
            process.signal(Signal::TERM);
            process.wait(Duration::from_secs(30));
        }
    }

    /// Stops the clock of it and of what it has started: the kernel still accepts connections, nothing answers.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// What it has printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.process().as_ref().map(Process::output).unwrap_or_default()
    }

    /// Sends a signal, such as `-HUP`, to it and to what it has started.
    pub fn signal(&self, signal: &str) {
        if let Some(process) = self.process().as_ref() {
            // Its group may have gone.
            let _ = run(&["kill", signal, "--", &format!("-{}", process.id())]);
        }
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !World::keeps() {
            self.signal("-KILL");
        }
    }
}
