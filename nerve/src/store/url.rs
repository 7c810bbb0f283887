//! The store's URL: which backend, and where.
//!
//! ```text
//! embedded                             in this process, in memory only
//! embedded:/var/lib/plexus/store.redb  in this process, durable keys in that file
//! etcd://h1:2379,h2:2379[/prefix]      etcd, in clear text
//! etcds://h1,[2001:db8::1]:2379        etcd over TLS; the port defaults to 2379
//! zookeeper://h1:2181,h2[/prefix]      ZooKeeper, in clear text; the port defaults to 2181
//! ```
//!
//! One scheme a backend, and an `s` for TLS as in `https`. It never holds a secret: URLs are logged and shown, so user,
//! password and key files are configured beside it and a URL with a user in it is refused.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::key::Path;

/// etcd's client port (IANA).
const ETCD_PORT: u16 = 2379;
/// ZooKeeper's client port, as its documentation has it.
const ZOOKEEPER_PORT: u16 = 2181;
/// More endpoints than any store has members.
const MAX_ENDPOINTS: usize = 32;
/// The longest host name (RFC 1035 section 2.3.4).
const MAX_HOST: usize = 253;

/// Where the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// In this process; durable keys in `file`, or nowhere.
    Embedded {
        /// An absolute path.
        file: Option<PathBuf>,
    },
    /// An etcd cluster.
    Etcd {
        /// The members to ask; at least one.
        endpoints: Vec<Endpoint>,
        /// `etcds://`.
        tls: bool,
        /// What stands before every key: starts with a slash, does not end with one.
        prefix: Option<String>,
    },
    /// A ZooKeeper ensemble.
    ZooKeeper {
        /// The servers to ask; at least one.
        endpoints: Vec<Endpoint>,
        /// The znode that everything stands below, which ZooKeeper's own clients call a chroot: starts with a slash, does not
        /// end with one.
        prefix: Option<String>,
    },
}

/// One address of a store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// A host name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// The TCP port; never 0.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why a text is not the URL of a store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// No backend has that scheme.
    #[error(
        "store URL {url:?} names no backend: write `embedded`, `embedded:/path/file`, `etcd://host:2379`, `etcds://host:2379` or `zookeeper://host:2181`"
    )]
    Scheme {
        /// As written.
        url: String,
    },
    /// A user in the URL. The URL is not repeated, it may hold a password.
    #[error(
        "the store URL holds a user or password, which would be shown in logs: remove what stands before `@` and set `username` and `password` beside the URL"
    )]
    Secret,
    /// One address is wrong.
    #[error("store URL {url:?}: endpoint {endpoint:?} {reason}")]
    Endpoint {
        /// As written.
        url: String,
        /// The part that is wrong.
        endpoint: String,
        /// What is wrong with it and what it should be.
        reason: &'static str,
    },
    /// The path is wrong.
    #[error("store URL {url:?}: {reason}")]
    Path {
        /// As written.
        url: String,
        /// What is wrong with it and what it should be.
        reason: &'static str,
    },
}

impl FromStr for StoreUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        if text == "embedded" {
            return Ok(Self::Embedded { file: None });
        }
        if let Some(file) = text.strip_prefix("embedded:") {
            return embedded(text, file);
        }
        let schemes = [("etcds://", ETCD_PORT), ("etcd://", ETCD_PORT), ("zookeeper://", ZOOKEEPER_PORT)];
        let known = |(scheme, port)| text.strip_prefix(scheme).map(|rest| (scheme, port, rest));
        let Some((scheme, port, rest)) = schemes.into_iter().find_map(known) else {
            // A typing error in the scheme must not put a password into a message.
            return Err(if text.contains('@') {
                UrlError::Secret
            } else {
                UrlError::Scheme { url: shown(text) }
            });
        };
        if rest.contains('@') {
            return Err(UrlError::Secret);
        }
        let (hosts, path) = rest.split_once('/').map_or((rest, None), |(hosts, path)| (hosts, Some(path)));
        let prefix = match path {
            None | Some("") => None,
            Some(path) => Some(
                normal_prefix(&format!("/{path}"))
                    .map_err(|reason| UrlError::Path { url: shown(text), reason })?,
            ),
        };
        let endpoints = endpoints(text, hosts, port)?;
        Ok(match scheme {
            "zookeeper://" => Self::ZooKeeper { endpoints, prefix },
            _ => Self::Etcd { endpoints, tls: scheme == "etcds://", prefix },
        })
    }
}

/// Without secrets: there are none in it.
impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded { file: None } => f.write_str("embedded"),
            Self::Embedded { file: Some(file) } => write!(f, "embedded:{}", file.display()),
            Self::Etcd { endpoints, tls: true, prefix } => remote(f, "etcds", endpoints, prefix.as_deref()),
            Self::Etcd { endpoints, tls: false, prefix } => remote(f, "etcd", endpoints, prefix.as_deref()),
            Self::ZooKeeper { endpoints, prefix } => remote(f, "zookeeper", endpoints, prefix.as_deref()),
        }
    }
}

fn remote(
    f: &mut fmt::Formatter<'_>,
    scheme: &str,
    endpoints: &[Endpoint],
    prefix: Option<&str>,
) -> fmt::Result {
    write!(f, "{scheme}://")?;
    for (i, endpoint) in endpoints.iter().enumerate() {
        write!(f, "{}{endpoint}", if i == 0 { "" } else { "," })?;
    }
    f.write_str(prefix.unwrap_or(""))
}

/// `a/b/`, `/a/b` → `/a/b`.
pub(super) fn normal_prefix(text: &str) -> Result<String, &'static str> {
    let text = text.strip_prefix('/').unwrap_or(text);
    let text = text.strip_suffix('/').unwrap_or(text);
    if text.contains(['?', '#']) || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(
            "the prefix may not hold spaces, control characters, `?` or `#`: write a path such as /plexus/v1",
        );
    }
    match Path::new(text) {
        Ok(path) => Ok(format!("/{path}")),
        Err(_) => Err("the prefix has an empty segment: write a path such as /plexus/v1"),
    }
}

fn embedded(url: &str, file: &str) -> Result<StoreUrl, UrlError> {
    // `embedded:///path` is what users of file:// URLs write.
    let file = file.strip_prefix("//").unwrap_or(file);
    let reason = if !file.starts_with('/') {
        "the file's path must be absolute, as in embedded:/var/lib/plexus/store.redb"
    } else if file.ends_with('/') {
        "that is a directory; name a file in it, as in embedded:/var/lib/plexus/store.redb"
    } else if file.contains('\0') {
        "a path cannot hold a NUL"
    } else {
        return Ok(StoreUrl::Embedded { file: Some(file.into()) });
    };
    Err(UrlError::Path { url: shown(url), reason })
}

fn endpoints(url: &str, hosts: &str, port: u16) -> Result<Vec<Endpoint>, UrlError> {
    let mut endpoints = Vec::new();
    for text in hosts.split(',') {
        let wrong = |reason| UrlError::Endpoint { url: shown(url), endpoint: shown(text), reason };
        if endpoints.len() == MAX_ENDPOINTS {
            return Err(wrong("is one too many: 32 are enough"));
        }
        let endpoint = endpoint(text, port).map_err(wrong)?;
        if endpoints.contains(&endpoint) {
            return Err(wrong("is there twice"));
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

fn endpoint(text: &str, default_port: u16) -> Result<Endpoint, &'static str> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("has no closing bracket: write [2001:db8::1]:2379")?;
        host.parse::<std::net::Ipv6Addr>()
            .map_err(|_| "is no IPv6 address in brackets: write [2001:db8::1]:2379")?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => {
                return Err("has something other than a port after the bracket: write [2001:db8::1]:2379");
            }
        }
    } else {
        match text.split_once(':') {
            Some((_, rest)) if rest.contains(':') => {
                return Err("has several colons: put an IPv6 address in brackets, as in [2001:db8::1]:2379");
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if host.is_empty() {
        return Err("has no host: write host:2379");
    }
    // Underscores are no part of a host name (RFC 952), but of names that container networks give.
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
    if host.len() > MAX_HOST || !host.chars().all(known) {
        return Err("has a host that is no name or address: letters, digits, dots and hyphens");
    }
    let port = match port {
        None => default_port,
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => match port.parse() {
            Ok(0) | Err(_) => return Err("has a port that is not between 1 and 65535"),
            Ok(port) => port,
        },
        Some(_) => return Err("has a port that is no number"),
    };
    Ok(Endpoint { host: host.to_owned(), port })
}

/// What the user wrote, bounded.
fn shown(text: &str) -> String {
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<StoreUrl, UrlError> {
        text.parse()
    }

    #[test]
    fn each_form_in_the_documentation_reads_as_it_is_shown() {
        for (written, shown) in [
            ("embedded", "embedded"),
            ("embedded:/var/lib/plexus/store.redb", "embedded:/var/lib/plexus/store.redb"),
            ("embedded:///tmp/a", "embedded:/tmp/a"),
            ("etcd://h1:2379,h2:2380", "etcd://h1:2379,h2:2380"),
            ("etcd://h1", "etcd://h1:2379"),
            ("etcd://h1/", "etcd://h1:2379"),
            ("etcd://192.0.2.1:1/a/b/", "etcd://192.0.2.1:1/a/b"),
            ("zookeeper://h1,h2:2182/plexus/", "zookeeper://h1:2181,h2:2182/plexus"),
            ("zookeeper://[::1]", "zookeeper://[::1]:2181"),
            ("etcds://h1,[2001:db8::1]:2379,[::1]/p", "etcds://h1:2379,[2001:db8::1]:2379,[::1]:2379/p"),
        ] {
            assert_eq!(parse(written).unwrap().to_string(), shown, "{written}");
        }
    }

    #[test]
    fn a_wrong_url_says_what_is_wrong_with_it() {
        for (written, says) in [
            ("", "names no backend"),
            ("http://h:2379", "names no backend"),
            ("etcd:/h", "names no backend"),
            ("etcd://", "no host"),
            ("etcd://a,,b", "no host"),
            ("etcd://a:", "not between"),
            ("etcd://a:0", "not between"),
            ("etcd://a:70000", "not between"),
            ("etcd://a:x", "no number"),
            ("etcd://a:+1", "no number"),
            ("etcd://2001:db8::1:2379", "brackets"),
            ("etcd://[2001:db8::1:2379", "closing bracket"),
            ("etcd://[h]:2379", "no IPv6"),
            ("etcd://[::1]2379", "after the bracket"),
            ("etcd://a b:1", "no name or address"),
            ("etcd://a,a:2379", "twice"),
            ("zookeeper://a,a:2181", "twice"),
            ("zookeepers://a", "names no backend"),
            ("etcd://a//b", "empty segment"),
            ("etcd://a/b?c", "may not hold"),
            ("embedded:relative", "absolute"),
            ("embedded:", "absolute"),
            ("embedded:/var/lib/", "directory"),
        ] {
            let message = parse(written).unwrap_err().to_string();
            assert!(message.contains(says), "{written}: {message}");
        }
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        for written in [
            "etcd://root:secret@h:2379",
            "etcd:root:secret@h",
            "https://root:secret@h",
            "zookeeper://root:secret@h/a",
        ] {
            let message = parse(written).unwrap_err().to_string();
            assert!(!message.contains("secret") && message.contains("username"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_and_what_parses_reads_back(text in "\\PC{0,80}") {
            if let Ok(url) = parse(&text) {
                prop_assert_eq!(parse(&url.to_string()), Ok(url));
            }
        }

        #[test]
        fn almost_urls_parse_or_are_refused_and_what_parses_reads_back(
            text in "(etcd|etcds|zookeeper|embedded)(:|://|:/)?[a-c0-9.:,/\\[\\]@ -]{0,40}"
        ) {
            match parse(&text) {
                Ok(url) => {
                    let embedded = matches!(url, StoreUrl::Embedded { .. });
                    prop_assert!(embedded || !text.contains('@'));
                    prop_assert_eq!(parse(&url.to_string()), Ok(url));
                }
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }

        #[test]
        fn every_list_of_addresses_is_read(
            hosts in proptest::collection::btree_set(
                prop_oneof!["[a-z][a-z0-9-]{0,20}", any::<std::net::Ipv4Addr>().prop_map(|a| a.to_string()),
                    any::<std::net::Ipv6Addr>().prop_map(|a| a.to_string())], 1..10),
            port in 1_u16.., tls: bool,
        ) {
            let endpoints: Vec<_> = hosts.into_iter().map(|host| Endpoint { host, port }).collect();
            let url = StoreUrl::Etcd { endpoints, tls, prefix: Some("/p".to_owned()) };
            prop_assert_eq!(parse(&url.to_string()), Ok(url));
        }
    }
}
