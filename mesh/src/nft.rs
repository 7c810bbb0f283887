//! The program `nft`, and the kernel's word of whose tables' rules have changed.
//!
//! Rules go in as text: one file is one transaction, and there is no maintained crate that speaks nf_tables without C libraries.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use futures_util::future::try_join_all;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::netlink::{enlarge, is_overrun};

/// Where it is: on the path, or where distributions have it, which is not on everyone's path.
const PROGRAMS: [&str; 2] = ["nft", "/usr/sbin/nft"];
/// How long it may take. It waits for whoever changes rules at the moment.
const WITHIN: Duration = Duration::from_secs(5);
/// Changes of nf_tables rules are told to this group (`NFNLGRP_NFTABLES` of the kernel).
const GROUP: u32 = 7;
/// The length of a netlink message's header.
const HEADER: usize = 16;
/// The message that ends a transaction (`NFT_MSG_NEWGEN`).
const NEW_GENERATION: u16 = 15;
/// The attribute with the name of a table, in every message but that (`NFTA_TABLE_NAME`, `NFTA_RULE_TABLE`, …).
const TABLE_NAME: u16 = 1;

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
    set: Option<Set>,
}

#[derive(Debug)]
struct Set {
    /// As it was applied.
    text: String,
    /// The tables as they were listed then.
    listed: Vec<Option<String>>,
    /// Somebody may have changed them since.
    is_in_doubt: bool,
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

    /// Is it one of these that has changed?
    pub(crate) fn is_changed(&self, changed: &Changed) -> bool {
        self.tables.iter().any(|table| changed.concerns(*table))
    }

    /// Somebody may have changed them: they are looked at the next time.
    pub(crate) fn doubt(&mut self) {
        if let Some(set) = &mut self.set {
            set.is_in_doubt = true;
        }
    }

    /// Makes the tables hold this text, which replaces them. Tells whether they were to hold it already and somebody has changed
    /// them since. What `events` tell of the replacement itself is forgotten.
    pub(crate) async fn ensure(&mut self, text: String, events: &mut Option<Events>) -> Result<bool, Error> {
        let was_set = self.set.as_ref().is_some_and(|set| set.text == text);
        if let Some(set) = self.set.as_mut().filter(|_| was_set)
            && (!set.is_in_doubt || list_all(&self.tables).await? == set.listed)
        {
            set.is_in_doubt = false;
            return Ok(false);
        }
        apply(&text).await?;
        // What has happened until now is in the list.
        if let Some(events) = events {
            events.forget(&self.tables);
        }
        self.set = Some(Set { text, listed: list_all(&self.tables).await?, is_in_doubt: false });
        Ok(was_set)
    }
}

async fn list_all(tables: &[Table]) -> Result<Vec<Option<String>>, Error> {
    try_join_all(tables.iter().map(|table| table.list())).await
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

/// So many packets a named counter of a table has counted; `None` where there is none.
pub(crate) async fn counted(table: Table, counter: &str) -> Result<Option<u64>, Error> {
    let Some(text) = printed(&["list", "counter", table.family, table.name, counter]).await? else {
        return Ok(None);
    };
    Ok(packets(&text))
}

/// `packets 3 bytes 180`, somewhere in what nft prints.
fn packets(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace();
    words.find(|word| *word == "packets")?;
    words.next()?.parse().ok()
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

/// The tables whose rules, chains or sets have changed, anybody's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Changed {
    /// By the number of their family, and their name.
    tables: BTreeSet<(u8, String)>,
    /// There was more than could be told: any of them may have.
    pub(crate) overrun: bool,
}

impl Changed {
    /// Has this table changed, or may it have?
    pub(crate) fn concerns(&self, table: Table) -> bool {
        self.overrun
            || family(table.family).is_some_and(|of| self.tables.contains(&(of, table.name.to_owned())))
    }

    fn is_nothing(&self) -> bool {
        !self.overrun && self.tables.is_empty()
    }

    /// Takes over what messages of the kernel tell: after each header the family, and before all other attributes the table's
    /// name (`struct nlmsghdr`, `struct nfgenmsg` and `struct nlattr` of the kernel). One message ends a transaction and names none.
    fn read(&mut self, datagram: &[u8]) {
        let mut rest = datagram;
        while let Some(length) = u32_at(rest, 0).and_then(|length| usize::try_from(length).ok()) {
            let Some(message) = rest.get(..length).filter(|message| message.len() >= HEADER) else {
                // It is cut off, which kernels do not do.
                self.overrun = true;
                return;
            };
            if u16_at(message, 4).is_some_and(|kind| kind & 0xff != NEW_GENERATION) {
                match table_of(message) {
                    Some(table) => drop(self.tables.insert(table)),
                    None => self.overrun = true,
                }
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn table_of(message: &[u8]) -> Option<(u8, String)> {
    let family = *message.get(HEADER)?;
    let mut attributes = message.get(HEADER + 4..)?;
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let value = attributes.get(4..usize::from(length))?;
        if kind == TABLE_NAME {
            let name = value.strip_suffix(&[0]).unwrap_or(value);
            return Some((family, String::from_utf8_lossy(name).into_owned()));
        }
        attributes = attributes.get(usize::from(length).next_multiple_of(4)..)?;
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The kernel's number of a family (`NFPROTO_INET`, …).
fn family(name: &str) -> Option<u8> {
    Some(match name {
        "inet" => 1,
        "ip" => 2,
        "netdev" => 5,
        "ip6" => 10,
        _ => return None,
    })
}

/// Tells of changes of packet filter rules, anybody's.
pub(crate) struct Events {
    socket: TokioSocket,
    /// What was read and not told yet.
    changed: Changed,
}

impl Events {
    /// Opens a socket for them.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        enlarge(socket.socket_ref());
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        socket.socket_mut().add_membership(GROUP)?;
        Ok(Self { socket, changed: Changed::default() })
    }

    /// Waits until something has changed. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Changed {
        while self.changed.is_nothing() {
            let received = self.socket.recv_from_full().await;
            self.note(received);
        }
        std::mem::take(&mut self.changed)
    }

    /// Forgets what was told of these tables until now.
    fn forget(&mut self, tables: &[Table]) {
        loop {
            match self.socket.socket_ref().recv_from_full() {
                Err(error) if !is_overrun(&error) => break,
                received => self.note(received),
            }
        }
        let is_one = |(of, name): &(u8, String)| {
            tables.iter().any(|table| family(table.family) == Some(*of) && table.name == name)
        };
        self.changed.tables.retain(|changed| !is_one(changed));
    }

    fn note(&mut self, received: io::Result<(Vec<u8>, SocketAddr)>) {
        match received {
            Ok((datagram, _)) => self.changed.read(&datagram),
            // There was more than fits: a change all the same.
            Err(_) => self.changed.overrun = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_counter_has_counted_is_read_from_what_nft_prints() {
        let text = "table inet x {\n\tcounter refused {\n\t\tpackets 3 bytes 180\n\t}\n}\n";
        assert_eq!((packets(text), packets("table inet x {\n}\n")), (Some(3), None));
    }

    /// A message as the kernel sends it.
    fn message(kind: u16, family: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        for (kind, value) in attributes {
            let length = u16::try_from(4 + value.len()).unwrap();
            body.extend([length.to_ne_bytes(), kind.to_ne_bytes()].concat());
            body.extend_from_slice(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend((10 << 8 | kind).to_ne_bytes());
        message.resize(HEADER, 0);
        message.extend(body);
        message
    }

    const OURS: Table = Table { family: "inet", name: "plexus-overlay" };
    const ALIKE: Table = Table { family: "ip", name: "plexus-overlay" };

    fn read(datagram: &[u8]) -> Changed {
        let mut changed = Changed::default();
        changed.read(datagram);
        changed
    }

    #[test]
    fn a_change_is_of_the_table_that_it_names() {
        let rule = message(8, 1, &[(1, b"plexus-overlay\0"), (2, b"forward\0")]);
        let generation = message(NEW_GENERATION, 0, &[(1, &7_u32.to_be_bytes())]);
        let changed = read(&[rule, message(0, 2, &[(1, b"filter\0")]), generation.clone()].concat());
        assert!(changed.concerns(OURS) && !changed.concerns(ALIKE));
        assert!(changed.concerns(Table { family: "ip", name: "filter" }));
        assert!(read(&generation).is_nothing());
    }

    #[test]
    fn what_cannot_be_read_may_be_about_every_table() {
        let rule = message(8, 1, &[(1, b"plexus-overlay\0")]);
        for datagram in [&rule[..rule.len() - 4], &rule[..8], &message(8, 1, &[]), &[0; 32]] {
            assert!(read(datagram).concerns(ALIKE), "{datagram:?}");
        }
        assert!(read(&[]).is_nothing());
    }
}
