//! What is counted of UDP, the same way as of connections: each thread for itself, added up when somebody asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts};

use super::Plain;
use super::count::{Count, counters, raise};

/// Why datagrams were lost, or sessions: the closed set behind `plexus_udp_dropped_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lost {
    /// No endpoint gets traffic.
    NoEndpoint,
    /// The service's limits allow no more, or those of the client's address, or those of every endpoint.
    Refused,
    /// A rule forbids the client to talk to the service.
    Denied,
    /// Every endpoint that was tried is unreachable.
    EndpointUnreachable,
    /// The endpoints are other nodes', and to be reached by mutual TLS alone, which carries no datagrams.
    WithoutTunnel,
    /// The client is unreachable from the address that it asked.
    ClientUnreachable,
    /// A new session would have been one too many, of sessions, descriptors or ports, and none could make room.
    Limit,
    /// A session, the one that was idle for longest, made room for another.
    Evicted,
    /// Larger than the kernel sends that way.
    TooBig,
    /// The kernel had no room for what is to be sent.
    SendBufferFull,
    /// The kernel had no room for what came: this thread was too slow.
    ReceiveBufferFull,
    /// From a client that is new, to a listener that is being closed.
    Drain,
}

impl Lost {
    /// Every reason there is.
    pub const ALL: [Self; 12] = [
        Self::NoEndpoint,
        Self::Refused,
        Self::Denied,
        Self::EndpointUnreachable,
        Self::WithoutTunnel,
        Self::ClientUnreachable,
        Self::Limit,
        Self::Evicted,
        Self::TooBig,
        Self::SendBufferFull,
        Self::ReceiveBufferFull,
        Self::Drain,
    ];

    /// The word for it, as in metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no_endpoint",
            Self::Refused => "refused",
            Self::Denied => "denied",
            Self::EndpointUnreachable => "endpoint_unreachable",
            Self::WithoutTunnel => "without_tunnel",
            Self::ClientUnreachable => "client_unreachable",
            Self::Limit => "limit",
            Self::Evicted => "evicted",
            Self::TooBig => "too_big",
            Self::SendBufferFull => "send_buffer_full",
            Self::ReceiveBufferFull => "receive_buffer_full",
            Self::Drain => "drain",
        }
    }
}

/// What went one way.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) datagrams: Count,
    pub(super) bytes: Count,
}

/// What one thread counts of one service.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Tally {
    pub(super) begun: Count,
    pub(super) ended: Count,
    pub(super) moved: Count,
    pub(super) to_endpoint: Traffic,
    pub(super) to_client: Traffic,
    lost: [Count; Lost::ALL.len()],
    plain: [Count; Plain::ALL.len()],
}

impl Tally {
    pub(super) fn lost(&self, reason: Lost, count: u64) {
        self.lost[reason as usize].add(count);
    }

    pub(super) fn plain(&self, reason: Plain) {
        self.plain[reason as usize].add(1);
    }
}

/// The tallies of all services and threads, and the families that they become.
#[derive(Debug, Clone)]
pub(super) struct Tallies {
    of_service: Arc<Mutex<BTreeMap<String, Vec<Arc<Tally>>>>>,
    sessions: IntCounterVec,
    active: IntGaugeVec,
    moved: IntCounterVec,
    datagrams: IntCounterVec,
    bytes: IntCounterVec,
    dropped: IntCounterVec,
    plain: IntCounterVec,
}

impl Tallies {
    pub(super) fn new() -> prometheus::Result<Self> {
        Ok(Self {
            of_service: Arc::default(),
            sessions: counters("plexus_udp_sessions_total", "UDP sessions begun.", &["service"])?,
            active: IntGaugeVec::new(
                Opts::new("plexus_udp_sessions_active", "UDP sessions that are open."),
                &["service"],
            )?,
            moved: counters(
                "plexus_udp_sessions_moved_total",
                "UDP sessions that got another endpoint, since theirs was gone or unreachable.",
                &["service"],
            )?,
            datagrams: counters(
                "plexus_udp_datagrams_total",
                "Datagrams sent, by the side they went to.",
                &["service", "to"],
            )?,
            bytes: counters(
                "plexus_udp_bytes_total",
                "Bytes sent in datagrams, by the side they went to.",
                &["service", "to"],
            )?,
            dropped: counters(
                "plexus_udp_dropped_total",
                "Datagrams that were not sent on, by reason; for evicted, sessions.",
                &["service", "reason"],
            )?,
            plain: counters(
                "plexus_udp_sessions_plain_total",
                "UDP sessions with endpoints that see this node's address although the service asks for the client's, by reason.",
                &["service", "reason"],
            )?,
        })
    }

    /// The tally of a service on the thread with this index.
    pub(super) fn tally(&self, service: &str, thread: usize) -> Arc<Tally> {
        let mut of_service = self.of_service.lock().unwrap_or_else(PoisonError::into_inner);
        let tallies = of_service.entry(service.to_owned()).or_default();
        while tallies.len() <= thread {
            tallies.push(Arc::default());
        }
        Arc::clone(&tallies[thread])
    }

    #[cfg(test)]
    pub(super) fn sum(&self, service: &str, count: impl Fn(&Tally) -> u64) -> u64 {
        let of_service = self.of_service.lock().unwrap();
        of_service.get(service).into_iter().flatten().map(|tally| count(tally)).sum()
    }

    #[cfg(test)]
    pub(super) fn lost_so_far(&self, service: &str, reason: Lost) -> u64 {
        self.sum(service, |tally| tally.lost[reason as usize].get())
    }

    /// Brings the families up to what the threads have counted.
    fn add_up(&self) {
        let of_service = self.of_service.lock().unwrap_or_else(PoisonError::into_inner);
        for (service, tallies) in &*of_service {
            let service = service.as_str();
            let sum = |count: &dyn Fn(&Tally) -> u64| tallies.iter().map(|tally| count(tally)).sum::<u64>();
            raise(&self.moved, &[service], sum(&|t| t.moved.get()));
            raise(&self.datagrams, &[service, "endpoint"], sum(&|t| t.to_endpoint.datagrams.get()));
            raise(&self.datagrams, &[service, "client"], sum(&|t| t.to_client.datagrams.get()));
            raise(&self.bytes, &[service, "endpoint"], sum(&|t| t.to_endpoint.bytes.get()));
            raise(&self.bytes, &[service, "client"], sum(&|t| t.to_client.bytes.get()));
            for reason in Lost::ALL {
                raise(&self.dropped, &[service, reason.as_str()], sum(&|t| t.lost[reason as usize].get()));
            }
            for reason in Plain::ALL {
                let count = sum(&|t| t.plain[reason as usize].get());
                if count > 0 {
                    raise(&self.plain, &[service, reason.as_str()], count);
                }
            }
            // In this order, so that one that ends in between is not counted below zero.
            let ended = sum(&|t| t.ended.get());
            let begun = sum(&|t| t.begun.get());
            raise(&self.sessions, &[service], begun);
            let open = begun.saturating_sub(ended);
            self.active.with_label_values(&[service]).set(i64::try_from(open).unwrap_or(i64::MAX));
        }
    }

    fn families(&self) -> [&dyn Collector; 7] {
        [&self.sessions, &self.active, &self.moved, &self.datagrams, &self.bytes, &self.dropped, &self.plain]
    }
}

impl Collector for Tallies {
    fn desc(&self) -> Vec<&Desc> {
        self.families().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.add_up();
        // A family without a series cannot be written.
        let families = self.families().into_iter().flat_map(Collector::collect);
        families.filter(|family| !family.get_metric().is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter() {
        let tallies = Tallies::new().unwrap();
        for reason in Lost::ALL {
            tallies.tally("dns", 0).lost(reason, 1);
            tallies.tally("dns", 1).lost(reason, 2);
            tallies.add_up();
            assert_eq!(tallies.dropped.with_label_values(&["dns", reason.as_str()]).get(), 3);
        }
        for reason in Plain::ALL {
            tallies.tally("dns", 1).plain(reason);
            tallies.add_up();
            assert_eq!(tallies.plain.with_label_values(&["dns", reason.as_str()]).get(), 1);
        }
    }

    #[test]
    fn what_is_open_was_begun_and_has_not_ended() {
        let tallies = Tallies::new().unwrap();
        tallies.tally("dns", 0).begun.add(3);
        tallies.tally("dns", 1).begun.add(2);
        tallies.tally("dns", 1).ended.add(1);
        tallies.add_up();
        assert_eq!(tallies.active.with_label_values(&["dns"]).get(), 4);
        assert_eq!(tallies.sessions.with_label_values(&["dns"]).get(), 5);
    }
}
