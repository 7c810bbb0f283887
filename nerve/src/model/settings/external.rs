//! A service that is a name outside the mesh, with or without a port: `db.example.com:5432`.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::key::{Key, key};
use super::value::Value;

/// Where DNS leads whoever asks for the service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct External {
    /// Lower case, without the final dot.
    host: String,
    port: Option<NonZeroU16>,
}

/// Why a text is no such name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no name of a service elsewhere: {rule}")]
pub struct ExternalError {
    text: String,
    rule: &'static str,
}

impl External {
    /// The name: lower case, without the final dot.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port, which SRV records have.
    #[must_use]
    pub fn port(&self) -> Option<NonZeroU16> {
        self.port
    }
}

impl fmt::Display for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

impl FromStr for External {
    type Err = ExternalError;

    fn from_str(text: &str) -> Result<Self, ExternalError> {
        let refuse = |rule| ExternalError { text: text.chars().take(80).collect(), rule };
        let address = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let (host, port) = match text.rsplit_once(':').filter(|_| !address(text)) {
            Some((host, port)) => {
                let port = port.parse().map_err(|_| refuse("behind ':' is a port from 1 to 65535"))?;
                (host, Some(port))
            }
            None => (text, None),
        };
        if address(host) {
            return Err(refuse("an address is an instance's: register one that has it"));
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        if host.len() > 253 {
            return Err(refuse("a name has at most 253 characters (RFC 1035)"));
        }
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if host.split('.').any(|label| !(1..=63).contains(&label.len()) || !label.bytes().all(good)) {
            return Err(refuse("between its dots are 1 to 63 letters, digits, '-' and '_'"));
        }
        Ok(Self { host, port })
    }
}

impl TryFrom<String> for External {
    type Error = ExternalError;

    fn try_from(text: String) -> Result<Self, ExternalError> {
        text.parse()
    }
}

impl From<External> for String {
    fn from(external: External) -> Self {
        external.to_string()
    }
}

impl Value for External {
    fn expects() -> String {
        "a name outside the mesh, with a port or without, such as db.example.com:5432".to_owned()
    }
}

/// What an operator may set of it.
pub(super) const KEYS: &[Key] = &[key!(
    external: External = "",
    "the service is this name outside the mesh, for DNS alone: db.example.com:5432"
)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_name_with_a_port_or_without() {
        for (text, shown) in [
            ("db.example.com", "db.example.com"),
            ("DB.Example.com.:5432", "db.example.com:5432"),
            ("_x.db", "_x.db"),
        ] {
            let external: External = text.parse().unwrap();
            assert_eq!(external.to_string(), shown);
            let json = serde_json::to_string(&external).unwrap();
            assert_eq!(serde_json::from_str::<External>(&json).unwrap(), external);
        }
        let long = format!("{}b", "a.".repeat(130));
        for (bad, why) in [
            ("", "1 to 63"),
            (".", "1 to 63"),
            ("a..b", "1 to 63"),
            ("a b", "1 to 63"),
            ("db:0", "a port"),
            ("db:x", "a port"),
            (":1", "1 to 63"),
            ("192.0.2.1:80", "an address"),
            ("2001:db8::1", "an address"),
            ("[2001:db8::1]:80", "an address"),
            (&long, "253"),
        ] {
            let error = bad.parse::<External>().unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
