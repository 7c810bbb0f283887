//! Another plugin, run on this one's behalf: "the delegated plugin" that gives addresses.
//!
//! It is found in the directories of `CNI_PATH`, and is given the environment and the configuration that this one was given.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::call::COMMAND;
use super::failure::{Code, Failure};

/// Longer than a DHCP server takes.
const WITHIN: Duration = Duration::from_secs(60);
/// A result is some hundred bytes.
const MOST_BYTES: u64 = 1024 * 1024;

/// A plugin that was found.
#[derive(Debug)]
pub(super) struct Delegate<'a> {
    name: &'a str,
    program: PathBuf,
    configuration: &'a [u8],
}

impl<'a> Delegate<'a> {
    /// Looks for it in a list of directories.
    pub(super) fn find(
        name: &'a str,
        path: Option<&OsString>,
        configuration: &'a [u8],
    ) -> Result<Self, Failure> {
        let path = path.ok_or_else(|| {
            Failure::new(
                Code::Environment,
                format!("CNI_PATH: it is not set, and the plugin {name} is needed"),
            )
        })?;
        let mut found = std::env::split_paths(path).map(|directory| directory.join(name));
        match found.find(|program| program.is_file()) {
            Some(program) => Ok(Self { name, program, configuration }),
            None => {
                let why = format!("there is no plugin {name} in {}", path.to_string_lossy());
                Err(Failure::new(Code::Configuration, why).details("install it, or leave `ipam` out"))
            }
        }
    }

    /// Runs it with a command; what it answers, which is nothing for most commands.
    pub(super) async fn run(&self, command: &str) -> Result<Option<Value>, Failure> {
        let answered = tokio::time::timeout(WITHIN, self.answer(command)).await;
        let (is_done, answer) = answered
            .map_err(|_| self.failed(command, &format!("it did not end within {WITHIN:?}")))?
            .map_err(|error| self.failed(command, &error.to_string()))?;
        let json: Option<Value> = serde_json::from_slice(&answer).ok();
        if is_done {
            return match json {
                None if !answer.trim_ascii().is_empty() => Err(self.failed(command, "its answer is no JSON")),
                json => Ok(json),
            };
        }
        let json = json.unwrap_or_default();
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        match json["code"].as_u64() {
            Some(code) => {
                let why = format!("the plugin {}: {}", self.name, text("msg"));
                Err(Failure::new(Code::Delegate(code), why).details(text("details")))
            }
            None => Err(self.failed(command, "it failed without saying why")),
        }
    }

    async fn answer(&self, command: &str) -> std::io::Result<(bool, Vec<u8>)> {
        let mut child = Command::new(&self.program)
            .env(COMMAND, command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let give = async {
            if let Some(mut stdin) = stdin {
                // One that does not read it has no need of it.
                let _ = stdin.write_all(self.configuration).await;
            }
        };
        let take = async {
            let mut answer = Vec::new();
            if let Some(stdout) = stdout {
                stdout.take(MOST_BYTES).read_to_end(&mut answer).await?;
            }
            Ok::<_, std::io::Error>(answer)
        };
        let ((), answer) = tokio::join!(give, take);
        Ok((child.wait().await?.success(), answer?))
    }

    fn failed(&self, command: &str, why: &str) -> Failure {
        Failure::new(Code::Io, format!("the plugin {} was run for {command}: {why}", self.program.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// Does what a shell script says, as a plugin.
    async fn run(script: &str) -> Result<Option<Value>, Failure> {
        let directory = tempfile::tempdir().unwrap();
        let (text, program) = (directory.path().join("script"), directory.path().join("addresses"));
        fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
        // By another process: a program that any thread of this one still has open for writing cannot be run.
        let installed = std::process::Command::new("install").args([&text, &program]).status().unwrap();
        assert!(installed.success());
        let path = std::env::join_paths(["/nowhere".as_ref(), directory.path()]).unwrap();
        Delegate::find("addresses", Some(&path), b"{\"name\": \"blue\"}").unwrap().run("ADD").await
    }

    #[tokio::test]
    async fn it_is_given_what_this_one_was_given() {
        let answer = run("read configuration; echo \"{\\\"command\\\": \\\"$CNI_COMMAND\\\", \\\"in\\\": $configuration}\"").await;
        assert_eq!(answer, Ok(Some(json!({"command": "ADD", "in": {"name": "blue"}}))));
        assert_eq!(run("cat >/dev/null").await, Ok(None));
    }

    #[tokio::test]
    async fn its_failure_is_told_with_its_code() {
        let said = run("echo '{\"code\": 11, \"msg\": \"busy\", \"details\": \"later\"}'; exit 1")
            .await
            .unwrap_err();
        let expected = json!({"cniVersion": "1.1.0", "code": 11, "msg": "the plugin addresses: busy", "details": "later"});
        assert_eq!(said.json(), expected);
        assert!(run("exit 1").await.unwrap_err().to_string().contains("without saying why"));
        assert!(run("echo hello").await.unwrap_err().to_string().contains("no JSON"));
    }

    #[test]
    fn one_that_is_not_there_is_told_with_where_it_was_looked_for() {
        let path = OsString::from("/nowhere");
        let failure = Delegate::find("addresses", Some(&path), b"").unwrap_err();
        assert!(failure.to_string().contains("no plugin addresses in /nowhere"), "{failure}");
        assert_eq!(Delegate::find("addresses", None, b"").unwrap_err().json()["code"], 4);
    }
}
