//! The other side of Signature Version 4: made anew from what was received, and compared.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::{digest, hmac};

use crate::server::api::Asked;

/// Clocks may differ so much.
const SKEW: Duration = Duration::from_secs(300);

/// Whose key it says it is signed with.
pub(super) fn id(asked: &Asked) -> Option<&str> {
    field(asked, "Credential")?.split('/').next()
}

/// Is it signed with that secret, now, for this service in this region, and all of it that has to be?
pub(super) fn is_right(asked: &Asked, service: &str, region: &str, secret: &str) -> bool {
    let parts = || {
        let (scope, names, signature) =
            (field(asked, "Credential")?, field(asked, "SignedHeaders")?, field(asked, "Signature")?);
        Some((scope.split_once('/')?.1, names, signature))
    };
    let Some((scope, names, signature)) = parts() else { return false };
    let at = asked.header("x-amz-date");
    let day = at.get(..8).unwrap_or_default();
    if scope != format!("{day}/{region}/{service}/aws4_request") || !is_now(at) {
        return false;
    }
    let names: Vec<&str> = names.split(';').collect();
    let has_all = ["host", "x-amz-date", "x-amz-security-token"].iter().all(|name| names.contains(name));
    let body = hex(digest::digest(&digest::SHA256, asked.body.as_bytes()).as_ref());
    if !has_all || !names.is_sorted() || service == "s3" && asked.header("x-amz-content-sha256") != body {
        return false;
    }
    let headers: String = names.iter().map(|name| format!("{name}:{}\n", asked.header(name))).collect();
    let Asked { method, path, query, .. } = asked;
    let canonical = format!("{method}\n{path}\n{query}\n{headers}\n{}\n{body}", names.join(";"));
    let canonical = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    let to_sign = format!("AWS4-HMAC-SHA256\n{at}\n{scope}\n{canonical}");
    let chain = [day, region, service, "aws4_request", &to_sign];
    let key = chain.iter().fold(format!("AWS4{secret}").into_bytes(), |key, part| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec()
    });
    hex(&key) == signature
}

fn field<'a>(asked: &'a Asked, name: &str) -> Option<&'a str> {
    let fields = asked.header("authorization").strip_prefix("AWS4-HMAC-SHA256 ")?;
    let mut fields = fields.split(',').filter_map(|field| field.trim().split_once('='));
    fields.find(|(known, _)| *known == name).map(|(_, value)| value)
}

fn is_now(at: &str) -> bool {
    let now = SystemTime::now();
    let [first, last] = [now - SKEW, now + SKEW].map(|bound| time(bound).replace(['-', ':'], ""));
    (first.as_str()..=last.as_str()).contains(&at)
}

/// A time as `2026-01-01T00:00:00Z`.
pub(super) fn time(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March, so that the leap day is their last one; eras of 400 of them.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (of_month, month) =
        (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{of_month:02}T{:02}:{:02}:{:02}Z", rest / 3_600, rest / 60 % 60, rest % 60)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, shown) in [
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_440_938_160, "2015-08-30T12:36:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
        ] {
            assert_eq!(time(UNIX_EPOCH + Duration::from_secs(seconds)), shown);
        }
    }
}
