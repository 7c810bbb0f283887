//! `[admin]`: where the admin interface listens, and who may do what there.

use std::net::SocketAddr;

use nerve::document::{Reported, Section};
use serde::Serialize;

use crate::admin::{Access, Config, Digest, Role, Token};

/// The table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Admin {
    /// Addresses.
    pub listen: Vec<SocketAddr>,
    /// What may be done over loopback without a token.
    pub loopback_role: Role,
    /// What may be done from elsewhere without a token.
    pub network_role: Role,
    /// `[[admin.token]]`: who may do what.
    #[serde(rename = "token", skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<AdminToken>,
}

/// A table of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdminToken {
    /// What the log calls whoever shows it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// What the token is known by.
    pub sha256: Digest,
}

nerve::texts! {
    Role = "\"none\", \"read\", \"register\" or \"operate\"",
    Digest = "the SHA-256 digest of a token, 64 hexadecimal digits",
}

impl Admin {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let usual = Config::default();
        let listen = section.or("listen", usual.listen);
        let loopback_role = section.or("loopback_role", usual.access.loopback);
        let network_role = section.or("network_role", usual.access.network);
        let tokens = section.list("token", AdminToken::read);
        let tokens = tokens.into_iter().collect::<Result<Vec<_>, _>>()?;
        for (at, token) in tokens.iter().enumerate() {
            let is_same = |other: &&AdminToken| other.name == token.name || other.sha256 == token.sha256;
            if let Some(other) = tokens[..at].iter().find(is_same) {
                let error = format!("{:?} and {:?} have one name or one digest", other.name, token.name);
                return Err(section.invalid("token", error, "a name and a token for each"));
            }
        }
        Ok(Self { listen, loopback_role, network_role, tokens })
    }

    /// As the admin interface is told.
    pub(super) fn access(&self) -> Access {
        let token = |token: &AdminToken| Token {
            name: token.name.as_str().into(),
            role: token.role,
            digest: token.sha256,
        };
        Access {
            loopback: self.loopback_role,
            network: self.network_role,
            tokens: self.tokens.iter().map(token).collect(),
        }
    }
}

impl AdminToken {
    fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let (name, role) = (section.required::<String>("name"), section.required::<Role>("role"));
        let sha256 = section.required::<Digest>("sha256");
        let (name, role, sha256) = (name?, role?, sha256?);
        if name.is_empty() || name.len() > 63 {
            return Err(section.invalid("name", "it is shown in the log", "1 to 63 characters"));
        }
        if role == Role::None {
            return Err(section.invalid("role", "a token with it is good for nothing", "another role"));
        }
        if sha256 == Digest::of("") {
            return Err(section.invalid("sha256", "it is that of nothing", "that of a token"));
        }
        Ok(Self { name, role, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;

    use super::*;

    fn read(text: &str) -> Result<Admin, String> {
        let document = Document::parse("x", text).map_err(|errors| errors.to_string())?;
        document.decode(Admin::read).map_err(|errors| errors.to_string())
    }

    fn token(name: &str, role: &str, sha256: &str) -> String {
        format!("[[token]]\nname = {name:?}\nrole = {role:?}\nsha256 = {sha256:?}\n")
    }

    /// As `printf %s abc | sha256sum` prints it (FIPS 180-2, appendix B.1).
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn tokens_are_known_by_their_digests() {
        let other = Digest::of("other").to_string();
        let text = token("ci", "register", ABC) + &token("ops", "operate", &other.to_uppercase());
        let admin = read(&format!("network_role = \"read\"\n{text}")).unwrap();
        let access = admin.access();
        assert_eq!((access.loopback, access.network), (Role::Operate, Role::Read));
        assert_eq!(access.tokens[0].digest, Digest::of("abc"));
        assert_eq!((&*access.tokens[1].name, access.tokens[1].digest), ("ops", Digest::of("other")));
        assert_eq!(read("").unwrap().access(), Access::default());
    }

    #[test]
    fn what_nobody_can_mean_is_refused() {
        let nothing = Digest::of("").to_string();
        for (text, why) in [
            (token("x", "read", "abc"), "64 hexadecimal digits"),
            (token("x", "read", &ABC.replace('b', "g")), "64 hexadecimal digits"),
            (token("x", "read", &nothing), "it is that of nothing"),
            (token("x", "none", ABC), "good for nothing"),
            (token("", "read", ABC), "1 to 63 characters"),
            (token("x", "read", ABC) + &token("y", "read", ABC), "have one name or one digest"),
            ("loopback_role = \"root\"".to_owned(), "\"operate\""),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
