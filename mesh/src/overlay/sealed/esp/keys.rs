//! What two nodes agree on for ESP: the key and the number of each direction, made of both nodes' key pairs (pure).
//!
//! A key is used for one association and never again: with AES-GCM, two packets of one key and number would give the key away. So a private
//! key is in the memory of one agent alone and ends with it, and an association of a pair of keys is made once.

use nerve::model::PublicKey;
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

/// AES-256 and the salt of GCM (RFC 4106, section 8.1), and the number of the association.
const KEY: usize = 36;
const NUMBER: usize = 4;
/// Numbers below are reserved (RFC 4303, section 2.1).
const FIRST_NUMBER: u32 = 256;
const SALT: &[u8] = b"plexus overlay esp 1";

/// A private key. It is overwritten when it goes.
pub(in crate::overlay::sealed) struct Private(StaticSecret);

/// What one direction has.
pub(super) struct Agreed {
    /// Of the association (Security Parameters Index).
    pub(super) number: u32,
    /// For AES-GCM, its salt included.
    pub(super) key: Zeroizing<[u8; KEY]>,
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        KEY + NUMBER
    }
}

impl Private {
    /// A new one; `None`: there is no randomness.
    pub(in crate::overlay::sealed) fn generate() -> Option<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(&mut *bytes).ok()?;
        Some(Self(StaticSecret::from(*bytes)))
    }

    /// Its public half.
    pub(in crate::overlay::sealed) fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    /// What goes to a peer has, or with `from_peer` what comes from it; `None`: the peer's key is none that anything can be agreed on with.
    pub(super) fn agree(&self, peer: PublicKey, from_peer: bool) -> Option<Agreed> {
        let shared = self.0.diffie_hellman(&x25519_dalek::PublicKey::from(peer.0));
        if !shared.was_contributory() {
            return None;
        }
        let (from, to) = if from_peer { (peer, self.public()) } else { (self.public(), peer) };
        let secret = Salt::new(HKDF_SHA256, SALT).extract(shared.as_bytes());
        let mut bytes = Zeroizing::new([0; KEY + NUMBER]);
        secret.expand(&[&from.0, &to.0], Length).and_then(|made| made.fill(&mut *bytes)).ok()?;
        let (first, last) = bytes.split_first_chunk::<KEY>()?;
        let number = u32::from_be_bytes(last.try_into().ok()?).max(FIRST_NUMBER);
        Some(Agreed { number, key: Zeroizing::new(*first) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_agree_and_each_direction_and_each_pair_has_its_own() {
        let [a, b, c] = [(); 3].map(|()| Private::generate().unwrap());
        let (out, back) = (a.agree(b.public(), false).unwrap(), a.agree(b.public(), true).unwrap());
        let (at_b, from_b) = (b.agree(a.public(), true).unwrap(), b.agree(a.public(), false).unwrap());
        assert_eq!((out.number, *out.key), (at_b.number, *at_b.key));
        assert_eq!((back.number, *back.key), (from_b.number, *from_b.key));
        let other = a.agree(c.public(), false).unwrap();
        assert!(*out.key != *back.key && *out.key != *other.key && out.number != back.number);
    }

    #[test]
    fn nothing_is_agreed_on_with_a_key_that_gives_everybody_the_same() {
        assert!(Private::generate().unwrap().agree(PublicKey([0; 32]), false).is_none());
    }
}
