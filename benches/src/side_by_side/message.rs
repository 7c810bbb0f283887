//! The 64 bytes that are exchanged: eight words made of a number, so that each side can check every bit for little.

/// The length of a request, and of a response.
pub(crate) const LENGTH: usize = 64;

const WORDS: usize = LENGTH / 8;
const SALT: u64 = 0x9e37_79b9_7f4a_7c15;

/// One request or response.
pub(crate) type Message = [u8; LENGTH];

/// The request of this number.
pub(crate) fn request(number: u64) -> Message {
    make(number, 0)
}

/// The response to a request; `None` if that is none.
pub(crate) fn response_to(request: &Message) -> Option<Message> {
    let number = first_word(request);
    (*request == make(number, 0)).then(|| make(number, u64::MAX))
}

/// Is this the response to the request of this number?
pub(crate) fn is_response(received: &[u8], number: u64) -> bool {
    *received == make(number, u64::MAX)
}

fn first_word(message: &Message) -> u64 {
    message.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

/// The number itself stands first, unmasked in requests alone: a request that comes back is no response.
fn make(number: u64, mask: u64) -> Message {
    let mut message = [0; LENGTH];
    let (words, _) = message.as_chunks_mut::<8>();
    let mut word = number;
    for place in words.iter_mut().take(WORDS) {
        *place = (word ^ mask).to_le_bytes();
        word = word.rotate_left(9) ^ SALT;
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_one_response() {
        let response = response_to(&request(7)).unwrap();
        assert!(is_response(&response, 7));
        assert!(!is_response(&response, 8));
        assert!(!is_response(&request(7), 7));
        assert!(!is_response(&response[..63], 7));
    }

    #[test]
    fn a_flipped_bit_is_seen() {
        for bit in 64..LENGTH * 8 {
            let mut message = request(1 << 40);
            message[bit / 8] ^= 1 << (bit % 8);
            assert!(response_to(&message).is_none());
        }
    }
}
