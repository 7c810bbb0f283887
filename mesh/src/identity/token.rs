//! What lets a new node in: for how long, how often, and by which authority the mesh is known.
//!
//! Text: `plexus-join-` and, in base64 for URLs, version, fingerprint, id, expiry, uses, the name that it is for, and an
//! HMAC-SHA256 of these by a key that only signers have. So whoever can write to the store cannot make one; the store has but a
//! count of its uses.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nerve::model::{Fingerprint, NodeName, TokenId};
use ring::hmac;
use zeroize::Zeroizing;

/// So that whoever finds one knows what it is.
const PREFIX: &str = "plexus-join-";
/// Of what follows.
const VERSION: u8 = 1;
/// In octets: an HMAC-SHA256.
const PROOF: usize = 32;
/// A node's name is shorter.
const LONGEST: usize = 600;

/// What proves tokens.
pub(super) struct TokenKey(hmac::Key);

impl TokenKey {
    /// That of an authority, by its key.
    pub(super) fn of(authority: &[u8]) -> Self {
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, authority), b"plexus join token");
        Self(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }
}

/// What a token lets one do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The authority that the mesh is known by.
    pub root: Fingerprint,
    /// Which token.
    pub id: TokenId,
    /// Until when, in whole seconds.
    pub expires: SystemTime,
    /// How often; nothing: as often as anyone wants until then.
    pub uses: Option<NonZeroU32>,
    /// For which node alone. It may take the place of one of that name.
    pub node: Option<NodeName>,
}

/// Why a text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not look like one.
    #[error(
        "it is no join token (those begin with {PREFIX:?}): make one by `plexus join-token create` on a node that signs"
    )]
    Malformed,
    /// Of a newer program.
    #[error(
        "it is a join token of version {0}, which this program does not know: it is older than the one that made the token"
    )]
    Version(u8),
}

/// A token. Whoever has it can join: it is not shown but where it is made.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    grant: Grant,
    text: Zeroizing<String>,
}

impl Token {
    pub(super) fn make(key: &TokenKey, root: Fingerprint, terms: Terms) -> Self {
        let Terms { life, uses, node } = terms;
        let until = (SystemTime::now() + life).duration_since(UNIX_EPOCH).unwrap_or_default();
        let expires = UNIX_EPOCH + Duration::from_secs(until.as_secs());
        let grant = Grant { root, id: TokenId(rand::random()), expires, uses, node };
        let mut octets = grant.octets();
        let proof = hmac::sign(&key.0, &octets);
        octets.extend_from_slice(proof.as_ref());
        let text = Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&*octets)));
        Self { grant, text }
    }

    /// One whose proof is made up.
    #[cfg(test)]
    pub(super) fn forged(grant: &Grant) -> Self {
        let mut octets = grant.octets();
        octets.extend_from_slice(&[7; PROOF]);
        let text = Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&*octets)));
        Self { grant: grant.clone(), text }
    }

    /// What it says, which its bearer may believe, and nobody else before [`Token::is_proved`].
    #[must_use]
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// As it is given to whoever is to join.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Was it made by whoever has this key? In a time that does not depend on what is wrong.
    pub(super) fn is_proved(&self, key: &TokenKey) -> bool {
        let encoded = self.text.strip_prefix(PREFIX).unwrap_or_default();
        let Ok(octets) = URL_SAFE_NO_PAD.decode(encoded).map(Zeroizing::new) else { return false };
        let Some((said, proof)) = octets.split_last_chunk::<PROOF>() else { return false };
        hmac::verify(&key.0, said, proof).is_ok()
    }
}

/// What a token is to be good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// For how long.
    pub life: Duration,
    /// How often.
    pub uses: Option<NonZeroU32>,
    /// For which node alone.
    pub node: Option<NodeName>,
}

impl Grant {
    fn octets(&self) -> Zeroizing<Vec<u8>> {
        let expires = self.expires.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let name = self.node.as_ref().map_or("", NodeName::as_str);
        let mut octets = Zeroizing::new(vec![VERSION]);
        octets.extend_from_slice(&self.root.0);
        octets.extend_from_slice(&self.id.0);
        octets.extend_from_slice(&expires.to_be_bytes());
        octets.extend_from_slice(&self.uses.map_or(0, NonZeroU32::get).to_be_bytes());
        octets.extend_from_slice(name.as_bytes());
        octets
    }

    fn read(octets: &[u8]) -> Option<Self> {
        let (root, octets) = octets.split_first_chunk()?;
        let (id, octets) = octets.split_first_chunk()?;
        let (expires, octets) = octets.split_first_chunk()?;
        let (uses, name) = octets.split_first_chunk()?;
        let node = match name {
            [] => None,
            name => Some(NodeName::new(std::str::from_utf8(name).ok()?).ok()?),
        };
        Some(Self {
            root: Fingerprint(*root),
            id: TokenId(*id),
            expires: UNIX_EPOCH.checked_add(Duration::from_secs(u64::from_be_bytes(*expires)))?,
            uses: NonZeroU32::new(u32::from_be_bytes(*uses)),
            node,
        })
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let encoded =
            text.strip_prefix(PREFIX).filter(|_| text.len() <= LONGEST).ok_or(TokenError::Malformed)?;
        let octets =
            URL_SAFE_NO_PAD.decode(encoded).map(Zeroizing::new).map_err(|_| TokenError::Malformed)?;
        match octets.split_first() {
            Some((&VERSION, rest)) => {
                let said = rest.split_last_chunk::<PROOF>().and_then(|(said, _)| Grant::read(said));
                let grant = said.ok_or(TokenError::Malformed)?;
                Ok(Self { grant, text: Zeroizing::new(text.to_owned()) })
            }
            Some((&version, _)) => Err(TokenError::Version(version)),
            None => Err(TokenError::Malformed),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Token").field(&self.grant).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn root() -> Fingerprint {
        super::super::fingerprint::of(&b"root".as_slice().into())
    }

    fn terms(uses: u32, node: Option<&str>) -> Terms {
        let node = node.map(|name| NodeName::new(name).unwrap());
        Terms { life: Duration::from_secs(60), uses: NonZeroU32::new(uses), node }
    }

    #[test]
    fn a_token_is_read_as_it_was_made_and_proved_by_its_key_alone() {
        let (key, other) = (TokenKey::of(b"one"), TokenKey::of(b"another"));
        for terms in [terms(0, None), terms(1, Some("a")), terms(7, Some("node-a"))] {
            let made = Token::make(&key, root(), terms);
            let read: Token = format!(" {}\n", made.text()).parse().unwrap();
            assert_eq!(read.grant(), made.grant());
            assert!(read.is_proved(&key) && !read.is_proved(&other));
        }
    }

    #[test]
    fn a_token_does_not_tell_its_text() {
        let made = Token::make(&TokenKey::of(b"one"), root(), terms(1, None));
        assert!(!format!("{made:?}").contains(made.text()));
    }

    #[test]
    fn what_is_no_token_says_so() {
        let of_tomorrow = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode([2; 200]));
        assert_eq!(of_tomorrow.parse::<Token>().unwrap_err(), TokenError::Version(2));
        for text in
            ["", "plexus-join-", "plexus-join-AQ", "SWMTKN-1-x", &format!("{PREFIX}{}", "A".repeat(1000))]
        {
            assert!(text.parse::<Token>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_octet_of_a_token_can_be_another(at in 0..1000usize, bit in 0..8u8) {
            let key = TokenKey::of(b"one");
            let made = Token::make(&key, root(), terms(3, Some("a")));
            let mut octets = URL_SAFE_NO_PAD.decode(made.text().strip_prefix(PREFIX).unwrap()).unwrap();
            let at = at % octets.len();
            octets[at] ^= 1 << bit;
            if let Ok(forged) = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(octets)).parse::<Token>() {
                prop_assert!(!forged.is_proved(&key));
            }
        }

        #[test]
        fn no_text_breaks_the_reader(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode([vec![VERSION], octets].concat())).parse::<Token>();
        }
    }
}
