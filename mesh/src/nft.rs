//! The program `nft`, and the kernel's word that somebody has changed packet filter rules.
//!
//! Rules go in as text: one file is one transaction, and there is no maintained crate that speaks nf_tables without C libraries.

use std::fmt;
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

/// A table of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    /// Whose packets: `inet`, `netdev`.
    pub(crate) family: &'static str,
    pub(crate) name: &'static str,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

impl Table {
    /// The text that takes it away, whether it is there or not.
    pub(crate) fn removal(self) -> String {
        format!("table {self}\ndelete table {self}\n")
    }

    /// As nft prints it, without what it has counted; `None` where there is none.
    pub(crate) async fn list(self) -> Result<Option<String>, Error> {
        list_of(self.family, self.name).await
    }

    /// Takes it away, if it is there.
    pub(crate) async fn remove(self) -> Result<(), Error> {
        if self.list().await?.is_some() {
            apply(&self.removal()).await?;
        }
        Ok(())
    }
}

/// Tables that are kept as they were set.
#[derive(Debug)]
pub(crate) struct Kept<const N: usize> {
    tables: [Table; N],
    /// The text as it was applied, and the tables as they were listed then.
    set: Option<(String, [Option<String>; N])>,
}

impl<const N: usize> Kept<N> {
    /// Nothing is known yet of what these hold.
    pub(crate) fn new(tables: [Table; N]) -> Self {
        Self { tables, set: None }
    }

    /// Was something set?
    pub(crate) fn is_set(&self) -> bool {
        self.set.is_some()
    }

    /// Makes the tables hold this text, which replaces them. Tells whether it did already and somebody has changed them since.
    pub(crate) async fn ensure(&mut self, text: String) -> Result<bool, Error> {
        let was_set = self.set.as_ref().is_some_and(|(set, _)| *set == text);
        if was_set {
            let there = self.listed().await?;
            if self.set.as_ref().is_some_and(|(_, listed)| *listed == there) {
                return Ok(false);
            }
        }
        apply(&text).await?;
        self.set = Some((text, self.listed().await?));
        Ok(was_set)
    }

    async fn listed(&self) -> Result<[Option<String>; N], Error> {
        let mut listed = [const { None }; N];
        for (table, listed) in self.tables.iter().zip(&mut listed) {
            *listed = table.list().await?;
        }
        Ok(listed)
    }
}

/// Anybody's table as nft prints it, without what it has counted; `None` where there is none.
pub(crate) async fn list_of(family: &str, table: &str) -> Result<Option<String>, Error> {
    printed(&["--stateless", "--numeric", "list", "table", family, table]).await
}

/// A chain as nft prints it, with the handles of its rules and without what it has counted; `None` where there is none.
pub(crate) async fn list_chain(family: &str, table: &str, chain: &str) -> Result<Option<String>, Error> {
    printed(&["--stateless", "--handle", "list", "chain", family, table, chain]).await
}

async fn printed(arguments: &[&str]) -> Result<Option<String>, Error> {
    let output = run(arguments, "").await?;
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    match refused("list its tables", &output) {
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
