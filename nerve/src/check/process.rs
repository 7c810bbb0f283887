//! A program of a check: started without a shell, in a process group of its own, and gone with everything that it started.
//!
//! What it began is killed with it, as long as it stayed in the group. Its environment is what is said here and nothing else,
//! whatever the agent was started with; its directory is `/`, its input empty unless it is asked for.

use std::io;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use tokio::process::{Child, Command};

use super::host;
use crate::document::{FromValue, Mismatch, Value};

/// So many words a command may have, and so long each may be, in bytes.
const MAX_WORDS: usize = 256;
const MAX_WORD: usize = 16 * 1024;
/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub(super) struct Argv(Vec<String>);

/// A process group, killed when this is dropped.
#[derive(Debug)]
pub(super) struct Group(Option<Pid>);

impl Argv {
    /// These words.
    pub(super) fn of(words: &[&str]) -> Self {
        Self(words.iter().map(|word| (*word).to_owned()).collect())
    }

    /// A command line, as a shell reads it.
    pub(super) fn of_shell(line: &str) -> Self {
        Self::of(&["/bin/sh", "-c", line])
    }

    /// The program, without its directories.
    pub(super) fn name(&self) -> &str {
        self.program().rsplit('/').next().unwrap_or_default()
    }

    fn program(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    /// In words, for people.
    pub(super) fn shown(&self) -> String {
        let quoted = |word: &String| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
            if !word.is_empty() && word.chars().all(plain) { word.clone() } else { format!("{word:?}") }
        };
        self.0.iter().map(quoted).collect::<Vec<_>>().join(" ")
    }

    /// Starts it, its output piped.
    pub(super) fn start(&self, environment: &[(&str, String)], input: Stdio) -> io::Result<(Child, Group)> {
        let mut command = Command::new(self.program());
        command.args(self.0.get(1..).unwrap_or_default());
        command.env_clear().env("PATH", PATH).env("LANG", "C.UTF-8").env("HOME", "/");
        command.envs(environment.iter().map(|(key, value)| (*key, value)));
        command.current_dir("/").stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let child = command.spawn().inspect_err(host::note_fork)?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok((child, Group(group)))
    }
}

impl Group {
    /// It has ended, and nobody of it is left: its number may be another's soon.
    pub(super) fn ended(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.take() {
            // Fails where nobody is left.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl FromValue for Argv {
    fn expected() -> String {
        "a program and its arguments, such as [\"/usr/lib/nagios/plugins/check_load\", \"-w\", \"5\"]"
            .to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        let Some(words) = value.as_list() else { return Err(value.wrong_kind(Self::expected())) };
        let words = words.iter().map(String::from_value).collect::<Result<Vec<_>, _>>()?;
        let program = words.first().map_or("", String::as_str);
        let wrong = |message: &str| Err(value.mismatch(message, Self::expected()));
        if program.is_empty() {
            return wrong("it names no program");
        }
        if program.contains('/') && !program.starts_with('/') {
            return wrong("the program's path is relative to nothing: write it absolute");
        }
        if words.len() > MAX_WORDS || words.iter().any(|word| word.len() > MAX_WORD) {
            return wrong(&format!(
                "it has more than {MAX_WORDS} words, or one of more than {MAX_WORD} bytes"
            ));
        }
        if words.iter().any(|word| word.contains('\0')) {
            return wrong("a word of it contains a zero byte");
        }
        Ok(Self(words))
    }
}
