//! `[mtls]`: how other nodes' instances are reached, and this node's by them.

use std::net::{IpAddr, SocketAddr};

use nerve::document::{Reported, Section, Text};
use nerve::model::MtlsMode;
use serde::Serialize;

use crate::mtls::TUNNEL_PORT;

/// The longest name of a link (`IFNAMSIZ` of the kernel, without its end).
const LONGEST_LINK: usize = 15;
/// So many patterns are enough for every container runtime.
const MAX_LINKS: usize = 64;
/// What container runtimes and virtual machines call the links of what is on their host.
const LOCAL_LINKS: [&str; 7] = ["docker*", "br-*", "podman*", "cni*", "cali*", "lxc*", "virbr*"];

/// The table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mtls {
    /// What holds for services that say nothing else.
    pub mode: MtlsMode,
    /// Where other nodes' tunnels are taken; none: on the node's address.
    pub listen: Vec<SocketAddr>,
    /// Links by which only what is on this host comes.
    pub local_links: Vec<String>,
}

impl Mtls {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let mode = section.or("mode", Text(MtlsMode::Off)).0;
        let listen = section.or("listen", Vec::new());
        let local_links = section.or("local_links", LOCAL_LINKS.map(str::to_owned).to_vec());
        if local_links.len() > MAX_LINKS || !local_links.iter().all(|link| is_pattern(link)) {
            let expected = "names of links such as \"docker0\", or their beginnings such as \"docker*\"";
            return Err(section.invalid("local_links", "these are no names of links", expected));
        }
        Ok(Self { mode, listen, local_links })
    }

    /// Where tunnels are taken, on a node of this address.
    pub(super) fn listen(&self, address: IpAddr) -> Vec<SocketAddr> {
        match &self.listen[..] {
            [] => vec![SocketAddr::new(address, TUNNEL_PORT)],
            given => given.to_vec(),
        }
    }
}

/// A name of a link, or the beginning of one and `*`. What stands in a rule must end nowhere else.
fn is_pattern(text: &str) -> bool {
    let name = text.strip_suffix('*').unwrap_or(text);
    let is_usual = |octet: u8| octet.is_ascii_alphanumeric() || b"-_.:@".contains(&octet);
    !name.is_empty() && name.len() <= LONGEST_LINK && name.bytes().all(is_usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_of_the_letters_of_links_and_ends_with_its_star() {
        for good in ["docker0", "br-*", "eth0.5", "cni-podman0", "veth1@if2"] {
            assert!(is_pattern(good), "{good}");
        }
        for bad in ["", "*", "a*b", "a\" accept", "a b", "sixteenletterslo", "**"] {
            assert!(!is_pattern(bad), "{bad}");
        }
    }
}
