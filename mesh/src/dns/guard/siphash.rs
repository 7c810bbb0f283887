//! SipHash-2-4 (Aumasson and Bernstein, 2012): what RFC 9018 makes server cookies with, so that servers of other makes that are given
//! the same secret agree. The standard library has SipHash-1-3 only, and promises not even that.

/// A secret.
pub(super) type Key = [u8; 16];

/// The number of `data` under `key`.
pub(super) fn hash(key: &Key, data: &[u8]) -> u64 {
    let (low, high) = key.split_at(8);
    let (k0, k1) = (word(low), word(high));
    let mut state = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let blocks = data.chunks_exact(8);
    // The octets that fill no word, and in the highest octet how many there were in all.
    let last = word(blocks.remainder()) | (data.len() as u64) << 56;
    for block in blocks.map(word).chain([last]) {
        state[3] ^= block;
        rounds(&mut state, 2);
        state[0] ^= block;
    }
    state[2] ^= 0xff;
    rounds(&mut state, 4);
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

/// At most eight octets, the lowest first.
fn word(octets: &[u8]) -> u64 {
    octets.iter().rev().fold(0, |word, octet| word << 8 | u64::from(*octet))
}

fn rounds([a, b, c, d]: &mut [u64; 4], count: usize) {
    for _ in 0..count {
        *a = a.wrapping_add(*b);
        *b = b.rotate_left(13) ^ *a;
        *a = a.rotate_left(32);
        *c = c.wrapping_add(*d);
        *d = d.rotate_left(16) ^ *c;
        *a = a.wrapping_add(*d);
        *d = d.rotate_left(21) ^ *a;
        *c = c.wrapping_add(*b);
        *b = b.rotate_left(17) ^ *c;
        *c = c.rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the authors' reference implementation: the key 00 … 0f, and messages 00 01 02 … of so many octets.
    #[test]
    fn the_authors_numbers_come_out() {
        let data: Vec<u8> = (0..64).collect();
        let key: Key = data[..16].try_into().unwrap();
        for (length, expected) in [
            (0, 0x726f_db47_dd0e_0e31),
            (1, 0x74f8_39c5_93dc_67fd),
            (7, 0xab02_00f5_8b01_d137),
            (8, 0x93f5_f579_9a93_2462),
            (15, 0xa129_ca61_49be_45e5),
            (63, 0x958a_324c_eb06_4572),
        ] {
            assert_eq!(hash(&key, &data[..length]), expected, "{length} octets");
        }
    }
}
