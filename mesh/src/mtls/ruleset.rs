//! What keeps other hosts from reaching strict instances in the clear, as text for `nft` (pure).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::nft::Table;

/// Our table. Nothing outside of it is ours.
pub(super) const TABLE: Table = Table { family: "inet", name: "plexus-mtls" };
/// What counts those that are refused.
pub(super) const COUNTER: &str = "refused";
/// Links of this host's own, whatever the configuration says: bridges of overlay networks, whose packets are those networks' to
/// protect.
const OWN: &str = "plxb*";

/// The text that replaces our table, whether it is there or not, in one transaction.
///
/// Before addresses are translated, so that ports that a container runtime publishes are told by what was asked for; without
/// tracking connections, so that those which are open go on.
pub(super) fn ruleset(addresses: &BTreeSet<SocketAddr>, local_links: &[String]) -> String {
    let mut sets = String::new();
    let mut rules = String::from("    iif \"lo\" return\n");
    for link in local_links.iter().map(String::as_str).chain([OWN]) {
        let _ = writeln!(rules, "    iifname \"{link}\" return");
    }
    for (number, family, kind) in [(4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr")] {
        let of_family: Vec<String> = addresses
            .iter()
            .filter(|address| address.is_ipv4() == (number == 4))
            .map(|address| format!("{} . {}", address.ip(), address.port()))
            .collect();
        if of_family.is_empty() {
            continue;
        }
        let elements = of_family.join(", ");
        let _ = writeln!(
            sets,
            "  set strict{number} {{ type {kind} . inet_service; elements = {{ {elements} }} }}"
        );
        let _ = writeln!(
            rules,
            "    {family} daddr . tcp dport @strict{number} tcp flags & (fin|syn|rst|ack) == syn counter name {COUNTER} reject with tcp reset\n    \
             {family} daddr . udp dport @strict{number} counter name {COUNTER} reject"
        );
    }
    format!(
        "{}table {TABLE} {{\n  counter {COUNTER} {{ }}\n{sets}  chain arriving {{\n    \
         type filter hook prerouting priority mangle; policy accept;\n{rules}  }}\n}}\n",
        TABLE.removal()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_this_host_passes_before_anything_is_refused() {
        let addresses = ["192.0.2.1:80", "[2001:db8::1]:80"].map(|address| address.parse().unwrap());
        let text = ruleset(&addresses.into(), &["docker*".to_owned()]);
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what} in {text}"));
        assert!(at("iif \"lo\" return") < at("iifname \"docker*\" return"));
        assert!(at("iifname \"plxb*\" return") < at("ip daddr . tcp"));
        assert!(text.contains("{ 192.0.2.1 . 80 }") && text.contains("{ 2001:db8::1 . 80 }"), "{text}");
        assert!(!ruleset(&[addresses[0]].into(), &[]).contains("ip6"), "a family without any has no set");
    }
}
