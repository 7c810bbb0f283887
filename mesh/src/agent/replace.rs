//! Starting the program anew on SIGUSR2: as it is on disk now, with the arguments of this process, told to take over.
//!
//! It is started by the name that this process was started by, not by the file that it was made of: an upgrade puts another file
//! there, or turns a link.

use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};

use tokio::process::{Child, Command};

/// The flag that the new process gets.
const FLAG: &str = "--take-over";
/// What systemd's socket activation says of this process and not of the new one, which gets the sockets by the hand-over.
const NOT_INHERITED: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The process that is to take over, while there is one.
#[derive(Debug, Default)]
pub(super) struct Replacement(Option<Child>);

impl Replacement {
    /// Starts it, unless one is under way.
    pub(super) fn start(&mut self) {
        if let Some(child) = &self.0 {
            tracing::warn!(pid = child.id(), "another process is taking over already; it is waited for");
            return;
        }
        match spawn(std::env::args_os()) {
            Ok(child) => {
                tracing::info!(pid = child.id(), "the program is started anew and takes over");
                self.0 = Some(child);
            }
            Err(error) => {
                tracing::error!(%error, "the program cannot be started anew; this one goes on");
            }
        }
    }

    /// Completes when it has ended. Cancel-safe.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        let Some(child) = &mut self.0 else { return std::future::pending().await };
        let status = child.wait().await;
        self.0 = None;
        status
    }
}

fn spawn(arguments: impl Iterator<Item = OsString>) -> io::Result<Child> {
    let (program, arguments) = again(arguments)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    command.spawn()
}

/// The same command line, with the flag.
fn again(mut arguments: impl Iterator<Item = OsString>) -> io::Result<(OsString, Vec<OsString>)> {
    let program = arguments.next().filter(|name| !name.is_empty());
    let program = program.ok_or_else(|| {
        io::Error::other(
            "this process was started without a name; start the new one with --take-over instead",
        )
    })?;
    let mut rest: Vec<OsString> = arguments.collect();
    if !rest.iter().any(|argument| argument == FLAG) {
        rest.push(FLAG.into());
    }
    Ok((program, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_the_same_with_the_flag_once() {
        let line = |text: &str| {
            again(text.split_whitespace().map(OsString::from)).map(|(program, rest)| (program, rest.len()))
        };
        assert_eq!(line("plexus agent --config x").unwrap(), ("plexus".into(), 4));
        assert_eq!(line("/bin/plexus agent --config x --take-over").unwrap(), ("/bin/plexus".into(), 4));
        assert!(line("").is_err());
    }
}
