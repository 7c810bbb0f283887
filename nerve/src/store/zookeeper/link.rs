//! Connections to servers, made when they are needed and thrown away when they fail.
//!
//! The library reconnects by itself, but then it silently loses its recursive watches (it announces them anew by a request
//! that cannot carry them), and what happened in the meantime would be missing in any case. So a connection for calls and
//! watches is used until it breaks and no longer: whoever watched lists anew on the next one. It is given one server, so
//! that we know which one failed.
//!
//! A heartbeat a second tells everyone who uses a link that it stood still or broke: the library knows of its own pings only.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use zookeeper_client::{Acls, Client, Connector, CreateMode, Error as ZkError, SessionState, StateWatcher};

use super::failure::{Failure, Next};
use super::znode;
use crate::store::backoff::random;
use crate::store::members::Members;
use crate::store::url::Endpoint;
use crate::store::{ErrorKind, Metrics};
use crate::tasks::Tasks;

/// What we ask for as the time that the server remembers a connection for calls; nothing lives under it.
const SESSION: Duration = Duration::from_secs(6);
/// After so much silence the library gives a connection up.
pub(super) const SILENCE: Duration = Duration::from_millis(2500);
/// A server that is reachable accepts within this; it leaves time to ask another within the request timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
const HEARTBEAT: Duration = Duration::from_millis(750);
/// A server that answers is never silent for so long.
const STALL: Duration = Duration::from_secs(2);
/// One that has not answered a heartbeat for so long is called silent.
const SILENT_AFTER: Duration = Duration::from_millis(500);

/// Who we are to ZooKeeper.
pub(super) struct Access {
    /// `user:password`, as the scheme `digest` has it.
    pub(super) digest: Option<String>,
}

impl Access {
    pub(super) fn connector(&self) -> Connector {
        let connector = Client::connector();
        match &self.digest {
            Some(digest) => connector.with_auth("digest", digest.as_bytes()),
            None => connector,
        }
    }

    /// Who may do what with the znodes that we create: our user, or anyone if there is none.
    pub(super) fn acls(&self) -> Acls<'static> {
        if self.digest.is_some() { Acls::creator_all() } else { Acls::anyone_all() }
    }
}

/// Which tree this is: the one place that is made once, and not again until somebody wipes the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Birth {
    czxid: i64,
    ctime: i64,
}

/// What a link's heartbeat has noticed so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Pulse {
    /// It has not answered the last heartbeat for [`SILENT_AFTER`].
    pub(super) silent: bool,
    /// Silences of at least [`STALL`], counted, and the last of them.
    pub(super) stalls: u64,
    pub(super) silence: Duration,
    /// The connection is of no use any more.
    pub(super) broken: Option<String>,
}

/// A connection to one server.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) member: usize,
    pub(super) birth: Birth,
    pub(super) pulse: watch::Receiver<Pulse>,
}

impl Link {
    fn is_good(&self) -> bool {
        self.client.state() == SessionState::SyncConnected && self.pulse.borrow().broken.is_none()
    }
}

/// The servers and our link to one of them.
pub(super) struct Links {
    endpoints: Vec<Endpoint>,
    prefix: String,
    pub(super) access: Access,
    metrics: Metrics,
    tasks: Tasks,
    members: Mutex<Members>,
    /// Locked while a link is made: one is enough.
    link: tokio::sync::Mutex<Option<Arc<Link>>>,
}

impl Links {
    pub(super) fn new(
        endpoints: &[Endpoint],
        prefix: &str,
        access: Access,
        metrics: Metrics,
        tasks: Tasks,
    ) -> Self {
        let first = usize::try_from(random() % endpoints.len().max(1) as u64).unwrap_or(0);
        Self {
            endpoints: endpoints.to_vec(),
            prefix: prefix.to_owned(),
            access,
            metrics,
            tasks,
            members: Mutex::new(Members::new(endpoints.len(), first)),
            link: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// The server that is asked now.
    pub(super) fn current(&self) -> usize {
        self.members().current()
    }

    /// A server's name, for messages.
    pub(super) fn name(&self, member: usize) -> String {
        self.endpoints.get(member).map(Endpoint::to_string).unwrap_or_default()
    }

    /// All servers, as the library wants them, for sessions that go on at another one.
    pub(super) fn ensemble(&self) -> String {
        let names: Vec<_> = self.endpoints.iter().map(Endpoint::to_string).collect();
        names.join(",")
    }

    /// The link in use, or a new one.
    pub(super) async fn link(&self) -> Result<Arc<Link>, Failure> {
        let mut held = self.link.lock().await;
        let current = self.current();
        if let Some(link) = held.as_ref().filter(|link| link.is_good() && link.member == current) {
            return Ok(Arc::clone(link));
        }
        *held = None;
        let made = self.connect(current).await;
        self.metrics.connected(made.is_ok());
        let link = Arc::new(made?);
        *held = Some(Arc::clone(&link));
        Ok(link)
    }

    pub(super) fn succeeded(&self, member: usize) {
        self.members().succeeded(member, Instant::now());
    }

    /// Another server is asked from now on, if there is one. A link is kept that may just be slow: its heartbeat tells.
    pub(super) fn failed(&self, member: usize, reason: &str) {
        if self.members().failed(member, Instant::now()) {
            let from = self.name(member);
            tracing::info!(endpoint = from, reason, "another server of the store is asked");
            self.metrics.failed_over(&from);
        }
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self, member: usize) -> Result<Link, Failure> {
        let Some(endpoint) = self.endpoints.get(member) else {
            return Err(Failure::unavailable("there is no such server"));
        };
        self.reach(endpoint).await?;
        let connector = self.access.connector().with_fail_eagerly();
        let connector = connector.with_session_timeout(SESSION).with_connection_timeout(SILENCE);
        let client = match timeout(SILENCE, Box::pin(connector.connect(&endpoint.to_string()))).await {
            Ok(Ok(client)) => client,
            Ok(Err(ZkError::NoHosts | ZkError::ConnectionLoss | ZkError::Timeout)) => {
                return Err(Failure::unavailable(
                    "it accepts connections but opens no session; check that it is a ZooKeeper server, that the ensemble \
                     has a leader, its log, and its `maxClientCnxns`",
                ));
            }
            Ok(Err(error)) => return Err(Failure::of(error)),
            Err(_) => return Err(Failure::timeout(SILENCE)),
        };
        let birth = make_root(&client, &self.prefix, self.access.acls()).await.map_err(Failure::of)?;
        let (beat, pulse) = watch::channel(Pulse::default());
        let heart = heart(client.clone(), self.prefix.clone(), beat);
        let stop = self.tasks.stop_token();
        self.tasks.spawn("zookeeper heartbeat", async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = heart => {}
            }
        });
        Ok(Link { client, member, birth, pulse })
    }

    /// The library does not say why it could not connect.
    async fn reach(&self, endpoint: &Endpoint) -> Result<(), Failure> {
        let cannot = |why: String| {
            let reason = format!(
                "cannot connect: {why}; check that ZooKeeper listens there and that no firewall is between"
            );
            Failure::unavailable(reason)
        };
        match timeout(CONNECT_TIMEOUT, TcpStream::connect((endpoint.host.as_str(), endpoint.port))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(cannot(error.to_string())),
            Err(_) => {
                let after = humantime::format_duration(CONNECT_TIMEOUT);
                Err(cannot(format!("no connection within {after}")))
            }
        }
    }
}

/// Makes what is missing down to the prefix. What is above it belongs to nobody; from the prefix on it is ours.
pub(super) async fn make_root(client: &Client, prefix: &str, acls: Acls<'static>) -> Result<Birth, ZkError> {
    loop {
        if let Some(stat) = client.check_stat(prefix).await? {
            return Ok(Birth { czxid: stat.czxid, ctime: stat.ctime });
        }
        let above = znode::chain("/", znode::parent(prefix));
        let above = above.into_iter().map(|node| (node, Acls::anyone_all()));
        for (node, acls) in above.chain([(prefix, acls)]) {
            match client.create(node, b"", &CreateMode::Persistent.with_acls(acls)).await {
                Ok(_) | Err(ZkError::NodeExists) => {}
                // Somebody may only use what others have made.
                Err(ZkError::NoAuth) if node != prefix => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Asks something small again and again until the connection is lost or nobody uses it any more.
async fn heart(client: Client, prefix: String, pulse: watch::Sender<Pulse>) {
    let mut state = client.state_watcher();
    let mut heard = Instant::now();
    let broken = loop {
        let answer = {
            let mut asked = pin!(client.check_stat(&prefix));
            let mut late = pin!(tokio::time::sleep(SILENT_AFTER));
            loop {
                tokio::select! {
                    () = pulse.closed() => return,
                    lost = lost(&mut state) => break Err(lost.to_owned()),
                    answer = &mut asked => break answer.map(drop).map_err(|error| error.to_string()),
                    () = &mut late, if !late.is_elapsed() => pulse.send_modify(|pulse| pulse.silent = true),
                }
            }
        };
        let silence = heard.elapsed();
        pulse.send_if_modified(|pulse| {
            let stalled = silence >= STALL;
            if stalled {
                pulse.stalls += 1;
                pulse.silence = silence;
            }
            std::mem::take(&mut pulse.silent) || stalled
        });
        if let Err(reason) = answer {
            break reason;
        }
        heard = Instant::now();
        tokio::select! {
            () = pulse.closed() => return,
            lost = lost(&mut state) => break lost.to_owned(),
            () = tokio::time::sleep(HEARTBEAT) => {}
        }
    };
    pulse.send_modify(|pulse| pulse.broken = Some(broken));
}

/// Completes when the connection is lost.
async fn lost(state: &mut StateWatcher) -> &'static str {
    loop {
        match state.changed().await {
            SessionState::SyncConnected => {}
            SessionState::Expired => return "its session expired",
            SessionState::AuthFailed => return "it refused the user; check `username` and `password`",
            _ => return "the connection is lost, or the server has been silent for too long",
        }
    }
}

/// The failure of everyone who used a link when it broke.
pub(super) fn broken(reason: &str) -> Failure {
    Failure::new(ErrorKind::Unavailable, Next::AskAnother, format!("{reason}; check ZooKeeper's log"))
}
