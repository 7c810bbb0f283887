//! `[identity]`: how this node proves who it is, and whether it certifies others.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nerve::document::{Reported, Section};
use nerve::period::Period;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::identity::{LONGEST_LIFE, SIGNER_PORT, Token, TokenError};

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
    /// A join token of the command line, which comes first.
    #[serde(skip)]
    pub token: Option<Token>,
}

impl Identity {
    pub(super) fn read(section: &mut Section<'_>, base: &Path) -> Result<Self, Reported> {
        let file = |path: PathBuf| base.join(path);
        let authority = section.given::<PathBuf>("authority");
        let signer_listen = section.or("signer_listen", Vec::new());
        let life = section.or("life", Period::seconds(24 * 60 * 60));
        let signers = section.or("signers", Vec::new());
        let join_token_file = section.given::<PathBuf>("join_token_file");
        if !(SHORTEST_LIFE..=LONGEST_LIFE).contains(&life.get()) {
            return Err(section.invalid("life", "certificates are renewed at half of it", "10s to 24h"));
        }
        Ok(Self {
            authority: authority?.map(file),
            signer_listen,
            life,
            signers,
            join_token_file: join_token_file?.map(file),
            token: None,
        })
    }

    /// Where others are certified, on a node of this address.
    pub(super) fn listen(&self, address: std::net::IpAddr) -> Vec<SocketAddr> {
        match &self.signer_listen[..] {
            _ if self.authority.is_none() => Vec::new(),
            [] => vec![SocketAddr::new(address, SIGNER_PORT)],
            given => given.to_vec(),
        }
    }
}

/// Why a file gives no join token.
#[derive(Debug, thiserror::Error)]
pub enum JoinTokenError {
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

pub(super) fn join_token(path: &Path) -> Result<Token, JoinTokenError> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|error| JoinTokenError::File { path: path.to_owned(), error })?;
    let token = text.lines().next().unwrap_or_default().parse();
    token.map_err(|error| JoinTokenError::Token { path: path.to_owned(), error })
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
    fn a_life_is_neither_a_moment_nor_a_year() {
        assert!(read("life = \"1s\"").unwrap_err().contains("half of it"));
        assert!(read("life = \"1h\"").is_ok());
    }
}
