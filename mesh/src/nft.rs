//! The program `nft`, and the kernel's word that somebody has changed packet filter rules.
//!
//! Rules go in as text: one file is one transaction, and there is no maintained crate that speaks nf_tables without C libraries.

use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Where it is: on the path, or where distributions have it, which is not on everyone's path.
const PROGRAMS: [&str; 2] = ["nft", "/usr/sbin/nft"];
/// How long it may take. It waits for whoever changes rules at the moment.
const WITHIN: Duration = Duration::from_secs(5);
/// Changes of nf_tables rules are told to this group (`NFNLGRP_NFTABLES` of the kernel).
const GROUP: u32 = 7;

/// Why rules could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The program is not there.
    #[error("the program nft is not installed; install nftables")]
    Missing,
    /// It could not be run.
    #[error("the program nft cannot be run: {0}")]
    Failed(#[from] io::Error),
    /// It said no.
    #[error("nft refuses to {what}: {said}{}", if said.contains("not permitted") { "; give the agent CAP_NET_ADMIN" } else { "" })]
    Refused {
        /// What it was to do.
        what: &'static str,
        /// Its first line.
        said: String,
    },
}

/// A table of the family `inet` as nft prints it, without what it has counted; `None` where there is none.
pub(crate) async fn list(table: &str) -> Result<Option<String>, Error> {
    list_of("inet", table).await
}

/// The same of another family.
pub(crate) async fn list_of(family: &str, table: &str) -> Result<Option<String>, Error> {
    let output = run(&["--stateless", "--numeric", "list", "table", family, table], "").await?;
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    match refused("list its table", &output) {
        Error::Refused { said, .. } if said.contains("No such file or directory") => Ok(None),
        error => Err(error),
    }
}

/// Every table with its chains and without their rules, as nft prints them.
pub(crate) async fn chains() -> Result<String, Error> {
    let output = run(&["list", "chains"], "").await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(refused("list the chains", &output))
}

/// Applies a text as one transaction.
pub(crate) async fn apply(ruleset: &str) -> Result<(), Error> {
    let output = run(&["--file", "-"], ruleset).await?;
    if output.status.success() { Ok(()) } else { Err(refused("set the rules", &output)) }
}

/// Takes a table away, if it is there.
pub(crate) async fn remove(table: &str) -> Result<(), Error> {
    if list(table).await?.is_some() {
        apply(&removal(table)).await?;
    }
    Ok(())
}

/// The text that takes a table away, whether it is there or not.
pub(crate) fn removal(table: &str) -> String {
    format!("table inet {table}\ndelete table inet {table}\n")
}

fn refused(what: &'static str, output: &Output) -> Error {
    let said = String::from_utf8_lossy(&output.stderr);
    Error::Refused { what, said: said.lines().next().unwrap_or("it does not say why").to_owned() }
}

async fn run(arguments: &[&str], input: &str) -> Result<Output, Error> {
    for program in PROGRAMS {
        let mut command = Command::new(program);
        command.args(arguments).env("LC_ALL", "C").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        let stdin = child.stdin.take();
        let finished = async {
            if let Some(mut stdin) = stdin {
                stdin.write_all(input.as_bytes()).await?;
            }
            child.wait_with_output().await
        };
        let finished = tokio::time::timeout(WITHIN, finished).await;
        return Ok(finished.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??);
    }
    Err(Error::Missing)
}

/// Tells of changes of packet filter rules, anybody's.
pub(crate) struct Events(TokioSocket);

impl Events {
    /// Opens a socket for them.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        socket.socket_mut().add_membership(GROUP)?;
        Ok(Self(socket))
    }

    /// Something has changed. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        // An error says that there was more than fits: a change all the same.
        let _ = self.0.recv_from_full().await;
    }
}
