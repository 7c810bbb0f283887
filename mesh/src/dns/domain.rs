//! The domain that the mesh's names end in.

use std::fmt;
use std::str::FromStr;

use hickory_proto::rr::Name;

/// A domain name of one label or more, in lower case, without the final dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain(Name);

/// Why a text is not the domain of a mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no domain: labels of a-z, 0-9 and '-', joined by dots, at most 190 characters, as in \"mesh.internal\""
)]
pub struct DomainError {
    text: String,
}

impl Domain {
    pub(super) fn name(&self) -> &Name {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        let refused = || DomainError { text: text.chars().take(200).collect() };
        // A service's name before it must still make a name of at most 253 characters.
        let plain = text.strip_suffix('.').unwrap_or(text);
        if plain.len() > 190 || !plain.split('.').all(|label| nerve::model::ServiceName::new(label).is_ok()) {
            return Err(refused());
        }
        let mut name = Name::from_ascii(plain).map_err(|_| refused())?;
        name.set_fqdn(true);
        Ok(Self(name))
    }
}

impl Default for Domain {
    /// `mesh.internal`: ICANN reserved `internal` for private use.
    fn default() -> Self {
        let labels = [&b"mesh"[..], b"internal"];
        // Two short labels are a name by construction; were they not, the root would be the domain.
        Self(Name::from_labels(labels).unwrap_or_else(|_| Name::root()))
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_ascii();
        f.pad(text.strip_suffix('.').unwrap_or(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_reads_as_it_prints() {
        assert_eq!(Domain::default().to_string(), "mesh.internal");
        assert_eq!("mesh.internal.".parse::<Domain>().unwrap(), Domain::default());
        for bad in ["", ".", "a..b", "Mesh.internal", "a_b", &"a.".repeat(100)] {
            assert!(bad.parse::<Domain>().is_err(), "{bad}");
        }
    }
}
