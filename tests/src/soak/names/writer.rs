//! Who changes the fleet: through the JSON gateway that etcd itself has.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::askers::Shared;
use crate::client::http::Held;
use crate::soak::random::Random;
use crate::wait::pause;

/// Where agents keep what they share.
const PREFIX: &str = "/plexus/v1";

/// Changes the fleet until it is told to stop. Returns how many changes there were.
pub(super) fn write(shared: &Arc<Shared>, store: SocketAddr, rate: u32, mut random: Random) -> u64 {
    let mut connection = Held::open(store).expect("a store");
    let (began, mut count) = (Instant::now(), 0_u32);
    while !shared.stop.load(Ordering::Relaxed) {
        let due = Duration::from_secs(1) * count / rate;
        pause(due.saturating_sub(began.elapsed()));
        let (service, path, record) = shared.model.change(&mut random);
        let key = base64(format!("{PREFIX}/{path}").as_bytes());
        let (way, request) = match record {
            Some(record) => ("put", format!(r#"{{"key":"{key}","value":"{}"}}"#, base64(record.as_bytes()))),
            None => ("deleterange", format!(r#"{{"key":"{key}"}}"#)),
        };
        match connection.change("POST", &format!("/v3/kv/{way}"), &request) {
            Ok(answer) if answer.status == 200 => shared.model.done(service),
            other => panic!("the store does not take a change: {other:?}"),
        }
        count += 1;
    }
    u64::from(count)
}

/// As the gateway wants octets (RFC 4648).
fn base64(octets: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(octets.len().div_ceil(3) * 4);
    for three in octets.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | usize::from(three.get(at).copied().unwrap_or(0)));
        for digit in 0..4 {
            let at = bits >> (18 - 6 * digit) & 0x3f;
            text.push(if digit <= three.len() { char::from(DIGITS[at]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_are_written_as_the_rfc_has_them() {
        let said = ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes()));
        assert_eq!(said, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
    }
}
