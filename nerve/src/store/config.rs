//! How to reach a store, and why that cannot be.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::url::{StoreUrl, normal_prefix};

/// What stands before every key unless configured.
pub const DEFAULT_PREFIX: &str = "/plexus/v1";

/// How long a call may take unless configured.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// How to reach the store.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// Which backend, and where.
    pub url: StoreUrl,
    /// What stands before every key; the URL may say it instead. The embedded store has keys of nobody else and
    /// ignores it.
    pub prefix: Option<String>,
    /// The user, if the store asks for one.
    pub username: Option<String>,
    /// The user's password; never shown.
    pub password: Option<String>,
    /// PEM: authorities that the store's certificate must come from. Only with TLS, where it is required.
    pub ca_file: Option<PathBuf>,
    /// PEM: our certificate, if the store asks for one.
    pub cert_file: Option<PathBuf>,
    /// PEM: the key of our certificate.
    pub key_file: Option<PathBuf>,
    /// How long a call may take.
    pub request_timeout: Duration,
}

impl StoreConfig {
    /// The defaults, for this URL.
    #[must_use]
    pub fn new(url: StoreUrl) -> Self {
        Self {
            url,
            prefix: None,
            username: None,
            password: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
        }
    }

    /// The prefix that counts: the URL's, or the configured one, or the default.
    pub fn effective_prefix(&self) -> Result<String, OpenError> {
        let wrong = |reason: String| OpenError::Config { key: "prefix", reason };
        let configured = self
            .prefix
            .as_deref()
            .map(|prefix| normal_prefix(prefix).map_err(|reason| wrong(format!("{prefix:?}: {reason}"))))
            .transpose()?;
        let in_url = match &self.url {
            StoreUrl::Etcd { prefix, .. } | StoreUrl::ZooKeeper { prefix, .. } => prefix.clone(),
            StoreUrl::Embedded { .. } => None,
        };
        match (in_url, configured) {
            (Some(url), Some(configured)) if url != configured => {
                Err(wrong(format!("it is {configured}, but the URL says {url}: remove one of them")))
            }
            (Some(prefix), _) | (None, Some(prefix)) => Ok(prefix),
            (None, None) => Ok(DEFAULT_PREFIX.to_owned()),
        }
    }
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreConfig")
            .field("url", &self.url)
            .field("prefix", &self.prefix)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "(hidden)"))
            .field("ca_file", &self.ca_file)
            .field("cert_file", &self.cert_file)
            .field("key_file", &self.key_file)
            .field("request_timeout", &self.request_timeout)
            .finish()
    }
}

/// Why a store cannot be opened. Waiting does not help; an operator's change does.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A key of the configuration contradicts itself or another.
    #[error("store configuration, key `{key}`: {reason}")]
    Config {
        /// The key, as in the configuration file.
        key: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A file named by the configuration cannot be read.
    #[error(
        "cannot read {file} for store key `{key}`: {source}; check the path and that this user may read it"
    )]
    File {
        /// The key that names it.
        key: &'static str,
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The embedded store's database.
    #[error("cannot open the embedded store's file {file}: {reason}")]
    Database {
        /// The file.
        file: String,
        /// What is wrong with it and what to do.
        reason: String,
        /// The library's error.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

#[cfg(test)]
mod tests {
    use super::super::{Metrics, open};
    use super::*;

    fn etcd(prefix: &str) -> StoreConfig {
        StoreConfig::new(format!("etcd://127.0.0.1:1{prefix}").parse().unwrap())
    }

    #[test]
    fn the_prefix_of_the_url_counts_and_may_not_contradict_the_configured_one() {
        let configured =
            |url: &str, prefix: &str| StoreConfig { prefix: Some(prefix.to_owned()), ..etcd(url) };
        assert_eq!(etcd("").effective_prefix().unwrap(), DEFAULT_PREFIX);
        assert_eq!(etcd("/a").effective_prefix().unwrap(), "/a");
        assert_eq!(configured("", "b/").effective_prefix().unwrap(), "/b");
        assert_eq!(configured("/b", "/b").effective_prefix().unwrap(), "/b");
        let error = configured("/a", "/b").effective_prefix().unwrap_err().to_string();
        assert!(error.contains("remove one"), "{error}");
        assert!(configured("", "a//b").effective_prefix().is_err());
    }

    #[test]
    fn a_password_is_not_shown() {
        let config = StoreConfig { password: Some("secret".to_owned()), ..etcd("") };
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[tokio::test]
    async fn what_no_waiting_repairs_is_refused_with_the_key_to_change() {
        let tls = |config: StoreConfig| StoreConfig { url: "etcds://127.0.0.1:1".parse().unwrap(), ..config };
        let zookeeper =
            |config: StoreConfig| StoreConfig { url: "zookeeper://127.0.0.1:1".parse().unwrap(), ..config };
        let missing = Some(PathBuf::from("/does/not/exist.pem"));
        for (config, says) in [
            (StoreConfig { request_timeout: Duration::ZERO, ..etcd("") }, "`request_timeout`"),
            (StoreConfig { username: Some("a".to_owned()), ..etcd("") }, "`password`"),
            (StoreConfig { password: Some("a".to_owned()), ..etcd("") }, "`username`"),
            (StoreConfig { ca_file: missing.clone(), ..etcd("") }, "etcds://"),
            (tls(etcd("")), "`ca_file`"),
            (tls(StoreConfig { ca_file: missing.clone(), ..etcd("") }), "/does/not/exist.pem"),
            (
                tls(StoreConfig { ca_file: missing.clone(), cert_file: missing.clone(), ..etcd("") }),
                "`key_file`",
            ),
            (zookeeper(StoreConfig { username: Some("a".to_owned()), ..etcd("") }), "`password`"),
            (zookeeper(StoreConfig { password: Some("a".to_owned()), ..etcd("") }), "`username`"),
            (zookeeper(StoreConfig { prefix: Some("/a/../b".to_owned()), ..etcd("") }), "`prefix`"),
            (zookeeper(StoreConfig { prefix: Some("/zookeeper/a".to_owned()), ..etcd("") }), "`prefix`"),
            (zookeeper(StoreConfig { ca_file: missing, ..etcd("") }), "`ca_file`"),
        ] {
            let message = open(&config, &Metrics::default()).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
    }
}
