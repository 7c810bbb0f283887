//! The operator's own lines for the shell: to check a configuration, and to reload HAProxy.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

/// So much of what a command says is told.
const MAX_SAID: usize = 4096;
/// How long what it started in the background may go on talking before it is no longer listened to.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Runs a line to its end.
///
/// # Errors
/// It cannot be started, takes too long, or does not end with success; with the last that it said.
pub(super) async fn run(line: &str, within: Duration) -> Result<(), String> {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(line).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Not of this agent's group: what is pressed at its terminal is not meant for HAProxy.
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("{line:?} cannot be started: {error}"))?;
    let (mut said, out, err) = (Said::default(), child.stdout.take(), child.stderr.take());
    let (Some(mut out), Some(mut err)) = (out, err) else { return Err(format!("{line:?} has no output")) };
    let ended = async {
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                () = said.hear(&mut out, &mut err), if !said.is_over() => {}
            }
        };
        // A server that it started may hold its output for ever.
        let rest = async {
            while !said.is_over() {
                said.hear(&mut out, &mut err).await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, rest).await;
        status
    };
    match tokio::time::timeout(within, ended).await {
        Err(_) => Err(format!("{line:?} did not end within {within:?}{}", said.told())),
        Ok(Err(error)) => Err(format!("{line:?}: {error}")),
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("{line:?}: {status}{}", said.told())),
    }
}

/// The end of what was said.
#[derive(Debug, Default)]
struct Said {
    text: Vec<u8>,
    out_is_over: bool,
    err_is_over: bool,
}

impl Said {
    fn is_over(&self) -> bool {
        self.out_is_over && self.err_is_over
    }

    /// Takes the next piece of either. Cancel-safe.
    async fn hear(&mut self, out: &mut (impl AsyncRead + Unpin), err: &mut (impl AsyncRead + Unpin)) {
        let (mut from_out, mut from_err) = ([0; 1024], [0; 1024]);
        let (piece, is_over) = tokio::select! {
            read = out.read(&mut from_out), if !self.out_is_over => (&from_out[..read.unwrap_or(0)], &mut self.out_is_over),
            read = err.read(&mut from_err), if !self.err_is_over => (&from_err[..read.unwrap_or(0)], &mut self.err_is_over),
            else => return,
        };
        *is_over = piece.is_empty();
        self.text.extend_from_slice(piece);
        if self.text.len() > MAX_SAID {
            self.text.drain(..self.text.len() - MAX_SAID);
        }
    }

    /// On one line.
    fn told(&self) -> String {
        let text = String::from_utf8_lossy(&self.text);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() { String::new() } else { format!(": {}", lines.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn what_fails_says_why_and_what_lasts_is_ended() {
        assert_eq!(run("true", LONG).await, Ok(()));
        let failed = run("echo one; echo two >&2; exit 3", LONG).await.unwrap_err();
        assert!(
            failed.contains("exit status: 3") && failed.contains("one") && failed.contains("two"),
            "{failed}"
        );
        let late = run("sleep 60", Duration::from_millis(50)).await.unwrap_err();
        assert!(late.contains("did not end within 50ms"), "{late}");
        let much = run("yes | head -c 100000; exit 1", LONG).await.unwrap_err();
        assert!(much.len() < 3 * MAX_SAID, "{}", much.len());
    }

    #[tokio::test]
    async fn who_is_started_in_the_background_is_not_waited_for() {
        let begun = std::time::Instant::now();
        assert_eq!(run("sleep 20 & true", LONG).await, Ok(()));
        assert!(begun.elapsed() < Duration::from_secs(15));
    }
}
