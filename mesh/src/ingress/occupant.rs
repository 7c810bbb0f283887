//! Which program of this host holds a port, from `/proc`, for the message that it is taken.
//!
//! Whoever runs without root sees its own programs only; then nobody is named. Looked at once when a port turns out to
//! be taken, never in the path of a connection.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use nerve::model::{Protocol, UnixPath};

use super::desired::covers;

/// Processes that are looked at; a host with more is not searched to its end.
const MOST_PROCESSES: usize = 20_000;
/// `st` of a TCP socket that listens (`TCP_LISTEN` of the kernel).
const LISTENS: &str = "0A";

/// The program that has a socket in the way of one on `address`: its name and process id.
pub(super) fn of(protocol: Protocol, address: SocketAddr) -> Option<String> {
    let inodes: HashSet<u64> = ["", "6"]
        .iter()
        .filter_map(|family| fs::read_to_string(format!("/proc/thread-self/net/{protocol}{family}")).ok())
        .flat_map(|table| in_the_way(&table, protocol, address))
        .collect();
    program_with(&inodes)
}

/// The program that listens on a unix socket of this path.
pub(super) fn of_unix(path: &UnixPath) -> Option<String> {
    let table = fs::read_to_string("/proc/thread-self/net/unix").ok()?;
    program_with(&bound_to(&table, path))
}

/// The inodes of the sockets in a table of `/proc/net/unix` that have this path as their name.
fn bound_to(table: &str, path: &UnixPath) -> HashSet<u64> {
    // Num RefCount Protocol Flags Type St Inode Path
    let line = |line: &str| {
        let (head, name) = line.split_at(line.find('/')?);
        (name == path.as_str()).then(|| head.split_whitespace().nth(6)?.parse().ok())?
    };
    table.lines().filter_map(line).collect()
}

fn program_with(inodes: &HashSet<u64>) -> Option<String> {
    if inodes.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.flatten().take(MOST_PROCESSES);
    let numbered =
        processes.filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit));
    let holder = numbered.map(|entry| entry.path()).find(|process| has_one_of(process, inodes))?;
    let name = fs::read_to_string(holder.join("comm")).ok()?;
    Some(format!("{} (process {})", name.trim(), holder.file_name()?.to_str()?))
}

fn has_one_of(process: &Path, inodes: &HashSet<u64>) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return false };
    let links = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    links.filter_map(|link| inode(link.to_str()?)).any(|inode| inodes.contains(&inode))
}

/// `socket:[1234]`
fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The inodes of the sockets in a table of `/proc/net` that share an address and port with `address`.
fn in_the_way(table: &str, protocol: Protocol, address: SocketAddr) -> Vec<u64> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local = socket_address(fields.get(1)?)?;
        let counts = protocol == Protocol::Udp || *fields.get(3)? == LISTENS;
        let meets = covers(local.ip(), address.ip()) || covers(address.ip(), local.ip());
        (counts && meets && local.port() == address.port()).then(|| fields.get(9)?.parse().ok())?
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// `0100007F:1F90`: words in the byte order of the host, as the kernel prints them (proc_pid_net(5)).
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word =
        |at: usize| u32::from_str_radix(address.get(8 * at..8 * at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip: IpAddr = match address.len() {
        8 => word(0)?.into(),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            <[u8; 16]>::try_from(words.concat()).ok()?.into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

/// What stands before whoever is in the way.
const NOW: &str = "; now it is ";

/// May it be Docker that is in the way, by what [`named`] says? Whoever cannot be seen may be.
pub(super) fn may_be_docker(why: &str) -> bool {
    why.rsplit_once(NOW).is_none_or(|(_, program)| program.starts_with("docker"))
}

/// Why a listener is not open, and who is in its way. Who it is was said when it began to fail; asking again each time would cost
/// a look at every process.
pub(super) fn named(text: String, last_error: Option<&str>, who: impl FnOnce() -> Option<String>) -> String {
    let known = last_error.filter(|known| known.starts_with(&text)).map(str::to_owned);
    known.unwrap_or_else(|| match who() {
        Some(program) => format!("{text}{NOW}{program}"),
        None => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_a_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let held = listener.local_addr().unwrap();
        let this = format!("(process {})", std::process::id());
        let any = SocketAddr::new("::".parse().unwrap(), held.port());
        for address in [held, any] {
            assert!(of(Protocol::Tcp, address).is_some_and(|name| name.ends_with(&this)), "{address}");
        }
        assert_eq!(of(Protocol::Tcp, SocketAddr::new("127.0.0.2".parse().unwrap(), held.port())), None);
        assert_eq!(of(Protocol::Udp, held), None);
    }

    #[test]
    fn whoever_listens_on_a_unix_socket_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = UnixPath::new(directory.path().join("a b.sock").to_str().unwrap()).unwrap();
        assert_eq!(of_unix(&path), None);
        let _listener = std::os::unix::net::UnixListener::bind(path.as_path()).unwrap();
        let this = format!("(process {})", std::process::id());
        assert!(of_unix(&path).is_some_and(|name| name.ends_with(&this)));
    }

    #[test]
    fn a_socket_that_only_connects_holds_no_port() {
        let table = "sl\n 0: 00000000:1F90 00000000:0000 01 0 0 0 0 0 77 1";
        let address = "[::]:8080".parse().unwrap();
        assert!(in_the_way(table, Protocol::Tcp, address).is_empty());
        assert_eq!(in_the_way(&table.replace(" 01 ", " 0A "), Protocol::Tcp, address), [77]);
        assert!(in_the_way("sl\nnonsense", Protocol::Tcp, address).is_empty());
    }
}
