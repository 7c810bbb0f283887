//! The packet filter's part as text for `nft` (pure).

use super::plan::Needs;
use crate::nft::Table;

/// Our table. Nothing outside of it is ours.
pub(super) const TABLE: Table = Table { family: "inet", name: "plexus-steer" };

/// The two bits of marks that are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    /// On our sockets, on what they send, and on the connections that the kernel tracks of them.
    pub(super) ours: u32,
    /// On answers, for the routing rule.
    pub(super) answers: u32,
    /// Both.
    pub(super) mask: u32,
}

impl Marks {
    /// Of this bit, which is not the highest, and the next.
    pub(super) fn new(bit: u32) -> Self {
        Self { ours: bit, answers: bit << 1, mask: bit | bit << 1 }
    }
}

/// The text that replaces our table, whether it is there or not, in one transaction.
pub(super) fn ruleset(marks: Marks, needs: Needs) -> String {
    let Marks { ours, answers, mask } = marks;
    let keep = !mask;
    let steer = format!("meta mark set meta mark and {keep:#x} or {answers:#x} accept");
    let mut chains = String::new();
    if needs.links {
        // A packet on `lo` has its route already. A socket whose connection has ended has no mark any more, nor the property that
        // the third rule asks for, which tells it from all that are not ours.
        chains += &format!(
            "  chain arriving {{\n    \
                 type filter hook prerouting priority mangle; policy accept;\n    \
                 iif \"lo\" return\n    \
                 socket mark and {mask:#x} == {ours:#x} {steer}\n    \
                 socket wildcard {{ 0, 1 }} return\n    \
                 socket transparent 1 {steer}\n  \
               }}\n"
        );
    }
    if needs.host {
        chains += &format!(
            "  chain leaving {{\n    \
                 type route hook output priority mangle; policy accept;\n    \
                 ct direction reply ct mark and {ours:#x} == {ours:#x} {steer}\n    \
                 meta mark and {mask:#x} == {ours:#x} ct state new ct mark set ct mark or {ours:#x}\n  \
               }}\n"
        );
    }
    format!("{}table {TABLE} {{\n{chains}}}\n", TABLE.removal())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_tracked_only_for_processes_of_this_host() {
        let marks = Marks::new(0x1000_0000);
        let links = ruleset(marks, Needs { links: true, ..Needs::default() });
        assert!(links.contains("socket mark") && !links.contains("ct "), "{links}");
        let host = ruleset(marks, Needs { host: true, ..Needs::default() });
        assert!(host.contains("ct mark") && !host.contains("socket"), "{host}");
    }

    #[test]
    fn bits_of_others_stay_as_they_are() {
        let marks = Marks::new(0x10);
        assert_eq!(marks, Marks { ours: 0x10, answers: 0x20, mask: 0x30 });
        let text = ruleset(marks, Needs { links: true, host: true, ..Needs::default() });
        let set: Vec<&str> = text.lines().filter(|line| line.contains(" set ")).collect();
        assert_eq!(set.len(), 4);
        for line in set {
            let keeps = line.contains("mark and 0xffffffcf or 0x20") || line.contains("ct mark or 0x10");
            assert!(keeps, "{line}");
        }
    }
}
