//! Clients of single members, made when they are needed and thrown away when they fail.
//!
//! A failed client is not repaired: a new one connects anew, reads the TLS files anew (so that renewed certificates
//! need no restart) and authenticates anew.
//!
//! HTTP/2 pings are only the second line: a call has its timeout, and a watch asks for its progress every second. They
//! are sent no more often than etcd allows (`--grpc-keepalive-min-time`, 5 s): it closes connections that ping faster
//! while nothing is sent back.

use std::path::{Path as FilePath, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use tokio::time::Instant;

use super::failure::{Failure, Next};
use crate::store::backoff::random;
use crate::store::members::Members;
use crate::store::url::Endpoint;
use crate::store::{ErrorKind, Metrics, OpenError, StoreConfig};

const PING_EVERY: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// A member that is reachable accepts within this; it leaves time to ask another within the request timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);

/// The members and our clients of them.
pub(super) struct Pool {
    members: Mutex<Members>,
    slots: Vec<Slot>,
    access: Access,
    metrics: Metrics,
}

struct Slot {
    endpoint: Endpoint,
    /// Locked while a client is made: one authentication at a time, they are costly for etcd.
    client: tokio::sync::Mutex<Option<(Client, u64)>>,
}

/// The member that answered or failed, and which of its clients was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) index: usize,
    generation: u64,
}

/// How to become a client.
struct Access {
    user: Option<(String, String)>,
    tls: Option<TlsFiles>,
    connect_timeout: Duration,
}

struct TlsFiles {
    ca: PathBuf,
    identity: Option<(PathBuf, PathBuf)>,
}

impl Pool {
    pub(super) fn open(
        config: &StoreConfig,
        endpoints: &[Endpoint],
        tls: bool,
        metrics: Metrics,
    ) -> Result<Self, OpenError> {
        let wrong = |key, reason: &str| OpenError::Config { key, reason: reason.to_owned() };
        let user = match (&config.username, &config.password) {
            (Some(user), Some(password)) => Some((user.clone(), password.clone())),
            (None, None) => None,
            (Some(_), None) => return Err(wrong("password", "it is needed with `username`")),
            (None, Some(_)) => return Err(wrong("username", "it is needed with `password`")),
        };
        let tls = match (&config.ca_file, &config.cert_file, &config.key_file) {
            (None, None, None) if !tls => None,
            _ if !tls => {
                return Err(wrong(
                    "ca_file",
                    "TLS files are of no use with etcd://; write etcds:// or remove them",
                ));
            }
            (None, _, _) => {
                return Err(wrong("ca_file", "etcds:// needs the authority of etcd's certificate"));
            }
            (_, Some(_), None) => return Err(wrong("key_file", "it is needed with `cert_file`")),
            (_, None, Some(_)) => return Err(wrong("cert_file", "it is needed with `key_file`")),
            (Some(ca), cert, key) => {
                Some(TlsFiles { ca: ca.clone(), identity: cert.clone().zip(key.clone()) })
            }
        };
        if let Some(files) = &tls {
            files.read()?;
        }
        let connect_timeout = CONNECT_TIMEOUT.min(config.request_timeout / 2);
        let slots: Vec<_> = endpoints
            .iter()
            .map(|endpoint| Slot { endpoint: endpoint.clone(), client: tokio::sync::Mutex::default() })
            .collect();
        let first = usize::try_from(random() % slots.len().max(1) as u64).unwrap_or(0);
        let members = Mutex::new(Members::new(slots.len(), first));
        Ok(Self { members, slots, access: Access { user, tls, connect_timeout }, metrics })
    }

    /// How many members there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Is the connection to be TLS?
    pub(super) fn uses_tls(&self) -> bool {
        self.access.tls.is_some()
    }

    /// The member to ask now.
    pub(super) fn current(&self) -> usize {
        self.members().current()
    }

    pub(super) fn name(&self, index: usize) -> String {
        self.slots.get(index).map_or_else(String::new, |slot| slot.endpoint.to_string())
    }

    /// A client of the member; the first one connects when it is first used.
    pub(super) async fn client(&self, index: usize) -> Result<(Client, Member), Failure> {
        let Some(slot) = self.slots.get(index) else {
            return Err(Failure::new(ErrorKind::Invalid, Next::GiveUp, "the URL names no such member"));
        };
        let mut held = slot.client.lock().await;
        if let Some((client, generation)) = &*held {
            return Ok((client.clone(), Member { index, generation: *generation }));
        }
        let made = self.access.client(&slot.endpoint).await;
        self.metrics.connected(made.is_ok());
        let client = made?;
        let generation = random();
        *held = Some((client.clone(), generation));
        Ok((client, Member { index, generation }))
    }

    pub(super) fn succeeded(&self, member: Member) {
        self.members().succeeded(member.index, Instant::now());
    }

    /// Has the member to ask answered just now?
    pub(super) fn is_fresh(&self) -> bool {
        let members = self.members();
        members.is_fresh(members.current(), Instant::now())
    }

    /// Throws the failed client away, if it still is the member's, and asks another member from now on.
    pub(super) fn failed(&self, index: usize, used: Option<Member>, why: &str) {
        if let (Some(used), Some(slot)) = (used, self.slots.get(index))
            && let Ok(mut held) = slot.client.try_lock()
            && held.as_ref().is_some_and(|(_, generation)| *generation == used.generation)
        {
            *held = None;
        }
        let mut members = self.members();
        if members.failed(index, Instant::now()) {
            let next = members.current();
            drop(members);
            self.metrics.failed_over(&self.name(index));
            tracing::warn!(
                from = self.name(index),
                to = self.name(next),
                why,
                "another member of the store is asked"
            );
        }
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Access {
    async fn client(&self, endpoint: &Endpoint) -> Result<Client, Failure> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.connect_timeout)
            .with_keep_alive(PING_EVERY, PING_TIMEOUT)
            .with_keep_alive_while_idle(false)
            .with_tcp_keepalive(Duration::from_secs(30))
            // A member that is cut off from the others refuses instead of serving what is long past.
            .with_require_leader(true);
        if let Some((user, password)) = &self.user {
            options = options.with_user(user, password).with_auto_token_refresh(true);
        }
        let mut scheme = "http";
        if let Some(files) = &self.tls {
            scheme = "https";
            let tls = files
                .read()
                .map_err(|error| Failure::new(ErrorKind::Denied, Next::AskAnother, error.to_string()))?;
            options = options.with_tls(tls);
        }
        // With a user, this is a request: it fetches the token.
        Client::connect([format!("{scheme}://{endpoint}")], Some(options))
            .await
            .map_err(Failure::of_connecting)
    }
}

impl TlsFiles {
    /// A few kilobytes, a few times a day: not worth the blocking pool.
    fn read(&self) -> Result<TlsOptions, OpenError> {
        let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(read("ca_file", &self.ca)?));
        if let Some((cert, key)) = &self.identity {
            options = options.identity(Identity::from_pem(read("cert_file", cert)?, read("key_file", key)?));
        }
        Ok(options)
    }
}

fn read(key: &'static str, file: &FilePath) -> Result<Vec<u8>, OpenError> {
    let failed = |source| OpenError::File { key, file: file.display().to_string(), source };
    let bytes = std::fs::read(file).map_err(failed)?;
    if !bytes.windows(11).any(|window| window == b"-----BEGIN ") {
        let reason = format!("{} holds no PEM block (`-----BEGIN …`)", file.display());
        return Err(OpenError::Config { key, reason });
    }
    Ok(bytes)
}
