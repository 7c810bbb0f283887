//! A number for a name that every agent of every version finds the same: where to begin looking for a free address, a free
//! subnet, a free number. It spreads; it protects against nobody.

/// FNV-1a of 64 bits, mixed once more so that names that differ in their last letter lie far apart. This may never change:
/// agents of different versions share a fleet.
#[must_use]
pub fn of(text: &str) -> u64 {
    let fnv = text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // The finaliser of splitmix64.
    let mixed = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
