//! Until when a certificate is good, read from its octets (RFC 5280 section 4.1, DER): the one thing of it that rustls does not
//! tell. Nothing is verified here.

use std::time::SystemTime;

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// The version, which not every certificate says.
const VERSION: u8 = 0xa0;

/// When its time is over; `None`: it is no certificate.
pub(super) fn not_after(certificate: &[u8]) -> Option<SystemTime> {
    let (of_certificate, _) = expect(certificate, SEQUENCE)?;
    let (mut signed, _) = expect(of_certificate, SEQUENCE)?;
    if let Some((_, rest)) = expect(signed, VERSION) {
        signed = rest;
    }
    // Its number, how it is signed, by whom.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        signed = expect(signed, tag)?.1;
    }
    let (validity, _) = expect(signed, SEQUENCE)?;
    let (_, _not_before, rest) = element(validity)?;
    let (tag, not_after, _) = element(rest)?;
    time(tag, std::str::from_utf8(not_after).ok()?)
}

/// The first element's tag and contents, and what follows it.
fn element(octets: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = octets.split_first_chunk::<2>()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |sum, octet| sum << 8 | usize::from(*octet)), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

fn expect(octets: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    element(octets).filter(|(tag, ..)| *tag == wanted).map(|(_, contents, rest)| (contents, rest))
}

/// `YYMMDDHHMMSSZ` up to 2049, `YYYYMMDDHHMMSSZ` from then on (RFC 5280 section 4.1.2.5).
fn time(tag: u8, text: &str) -> Option<SystemTime> {
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            (if year < "50" { format!("20{year}") } else { format!("19{year}") }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.to_owned(), rest)
        }
        _ => return None,
    };
    let part = |at: usize| rest.get(at..at + 2);
    let [month, day, hour, minute, second] = [part(0)?, part(2)?, part(4)?, part(6)?, part(8)?];
    let is_whole = rest.get(10..) == Some("Z");
    let told = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    is_whole.then(|| humantime::parse_rfc3339(&told).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn made(year: i32) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 2, 28);
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_of_its_time_is_read_in_both_spellings() {
        for year in [1999, 2031, 2049, 2050, 9999] {
            let told = humantime::format_rfc3339(not_after(&made(year)).unwrap()).to_string();
            assert_eq!(told, format!("{year}-02-28T00:00:00Z"));
        }
    }

    proptest! {
        #[test]
        fn no_octets_make_the_walk_panic(octets in proptest::collection::vec(any::<u8>(), 0..100), cut in 0_usize..600, flip in 0_usize..600) {
            let _ = not_after(&octets);
            let mut certificate = made(2031);
            if let Some(octet) = certificate.get_mut(flip) {
                *octet ^= 0x80;
            }
            certificate.truncate(cut);
            let _ = not_after(&certificate);
        }
    }
}
