//! `[admin]`: where the admin interface listens, and who may do what there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nerve::document::{Reported, Section, Text};
use nerve::model::UnixPath;
use serde::{Serialize, Serializer};

use super::Machine;
use super::localhost::{account_as_text, mode_as_text};
use crate::admin::{Access, Config, Digest, Role, SocketConfig, Token};
use crate::socket_file::{self, Account, Mode};

/// The unix socket's file in the state directory, where it is unless told otherwise.
const SOCKET: &str = "admin.sock";

/// The table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Admin {
    /// Addresses.
    pub listen: Vec<SocketAddr>,
    /// A unix socket; none: there is no state directory to have it in, or there is to be none.
    #[serde(serialize_with = "empty_if_none")]
    pub socket: Option<PathBuf>,
    /// The permissions of its file.
    #[serde(serialize_with = "mode_as_text")]
    pub socket_mode: Mode,
    /// The file's group; without one, the agent's.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "account_as_text")]
    pub socket_group: Option<Account>,
    /// What may be done over it without a token.
    pub socket_role: Role,
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
    /// `state_dir`: of this configuration.
    pub(super) fn read(section: &mut Section<'_>, state_dir: Option<&Path>) -> Result<Self, Reported> {
        let usual = Config::default();
        let listen = section.or("listen", usual.listen);
        let socket = socket(section, state_dir);
        let socket_mode = section.or("socket_mode", Text(Mode::PRIVATE)).0;
        let socket_group = section.optional("socket_group");
        let socket_role = section.or("socket_role", usual.access.socket);
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
        let socket = socket?;
        Ok(Self {
            listen,
            socket,
            socket_mode,
            socket_group,
            socket_role,
            loopback_role,
            network_role,
            tokens,
        })
    }

    /// What the admin interface is told.
    pub(super) fn for_server(&self) -> Config {
        let Self { listen, socket, socket_mode, socket_group, .. } = self;
        let access = socket_file::Access { mode: *socket_mode, owner: None, group: socket_group.clone() };
        let socket = socket.clone().map(|path| SocketConfig { path, access });
        Config { listen: listen.clone(), socket, access: self.access() }
    }

    /// What of it a running agent applies is another's from now on; the rest stays what it is.
    #[must_use]
    pub fn reloaded(self, read: Self) -> Self {
        let Self { socket_role, loopback_role, network_role, tokens, .. } = read;
        Self { socket_role, loopback_role, network_role, tokens, ..self }
    }

    fn access(&self) -> Access {
        let token = |token: &AdminToken| Token {
            name: token.name.as_str().into(),
            role: token.role,
            digest: token.sha256,
        };
        Access {
            loopback: self.loopback_role,
            network: self.network_role,
            socket: self.socket_role,
            tokens: self.tokens.iter().map(token).collect(),
        }
    }
}

/// Where the sockets of this machine's agents are unless they are told otherwise, for who looks for one: of this user, then of root.
#[must_use]
pub fn usual_admin_sockets() -> Vec<UnixPath> {
    let mut directories: Vec<PathBuf> = Machine::state_dirs();
    directories.dedup();
    let paths = directories.iter().map(|directory| directory.join(SOCKET));
    paths.filter_map(|path| UnixPath::new(path.to_str()?).ok()).collect()
}

/// What is written has to be the path of a socket. A state directory in which there can be none is no mistake: the agent says so and runs.
fn socket(section: &mut Section<'_>, state_dir: Option<&Path>) -> Result<Option<PathBuf>, Reported> {
    match section.given::<String>("socket")?.as_deref() {
        None => Ok(state_dir.map(|directory| directory.join(SOCKET))),
        Some("") => Ok(None),
        Some(path) => match UnixPath::new(path) {
            Ok(path) => Ok(Some(path.as_path().to_owned())),
            Err(error) => Err(section.invalid(
                "socket",
                error.rule,
                "an absolute path of at most 107 bytes, or \"\" for none",
            )),
        },
    }
}

fn empty_if_none<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.clone().unwrap_or_default().serialize(serializer)
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
        document
            .decode(|root| Admin::read(root, Some(Path::new("/var/lib/plexus"))))
            .map_err(|errors| errors.to_string())
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
    fn the_socket_is_in_the_state_directory_or_elsewhere_or_nowhere() {
        let socket = |text: &str| read(text).unwrap().for_server().socket;
        let private = socket_file::Access { mode: Mode::PRIVATE, ..socket_file::Access::default() };
        let usual = SocketConfig { path: "/var/lib/plexus/admin.sock".into(), access: private };
        assert_eq!(socket(""), Some(usual));
        let keys = "socket = \"/run/plexus/admin.sock\"\nsocket_mode = \"0660\"\nsocket_group = \"adm\"";
        let access = socket_file::Access { group: Some("adm".parse().unwrap()), ..Default::default() };
        assert_eq!(socket(keys), Some(SocketConfig { path: "/run/plexus/admin.sock".into(), access }));
        assert_eq!(socket("socket = \"\""), None);
        assert_eq!(read("socket_role = \"read\"").unwrap().access().socket, Role::Read);
    }

    #[test]
    fn a_reload_applies_roles_and_tokens_and_leaves_what_is_bound() {
        let runs = read("listen = []\nsocket = \"\"").unwrap();
        let read = read(&format!("socket_role = \"none\"\n{}", token("ci", "register", ABC))).unwrap();
        let reloaded = runs.reloaded(read.clone());
        assert_eq!((&reloaded.listen, &reloaded.socket), (&Vec::new(), &None));
        assert_eq!(reloaded.access(), read.access());
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
            ("socket = \"admin.sock\"".to_owned(), "write it absolute"),
            (format!("socket = \"/{}\"", "x".repeat(107)), "at most 107 bytes"),
            ("socket_mode = \"rw\"".to_owned(), "it is no mode from 0 to 0777"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
