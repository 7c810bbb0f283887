//! Why AWS refuses, and what to do about it (pure): the documents of errors that its APIs answer with.

use serde::Deserialize;

use super::credentials::Credentials;

/// So much of what AWS says is shown, in characters.
const MOST: usize = 300;

/// There is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::watch) enum Trouble {
    /// Nobody answers.
    Silent(String),
    /// It is refused, and will be until somebody does something about it.
    Refused(String),
    /// It is asked too often, or has trouble of its own: it is left alone for longer.
    Busy(String),
}

/// What is to be thought of a refusal, and whether other credentials may help.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) trouble: Trouble,
    pub(super) is_of_credentials: bool,
}

/// `<Response><Errors><Error>…` of EC2, or `<Error>…` of S3.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Document {
    errors: Option<Errors>,
    code: Option<String>,
    message: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Errors {
    error: Said,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Said {
    code: String,
    message: String,
}

/// Judges an answer that is no 200. `permission` is what a policy is to allow.
pub(super) fn judged(status: u16, body: &[u8], credentials: &Credentials, permission: &str) -> Refusal {
    let Said { code, message } = said(body);
    let Credentials { id, source, .. } = credentials;
    let advice = match code.as_str() {
        "RequestExpired" | "RequestTimeTooSkewed" => Some(format!(
            "set the clock of this machine right, or renew the credentials {id} of {source} if they have ended"
        )),
        "AuthFailure"
        | "InvalidClientTokenId"
        | "InvalidAccessKeyId"
        | "UnrecognizedClientException"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "IncompleteSignature" => Some(format!(
            "see that the credentials {id} of {source} exist, are active, and that their secret belongs to them; and that the clock of \
             this machine is right"
        )),
        "UnauthorizedOperation" | "AccessDenied" => {
            Some(format!("allow {permission} to the credentials {id} of {source}"))
        }
        "OptInRequired" => Some("turn on the region for the account".to_owned()),
        _ => None,
    };
    let is_of_credentials = advice.is_some() && code != "OptInRequired";
    let told = match (code.is_empty(), advice) {
        (true, _) => format!("status {}", status),
        (false, Some(advice)) => format!("{code}: {message}: {advice}"),
        (false, None) => format!("{code}: {message}"),
    };
    let is_busy = matches!(
        code.as_str(),
        "RequestLimitExceeded"
            | "Throttling"
            | "ThrottlingException"
            | "RequestThrottled"
            | "SlowDown"
            | "Unavailable"
            | "ServiceUnavailable"
            | "InternalError"
            | "InternalFailure"
    ) || (code.is_empty() && (status == 429 || status >= 500));
    let trouble = if is_busy {
        Trouble::Busy(format!(
            "{told}: it is asked less often until it answers; where many nodes ask, a longer `interval` helps"
        ))
    } else {
        Trouble::Refused(told)
    };
    Refusal { trouble, is_of_credentials }
}

fn said(body: &[u8]) -> Said {
    let document: Option<Document> =
        std::str::from_utf8(body).ok().and_then(|text| quick_xml::de::from_str(text).ok());
    let Document { errors, code, message } = document.unwrap_or_default();
    let said = match errors {
        Some(errors) => errors.error,
        None => Said { code: code.unwrap_or_default(), message: message.unwrap_or_default() },
    };
    let bounded = |text: &str| text.chars().filter(|c| !c.is_control()).take(MOST).collect();
    Said { code: bounded(&said.code), message: bounded(&said.message) }
}

#[cfg(test)]
mod tests {
    use super::super::secret::Secret;
    use super::*;

    fn judge(status: u16, body: &str) -> Refusal {
        let credentials = Credentials {
            id: "AKIDEXAMPLE".to_owned(),
            secret: Secret::new("s3cret".to_owned()),
            token: None,
            expires: None,
            source: "the environment".to_owned(),
        };
        judged(status, body.as_bytes(), &credentials, "ec2:DescribeInstances")
    }

    fn ec2(code: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{code}</Code><Message>M &amp; m</Message></Error></Errors><RequestID>r</RequestID></Response>"
        )
    }

    #[test]
    fn refusals_say_what_to_do() {
        for (code, said, of_credentials) in [
            ("RequestExpired", "RequestExpired: M & m: set the clock", true),
            ("AuthFailure", "the credentials AKIDEXAMPLE of the environment exist", true),
            ("UnauthorizedOperation", "allow ec2:DescribeInstances to the credentials AKIDEXAMPLE", true),
            ("OptInRequired", "turn on the region", false),
            ("InvalidParameterValue", "InvalidParameterValue: M & m", false),
        ] {
            let Refusal { trouble: Trouble::Refused(told), is_of_credentials } = judge(400, &ec2(code))
            else {
                panic!("{code}");
            };
            assert!(told.contains(said) && !told.contains("s3cret"), "{told}");
            assert_eq!(is_of_credentials, of_credentials, "{code}");
        }
        let s3 = "<Error><Code>AccessDenied</Code><Message>no</Message><HostId>x</HostId></Error>";
        assert!(
            matches!(judge(403, s3).trouble, Trouble::Refused(told) if told.starts_with("AccessDenied: no: allow"))
        );
    }

    #[test]
    fn whoever_is_busy_is_left_alone_and_what_is_no_document_has_its_status() {
        for (status, body) in [
            (503, ec2("RequestLimitExceeded")),
            (503, ec2("Unavailable")),
            (502, "<html>".to_owned()),
            (429, String::new()),
        ] {
            assert!(matches!(judge(status, &body).trouble, Trouble::Busy(_)), "{body}");
        }
        assert_eq!(judge(404, "\u{1}<a><b>").trouble, Trouble::Refused("status 404".to_owned()));
        let long = judge(400, &ec2(&"x".repeat(10_000)));
        assert!(matches!(long.trouble, Trouble::Refused(told) if told.len() < 1000));
    }
}
