//! An authority elsewhere that is asked for each certificate: CFSSL's API, `sign` and `authsign`
//! (<https://github.com/cloudflare/cfssl/blob/master/doc/api/endpoint_authsign.txt>), which Docker Swarm speaks as well.
//!
//! What it answers is believed as far as it was asked for: of this key, for this name, and made by one of the roots. How long it
//! holds is the authority's to say.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nerve::http::Client;
use ring::hmac;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::authority::AuthorityError;
use super::certificate::{CertificateError, Certified};
use super::spiffe::{SpiffeId, Subject, TrustDomain};
use super::tls;
use super::token::TokenKey;

/// How long it may take.
const WITHIN: Duration = Duration::from_secs(8);
/// So much of what it says went wrong is shown.
const SHOWN: usize = 300;

/// What is known of it.
#[derive(Debug, Clone)]
pub struct External {
    /// Where it is.
    pub client: Client,
    /// A file with the key that it knows us by, in hexadecimal digits; none: it asks for none.
    pub auth_key: Option<PathBuf>,
    /// Which of its profiles is to be used.
    pub profile: Option<String>,
    /// Its certificates, in PEM.
    pub roots: PathBuf,
    /// A file with what join tokens are proved by, the same for all nodes that sign.
    pub token_key: PathBuf,
    /// What the mesh calls itself.
    pub trust_domain: TrustDomain,
}

/// Why it has certified nobody.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExternalError {
    #[error("asking {url} for a certificate: {why}")]
    Unreachable { url: String, why: String },
    #[error("{url} does not certify: {why}")]
    Refused { url: String, why: String },
    #[error(
        "{url} has certified something else than was asked for: {why}; its profile has to take URIs as names (CFSSL 1.4 or newer)"
    )]
    SomethingElse { url: String, why: String },
    #[error("{}: {error}", path.display())]
    Roots { path: PathBuf, error: io::Error },
    #[error("{} has no certificate in PEM", .0.display())]
    NoRoots(PathBuf),
}

/// It, to be asked.
pub(super) struct Remote {
    known: External,
    auth_key: Option<hmac::Key>,
    token_key: TokenKey,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("known", &self.known).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Request<'a> {
    certificate_request: String,
    hosts: [String; 1],
    subject: Subjects<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<&'a str>,
}

#[derive(Serialize)]
struct Subjects<'a> {
    #[serde(rename = "CN")]
    common_name: &'a str,
}

#[derive(Serialize)]
struct Authenticated {
    token: String,
    request: String,
}

#[derive(Deserialize)]
struct Response {
    success: bool,
    #[serde(default)]
    result: Option<Signed>,
    #[serde(default)]
    errors: Option<Vec<Fault>>,
}

#[derive(Deserialize)]
struct Signed {
    certificate: String,
}

#[derive(Deserialize)]
struct Fault {
    message: String,
}

impl Remote {
    /// Reads the keys.
    ///
    /// # Errors
    /// They cannot be read, are not kept well, or are none.
    pub(super) fn open(known: External) -> Result<Self, AuthorityError> {
        let wrong = |path: &Path, error: &str| {
            Err(AuthorityError::Key { path: path.to_owned(), error: error.to_owned() })
        };
        let auth_key = match &known.auth_key {
            Some(path) => match from_hex(&secret(path)?) {
                Some(octets) => Some(hmac::Key::new(hmac::HMAC_SHA256, &octets)),
                None => return wrong(path, "it is no key of CFSSL's: those are hexadecimal digits"),
            },
            None => None,
        };
        let text = secret(&known.token_key)?;
        if text.len() < 32 {
            let why = "a key for join tokens has 32 characters at least: `head -c 32 /dev/urandom | base64`";
            return wrong(&known.token_key, why);
        }
        Ok(Self { auth_key, token_key: TokenKey::of(text.as_bytes()), known })
    }

    pub(super) fn token_key(&self) -> &TokenKey {
        &self.token_key
    }

    /// Its certificates as they are now: who exchanges them says so by the file alone.
    pub(super) async fn roots(&self) -> Result<Vec<CertificateDer<'static>>, ExternalError> {
        let path = &self.known.roots;
        let text = tokio::fs::read(path).await;
        let text = text.map_err(|error| ExternalError::Roots { path: path.clone(), error })?;
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        roots.ok().filter(|roots| !roots.is_empty()).ok_or_else(|| ExternalError::NoRoots(path.clone()))
    }

    /// Has it certify who made a request, in DER, to be `subject`. `roots`: one of which is to have made it.
    pub(super) async fn certify(
        &self,
        request: &[u8],
        public_key: &[u8],
        subject: Subject,
        roots: &[CertificateDer<'static>],
    ) -> Result<CertificateDer<'static>, ExternalError> {
        let id = SpiffeId { trust_domain: self.known.trust_domain.clone(), subject };
        let certificate = self.ask(request, &id).await?;
        let certified = Certified::read(&certificate);
        let other = |why: String| Err(ExternalError::SomethingElse { url: self.url(), why });
        match certified {
            Ok(certified) if certified.id != id => return other(format!("{}, and not {id}", certified.id)),
            Ok(_) => {}
            Err(error) => return other(CertificateError::to_string(&error)),
        }
        if !super::certificate::has_key(&certificate, public_key) {
            return other("another key".to_owned());
        }
        if tls::issuer(&certificate, roots).is_none() {
            return other(format!("by nobody whose certificate is in {}", self.known.roots.display()));
        }
        Ok(certificate)
    }

    fn url(&self) -> String {
        self.known.client.url().to_string()
    }

    async fn ask(&self, request: &[u8], id: &SpiffeId) -> Result<CertificateDer<'static>, ExternalError> {
        let name = match &id.subject {
            Subject::Node(name) | Subject::Signer(name) => name.as_str(),
            Subject::Service(name) => name.as_str(),
        };
        let request = Request {
            certificate_request: pem(request),
            hosts: [id.to_string()],
            subject: Subjects { common_name: name },
            profile: self.known.profile.as_deref(),
        };
        let unreachable = |why: String| ExternalError::Unreachable { url: self.url(), why };
        let said = serde_json::to_string(&request).map_err(|error| unreachable(error.to_string()))?;
        let (path, body) = match &self.auth_key {
            None => ("/api/v1/cfssl/sign", said),
            Some(key) => {
                let proof = hmac::sign(key, said.as_bytes());
                let proved = Authenticated { token: STANDARD.encode(proof), request: STANDARD.encode(said) };
                let body = serde_json::to_string(&proved).map_err(|error| unreachable(error.to_string()))?;
                ("/api/v1/cfssl/authsign", body)
            }
        };
        let headers = [("content-type", "application/json")];
        let answer = self.known.client.post(path, &headers, body, WITHIN).await.map_err(unreachable)?;
        let refused = |why: String| {
            let why = why.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
            ExternalError::Refused { url: self.url(), why }
        };
        let Ok(response) = serde_json::from_slice::<Response>(&answer.body) else {
            return Err(refused(format!("it answers with status {}, and not as CFSSL does", answer.status)));
        };
        match response {
            Response { success: true, result: Some(Signed { certificate }), .. } => {
                CertificateDer::from_pem_slice(certificate.as_bytes())
                    .map_err(|_| refused("its answer has no certificate".to_owned()))
            }
            Response { errors, .. } => {
                let said = errors.unwrap_or_default().into_iter().next().map(|fault| fault.message);
                Err(refused(said.unwrap_or_else(|| format!("status {}", answer.status))))
            }
        }
    }
}

/// What a file has that only its owner may read, without white space around it.
fn secret(path: &Path) -> Result<Zeroizing<String>, AuthorityError> {
    let file = |error| AuthorityError::File { path: path.to_owned(), error };
    let mode = std::fs::metadata(path).map_err(file)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(AuthorityError::Open { path: path.to_owned(), mode });
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(file)?);
    Ok(Zeroizing::new(text.trim().to_owned()))
}

fn from_hex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.is_empty() || !rest.is_empty() {
        return None;
    }
    let digit = |octet: u8| char::from(octet).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect::<Option<_>>()
        .map(Zeroizing::new)
}

fn pem(request: &[u8]) -> String {
    let mut text = "-----BEGIN CERTIFICATE REQUEST-----\n".to_owned();
    for line in STANDARD.encode(request).as_bytes().chunks(64) {
        text.extend(line.iter().map(|octet| char::from(*octet)));
        text.push('\n');
    }
    text + "-----END CERTIFICATE REQUEST-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_hexadecimal_digits_that_nobody_else_can_read() {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(from_hex("0aFf").as_deref(), Some(&vec![0x0a, 0xff]));
        for bad in ["", "0", "0g", "é!"] {
            assert!(from_hex(bad).is_none(), "{bad}");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, " 0aff\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).unwrap();
        assert!(matches!(secret(&path), Err(AuthorityError::Open { mode: 0o604, .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(*secret(&path).unwrap(), "0aff");
    }
}
