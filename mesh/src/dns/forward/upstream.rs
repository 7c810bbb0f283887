//! One upstream: asking it a question over whatever it is spoken with, and what is known of how it does.
//!
//! Over UDP it is asked in random letters (0x20) until it is seen not to give them back; what comes back in other letters is asked again
//! over TCP, where nobody can forge who does not see it. What is cut short over UDP comes over TCP too. A server from before
//! EDNS is asked once more without.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nerve::http::{FilePath, Tls};
use nerve::tasks::Tasks;
use tokio::time::{Instant, timeout};

use super::answer::Relayed;
use super::health::Health;
use super::stream::{Dial, Stream};
use super::udp::{self, Came};
use crate::dns::address::{Transport, UpstreamAddress};
use crate::dns::config::Config;
use crate::dns::metrics::{Asked, Metrics, UpstreamMetrics};
use crate::dns::wire::{self, Question, flag, rcode};

/// How long TCP may take to settle what came over UDP in other letters; a server may have no TCP.
const SETTLED_WITHIN: Duration = Duration::from_millis(500);

/// Why an upstream gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(in crate::dns) enum Failure {
    #[error("no upstream is configured")]
    NoUpstream,
    #[error("upstream {server} did not answer within {after:?}")]
    Timeout { server: UpstreamAddress, after: Duration },
    #[error("upstream {server} cannot be asked: {source}")]
    Unreachable { server: UpstreamAddress, source: Arc<io::Error> },
}

/// What all upstreams have in common.
#[derive(Debug)]
pub(in crate::dns) struct Means {
    within: Duration,
    idle: Duration,
    mixed_case: bool,
    ca_file: Option<FilePath>,
    tasks: Tasks,
    pub(super) metrics: Arc<Metrics>,
}

impl Means {
    pub(in crate::dns) fn new(config: &Config, tasks: Tasks, metrics: Arc<Metrics>) -> Self {
        Self {
            within: config.limits.upstream_timeout,
            idle: config.limits.upstream_idle,
            mixed_case: config.mixed_case,
            ca_file: config.upstream_ca_file.clone(),
            tasks,
            metrics,
        }
    }
}

/// Somebody who is asked.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) address: UpstreamAddress,
    health: Mutex<Health>,
    stream: Stream,
    pub(super) counts: UpstreamMetrics,
    means: Arc<Means>,
}

impl Upstream {
    pub(super) fn new(address: UpstreamAddress, means: &Arc<Means>) -> Self {
        let tls = match &address.transport {
            Transport::Udp | Transport::Tcp => None,
            Transport::Tls(name) => {
                Some(Tls::verified(means.ca_file.clone(), name.as_deref().map(str::to_owned)))
            }
        };
        let dial = Dial { at: address.at, tls, within: means.within, idle: means.idle };
        let stream = Stream::new(dial, means.tasks.clone(), Arc::clone(&means.metrics));
        let counts = means.metrics.upstream(address.to_string());
        Self { address, health: Mutex::default(), stream, counts, means: Arc::clone(means) }
    }

    /// How it does.
    pub(super) fn health(&self) -> MutexGuard<'_, Health> {
        // It is whole between any two calls.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// May one datagram have been lost on the way, so that asking once more makes sense?
    pub(super) fn may_lose(&self) -> bool {
        self.address.transport == Transport::Udp
    }

    /// Asks; the answer is to this question, whole and well-formed, whatever it says.
    pub(super) async fn ask(
        &self,
        question: &Question,
        flags: u16,
        dnssec_ok: bool,
    ) -> Result<Relayed, Failure> {
        let begun = Instant::now();
        let flags = flags | flag::RECURSION_DESIRED;
        let asked = timeout(self.means.within, self.exchange(question, flags, dnssec_ok)).await;
        let (now, server) = (Instant::now(), self.address.clone());
        let failure = match asked {
            Ok(Ok(answer)) => {
                self.counts.inc(if answer.is_conclusive() { Asked::Answered } else { Asked::Failed });
                let mut health = self.health();
                let is_back = health.answered(now.saturating_duration_since(begun), now);
                self.counts.seconds.set(health.recent(now).unwrap_or_default().as_secs_f64());
                if is_back {
                    tracing::info!(upstream = %server, "DNS upstream answers again");
                }
                return Ok(answer);
            }
            Ok(Err(source)) => {
                self.counts.inc(Asked::Unreachable);
                Failure::Unreachable { server, source }
            }
            Err(_) => {
                self.counts.inc(Asked::Timeout);
                self.stream.forsake();
                Failure::Timeout { server, after: self.means.within }
            }
        };
        tracing::debug!(%failure, "upstream did not answer");
        if self.health().failed(failure.to_string(), now) {
            tracing::warn!(%failure, "DNS upstream is passed over until it answers again");
        }
        Err(failure)
    }

    async fn exchange(
        &self,
        question: &Question,
        flags: u16,
        dnssec_ok: bool,
    ) -> Result<Relayed, Arc<io::Error>> {
        let answer = self.once(question, flags, Some(dnssec_ok)).await?;
        // A server from before 1999 does not know EDNS and says so by FORMERR without OPT (RFC 6891 section 7).
        if matches!(answer.rcode(), rcode::FORM_ERR | rcode::NOT_IMP) && !answer.has_opt() {
            return self.once(question, flags, None).await;
        }
        Ok(answer)
    }

    async fn once(
        &self,
        question: &Question,
        flags: u16,
        edns: Option<bool>,
    ) -> Result<Relayed, Arc<io::Error>> {
        if self.address.transport != Transport::Udp {
            return self.over_stream(question, flags, edns).await;
        }
        let metrics = &self.means.metrics;
        let mixed = self.means.mixed_case && self.health().keeps_case();
        let spelt = if mixed { question.mixed_case(rand::random) } else { question.clone() };
        match udp::ask(self.address.at, &spelt, mixed, flags, edns, metrics).await? {
            Came::Answer(answer) => {
                if mixed {
                    self.health().kept_case(true);
                }
                return Ok(answer);
            }
            Came::Truncated => return self.over_stream(question, flags, edns).await,
            Came::OtherCase => {}
        }
        if self.health().kept_case(false) {
            tracing::info!(
                upstream = %self.address,
                "DNS upstream does not give back the letters of questions as they are sent: they are not mixed any more"
            );
        }
        if let Ok(Ok(answer)) = timeout(SETTLED_WITHIN, self.over_stream(question, flags, edns)).await {
            return Ok(answer);
        }
        // It has no TCP: whoever forged that must now guess once more.
        match udp::ask(self.address.at, question, false, flags, edns, metrics).await? {
            Came::Answer(answer) => Ok(answer),
            Came::Truncated | Came::OtherCase => self.over_stream(question, flags, edns).await,
        }
    }

    async fn over_stream(
        &self,
        question: &Question,
        flags: u16,
        edns: Option<bool>,
    ) -> Result<Relayed, Arc<io::Error>> {
        let mut query = wire::query(0, flags, question, edns);
        if edns.is_some() && self.stream.is_encrypted() {
            wire::pad(&mut query);
        }
        self.stream.ask(question, &query).await
    }
}
