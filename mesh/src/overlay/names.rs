//! What links of networks are called, and the MACs of their tunnels (pure).

use nerve::model::{Mac, Slot, Vni};

/// What stands before the slot's number in the MAC of a VXLAN device.
pub(super) const MAC_MARK: u8 = 0x4c;

/// The name of a network's bridge. Names of links have 15 characters at most (`IFNAMSIZ`), which a VNI fits into and a network's
/// name does not.
pub(super) fn bridge(vni: Vni) -> String {
    format!("plxb{vni}")
}

/// The name of a network's VXLAN device.
pub(super) fn vxlan(vni: Vni) -> String {
    format!("plxv{vni}")
}

/// The MAC of the VXLAN device of the node that holds a slot: locally administered, and as unique in the network as the slot is. Its
/// last bytes are the slot's number, which is what `returns` tells the nodes apart by.
pub(super) fn mac(slot: Slot) -> Mac {
    // A network has 2^24 slots at most.
    let [_, a, b, c] = slot.0.to_be_bytes();
    Mac([0x02, 0x50, MAC_MARK, a, b, c])
}
