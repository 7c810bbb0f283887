//! Who may ask what of the admin interface.
//!
//! Four roles, each of which may all that those before it may. Whoever shows a token has its role; whoever shows none has that of where
//! it comes from; whoever shows one that there is not is refused, so that a mistake is not taken for somebody else. Tokens
//! are known by their digests alone, and compared in a time that says nothing of them.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::extract::Query;
use hyper::http::{HeaderMap, HeaderName, Method, Uri, header};
use nerve::source::Trust;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use serde::{Serialize, Serializer};

use crate::api::path;
use crate::credentials::Peer;

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Ask whether the agent is well.
    None,
    /// Ask for everything else.
    Read,
    /// Register instances of this node, report on them, drain and deregister them.
    Register,
    /// Everything: publish ports, set services, make networks, attach containers, drain the node.
    Operate,
}

/// Why a text is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: \"none\", \"read\", \"register\" or \"operate\"")]
pub struct RoleError(String);

/// What a token is known by: its SHA-256. Whoever reads it cannot make the token of it, if that is no word that can be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; SHA256_OUTPUT_LEN]);

/// A text is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has not 64 hexadecimal digits")]
pub struct DigestError;

/// Somebody who may do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What the log calls it.
    pub name: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// What it is known by.
    pub digest: Digest,
}

/// Who may do what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Of who comes over loopback and shows no token.
    pub loopback: Role,
    /// Of who comes from elsewhere and shows no token.
    pub network: Role,
    /// Of who comes over the unix socket and shows no token.
    pub socket: Role,
    /// Those who show one.
    pub tokens: Vec<Token>,
}

/// The rules that hold now. Clones share them.
#[derive(Debug, Clone)]
pub struct Rules(Arc<ArcSwap<Access>>);

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A program of this host, by a loopback address.
    Loopback,
    /// Anywhere.
    Network,
    /// A program of this host that may open the unix socket.
    Socket(Peer),
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    role: Role,
    /// The name of the token that it has shown.
    token: Option<Arc<str>>,
    origin: Origin,
}

/// Why a request is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Denied {
    /// The token that it shows is none.
    UnknownToken,
    /// It would need this role.
    Needs { role: Role, has: Caller },
}

impl Default for Access {
    fn default() -> Self {
        Self { loopback: Role::Operate, network: Role::None, socket: Role::Operate, tokens: Vec::new() }
    }
}

impl Role {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Read => "read",
            Self::Register => "register",
            Self::Operate => "operate",
        }
    }

    /// What a request needs.
    pub(super) fn needed(method: &Method, asked: &str) -> Self {
        const REGISTERING: [&str; 5] =
            [path::INSTANCES, path::DRAIN, "/v1/plexus/checks/", "/v1/agent/check/", "/v1/agent/service/"];
        match *method {
            _ if [path::HEALTHZ, path::READYZ].contains(&asked) => Self::None,
            Method::GET | Method::HEAD | Method::OPTIONS => Self::Read,
            _ if REGISTERING.iter().any(|begin| asked.starts_with(begin)) => Self::Register,
            _ => Self::Operate,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        let all = [Self::None, Self::Read, Self::Register, Self::Operate];
        all.into_iter().find(|role| role.as_str() == text).ok_or_else(|| RoleError(text.to_owned()))
    }
}

impl Serialize for Role {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Digest {
    /// Of a token.
    #[must_use]
    pub fn of(secret: &str) -> Self {
        let mut octets = [0; SHA256_OUTPUT_LEN];
        octets.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
        Self(octets)
    }

    /// Looks at all of both, wherever they differ.
    fn is(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (mut octets, digits) = ([0; SHA256_OUTPUT_LEN], text.as_bytes().chunks_exact(2));
        if text.len() != 2 * octets.len() {
            return Err(DigestError);
        }
        for (octet, digits) in octets.iter_mut().zip(digits) {
            let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            *octet = match digits {
                [high, low] => digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low),
                _ => None,
            }
            .ok_or(DigestError)?;
        }
        Ok(Self(octets))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Rules {
    /// Those of a configuration.
    #[must_use]
    pub fn new(access: Access) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(access)))
    }

    /// Other ones hold from now on.
    pub fn replace(&self, access: Access) {
        self.0.store(Arc::new(access));
    }

    /// May nobody do anything who comes from elsewhere?
    pub(super) fn shut_out_the_network(&self) -> bool {
        let access = self.0.load();
        access.network == Role::None && access.tokens.is_empty()
    }

    /// Lets a request in, or not.
    pub(super) fn admit(
        &self,
        (method, uri, headers): (&Method, &Uri, &HeaderMap),
        origin: Origin,
    ) -> Result<Caller, Denied> {
        let access = self.0.load();
        let (role, token) = match shown(uri, headers) {
            Some(secret) => access.of_token(&secret).ok_or(Denied::UnknownToken)?,
            None => (access.without_token(origin), None),
        };
        let caller = Caller { role, token, origin };
        caller.may(Role::needed(method, uri.path()))?;
        Ok(caller)
    }
}

impl Access {
    fn without_token(&self, origin: Origin) -> Role {
        match origin {
            Origin::Loopback => self.loopback,
            Origin::Network => self.network,
            Origin::Socket(_) => self.socket,
        }
    }

    fn of_token(&self, secret: &str) -> Option<(Role, Option<Arc<str>>)> {
        let digest = Digest::of(secret);
        // Each is looked at, so that the time does not tell which it is.
        let mut found = None;
        for token in &self.tokens {
            if token.digest.is(&digest) {
                found = Some(token);
            }
        }
        found.map(|token| (token.role, Some(Arc::clone(&token.name))))
    }
}

impl Caller {
    /// Who comes over loopback may be any program of this host: what it has not shown it is not trusted with. Root, and the agent's own
    /// user, could do by themselves what they have the agent do; who else may open the socket could not.
    pub(super) fn trust(&self) -> Trust {
        let is_known = self.token.is_some() || self.peer().is_some_and(Peer::is_own);
        if self.role == Role::Operate && is_known { Trust::Operator } else { Trust::Anyone }
    }

    /// Whose process it is, where the kernel says so.
    pub(super) fn peer(&self) -> Option<Peer> {
        match self.origin {
            Origin::Socket(peer) => Some(peer),
            Origin::Loopback | Origin::Network => None,
        }
    }

    /// May it do what it was not let in for?
    pub(super) fn may(&self, role: Role) -> Result<(), Denied> {
        if self.role < role { Err(Denied::Needs { role, has: self.clone() }) } else { Ok(()) }
    }

    /// For the log.
    pub(super) fn name(&self) -> &str {
        self.token.as_deref().unwrap_or(match self.origin {
            Origin::Socket(_) => "the socket",
            Origin::Loopback | Origin::Network => "anyone",
        })
    }
}

impl Denied {
    /// The word for it, as in metric labels.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::UnknownToken => "unknown_token",
            Self::Needs { has: Caller { token: None, .. }, .. } => "no_token",
            Self::Needs { .. } => "role",
        }
    }

    /// What to do about it.
    pub(super) fn hint(&self) -> String {
        match self {
            Self::UnknownToken => {
                "[admin] token of the agent's configuration has those that there are".to_owned()
            }
            Self::Needs { role, has: Caller { token: Some(name), role: own, .. } } => {
                format!("the token {name:?} has the role \"{own}\": show one that has \"{role}\"")
            }
            Self::Needs { role, .. } => format!(
                "show a token that has the role \"{role}\" (--token-file, PLEXUS_TOKEN_FILE, or the header `authorization: Bearer …`)"
            ),
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownToken => f.write_str("the agent does not know this token"),
            Self::Needs { role, .. } => write!(f, "this needs the role \"{role}\""),
        }
    }
}

/// The token that a request shows: as everyone does, as Consul's clients do, and as older ones of them do.
fn shown(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let bearer = text(header::AUTHORIZATION).map(|value| match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => "",
    });
    let consul = || text(HeaderName::from_static("x-consul-token"));
    let in_query = || {
        let has = uri.query().is_some_and(|query| query.contains("token="));
        let query = has.then(|| Query::<HashMap<String, String>>::try_from_uri(uri).ok()).flatten()?;
        query.0.get("token").cloned()
    };
    // Consul's clients show an empty one where they have none.
    bearer.or_else(consul).map(str::to_owned).or_else(in_query).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::own_user;

    fn rules() -> Rules {
        let token = |name: &str, role| Token { name: name.into(), role, digest: Digest::of(name) };
        Rules::new(Access {
            loopback: Role::Register,
            network: Role::None,
            socket: Role::Read,
            tokens: vec![token("reader", Role::Read), token("operator", Role::Operate)],
        })
    }

    const LOCAL: Origin = Origin::Loopback;
    const SOCKET: Origin = Origin::Socket(Peer { uid: 1000, pid: Some(7) });

    fn admit(rules: &Rules, request: &str, shows: &[(&'static str, &str)], origin: Origin) -> String {
        let (method, uri) = request.split_once(' ').unwrap();
        let headers: HeaderMap = shows
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        let (method, uri): (Method, Uri) = (method.parse().unwrap(), uri.parse().unwrap());
        match rules.admit((&method, &uri, &headers), origin) {
            Ok(caller) => caller.name().to_owned(),
            Err(denied) => denied.as_str().to_owned(),
        }
    }

    #[test]
    fn a_role_may_what_those_before_it_may() {
        let rules = rules();
        assert!(!rules.shut_out_the_network() && Rules::new(Access::default()).shut_out_the_network());
        let reader: &[_] = &[("authorization", "Bearer reader")];
        let operator: &[_] = &[("x-consul-token", "operator")];
        for (request, nobody, local, reads, operates) in [
            ("GET /healthz", "anyone", "anyone", "reader", "operator"),
            ("GET /metrics", "no_token", "anyone", "reader", "operator"),
            ("GET /v1/agent/services", "no_token", "anyone", "reader", "operator"),
            ("POST /v1/plexus/instances", "no_token", "anyone", "role", "operator"),
            ("PUT /v1/agent/service/register", "no_token", "anyone", "role", "operator"),
            ("PUT /v1/agent/check/pass/x", "no_token", "anyone", "role", "operator"),
            ("PUT /v1/plexus/services/web/ports", "no_token", "no_token", "role", "operator"),
            ("PUT /v1/agent/maintenance", "no_token", "no_token", "role", "operator"),
            ("PUT /v1/plexus/drain", "no_token", "anyone", "role", "operator"),
            ("PUT /v1/something/new", "no_token", "no_token", "role", "operator"),
        ] {
            assert_eq!(admit(&rules, request, &[], Origin::Network), nobody, "{request}");
            assert_eq!(admit(&rules, request, &[], LOCAL), local, "{request}");
            assert_eq!(admit(&rules, request, reader, LOCAL), reads, "{request}");
            assert_eq!(admit(&rules, request, operator, Origin::Network), operates, "{request}");
            assert_eq!(admit(&rules, request, operator, SOCKET), operates, "{request}");
            let by_socket = if reads == "reader" { "the socket" } else { "no_token" };
            assert_eq!(admit(&rules, request, &[], SOCKET), by_socket, "{request}");
        }
    }

    #[test]
    fn a_token_is_shown_in_three_ways_and_a_wrong_one_is_nobodys() {
        let rules = rules();
        let get = |request: &str, shows: &[(&'static str, &str)]| admit(&rules, request, shows, LOCAL);
        assert_eq!(get("GET /metrics", &[("authorization", "bearer  operator ")]), "operator");
        assert_eq!(get("GET /metrics?x=1&token=operato%72", &[]), "operator");
        assert_eq!(get("GET /metrics", &[("x-consul-token", "")]), "anyone", "none");
        for shows in [[("authorization", "Bearer guess")], [("x-consul-token", "Reader")]] {
            assert_eq!(get("GET /healthz", &shows), "unknown_token");
        }
        assert_eq!(get("GET /metrics", &[("authorization", "Basic cmVhZGVyOng=")]), "anyone");
    }

    #[test]
    fn only_who_has_shown_it_is_trusted_as_an_operator() {
        let trust =
            |role, token: Option<&str>, origin| Caller { role, token: token.map(Into::into), origin }.trust();
        let socket = |uid| Origin::Socket(Peer { uid, pid: None });
        let (root, own, other) = (socket(0), socket(own_user()), socket(own_user() + 1));
        for (role, token, origin, trusted) in [
            (Role::Operate, Some("x"), LOCAL, Trust::Operator),
            (Role::Operate, None, LOCAL, Trust::Anyone),
            (Role::Register, Some("x"), LOCAL, Trust::Anyone),
            (Role::Operate, None, root, Trust::Operator),
            (Role::Operate, None, own, Trust::Operator),
            (Role::Register, None, root, Trust::Anyone),
            (Role::Operate, None, other, Trust::Anyone),
            (Role::Operate, Some("x"), other, Trust::Operator),
        ] {
            assert_eq!(trust(role, token, origin), trusted, "{role} {token:?} {origin:?}");
        }
    }

    #[test]
    fn a_digest_reads_back() {
        let digest = Digest::of("x");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for bad in ["", "ab", &"g".repeat(64), &"ä".repeat(32), &"0".repeat(63)] {
            assert_eq!(bad.parse::<Digest>(), Err(DigestError), "{bad}");
        }
    }
}
