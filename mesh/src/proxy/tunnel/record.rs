//! The protection of records of TLS 1.3, in place (RFC 8446, section 5).
//!
//! The handshake is rustls's, and so are the secrets of the two directions and their renewal; what is done here is what a
//! kernel does with them that has TLS. rustls would give each record a vector of its own and copy it twice: here a record is
//! sealed where its octets were read to, and opened where it was received.

use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets as Secrets;

/// Type, version, length.
pub(super) const HEAD: usize = 5;
/// The type of the content, and the tag.
pub(super) const TAIL: usize = 1 + TAG;
const TAG: usize = 16;
/// The most octets of content in a record.
pub(super) const CONTENT: usize = 16 * 1024;
/// A record that is full.
pub(super) const FULL: usize = HEAD + CONTENT + TAIL;
/// The longest that may come: padding, and more than one type, are allowed to others.
const LONGEST: usize = HEAD + CONTENT + 256;
/// What records that are protected say they are.
const APPLICATION_DATA: u8 = 23;
/// Records after which keys are renewed. With AES-GCM some 2²⁴ full ones may be sent with one key (RFC 8446, section 5.5).
const WORN: u64 = 1 << 23;

/// What a record has in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Content {
    Alert = 21,
    Handshake = 22,
    Data = APPLICATION_DATA,
}

/// A record that cannot be believed, or that nobody sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadRecord;

/// The key of one direction, and how many records it has protected.
pub(super) struct Protection {
    key: LessSafeKey,
    iv: [u8; aead::NONCE_LEN],
    sequence: u64,
}

impl Protection {
    /// With secrets of rustls's; `None` if they are not of a cipher that is known here.
    pub(super) fn new((sequence, secrets): (u64, Secrets)) -> Option<Self> {
        let (algorithm, key, iv) = match &secrets {
            Secrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            Secrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            Secrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => return None,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).ok()?);
        Some(Self { key, iv: iv.as_ref().try_into().ok()?, sequence })
    }

    /// Has it protected so many records that another one is to follow it?
    pub(super) fn is_worn(&self) -> bool {
        self.sequence >= WORN
    }

    fn nonce(&mut self) -> Option<Nonce> {
        let mut nonce = self.iv;
        for (octet, counted) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *octet ^= counted;
        }
        self.sequence = self.sequence.checked_add(1)?;
        Some(Nonce::assume_unique_for_key(nonce))
    }

    /// Makes a record of its content, which stands between [`HEAD`] and [`TAIL`] octets to be filled in.
    pub(super) fn seal(&mut self, record: &mut [u8], content: Content) -> Result<(), BadRecord> {
        let body = record.len().checked_sub(HEAD).ok_or(BadRecord)?;
        let [high, low] = u16::try_from(body).map_err(|_| BadRecord)?.to_be_bytes();
        let head = [APPLICATION_DATA, 3, 3, high, low];
        let nonce = self.nonce().ok_or(BadRecord)?;
        record[..HEAD].copy_from_slice(&head);
        let (text, tag) = record[HEAD..].split_last_chunk_mut::<TAG>().ok_or(BadRecord)?;
        *text.last_mut().ok_or(BadRecord)? = content as u8;
        let sealed = self.key.seal_in_place_separate_tag(nonce, Aad::from(head), text);
        tag.copy_from_slice(sealed.map_err(|_| BadRecord)?.as_ref());
        Ok(())
    }

    /// Opens a whole record. Its content begins after [`HEAD`] octets and is so long.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(Content, usize), BadRecord> {
        let (head, body) = record.split_first_chunk_mut::<HEAD>().ok_or(BadRecord)?;
        if head[0] != APPLICATION_DATA {
            return Err(BadRecord);
        }
        let nonce = self.nonce().ok_or(BadRecord)?;
        let text = self.key.open_in_place(nonce, Aad::from(*head), body).map_err(|_| BadRecord)?;
        // Padding is zeros behind the type.
        let kind = text.iter().rposition(|octet| *octet != 0).ok_or(BadRecord)?;
        if kind > CONTENT {
            return Err(BadRecord);
        }
        let content = [Content::Alert, Content::Handshake, Content::Data];
        let content = content.into_iter().find(|content| *content as u8 == text[kind]).ok_or(BadRecord)?;
        Ok((content, kind))
    }
}

/// How long the record is that begins here; `None`: not all of it is here.
pub(super) fn complete(received: &[u8]) -> Result<Option<usize>, BadRecord> {
    let Some(length) = announced(received)? else { return Ok(None) };
    Ok((length <= received.len()).then_some(length))
}

/// How long the record that begins here says that it is; `None`: it does not say so yet.
pub(super) fn announced(received: &[u8]) -> Result<Option<usize>, BadRecord> {
    let [_, _, _, high, low, ..] = received else { return Ok(None) };
    let length = HEAD + usize::from(u16::from_be_bytes([*high, *low]));
    if length > LONGEST { Err(BadRecord) } else { Ok(Some(length)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(sequence: u64) -> (Protection, Protection) {
        let one = || Protection {
            key: LessSafeKey::new(UnboundKey::new(&aead::AES_128_GCM, &[7; 16]).unwrap()),
            iv: [9; 12],
            sequence,
        };
        (one(), one())
    }

    fn sealed(by: &mut Protection, content: &[u8], kind: Content) -> Vec<u8> {
        let mut record = [&[0; HEAD][..], content, &[0; TAIL]].concat();
        by.seal(&mut record, kind).unwrap();
        record
    }

    #[test]
    fn records_are_read_in_their_order_once_and_unchanged() {
        let (mut sealer, mut opener) = pair(0);
        let (one, two) =
            (sealed(&mut sealer, b"one", Content::Data), sealed(&mut sealer, b"two", Content::Alert));
        assert!(pair(0).1.open(&mut two.clone()).is_err(), "out of its turn");
        assert_eq!(opener.open(&mut one.clone()), Ok((Content::Data, 3)));
        assert!(opener.open(&mut one.clone()).is_err(), "a second time");
        let (_, mut opener) = pair(1);
        assert_eq!(opener.open(&mut two.clone()), Ok((Content::Alert, 3)));
        for at in 0..one.len() {
            let mut changed = one.clone();
            changed[at] ^= 1;
            assert!(pair(0).1.open(&mut changed).is_err(), "octet {at}");
        }
    }

    #[test]
    fn sequence_numbers_end_before_they_begin_again() {
        let (mut sealer, _) = pair(u64::MAX);
        assert_eq!(sealer.seal(&mut [0; HEAD + TAIL], Content::Data), Err(BadRecord));
        assert!(sealer.is_worn() && !pair(0).0.is_worn());
    }

    #[test]
    fn a_record_longer_than_any_is_refused_before_it_is_there() {
        assert_eq!(complete(&[23, 3, 3, 0x41, 0x01]), Err(BadRecord));
        assert_eq!(complete(&[23, 3, 3, 0x41]), Ok(None));
        assert_eq!(complete(&[23, 3, 3, 0, 1]), Ok(None));
        assert_eq!(complete(&[23, 3, 3, 0, 1, 0, 0]), Ok(Some(6)));
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened(contents in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..2000), 1..6)) {
            let (mut sealer, mut opener) = pair(5);
            let mut sent: Vec<u8> = contents.iter().flat_map(|content| sealed(&mut sealer, content, Content::Data)).collect();
            let (mut at, mut found) = (0, Vec::new());
            while let Some(length) = complete(&sent[at..]).unwrap() {
                let (_, content) = opener.open(&mut sent[at..at + length]).unwrap();
                found.push(sent[at + HEAD..at + HEAD + content].to_vec());
                at += length;
            }
            prop_assert_eq!(found, contents);
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = complete(&bytes);
            prop_assert!(pair(0).1.open(&mut bytes).is_err());
        }
    }
}
