//! What is counted of tunnels. Each thread counts for itself, as it does of connections.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts};

use super::count::{Count, counters, raise};
use super::tunnel_refusal::Refusal;

/// Which end of a tunnel this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It has made the connection, for its clients.
    Sender,
    /// It was connected to, for its endpoints.
    Receiver,
}

/// Why there is no tunnel, or no longer one: the closed set behind `plexus_tunnel_failures_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelFailure {
    /// This node has no certificate yet.
    NoCredentials,
    /// The other node's port cannot be connected to.
    Connect,
    /// The handshake was not finished in time.
    Timeout,
    /// The handshake failed: a certificate that is missing or not believed, another version, no TLS.
    Handshake,
    /// The certificate is of nobody who may be here, or of another node than the one that was expected.
    Identity,
    /// As many handshakes are under way, or connections open, as may be.
    Limit,
    /// The other side sent what nobody sends, or what was changed on the way.
    Protocol,
    /// The node was revoked while it was open.
    Revoked,
    /// A mistake in this program; the log has it.
    Panic,
}

impl End {
    const ALL: [Self; 2] = [Self::Sender, Self::Receiver];

    fn as_str(self) -> &'static str {
        match self {
            Self::Sender => "sender",
            Self::Receiver => "receiver",
        }
    }
}

impl TunnelFailure {
    /// Every reason there is.
    pub const ALL: [Self; 9] = [
        Self::NoCredentials,
        Self::Connect,
        Self::Timeout,
        Self::Handshake,
        Self::Identity,
        Self::Limit,
        Self::Protocol,
        Self::Revoked,
        Self::Panic,
    ];

    /// The word for it, as in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoCredentials => "no_credentials",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Handshake => "handshake",
            Self::Identity => "identity",
            Self::Limit => "limit",
            Self::Protocol => "protocol",
            Self::Revoked => "revoked",
            Self::Panic => "panic",
        }
    }
}

impl fmt::Display for TunnelFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What one thread counts at one end of its tunnels.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// Handshakes with certificates verified and keys signed.
    pub(super) full: Count,
    /// Handshakes that went on with an earlier session.
    pub(super) resumed: Count,
    pub(super) streams: Count,
    /// TLS connections that have ended.
    pub(super) closed: Count,
    failures: [Count; TunnelFailure::ALL.len()],
}

/// What one thread counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Tally {
    ends: [Ends; 2],
    refused: [Count; Refusal::ALL.len()],
}

impl Tally {
    pub(super) fn of(&self, end: End) -> &Ends {
        &self.ends[end as usize]
    }

    pub(super) fn refused(&self, reason: Refusal) {
        if let Some(place) = Refusal::ALL.iter().position(|known| *known == reason) {
            self.refused[place].add(1);
        }
    }
}

impl Ends {
    pub(super) fn failed(&self, reason: TunnelFailure) {
        self.failures[reason as usize].add(1);
    }
}

/// The tallies of all threads, and the families that they become.
#[derive(Debug, Clone)]
pub(super) struct Tallies {
    threads: Arc<Mutex<Vec<Arc<Tally>>>>,
    handshakes: IntCounterVec,
    open: IntGaugeVec,
    streams: IntCounterVec,
    failures: IntCounterVec,
    refused: IntCounterVec,
}

impl Tallies {
    pub(super) fn new() -> prometheus::Result<Self> {
        Ok(Self {
            threads: Arc::default(),
            handshakes: counters(
                "plexus_tunnel_handshakes_total",
                "Handshakes with other nodes that succeeded, by this node's end and whether an earlier session was resumed.",
                &["end", "kind"],
            )?,
            open: IntGaugeVec::new(
                Opts::new(
                    "plexus_tunnel_connections",
                    "TLS connections with other nodes that are open, by this node's end.",
                ),
                &["end"],
            )?,
            streams: counters(
                "plexus_tunnel_streams_total",
                "Client connections that went through tunnels, by this node's end.",
                &["end"],
            )?,
            failures: counters(
                "plexus_tunnel_failures_total",
                "Tunnels that could not be made or that broke, by this node's end and the reason.",
                &["end", "reason"],
            )?,
            refused: counters(
                "plexus_tunnel_refused_total",
                "Streams of other nodes that went nowhere, by reason.",
                &["reason"],
            )?,
        })
    }

    /// That of the thread with this index.
    pub(super) fn tally(&self, thread: usize) -> Arc<Tally> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        while threads.len() <= thread {
            threads.push(Arc::default());
        }
        Arc::clone(&threads[thread])
    }

    fn add_up(&self) {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |count: &dyn Fn(&Tally) -> u64| threads.iter().map(|tally| count(tally)).sum::<u64>();
        for end in End::ALL {
            let word = end.as_str();
            let closed = sum(&|t| t.of(end).closed.get());
            let (full, resumed) = (sum(&|t| t.of(end).full.get()), sum(&|t| t.of(end).resumed.get()));
            raise(&self.handshakes, &[word, "full"], full);
            raise(&self.handshakes, &[word, "resumed"], resumed);
            raise(&self.streams, &[word], sum(&|t| t.of(end).streams.get()));
            let open = (full + resumed).saturating_sub(closed);
            self.open.with_label_values(&[word]).set(i64::try_from(open).unwrap_or(i64::MAX));
            for reason in TunnelFailure::ALL {
                raise(
                    &self.failures,
                    &[word, reason.as_str()],
                    sum(&|t| t.of(end).failures[reason as usize].get()),
                );
            }
        }
        for (place, reason) in Refusal::ALL.into_iter().enumerate() {
            raise(&self.refused, &[reason.as_str()], sum(&|t| t.refused[place].get()));
        }
    }

    fn families(&self) -> [&dyn Collector; 5] {
        [&self.handshakes, &self.open, &self.streams, &self.failures, &self.refused]
    }

    /// What all threads have counted so far.
    #[cfg(test)]
    pub(super) fn so_far(&self, count: impl Fn(&Tally) -> u64) -> u64 {
        self.threads.lock().unwrap().iter().map(|tally| count(tally)).sum()
    }
}

#[cfg(test)]
impl Ends {
    pub(super) fn failures(&self, reason: TunnelFailure) -> u64 {
        self.failures[reason as usize].get()
    }
}

#[cfg(test)]
impl Tally {
    pub(super) fn refusals(&self, reason: Refusal) -> u64 {
        Refusal::ALL.iter().position(|known| *known == reason).map_or(0, |place| self.refused[place].get())
    }
}

impl Collector for Tallies {
    fn desc(&self) -> Vec<&Desc> {
        self.families().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.add_up();
        self.families().into_iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_count_is_added_up_by_end_and_reason() {
        let tallies = Tallies::new().unwrap();
        let threads = [tallies.tally(0), tallies.tally(1)];
        for tally in &threads {
            tally.of(End::Sender).full.add(2);
            tally.of(End::Sender).closed.add(1);
            TunnelFailure::ALL.into_iter().for_each(|reason| tally.of(End::Receiver).failed(reason));
            Refusal::ALL.into_iter().for_each(|reason| tally.refused(reason));
        }
        let text = prometheus::TextEncoder::new().encode_to_string(&tallies.collect()).unwrap();
        assert!(text.contains("plexus_tunnel_connections{end=\"sender\"} 2"), "{text}");
        assert!(text.contains("plexus_tunnel_handshakes_total{end=\"sender\",kind=\"full\"} 4"), "{text}");
        for reason in TunnelFailure::ALL {
            let series = format!("plexus_tunnel_failures_total{{end=\"receiver\",reason=\"{reason}\"}} 2");
            assert!(text.contains(&series), "{series} in {text}");
        }
        for reason in Refusal::ALL {
            let series = format!("plexus_tunnel_refused_total{{reason=\"{reason}\"}} 2");
            assert!(text.contains(&series), "{series} in {text}");
        }
    }
}
