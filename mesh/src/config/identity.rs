//! `[identity]`: how this node proves who it is, and whether it certifies others.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nerve::document::{Reported, Section};
use nerve::http::{Client, Tls, Url};
use nerve::period::Period;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::identity::{self, LONGEST_LIFE, Means, SIGNER_PORT, SpiffeError, Token, TokenError, TrustDomain};

/// The shortest life that certificates may have: they are renewed at half of it.
const SHORTEST_LIFE: std::time::Duration = std::time::Duration::from_secs(10);

/// The table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// The directory of the authority's key and certificate: this node certifies others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<PathBuf>,
    /// Where it does so; none: on the node's address.
    pub signer_listen: Vec<SocketAddr>,
    /// How long the certificates that it makes hold.
    pub life: Period,
    /// Where nodes that certify others are; none: where the store says.
    pub signers: Vec<SocketAddr>,
    /// A file whose first line is a join token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_token_file: Option<PathBuf>,
    /// The authority elsewhere that is asked for certificates: this node certifies others by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external: Option<External>,
    /// The certificate, its key and the roots, where somebody else renews them.
    #[serde(flatten)]
    pub files: Option<CertificateFiles>,
    /// A join token of the command line, which comes first.
    #[serde(skip)]
    pub token: Option<Token>,
}

/// Where they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateFiles {
    /// The certificate, and those between it and a root.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Whom this node believes.
    pub roots: PathBuf,
}

/// An authority that speaks CFSSL's API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct External {
    /// Where it is.
    pub url: Url,
    /// A file with the key that it knows us by; none: it asks for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_key_file: Option<PathBuf>,
    /// Which of its profiles is to be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Its certificates.
    pub roots: PathBuf,
    /// What join tokens are proved by.
    pub token_key_file: PathBuf,
    /// What the mesh calls itself.
    pub trust_domain: TrustDomain,
    #[serde(flatten)]
    tls: Tls,
}

impl External {
    fn read(section: &mut Section<'_>, base: &Path) -> Result<Self, Reported> {
        let file = |path: PathBuf| base.join(path);
        let url = section.required::<Url>("url");
        let auth_key_file = section.given::<PathBuf>("auth_key_file");
        let profile = section.given::<String>("profile");
        let roots = section.required::<PathBuf>("roots");
        let token_key_file = section.required::<PathBuf>("token_key_file");
        let trust_domain = section.or("trust_domain", TrustDomain::default().to_string());
        let tls = Tls::read(section);
        let trust_domain = trust_domain.parse().map_err(|error: SpiffeError| {
            section.invalid("trust_domain", error, "such as \"mesh.internal\"")
        })?;
        Ok(Self {
            url: url?,
            auth_key_file: auth_key_file?.map(file),
            profile: profile?,
            roots: file(roots?),
            token_key_file: file(token_key_file?),
            trust_domain,
            tls: tls?,
        })
    }

    fn known(&self) -> identity::External {
        identity::External {
            client: Client::new(self.url.clone(), self.tls.clone()),
            auth_key: self.auth_key_file.clone(),
            profile: self.profile.clone(),
            roots: self.roots.clone(),
            token_key: self.token_key_file.clone(),
            trust_domain: self.trust_domain.clone(),
        }
    }
}

impl Identity {
    pub(super) fn read(section: &mut Section<'_>, base: &Path) -> Result<Self, Reported> {
        let file = |path: PathBuf| base.join(path);
        let authority = section.given::<PathBuf>("authority");
        let signer_listen = section.or("signer_listen", Vec::new());
        let life = section.or("life", Period::seconds(24 * 60 * 60));
        let signers = section.or("signers", Vec::new());
        let join_token_file = section.given::<PathBuf>("join_token_file");
        let files = ["certificate", "key", "roots"].map(|key| section.given::<PathBuf>(key));
        if !(SHORTEST_LIFE..=LONGEST_LIFE).contains(&life.get()) {
            return Err(section.invalid("life", "certificates are renewed at half of it", "10s to 24h"));
        }
        let external = section.section("external", |section| External::read(section, base)).transpose();
        let [certificate, key, roots] = files;
        let files = match (certificate?.map(file), key?.map(file), roots?.map(file)) {
            (Some(certificate), Some(key), Some(roots)) => Some(CertificateFiles { certificate, key, roots }),
            (None, None, None) => None,
            (certificate, key, _) => {
                let missing = match (certificate, key) {
                    (None, _) => "certificate",
                    (_, None) => "key",
                    _ => "roots",
                };
                let why = "a certificate from files has a certificate, a key and roots";
                return Err(section.invalid(missing, why, "a file in PEM"));
            }
        };
        Ok(Self {
            authority: authority?.map(file),
            signer_listen,
            life,
            signers,
            join_token_file: join_token_file?.map(file),
            external: external?,
            files,
            token: None,
        })
    }

    /// Where others are certified, on a node of this address.
    pub(super) fn listen(&self, address: std::net::IpAddr) -> Vec<SocketAddr> {
        match &self.signer_listen[..] {
            _ if self.authority.is_none() && self.external.is_none() => Vec::new(),
            [] => vec![SocketAddr::new(address, SIGNER_PORT)],
            given => given.to_vec(),
        }
    }
}

impl Identity {
    /// How this node, of this address, comes by its certificate.
    pub(super) fn means(&self, address: std::net::IpAddr) -> Result<Means, IdentityError> {
        let Self { authority, life, join_token_file, external, files, token, .. } = self;
        // Whoever makes certificates needs no token, and may have one all the same.
        let ways = [
            (files.is_some(), "identity.certificate"),
            (authority.is_some(), "identity.authority"),
            (external.is_some(), "identity.external"),
            (files.is_some() && join_token_file.is_some(), "identity.join_token_file"),
            (files.is_some() && token.is_some(), "a join token (`--join`, PLEXUS_JOIN)"),
        ];
        let mut given = ways.into_iter().filter_map(|(is_given, way)| is_given.then_some(way));
        if let (Some(one), Some(other)) = (given.next(), given.next()) {
            return Err(IdentityError::Both { one, other });
        }
        Ok(match (files, authority, external, token, join_token_file) {
            (Some(files), ..) => {
                let CertificateFiles { certificate, key, roots } = files.clone();
                Means::Files(identity::Files { certificate, key, roots })
            }
            (None, Some(directory), ..) => {
                let (directory, listen) = (directory.clone(), self.listen(address));
                Means::Authority { directory, listen, life: life.get() }
            }
            (None, None, Some(external), ..) => {
                Means::External { authority: external.known(), listen: self.listen(address) }
            }
            (None, None, None, Some(token), _) => Means::Others { token: Some(token.clone()) },
            (None, None, None, None, Some(file)) => Means::Others { token: Some(join_token(file)?) },
            (None, None, None, None, None) => Means::Others { token: None },
        })
    }
}

/// Why a node cannot come by its certificate as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// By two ways.
    #[error("{one} and {other}: a node comes by its certificate in one way; remove one of them")]
    Both {
        /// The first.
        one: &'static str,
        /// The other one.
        other: &'static str,
    },
    /// It cannot be read.
    #[error("identity.join_token_file: {}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Its first line is none.
    #[error("identity.join_token_file: {}: {error}", path.display())]
    Token {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: TokenError,
    },
}

fn join_token(path: &Path) -> Result<Token, IdentityError> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|error| IdentityError::File { path: path.to_owned(), error })?;
    let token = text.lines().next().unwrap_or_default().parse();
    token.map_err(|error| IdentityError::Token { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;

    use super::*;

    fn read(text: &str) -> Result<Identity, String> {
        let document = Document::parse("x", text).map_err(|errors| errors.to_string())?;
        document
            .decode(|root| Identity::read(root, Path::new("/etc/plexus")))
            .map_err(|errors| errors.to_string())
    }

    #[test]
    fn who_signs_listens_and_others_do_not() {
        let address = "192.0.2.1".parse().unwrap();
        assert_eq!(read("").unwrap().listen(address), []);
        let signs = read("authority = \"ca\"").unwrap();
        assert_eq!(signs.authority.as_deref(), Some(Path::new("/etc/plexus/ca")));
        assert_eq!(signs.listen(address), ["192.0.2.1:7444".parse().unwrap()]);
        let elsewhere = read("authority = \"/ca\"\nsigner_listen = [\"0.0.0.0:1\"]").unwrap();
        assert_eq!(elsewhere.listen(address), ["0.0.0.0:1".parse().unwrap()]);
    }

    #[test]
    fn a_certificate_comes_from_one_place() {
        const FILES: &str = "certificate = \"c.pem\"\nkey = \"k.pem\"\nroots = \"/r.pem\"\n";
        let means = |text: &str| read(text).unwrap().means("192.0.2.1".parse().unwrap());
        let Means::Files(files) = means(FILES).unwrap() else { panic!("from files") };
        assert_eq!(files.certificate, Path::new("/etc/plexus/c.pem"));
        assert_eq!(files.roots, Path::new("/r.pem"));
        for other in ["authority", "join_token_file"] {
            let error = means(&format!("{FILES}{other} = \"x\"")).unwrap_err();
            assert!(error.to_string().contains(&format!("identity.{other}")), "{error}");
        }
        for line in FILES.lines() {
            let (key, _) = line.split_once(' ').unwrap();
            let error = read(&FILES.replace(line, "")).unwrap_err();
            assert!(error.contains(key) && error.contains("a file in PEM"), "{error}");
        }
        let external = "[external]\nurl = \"https://ca:8888\"\nroots = \"r.pem\"\ntoken_key_file = \"t\"\n";
        let Means::External { authority, listen } = means(external).unwrap() else { panic!("elsewhere") };
        assert_eq!(authority.token_key, Path::new("/etc/plexus/t"));
        assert_eq!((authority.trust_domain.as_str(), listen.len()), ("mesh.internal", 1));
        assert!(means(&format!("authority = \"ca\"\n{external}")).is_err());
        assert!(read(&format!("{external}trust_domain = \"No\"")).unwrap_err().contains("trust_domain"));
        assert!(matches!(means("authority = \"ca\"").unwrap(), Means::Authority { .. }));
        assert!(matches!(means("").unwrap(), Means::Others { token: None }));
        assert!(matches!(means("join_token_file = \"/none\""), Err(IdentityError::File { .. })));
    }

    #[test]
    fn a_life_is_neither_a_moment_nor_a_year() {
        assert!(read("life = \"1s\"").unwrap_err().contains("half of it"));
        assert!(read("life = \"1h\"").is_ok());
    }
}
