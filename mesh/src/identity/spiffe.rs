//! Names of who proves itself: SPIFFE ids, as X.509-SVIDs carry them
//! (<https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use nerve::model::{NameError, NodeName, ServiceName};
use serde::{Deserialize, Serialize};

/// Why a text is no trust domain, or no id in one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// Not a trust domain.
    #[error("{0:?} is no trust domain: 1 to 255 of a-z, 0-9, '.', '-' and '_'")]
    TrustDomain(String),
    /// Not an id of ours.
    #[error(
        "{0:?} is no SPIFFE id of a mesh: spiffe://<trust domain>/node/<name>, signer/<name> or service/<name>"
    )]
    Id(String),
    /// The last part of an id is no name.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Whoever is certified by the same authorities. SPIFFE-ID, section 2.1.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    const LONGEST: usize = 255;

    /// The domain as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the authority's own certificate is named: the domain alone.
    pub(super) fn uri(&self) -> String {
        format!("{SCHEME}{self}")
    }

    /// The domain of an authority's certificate.
    pub(super) fn of_uri(uri: &str) -> Result<Self, SpiffeError> {
        uri.strip_prefix(SCHEME).ok_or_else(|| SpiffeError::TrustDomain(shown(uri)))?.parse()
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self("mesh.internal".into())
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let is_good = |octet: u8| matches!(octet, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        match text.len() {
            1..=Self::LONGEST if text.bytes().all(is_good) => Ok(Self(text.into())),
            _ => Err(SpiffeError::TrustDomain(shown(text))),
        }
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeError;

    fn try_from(text: String) -> Result<Self, SpiffeError> {
        text.parse()
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.as_str().to_owned()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// What somebody is certified to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A node of the mesh.
    Node(NodeName),
    /// A node that certifies others, as such: what it shows to those who ask for a certificate.
    Signer(NodeName),
    /// An instance of a service.
    Service(ServiceName),
}

/// `spiffe://<trust domain>/<kind>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    /// Whose certificates it is believed by.
    pub trust_domain: TrustDomain,
    /// Who it is.
    pub subject: Subject,
}

const SCHEME: &str = "spiffe://";

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let parts = || {
            let mut parts = text.strip_prefix(SCHEME)?.split('/');
            let three = (parts.next()?, parts.next()?, parts.next()?);
            parts.next().is_none().then_some(three)
        };
        let (trust_domain, kind, name) = parts().ok_or_else(|| SpiffeError::Id(shown(text)))?;
        let subject = match kind {
            "node" => Subject::Node(NodeName::new(name)?),
            "signer" => Subject::Signer(NodeName::new(name)?),
            "service" => Subject::Service(ServiceName::new(name)?),
            _ => return Err(SpiffeError::Id(shown(text))),
        };
        Ok(Self { trust_domain: trust_domain.parse()?, subject })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = match &self.subject {
            Subject::Node(name) => ("node", name.as_str()),
            Subject::Signer(name) => ("signer", name.as_str()),
            Subject::Service(name) => ("service", name.as_str()),
        };
        write!(f, "{SCHEME}{}/{kind}/{name}", self.trust_domain)
    }
}

/// For an error message: others may say as much as they want.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        for text in [
            "spiffe://mesh.internal/node/a",
            "spiffe://mesh.internal/signer/node-1",
            "spiffe://prod-1_b/service/web",
        ] {
            assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "spiffe://",
            "spiffe://mesh.internal",
            "spiffe://mesh.internal/node",
            "spiffe://mesh.internal/node/",
            "spiffe://mesh.internal/node/a/b",
            "spiffe://Mesh.internal/node/a",
            "spiffe:///node/a",
            "spiffe://mesh.internal:80/node/a",
            "spiffe://user@mesh.internal/node/a",
            "spiffe://mesh.internal/pod/a",
            "spiffe://mesh.internal/service/Web",
            "https://mesh.internal/node/a",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_again(text in "(spiffe://)?[a-z._/-]{0,20}(/node/|/service/)?[a-z0-9./-]{0,10}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
