//! Signature Version 4 of AWS (pure): what a request says so that AWS knows who sent it, and that nobody changed it on the way.
//!
//! Requests are signed as they are sent here: without a query, and with paths that are escaped once, as S3 wants them.

use std::time::SystemTime;

use ring::{digest, hmac};

use super::credentials::Credentials;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const END: &str = "aws4_request";

/// What a signature is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) region: &'a str,
    pub(super) service: &'a str,
    pub(super) at: SystemTime,
}

/// What is signed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    /// In small letters; `host` is among them.
    pub(super) headers: &'a [(&'a str, &'a str)],
    pub(super) body: &'a str,
}

/// The headers that are sent besides those of the request, and make it a signed one.
pub(super) fn sign(
    credentials: &Credentials,
    scope: Scope<'_>,
    request: Request<'_>,
) -> Vec<(&'static str, String)> {
    let at: String = humantime::format_rfc3339_seconds(scope.at).to_string().replace(['-', ':'], "");
    let mut added = vec![("x-amz-date", at.clone())];
    added.extend(credentials.token.iter().map(|token| ("x-amz-security-token", token.reveal().to_owned())));
    let mut headers: Vec<(&str, &str)> = added
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .chain(request.headers.iter().copied())
        .collect();
    headers.sort_unstable();
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let (names, lines): (String, String) =
        (names.join(";"), headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect());
    let Request { method, path, body, .. } = request;
    let canonical = format!("{method}\n{path}\n\n{lines}\n{names}\n{}", sha256(body));
    let day = at.get(..8).unwrap_or_default();
    let Scope { region, service, .. } = scope;
    let scope = format!("{day}/{region}/{service}/{END}");
    let to_sign = format!("{ALGORITHM}\n{at}\n{scope}\n{}", sha256(&canonical));
    let mut key = hmac_of(format!("AWS4{}", credentials.secret.reveal()).as_bytes(), day);
    for part in [region, service, END] {
        key = hmac_of(key.as_ref(), part);
    }
    let signature = hex(hmac_of(key.as_ref(), &to_sign).as_ref());
    let proof = format!(
        "{ALGORITHM} Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
        credentials.id
    );
    added.push(("authorization", proof));
    added
}

/// The digest of a text, as it stands in requests.
pub(super) fn sha256(text: &str) -> String {
    hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

fn hmac_of(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::secret::Secret;
    use super::*;

    fn credentials(id: &str, token: Option<&str>) -> Credentials {
        Credentials {
            id: id.to_owned(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned()),
            token: token.map(|token| Secret::new(token.to_owned())),
            expires: None,
            source: String::new(),
        }
    }

    const FORM: &str = "content-type:application/x-www-form-urlencoded";
    const FORM_UTF8: &str = "content-type:application/x-www-form-urlencoded; charset=utf8";
    const UNRESERVED: &str = "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    const TOKEN: &str = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267";

    /// AWS' own tests: the name, method, path, a further header, body, session token, and the signature.
    type Published = (
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        Option<&'static str>,
        &'static str,
    );
    const PUBLISHED: [Published; 8] = [
        (
            "get-vanilla",
            "GET",
            "/",
            "",
            "",
            None,
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        (
            "get-unreserved",
            "GET",
            UNRESERVED,
            "",
            "",
            None,
            "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
        ),
        (
            "get-vanilla-with-session-token",
            "GET",
            "/",
            "",
            "",
            Some(TOKEN),
            "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8",
        ),
        (
            "post-vanilla",
            "POST",
            "/",
            "",
            "",
            None,
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        ),
        (
            "post-header-key-sort",
            "POST",
            "/",
            "my-header1:value1",
            "",
            None,
            "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
        ),
        (
            "post-header-value-case",
            "POST",
            "/",
            "my-header1:VALUE1",
            "",
            None,
            "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d",
        ),
        (
            "post-x-www-form-urlencoded",
            "POST",
            "/",
            FORM,
            "Param1=value1",
            None,
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
        (
            "post-x-www-form-urlencoded-parameters",
            "POST",
            "/",
            FORM_UTF8,
            "Param1=value1",
            None,
            "1a72ec8f64bd914b0e42e42607c7fbce7fb2c7465f63e3092b3b0d39fa77a6fe",
        ),
    ];

    #[test]
    fn signatures_are_those_that_aws_publishes() {
        // 2015-08-30T12:36:00Z
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
        let scope = Scope { region: "us-east-1", service: "service", at };
        for (name, method, path, header, body, token, signature) in PUBLISHED {
            let headers: Vec<(&str, &str)> =
                header.split_once(':').into_iter().chain([("host", "example.amazonaws.com")]).collect();
            let request = Request { method, path, headers: &headers, body };
            let added = sign(&credentials("AKIDEXAMPLE", token), scope, request);
            let mut names: Vec<&str> = headers
                .iter()
                .map(|(name, _)| *name)
                .chain(token.map(|_| "x-amz-security-token"))
                .chain(["x-amz-date"])
                .collect();
            names.sort_unstable();
            let expected = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders={}, Signature={signature}",
                names.join(";")
            );
            assert_eq!(added.last().unwrap(), &("authorization", expected), "{name}");
            assert_eq!(added[0], ("x-amz-date", "20150830T123600Z".to_owned()));
        }
    }

    /// The example of a GET in the documentation of S3.
    #[test]
    fn an_object_of_s3_is_asked_for_as_its_documentation_does() {
        let nothing = sha256("");
        let headers = [
            ("host", "examplebucket.s3.amazonaws.com"),
            ("range", "bytes=0-9"),
            ("x-amz-content-sha256", nothing.as_str()),
        ];
        let request = Request { method: "GET", path: "/test.txt", headers: &headers, body: "" };
        // 2013-05-24T00:00:00Z
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        let mut credentials = credentials("AKIAIOSFODNN7EXAMPLE", None);
        credentials.secret = Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned());
        let added = sign(&credentials, Scope { region: "us-east-1", service: "s3", at }, request);
        let signature = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
        assert!(added[1].1.ends_with(signature), "{}", added[1].1);
    }

    #[test]
    fn a_secret_is_shown_nowhere() {
        let shown = format!("{:?}", credentials("AKIDEXAMPLE", Some("t0ken")));
        assert!(
            shown.contains("AKIDEXAMPLE") && !shown.contains("wJalr") && !shown.contains("t0ken"),
            "{shown}"
        );
        let printed = serde_json::to_string(&Secret::new("t0ken".to_owned())).unwrap();
        assert!(!printed.contains("t0ken"), "{printed}");
    }
}
