//! What is said of endpoints that see this node's address instead of their clients' (pure).
//!
//! Some reasons are the endpoint's, others depend on the client as well: of these it is said which clients they are about.

use std::net::IpAddr;

use nerve::model::Prefix;

use crate::proxy::{Plain, Way};

/// That nothing is steered, and why.
pub(super) fn off(why: &str) -> String {
    format!(
        "endpoints on this node see its address instead of their clients', although services ask for it: {why}"
    )
}

/// Why an endpoint sees this node's address.
pub(super) fn of(plain: Plain) -> &'static str {
    match plain {
        Plain::Off => "answers to clients' addresses are not steered here",
        Plain::Elsewhere => "its answers do not pass through this node",
        Plain::SourceCheck => "net.ipv4.conf.*.src_valid_mark = 1 on its interface would drop its answers",
        Plain::Family => "the client's address is of the other family",
        Plain::Scope => "the client's address means nothing to it",
        Plain::Neighbour => "it would answer the client past this node",
        Plain::UnixSocket => "this node reaches it by its unix socket, where nobody has an address",
    }
}

/// The clients whose address cannot be shown to an endpoint that can be shown others, in words that follow "clients": what
/// [`Ways`](crate::proxy::Ways) says of them, the other way round.
pub(super) fn but(endpoint: IpAddr, way: &Way) -> Vec<(Plain, String)> {
    let (v4, loopback) = (endpoint.is_ipv4(), endpoint.is_loopback());
    let family = if v4 { "with IPv6" } else { "with IPv4" };
    let scope = if loopback { "from elsewhere than loopback" } else { "by loopback or link-local addresses" };
    let mut but = vec![
        (Plain::Family, family.to_owned()),
        (Plain::Scope, scope.to_owned()),
        (Plain::UnixSocket, "by unix sockets".to_owned()),
    ];
    let is_told = |range: &Prefix| range.is_ipv4() == v4 && !is_link_local(range);
    let mut ranges: Vec<&Prefix> = way.neighbours.iter().filter(|range| is_told(range)).collect();
    // The widest first: what lies in one that was named goes without saying.
    ranges.sort_by_key(|range| (range.length(), range.network()));
    let mut named: Vec<&Prefix> = Vec::new();
    for range in ranges {
        if !named.iter().any(|wider| wider.contains(range.network())) {
            named.push(range);
        }
    }
    if !named.is_empty() {
        let listed =
            |ranges: Vec<&Prefix>| ranges.into_iter().map(Prefix::to_string).collect::<Vec<_>>().join(" or ");
        let except: Vec<&Prefix> = way.but.iter().filter(|range| is_told(range)).collect();
        let except =
            if except.is_empty() { String::new() } else { format!(", but not in {}", listed(except)) };
        but.push((Plain::Neighbour, format!("in {}{except}", listed(named))));
    }
    but
}

fn is_link_local(range: &Prefix) -> bool {
    match range.network() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(endpoint: &str, neighbours: &[&str]) -> Vec<(Plain, String)> {
        let neighbours = neighbours.iter().map(|range| range.parse().unwrap()).collect();
        but(endpoint.parse().unwrap(), &Way { neighbours, but: Vec::new() })
    }

    #[test]
    fn every_reason_has_words_of_its_own() {
        let words: std::collections::BTreeSet<_> = Plain::ALL.into_iter().map(of).collect();
        assert_eq!(words.len(), Plain::ALL.len());
    }

    #[test]
    fn clients_of_an_endpoint_on_a_link_are_told_by_its_ranges() {
        let said = said(
            "172.30.0.2",
            &["fe80::/64", "fd77:30::/64", "172.30.0.2", "172.30.0.0/24", "172.31.0.0/24"],
        );
        let said: Vec<_> = said.iter().map(|(plain, clients)| (*plain, clients.as_str())).collect();
        assert_eq!(
            said,
            [
                (Plain::Family, "with IPv6"),
                (Plain::Scope, "by loopback or link-local addresses"),
                (Plain::UnixSocket, "by unix sockets"),
                (Plain::Neighbour, "in 172.30.0.0/24 or 172.31.0.0/24"),
            ]
        );
    }

    #[test]
    fn a_process_of_this_host_has_no_neighbours() {
        assert!(said("2001:db8::1", &[]).iter().all(|(plain, _)| *plain != Plain::Neighbour));
        assert_eq!(said("2001:db8::1", &[])[0].1, "with IPv4");
        assert_eq!(said("127.0.0.1", &[])[1].1, "from elsewhere than loopback");
    }
}
