//! Answers to clients elsewhere go back by the node that their connection came from (pure).
//!
//! A balancer that shows containers of other nodes its clients' own addresses sends packets through the tunnel whose source is not
//! behind the tunnel. What the container answers would leave this node by its default route, past the balancer, which
//! alone knows the connection. So the connection is marked with the number of the slot that it came from, which the sender's
//! MAC ends with; marked answers are routed into the tunnel by a table of the network's own, to a gateway that stands for any; and
//! on their way out, that gateway's MAC gets the number's last two bytes. So all of it is the same for one peer and for a thousand.
//!
//! Connection tracking, which does the remembering, is on already: it masquerades what leaves. The hook on the way out is Linux 5.16's.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nerve::model::{Network, Vni};

use super::names::{MAC_MARK, bridge, vxlan};
use crate::nft::Table;

/// What marks connections and remembers where they came from.
pub(super) const INSIDE: Table = Table { family: "inet", name: "plexus-return" };
/// What directs answers to the right node.
pub(super) const OUTSIDE: Table = Table { family: "netdev", name: "plexus-return" };

/// The gateways that stand for the node that a connection came from.
pub(super) const GATEWAYS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 82, 82)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x5252)),
];
/// The last four bytes of a MAC as a mark: [`MAC_MARK`], a zero, and the slot's number. Versions of nft differ in whether they turn them into
/// the order of the host's numbers, so both orders are known; a mark that could be either is the same slot in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Form {
    /// What of the mark is not the slot's number.
    pub(super) mark: u32,
    /// Its bits.
    pub(super) mask: u32,
    /// Where the higher and the lower byte of the number begin.
    high: u32,
    low: u32,
}

/// As numbers are written, and the other way round.
pub(super) const FORMS: [Form; 2] = [
    Form { mark: (MAC_MARK as u32) << 24, mask: 0xffff_0000, high: 8, low: 0 },
    Form { mark: MAC_MARK as u32, mask: 0x0000_ffff, high: 16, low: 24 },
];
/// So many slots have numbers of two bytes.
const SLOTS: u32 = 1 << 16;

/// The routing table of a network's answers to clients elsewhere. A number that nobody has by accident: nobody's tables begin here.
pub(super) fn table(vni: Vni) -> u32 {
    (82 << 24) | vni.get()
}

/// Can answers in this network find back?
pub(super) fn is_possible(network: &Network) -> bool {
    network.slots() <= SLOTS
}

/// The text that replaces both tables, whether they are there or not, in one transaction; without networks there are none.
pub(super) fn ruleset(networks: &BTreeSet<Vni>) -> String {
    let mut text = INSIDE.removal() + &OUTSIDE.removal();
    if networks.is_empty() {
        return text;
    }
    let links = |name: fn(Vni) -> String| {
        let names = networks.iter().map(|vni| format!("\"{}\"", name(*vni)));
        names.collect::<Vec<_>>().join(", ")
    };
    let (bridges, tunnels) = (links(bridge), links(vxlan));
    let of_forms = |rule: &dyn Fn(Form) -> String| FORMS.map(rule).concat();
    // What is not of networks, tunnels' own packets among it, is to cost one rule of each chain.
    // Whoever the tunnel does not lead to is elsewhere. A client may use a port again, by another node: the last one counts.
    let _ = write!(
        text,
        "table {INSIDE} {{\n  \
           chain arriving {{\n    \
             type filter hook prerouting priority mangle; policy accept;\n    \
             iifname != {{ {tunnels}, {bridges} }} accept\n\
         {again}    \
             iifname {{ {tunnels} }} ct state new fib saddr . iif oif missing ct mark set {SENDER}\n\
         {answers}  \
           }}\n  \
           chain leaving {{\n    \
             type filter hook output priority mangle; policy accept;\n    \
             oifname != {{ {bridges} }} accept\n\
         {past}  \
           }}\n\
         }}\n\
         table {OUTSIDE} {{\n  \
           chain back {{\n    \
             type filter hook egress devices = {{ {tunnels} }} priority filter; policy accept;\n    \
             meta mark 0 accept\n\
         {directed}  \
           }}\n\
         }}\n",
        again = of_forms(&|form| {
            let is_marked = form.of("ct");
            format!("    iifname {{ {tunnels} }} ct direction original {is_marked} ct mark set {SENDER}\n")
        }),
        answers = of_forms(&|form| {
            let is_marked = form.of("ct");
            format!("    iifname {{ {bridges} }} ct direction reply {is_marked} meta mark set ct mark\n")
        }),
        past = of_forms(&|form| {
            let is_marked = form.of("ct");
            format!("    oifname {{ {bridges} }} ct direction original {is_marked} ct mark set 0\n")
        }),
        directed = of_forms(&|form| {
            let bytes = [(32, form.high), (40, form.low)].map(|(at, from)| {
                format!("@ll,{at},8 set meta mark and {:#x} map {{ {} }} ", 0xff_u32 << from, bytes(from))
            });
            format!("    {} {}meta mark set 0 accept\n", form.of("meta"), bytes.concat())
        }),
    );
    text
}

/// The last four bytes of the sender's MAC.
const SENDER: &str = "@ll,64,32";

impl Form {
    /// That a mark, the packet's (`meta`) or the connection's (`ct`), is of this form.
    fn of(self, whose: &str) -> String {
        format!("{whose} mark and {:#x} == {:#x}", self.mask, self.mark)
    }
}

/// A byte of a mark as that byte: a mark cannot be written into a packet otherwise.
fn bytes(shift: u32) -> String {
    let elements = (0..=255_u32).map(|byte| format!("{:#x} : {byte}", byte << shift));
    elements.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_of_the_networks_that_are_here_and_of_no_peer() {
        let vnis = [4096, 77].map(|vni| Vni::new(vni).unwrap());
        let text = ruleset(&vnis.into());
        assert!(text.contains("iifname { \"plxv77\", \"plxv4096\" } ct state new"), "{text}");
        assert!(text.contains("devices = { \"plxv77\", \"plxv4096\" }"), "{text}");
        assert!(text.contains("0xff00 : 255") && text.contains("0xfe000000 : 254"), "{text}");
        let none = ruleset(&BTreeSet::new());
        assert_eq!(none.lines().count(), 4, "{none}");
    }

    #[test]
    fn a_slot_is_found_in_the_mark_of_either_order() {
        for slot in [0, 7, 0x4c, 0x4c00, 0x1234, 0xffff] {
            let [.., a, b, c, d] = super::super::names::mac(nerve::model::Slot(slot)).0;
            for mark in [u32::from_be_bytes([a, b, c, d]), u32::from_le_bytes([a, b, c, d])] {
                let form = FORMS.into_iter().find(|form| mark & form.mask == form.mark).unwrap();
                let byte = |at: u32| mark >> at & 0xff;
                assert_eq!(byte(form.high) << 8 | byte(form.low), slot, "{mark:#x}");
            }
        }
    }

    #[test]
    fn a_network_has_a_table_of_its_own() {
        assert_eq!(table(Vni::new(4096).unwrap()), 0x5200_1000);
        assert!(table(Vni::MAX) > u32::from(u8::MAX), "not one of the tables that every host has");
    }

    #[test]
    fn a_network_has_at_most_as_many_slots_as_a_mark_can_tell_apart() {
        let network = |cidr: &str, length: u8| {
            let json = serde_json::json!({"vni": 1, "pools": [{"cidr": cidr, "subnet_length": length}]});
            serde_json::from_value::<Network>(json).unwrap()
        };
        assert!(is_possible(&network("fd42::/48", 64)) && !is_possible(&network("10.0.0.0/8", 25)));
    }
}
