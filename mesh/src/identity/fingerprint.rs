//! What an authority is known by: the SHA-256 digest of its certificate, as `openssl x509 -fingerprint -sha256` has it but for the colons.

use nerve::model::Fingerprint;
use ring::digest;
use rustls::pki_types::CertificateDer;

/// That of a certificate.
pub(super) fn of(certificate: &CertificateDer<'_>) -> Fingerprint {
    let mut octets = [0; 32];
    octets.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
    Fingerprint(octets)
}
