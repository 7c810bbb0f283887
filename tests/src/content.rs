//! Content of which every block says where it belongs: what is lost, repeated or mixed up on its way does not go unseen.

use std::sync::LazyLock;

/// The length of a block; content has whole blocks only.
pub const BLOCK: usize = 4096;

/// The block with this number.
#[must_use]
pub fn block(number: u64) -> [u8; BLOCK] {
    static COMMON: LazyLock<[u8; BLOCK]> = LazyLock::new(|| {
        // 251 is a prime: no shift by a power of two goes unseen.
        std::array::from_fn(|at| u8::try_from(at % 251).unwrap_or_default())
    });
    let mut block = *COMMON;
    block[..8].copy_from_slice(&number.to_be_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_block_is_like_another_or_like_itself_moved() {
        assert_ne!(block(1), block(2));
        let twice = [block(1), block(2)].concat();
        assert!((1..BLOCK).all(|by| twice[by..by + BLOCK] != block(1)));
    }
}
