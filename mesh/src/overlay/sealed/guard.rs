//! The packet filter's part of encrypted networks as text for `nft` (pure): what would pass in the clear is dropped, coming or going.
//!
//! It stands before any such network has a link. Links and routes alone lead nowhere else already; this is for what somebody changes of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use nerve::model::{Prefix, Vni};

use super::links::{ESP, WIREGUARD};
use crate::nft::Table;
use crate::overlay::names::{bridge, vxlan};

/// Its table.
pub(in crate::overlay) const TABLE: Table = Table { family: "inet", name: "plexus-encrypted" };

/// An encrypted network.
pub(in crate::overlay) type Zone = (Vni, Vec<Prefix>);

/// The text that replaces the table; without networks there is none. `port`: of their tunnels.
pub(super) fn ruleset(zones: &BTreeSet<Zone>, port: u16) -> String {
    let mut text = TABLE.removal();
    if zones.is_empty() {
        return text;
    }
    let mut held = String::new();
    for (vni, ranges) in zones {
        for range in ranges {
            let family = if range.is_ipv4() { "ip" } else { "ip6" };
            let (bridge, vxlan) = (bridge(*vni), vxlan(*vni));
            // Writing to a string does not fail.
            let _ = writeln!(
                held,
                "    {family} daddr {range} oifname != {{ \"lo\", \"{bridge}\", \"{vxlan}\" }} counter drop"
            );
        }
    }
    let _ = write!(
        text,
        "table {TABLE} {{\n  \
           chain arriving {{\n    \
             type filter hook input priority raw; policy accept;\n    \
             udp dport {port} iifname != \"{WIREGUARD}*\" iifname != \"{ESP}*\" counter drop\n  \
           }}\n  \
           chain departing {{\n    \
             type filter hook output priority raw; policy accept;\n    \
             udp dport {port} oifname != \"{WIREGUARD}*\" oifname != \"{ESP}*\" counter drop\n  \
           }}\n  \
           chain leaving {{\n    \
             type filter hook postrouting priority raw; policy accept;\n{held}  \
           }}\n\
         }}\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_a_network_leaves_by_its_links_alone() {
        let ranges = vec!["10.43.0.0/16".parse().unwrap(), "fd43::/48".parse().unwrap()];
        let text = ruleset(&[(Vni::new(7).unwrap(), ranges)].into(), 4791);
        for rule in [
            r#"ip daddr 10.43.0.0/16 oifname != { "lo", "plxb7", "plxv7" } counter drop"#,
            r#"ip6 daddr fd43::/48 oifname != { "lo", "plxb7", "plxv7" } counter drop"#,
            r#"udp dport 4791 iifname != "plxw*" iifname != "plxx*" counter drop"#,
            r#"udp dport 4791 oifname != "plxw*" oifname != "plxx*" counter drop"#,
        ] {
            assert!(text.contains(rule), "{rule} in {text}");
        }
        assert_eq!(ruleset(&BTreeSet::new(), 4791), TABLE.removal());
    }
}
