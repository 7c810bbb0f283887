//! What systemd-resolved and dnsmasq are told, as files of ours beside their own configuration (pure).

use std::net::{IpAddr, SocketAddr};

use nerve::model::Prefix;

use super::resolv_conf::PORT;

/// The beginning of every file of ours; what begins otherwise is somebody else's.
pub(super) const MARK: &str = "# Written by `plexus dns install`, and removed by `plexus dns uninstall`.\n";

/// Reverse zones of one range at most: of lengths between whole labels there are several.
const MOST_ZONES: u32 = 128;

/// What is to be asked of whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    pub(super) server: SocketAddr,
    pub(super) domains: &'a [String],
    pub(super) ranges: &'a [Prefix],
    /// Every name, not those of the domains alone.
    pub(super) all: bool,
    /// Are names without a dot looked for in the domains?
    pub(super) search: bool,
}

/// `resolved.conf.d/plexus.conf` (resolved.conf(5)).
pub(super) fn resolved(wish: &Wish<'_>) -> String {
    let Wish { server, domains, ranges, all, search } = *wish;
    let server = if server.port() == PORT { server.ip().to_string() } else { server.to_string() };
    // With `~` a domain says where names go, and is not looked in.
    let mark = if search { "" } else { "~" };
    let mut routed: Vec<String> = domains.iter().map(|domain| format!("{mark}{domain}")).collect();
    routed.extend(ranges.iter().flat_map(|range| reverse_zones(*range)).map(|zone| format!("~{zone}")));
    if all {
        routed.push("~.".to_owned());
    }
    // The empty one takes away those of files before.
    let alone = if all { "DNS=\n" } else { "" };
    format!("{MARK}[Resolve]\n{alone}DNS={server}\nDomains={}\n", routed.join(" "))
}

/// `dnsmasq.d/plexus.conf` (dnsmasq(8)).
pub(super) fn dnsmasq(wish: &Wish<'_>) -> String {
    let Wish { server, domains, ranges, all, .. } = *wish;
    let server = format!("{}#{}", server.ip(), server.port());
    let mut text = MARK.to_owned();
    for domain in domains {
        // Its names are private addresses, which a dnsmasq that guards against rebinding drops.
        text.push_str(&format!("server=/{domain}/{server}\nrebind-domain-ok=/{domain}/\n"));
    }
    for range in ranges {
        text.push_str(&format!("rev-server={range},{server}\n"));
    }
    if all {
        text.push_str(&format!("no-resolv\nserver={server}\n"));
    }
    text
}

/// The zones that reverse names of a range are in: whole labels, as many as it takes; none for a range that takes too many.
fn reverse_zones(range: Prefix) -> Vec<String> {
    let (bits, of_label): (u128, u8) = match range.network() {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 8),
        IpAddr::V6(v6) => (u128::from(v6), 4),
    };
    let labels = range.length().div_ceil(of_label);
    let count = 1_u32.checked_shl(u32::from(labels * of_label - range.length())).unwrap_or(u32::MAX);
    if labels == 0 || count > MOST_ZONES {
        return Vec::new();
    }
    let suffix = if range.is_ipv4() { "in-addr.arpa" } else { "ip6.arpa" };
    let shift = 128 - u32::from(labels) * u32::from(of_label);
    let mask = (1_u128 << of_label) - 1;
    let zone = |number: u128| {
        let at = |label: u8| ((bits >> shift) + number) >> (u32::from(label) * u32::from(of_label)) & mask;
        let names = (0..labels)
            .map(|label| if range.is_ipv4() { at(label).to_string() } else { format!("{:x}", at(label)) });
        format!("{}.{suffix}", names.collect::<Vec<_>>().join("."))
    };
    (0..u128::from(count)).map(zone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(range: &str) -> Vec<String> {
        reverse_zones(range.parse().unwrap())
    }

    #[test]
    fn reverse_zones_are_whole_labels() {
        assert_eq!(zones("10.96.0.0/16"), ["96.10.in-addr.arpa"]);
        assert_eq!(zones("10.96.0.0/15"), ["96.10.in-addr.arpa", "97.10.in-addr.arpa"]);
        assert_eq!(zones("10.96.0.7/32"), ["7.0.96.10.in-addr.arpa"]);
        assert_eq!(zones("fd00:96::/32"), ["6.9.0.0.0.0.d.f.ip6.arpa"]);
        assert_eq!(zones("fc00::/7").len(), 2);
        assert_eq!(zones("10.0.0.0/9").len(), 128);
        assert_eq!(zones("0.0.0.0/0"), Vec::<String>::new());
    }

    #[test]
    fn what_is_asked_of_the_agent_is_the_domain_and_the_range_or_everything() {
        let domains = ["mesh.internal".to_owned()];
        let ranges = ["10.96.0.0/16".parse().unwrap()];
        let server = "169.254.53.53:53".parse().unwrap();
        let wish = Wish { server, domains: &domains, ranges: &ranges, all: false, search: false };
        assert_eq!(
            resolved(&wish),
            format!("{MARK}[Resolve]\nDNS=169.254.53.53\nDomains=~mesh.internal ~96.10.in-addr.arpa\n")
        );
        assert_eq!(
            dnsmasq(&wish),
            format!(
                "{MARK}server=/mesh.internal/169.254.53.53#53\nrebind-domain-ok=/mesh.internal/\n\
                 rev-server=10.96.0.0/16,169.254.53.53#53\n"
            )
        );
        let server = "[::1]:8600".parse().unwrap();
        let everything = Wish { server, ranges: &[], all: true, search: true, ..wish };
        assert_eq!(
            resolved(&everything),
            format!("{MARK}[Resolve]\nDNS=\nDNS=[::1]:8600\nDomains=mesh.internal ~.\n")
        );
        assert!(dnsmasq(&everything).ends_with("no-resolv\nserver=::1#8600\n"));
    }
}
