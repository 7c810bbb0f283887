//! Reading certificates: whom they are of, and for how long.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::fingerprint;
use super::spiffe::{SpiffeError, SpiffeId, TrustDomain};

/// Why a certificate is no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It is none.
    #[error("it is no X.509 certificate")]
    Malformed,
    /// An X.509-SVID names one URI, and nothing else that could be taken for it.
    #[error("it has {0} URIs among its names, and one is what proves somebody")]
    Uris(usize),
    /// Its URI names nobody.
    #[error(transparent)]
    Spiffe(#[from] SpiffeError),
}

/// What a certificate says. Whether it is to be believed is another question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// Of whom.
    pub id: SpiffeId,
    /// From when on.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
}

impl Certified {
    /// Reads the certificate of a node, a signer or a service.
    ///
    /// # Errors
    /// It is of nobody.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let certificate = parse(certificate)?;
        let (not_before, not_after) = lifetime(&certificate);
        Ok(Self { id: uri(&certificate)?.parse()?, not_before, not_after })
    }
}

/// What an authority's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) trust_domain: TrustDomain,
    pub(super) not_after: SystemTime,
    pub(super) is_ca: bool,
}

impl Root {
    pub(super) fn read(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let certificate = parse(certificate)?;
        let (_, not_after) = lifetime(&certificate);
        Ok(Self {
            trust_domain: TrustDomain::of_uri(uri(&certificate)?)?,
            not_after,
            is_ca: certificate.is_ca(),
        })
    }
}

/// Is it the certificate of this key, given as its public half stands in one?
pub(super) fn has_key(certificate: &CertificateDer<'_>, public_key: &[u8]) -> bool {
    parse(certificate).is_ok_and(|certificate| certificate.public_key().subject_public_key.data == public_key)
}

/// Who a certificate says it is of: kinds, by their numbers, and values. Nothing where that is not to be read.
pub(super) fn subject(certificate: &CertificateDer<'_>) -> Option<Vec<(Vec<u64>, String)>> {
    let certificate = parse(certificate).ok()?;
    let attributes = certificate.subject().iter_attributes();
    attributes
        .map(|attribute| {
            let kind = attribute.attr_type().iter()?.collect();
            Some((kind, attribute.as_str().ok()?.to_owned()))
        })
        .collect()
}

/// Are both of the same name, as it is written?
pub(super) fn has_subject_of(certificate: &CertificateDer<'_>, other: &CertificateDer<'_>) -> bool {
    match (parse(certificate), parse(other)) {
        (Ok(certificate), Ok(other)) => certificate.subject().as_raw() == other.subject().as_raw(),
        _ => false,
    }
}

/// What the key of a certificate is known by, in hexadecimal digits: the SHA-256 digest of its SubjectPublicKeyInfo.
pub(super) fn key_digest(certificate: &CertificateDer<'_>) -> String {
    let of = |octets: &[u8]| fingerprint::of(&octets.into()).to_string();
    parse(certificate).map_or_else(|_| of(certificate), |certificate| of(certificate.public_key().raw))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    match X509Certificate::from_der(certificate) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(CertificateError::Malformed),
    }
}

fn uri<'a>(certificate: &X509Certificate<'a>) -> Result<&'a str, CertificateError> {
    let names = certificate.subject_alternative_name().map_err(|_| CertificateError::Malformed)?;
    let names = names.map(|names| &names.value.general_names[..]).unwrap_or_default();
    let uris = || {
        names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
    };
    match (uris().next(), uris().count()) {
        (Some(uri), 1) => Ok(uri),
        (_, count) => Err(CertificateError::Uris(count)),
    }
}

fn lifetime(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let time = |timestamp: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0));
    let validity = certificate.validity();
    (time(validity.not_before.timestamp()), time(validity.not_after.timestamp()))
}
