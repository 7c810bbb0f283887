//! The place that is a path of etcd: the values below it are registrations of SmartStack's Nerve, under leases.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;

use async_trait::async_trait;
use nerve::document::{Reported, Section};
use nerve::http::FilePath;
use nerve::store::{self, Change, Entry, Path, StoreConfig, StoreUrl, WatchEvent};
use serde::{Serialize, Serializer};

use super::decode;
use super::place::{Place, Tell};
use super::server::Server;

/// So many entries are read; further ones are left out.
const MOST: usize = 20_000;

/// Which path of which cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Etcd {
    /// Where it is, with the path: `etcd://host:2379/nerve/web`.
    #[serde(serialize_with = "as_text")]
    pub etcd: StoreUrl,
    /// The user, for a cluster that asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// A file whose first line is the user's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<FilePath>,
    /// PEM, with `etcds://`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// PEM: our certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// PEM: its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

impl Etcd {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let url = section.required::<String>("etcd");
        let (username, password_file) =
            (section.optional::<String>("username"), section.given::<FilePath>("password_file"));
        let mut file =
            |key| section.given::<FilePath>(key).map(|file| file.map(|file| file.path().to_owned()));
        let (ca_file, cert_file, key_file) = (file("ca_file"), file("cert_file"), file("key_file"));
        let url = match url?.parse() {
            Ok(url @ StoreUrl::Etcd { prefix: Some(_), .. }) => url,
            Ok(_) => {
                return Err(section.invalid(
                    "etcd",
                    "it names no path of etcd",
                    "such as \"etcd://host:2379/nerve/web\"",
                ));
            }
            Err(error) => {
                return Err(section.invalid("etcd", error, "such as \"etcd://host:2379/nerve/web\""));
            }
        };
        let etcd = Self {
            etcd: url,
            username,
            password_file: password_file?,
            ca_file: ca_file?,
            cert_file: cert_file?,
            key_file: key_file?,
        };
        if etcd.username.is_some() != etcd.password_file.is_some() {
            return Err(section
                .refuse("`username` and `password_file` are one without the other", "both, or neither"));
        }
        Ok(etcd)
    }

    pub(super) fn place(&self) -> String {
        self.etcd.to_string()
    }
}

fn as_text<S: Serializer>(url: &StoreUrl, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(url)
}

/// The path.
#[derive(Debug)]
pub(super) struct EtcdPlace(pub(super) Etcd);

type Known = BTreeMap<Path, Result<Server, String>>;

#[async_trait]
impl Place for EtcdPlace {
    async fn follow(&self, told: &dyn Tell) -> Result<Infallible, String> {
        let Etcd { etcd, username, password_file, ca_file, cert_file, key_file } = &self.0;
        let password = match password_file {
            Some(file) => Some(file.first_line().await.map_err(|error| error.to_string())?),
            None => None,
        };
        let config = StoreConfig {
            username: username.clone(),
            password,
            ca_file: ca_file.clone(),
            cert_file: cert_file.clone(),
            key_file: key_file.clone(),
            ..StoreConfig::new(etcd.clone())
        };
        let store = store::open(&config, &store::Metrics::default()).map_err(|error| error.to_string())?;
        let mut watch = store.watch(&Path::root());
        let mut known = Known::new();
        loop {
            match watch.next().await {
                Some(WatchEvent::Snapshot { entries, .. }) => {
                    known = entries.into_iter().take(MOST).map(read).collect();
                }
                Some(WatchEvent::Changes(changes)) => {
                    for change in changes {
                        match change {
                            Change::Put(entry) => {
                                let (path, read) = read(entry);
                                if known.len() < MOST || known.contains_key(&path) {
                                    known.insert(path, read);
                                }
                            }
                            Change::Delete(path) => drop(known.remove(&path)),
                        }
                    }
                }
                Some(WatchEvent::Resumed) => {}
                Some(WatchEvent::Silent | WatchEvent::Stalled(_)) => continue,
                Some(WatchEvent::Disconnected(error)) => {
                    told.failed(error.to_string()).await;
                    continue;
                }
                None => return Err("the watch has ended".to_owned()),
            }
            let (mut servers, mut refused) = (Vec::new(), Vec::new());
            for (path, read) in &known {
                match read {
                    Ok(server) => servers.push(server.clone()),
                    Err(why) => refused.push((path.to_string(), why.clone())),
                }
            }
            told.found(servers, refused).await;
        }
    }
}

fn read(entry: Entry) -> (Path, Result<Server, String>) {
    (entry.path, decode::nerve(&entry.value))
}
