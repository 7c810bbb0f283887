//! The versions of the specification that are spoken, and what differs between them.

use serde_json::{Value, json};

/// A version of the specification, in the order in which they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// The result has the form that it has since.
    V0_3_1,
    /// `CHECK`.
    V0_4_0,
    /// An address does not say its family any more.
    V1_0_0,
    /// `GC` and `STATUS`.
    V1_1_0,
}

impl Version {
    pub(super) const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// What is spoken to who does not say what it speaks.
    pub(super) const LATEST: Self = Self::V1_1_0;

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Of a configuration; one that does not say is of the first version, which nobody speaks any more.
    pub(super) fn read(text: Option<&str>) -> Option<Self> {
        Self::ALL.into_iter().find(|version| Some(version.as_str()) == text)
    }

    /// The answer to `VERSION`.
    pub(super) fn all(asked: Option<&str>) -> Value {
        let asked = asked.unwrap_or(Self::LATEST.as_str());
        json!({"cniVersion": asked, "supportedVersions": Self::ALL.map(Self::as_str)})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_one_that_is_spoken() {
        for version in Version::ALL {
            assert_eq!(Version::read(Some(version.as_str())), Some(version));
        }
        for bad in [None, Some("0.1.0"), Some("0.2.0"), Some("2.0.0"), Some("")] {
            assert_eq!(Version::read(bad), None, "{bad:?}");
        }
        assert!(Version::V0_3_1 < Version::V0_4_0 && Version::V1_0_0 < Version::V1_1_0);
    }

    #[test]
    fn who_asks_is_told_every_version_in_the_one_it_speaks() {
        let told = json!({"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
        assert_eq!(Version::all(Some("0.4.0")), told);
        assert_eq!(Version::all(None)["cniVersion"], "1.1.0");
    }
}
