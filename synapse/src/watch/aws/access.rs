//! How AWS is spoken with, as it is configured: where, and whose keys sign.

use std::fmt;
use std::str::FromStr;

use nerve::document::{FromValue, Mismatch, Reported, Section, Value};
use nerve::http::{FilePath, Tls, Url};
use serde::Serialize;

use super::secret::Secret;

/// A region such as `eu-west-1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Region(String);

/// How AWS is spoken with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Access {
    /// Where its API is, if it is not where the region has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) endpoint: Option<Url>,
    /// Who signs, if it is not said by the environment or by the role of this machine.
    #[serde(flatten)]
    pub(super) keys: Option<Keys>,
    /// Where this machine is told of its role, if it is not where EC2 has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<Url>,
    #[serde(flatten)]
    pub(super) tls: Tls,
}

/// Keys of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Keys {
    #[serde(rename = "access_key_id")]
    pub(super) id: String,
    #[serde(flatten)]
    pub(super) secret: SecretKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) session_token_file: Option<FilePath>,
}

/// Where the secret one is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) enum SecretKey {
    /// The first line of a file, read for each request.
    #[serde(rename = "secret_access_key_file")]
    File(FilePath),
    /// In a configuration of another program that is taken as it is.
    #[serde(rename = "secret_access_key")]
    Given(Secret),
}

impl Access {
    /// Reads its keys.
    pub(in crate::watch) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let endpoint = section.given::<Url>("endpoint");
        let id = section.given::<String>("access_key_id");
        let secret = section.given::<FilePath>("secret_access_key_file");
        let session_token_file = section.given::<FilePath>("session_token_file");
        let metadata = section.given::<Url>("metadata");
        let tls = Tls::read(section);
        let (endpoint, id, secret, session_token_file) = (endpoint?, id?, secret?, session_token_file?);
        let tls = tls?;
        let keys = match (id, secret) {
            (Some(id), Some(file)) => Some(Keys { id, secret: SecretKey::File(file), session_token_file }),
            (None, None) if session_token_file.is_none() => None,
            _ => {
                return Err(section.refuse(
                    "`access_key_id`, `secret_access_key_file` and `session_token_file` are one without the other",
                    "the first two, or all three, or none",
                ));
            }
        };
        if keys.as_ref().is_some_and(|keys| !is_key_id(&keys.id)) {
            return Err(section.invalid(
                "access_key_id",
                "it is no id of a key",
                "such as \"AKIAIOSFODNN7EXAMPLE\"",
            ));
        }
        let at = endpoint.map_or_else(|| Ok(Self::default()), Self::at);
        let at =
            at.map_err(|why| section.invalid("endpoint", why, "a URL such as \"https://ec2.example.com\""))?;
        if !tls.is_default() && at.endpoint.as_ref().is_some_and(|endpoint| !endpoint.is_secure()) {
            let why = "there are keys of TLS, and it is no https:// URL";
            return Err(section.invalid("endpoint", why, "an https:// URL"));
        }
        Ok(Self { keys, metadata: metadata?, tls, ..at })
    }

    /// With an API that is not where the region has it.
    ///
    /// # Errors
    /// Nobody could sign what is asked there.
    pub fn at(endpoint: Url) -> Result<Self, String> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
        if !endpoint.base().chars().all(is_plain) {
            return Err(format!("the path of {endpoint} has characters that would have to be escaped"));
        }
        Ok(Self { endpoint: Some(endpoint), ..Self::default() })
    }

    /// Of keys that stand in a configuration of another program.
    ///
    /// # Errors
    /// The id is none.
    pub fn of_keys(id: String, secret: Secret) -> Result<Self, String> {
        if !is_key_id(&id) {
            return Err(format!("{id:?} is no id of a key"));
        }
        let keys = Keys { id, secret: SecretKey::Given(secret), session_token_file: None };
        Ok(Self { keys: Some(keys), ..Self::default() })
    }
}

/// It stands in a header, and between slashes there.
fn is_key_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

impl Region {
    /// Its name.
    pub(in crate::watch) fn as_str(&self) -> &str {
        &self.0
    }

    /// The domain that the names of its endpoints end in.
    pub(super) fn domain(&self) -> &'static str {
        if self.0.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" }
    }
}

impl FromStr for Region {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_part = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        if text.len() <= 32 && text.split('-').all(is_part) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("{text:?} is no region"))
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromValue for Region {
    fn expected() -> String {
        "a region of AWS such as \"eu-west-1\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        value.parse_text(&Self::expected())
    }
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;

    use super::*;

    fn read(text: &str) -> Result<Access, String> {
        Document::parse("x", text).unwrap().decode(Access::read).map_err(|errors| errors.to_string())
    }

    #[test]
    fn keys_are_whole_or_none_and_a_secret_stands_in_a_file() {
        assert_eq!(read("").unwrap(), Access::default());
        let whole = "access_key_id = \"AKIDEXAMPLE\"\nsecret_access_key_file = \"/etc/aws.key\"\n";
        let keys = read(whole).unwrap().keys.unwrap();
        assert_eq!((keys.id.as_str(), keys.session_token_file), ("AKIDEXAMPLE", None));
        for (text, said) in [
            ("access_key_id = \"AKIDEXAMPLE\"", "one without the other"),
            ("session_token_file = \"/x\"", "one without the other"),
            ("access_key_id = \"a/b\"\nsecret_access_key_file = \"/x\"", "no id of a key"),
            ("endpoint = \"http://a\"\ninsecure = true", "no https:// URL"),
            ("endpoint = \"http://a/b%20c\"", "escaped"),
            ("secret_access_key = \"s3cret\"", "secret_access_key_file"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains(said) && !told.contains("s3cret"), "{told}");
        }
        let given = |id: &str| Access::of_keys(id.to_owned(), Secret::new("s3cret".to_owned()));
        let keys = given("AKIDEXAMPLE").unwrap();
        let shown = format!("{keys:?} {}", serde_json::to_string(&keys).unwrap());
        assert!(shown.contains("AKIDEXAMPLE") && !shown.contains("s3cret"), "{shown}");
        assert!(!given("a b").unwrap_err().contains("s3cret"));
    }

    #[test]
    fn a_region_is_a_part_of_a_host_s_name() {
        assert_eq!("eu-west-1".parse::<Region>().unwrap().domain(), "amazonaws.com");
        assert_eq!("cn-north-1".parse::<Region>().unwrap().domain(), "amazonaws.com.cn");
        for bad in ["", "eu-", "EU", "eu.west", "a/b"] {
            assert!(bad.parse::<Region>().is_err(), "{bad}");
        }
    }
}
