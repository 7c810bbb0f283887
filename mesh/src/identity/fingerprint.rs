//! What an authority is known by: the SHA-256 digest of its certificate.

use std::fmt;

use ring::digest;
use rustls::pki_types::CertificateDer;

/// The digest. Shown in hexadecimal digits, as `openssl x509 -fingerprint -sha256` has them but for the colons.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; Self::LENGTH]);

impl Fingerprint {
    /// In octets.
    pub(super) const LENGTH: usize = 32;

    /// That of a certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut octets = [0; Self::LENGTH];
        octets.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
        Self(octets)
    }

    pub(super) fn from_octets(octets: [u8; Self::LENGTH]) -> Self {
        Self(octets)
    }

    pub(super) fn octets(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
