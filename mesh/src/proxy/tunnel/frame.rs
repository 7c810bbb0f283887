//! Frames: how streams follow one another on one TLS connection.
//!
//! A frame is a kind, a length of two octets, and so many octets of content. It lies within a record of TLS; a record has one
//! frame or several, of one stream: nothing stands before its `Open` or behind its `Last`. One stream is on a connection at a
//! time: from the sender `Open`, then `Data` up to the `Last`; from the receiver `Connected` and the same, or `Refused`. When both
//! have said their last, the next stream may begin. A sender that was refused says `Abort` where it has not said its last, and
//! whoever breaks a stream off breaks the TCP connection off.

use super::header::{self, Header};
use crate::proxy::tunnel_refusal::Refusal;

/// Kind and length.
pub(super) const HEAD: usize = 3;

/// The kinds of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A stream begins: a [`Header`].
    Open = 1,
    /// The endpoint is connected to.
    Connected = 2,
    /// It is not: one octet, why.
    Refused = 3,
    /// Octets of the stream.
    Data = 4,
    /// The last of them, or none: a FIN follows.
    Last = 5,
    /// The sender of a stream that was refused says no more in it.
    Abort = 6,
}

/// A frame that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    Open(&'a [u8]),
    Connected,
    Refused(Refusal),
    /// Where its octets stand in what was read.
    Data {
        from: usize,
        to: usize,
        last: bool,
    },
    Abort,
}

/// What was read is no frame, or not one that may come here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadFrame;

impl Kind {
    fn of(octet: u8) -> Option<Self> {
        let all = [Self::Open, Self::Connected, Self::Refused, Self::Data, Self::Last, Self::Abort];
        all.into_iter().find(|kind| *kind as u8 == octet)
    }
}

/// The first octets of a frame. A record bounds the length.
pub(super) fn head(kind: Kind, length: usize) -> [u8; HEAD] {
    let [high, low] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    [kind as u8, high, low]
}

/// The frame that begins at `at`, and where it ends; `None` at the end of the content.
pub(super) fn read(content: &[u8], at: usize) -> Result<Option<(Frame<'_>, usize)>, BadFrame> {
    let rest = content.get(at..).ok_or(BadFrame)?;
    if rest.is_empty() {
        return Ok(None);
    }
    let ([kind, high, low], after) = rest.split_first_chunk::<HEAD>().ok_or(BadFrame)?;
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let body = after.get(..length).ok_or(BadFrame)?;
    let (from, to) = (at + HEAD, at + HEAD + length);
    let frame = match (Kind::of(*kind).ok_or(BadFrame)?, body) {
        (Kind::Open, body) if length <= header::LONGEST => Frame::Open(body),
        (Kind::Connected, []) => Frame::Connected,
        (Kind::Refused, [reason]) => Frame::Refused(Refusal::of(*reason)),
        (Kind::Data, _) => Frame::Data { from, to, last: false },
        (Kind::Last, _) => Frame::Data { from, to, last: true },
        (Kind::Abort, []) => Frame::Abort,
        _ => return Err(BadFrame),
    };
    Ok(Some((frame, to)))
}

/// The header of an `Open` frame.
pub(super) fn header(body: &[u8]) -> Result<Header<'_>, Refusal> {
    header::read(body).map_err(|bad| match bad {
        header::BadHeader::Unsupported => Refusal::Unsupported,
        header::BadHeader::Malformed => Refusal::Malformed,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_frame_is_an_error() {
        for content in [
            &[4][..],
            &[4, 0],
            &[4, 0, 2, 1],
            &[0, 0, 0],
            &[7, 0, 0],
            &[2, 0, 1, 0],
            &[3, 0, 0],
            &[6, 0, 1, 0],
            &[&head(Kind::Open, 513)[..], &[0; 513]].concat(),
        ] {
            assert_eq!(read(content, 0), Err(BadFrame), "{content:?}");
        }
        assert_eq!(read(&[], 0), Ok(None));
        assert_eq!(read(&[], 1), Err(BadFrame));
    }

    proptest! {
        #[test]
        fn frames_behind_one_another_are_read_as_they_were_written(
            bodies in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..12),
        ) {
            let kind = |last| if last { Kind::Last } else { Kind::Data };
            let content: Vec<u8> = bodies.iter().flat_map(|(last, body)| [&head(kind(*last), body.len())[..], body].concat()).collect();
            let (mut at, mut found) = (0, Vec::new());
            while let Some((frame, end)) = read(&content, at).unwrap() {
                let Frame::Data { from, to, last } = frame else { panic!("{frame:?}") };
                found.push((last, content[from..to].to_vec()));
                prop_assert!(end > at);
                at = end;
            }
            prop_assert_eq!(found, bodies);
        }

        #[test]
        fn no_bytes_make_it_panic_or_read_beyond_them(content in proptest::collection::vec(any::<u8>(), 0..300), at in 0..310_usize) {
            if let Ok(Some((frame, end))) = read(&content, at) {
                prop_assert!(end <= content.len() && end >= at + HEAD);
                if let Frame::Data { from, to, .. } = frame {
                    prop_assert!(from <= to && to == end);
                }
            }
        }
    }
}
