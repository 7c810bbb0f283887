//! Answers as long as others are (RFC 7830), so that their length says little to whoever sees them pass encrypted. Only clients
//! who pad their queries get them so (RFC 8467 section 4).

use super::wire;

/// What answers are padded to a multiple of (RFC 8467 section 4.1).
const BLOCK: usize = 468;
/// The option.
const PADDING: u16 = 12;
/// Of an OPT record: where its options' length stands, and where they begin.
const LENGTH_AT: usize = 9;
const OPTIONS_AT: usize = 11;

/// Does a query carry padding?
pub(super) fn is_wanted(query: &[u8]) -> bool {
    let options = || {
        let (start, _) = wire::scan(query)?.opt?;
        let length = usize::from(wire::u16_at(query, start + LENGTH_AT)?);
        query.get(start + OPTIONS_AT..start + OPTIONS_AT + length)
    };
    let Some(mut options) = options() else { return false };
    while let (Some(code), Some(length)) = (wire::u16_at(options, 0), wire::u16_at(options, 2)) {
        if code == PADDING {
            return true;
        }
        options = options.get(4 + usize::from(length)..).unwrap_or_default();
    }
    false
}

/// Pads an answer whose OPT record stands last, as ours do. One that has none, or would be too long, stays as it is.
pub(super) fn pad(answer: &mut Vec<u8>) {
    let Some((start, _)) = wire::scan(answer).and_then(|scan| scan.opt) else { return };
    let Some(options) = wire::u16_at(answer, start + LENGTH_AT) else { return };
    let with_option = answer.len() + 4;
    let whole = with_option.next_multiple_of(BLOCK).min(usize::from(u16::MAX));
    let is_last = start + OPTIONS_AT + usize::from(options) == answer.len();
    let Some(padding) = whole.checked_sub(with_option).filter(|_| is_last) else { return };
    let (Ok(padding), Some(length)) =
        (u16::try_from(padding), u16::try_from(padding + 4).ok().and_then(|more| options.checked_add(more)))
    else {
        return;
    };
    wire::put_u16(answer, start + LENGTH_AT, length);
    answer.extend(PADDING.to_be_bytes());
    answer.extend(padding.to_be_bytes());
    answer.resize(whole, 0);
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;
    use proptest::prelude::*;

    use super::*;
    use crate::dns::guard::Said;
    use crate::dns::wire::{Question, flag};

    fn question() -> Question {
        Question::new(b"\x03www\x07example\x00\x00\x01\x00\x01").unwrap()
    }

    #[test]
    fn padding_is_wanted_by_who_sends_it() {
        let mut query = wire::query(7, 0, &question(), Some(false));
        assert!(!is_wanted(&query));
        wire::pad(&mut query);
        assert!(is_wanted(&query));
        assert!(!is_wanted(&wire::query(7, 0, &question(), None)));
        // Behind another option, of 1 octet.
        let mut query = wire::query(7, 0, &question(), Some(false));
        let at = query.len() - 2;
        query.extend([0, 10, 0, 1, 9, 0, 12, 0, 0]);
        wire::put_u16(&mut query, at, 9);
        assert!(is_wanted(&query));
    }

    proptest! {
        /// Whatever is in it: the same message, as long as a whole number of blocks.
        #[test]
        fn a_padded_answer_is_the_same_answer(records in 0_u8..40, text in "[a-z]{0,120}") {
            let mut answer = wire::query(7, flag::RESPONSE, &question(), None);
            for n in 0..records {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 192, 0, 2, n]);
            }
            Said::default().push(&mut answer, 0, Some((0, &text)));
            wire::put_u16(&mut answer, 6, u16::from(records));
            wire::put_u16(&mut answer, 10, 1);
            let before = Message::from_vec(&answer).unwrap();
            pad(&mut answer);
            prop_assert_eq!(answer.len() % BLOCK, 0);
            let after = Message::from_vec(&answer).unwrap();
            prop_assert_eq!(before.answers, after.answers);
            prop_assert!(is_wanted(&answer));
        }

        #[test]
        fn what_has_no_opt_record_at_its_end_stays_as_it_is(mut octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            let before = octets.clone();
            pad(&mut octets);
            prop_assert!(octets.starts_with(&before[..before.len().min(10)]) && octets.len() >= before.len());
            let _ = is_wanted(&octets);
        }
    }
}
