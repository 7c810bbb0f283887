//! What the DNS server counts. Every label value is a variant of a closed enum, and its counter is looked up once, at
//! start: counting on the path of a query is one atomic addition.

use std::marker::PhantomData;
use std::sync::OnceLock;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// A closed set of label values.
pub(super) trait Label: Copy + 'static {
    const ALL: &'static [Self];
    fn as_str(self) -> &'static str;
    fn index(self) -> usize;
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum $name { $($(#[$vdoc])* $variant),+ }
        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// How a query came.
    Transport { Udp = "udp", Tcp = "tcp", Tls = "tls", Https = "https" }
}
label! {
    /// How a connection's queries come.
    Stream { Tcp = "tcp", Tls = "tls", Https = "https" }
}
impl From<Stream> for Transport {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Tcp => Self::Tcp,
            Stream::Tls => Self::Tls,
            Stream::Https => Self::Https,
        }
    }
}
label! {
    /// What became of a query.
    Verdict {
        Answered = "answered",
        NoData = "no_data",
        NxDomain = "nxdomain",
        /// The catalog has heard nothing yet: SERVFAIL, never "there is none".
        NotReady = "not_ready",
        /// A name that leads to itself, or over too many others: SERVFAIL.
        AliasLoop = "alias_loop",
        Forwarded = "forwarded",
        Refused = "refused",
        FormErr = "formerr",
        NotImplemented = "not_implemented",
        BadVersion = "bad_version",
    }
}
impl Verdict {
    pub(super) const COUNT: usize = <Self as Label>::ALL.len();
}
label! {
    /// The type that a query asked for.
    AskedType {
        A = "A",
        Aaaa = "AAAA",
        Srv = "SRV",
        Txt = "TXT",
        Ptr = "PTR",
        Any = "ANY",
        Soa = "SOA",
        Ns = "NS",
        Https = "HTTPS",
        /// Another one, or none that can be read.
        Other = "other",
    }
}
label! {
    /// The response code of an answer.
    Code {
        NoError = "NOERROR",
        FormErr = "FORMERR",
        ServFail = "SERVFAIL",
        NxDomain = "NXDOMAIN",
        NotImp = "NOTIMP",
        Refused = "REFUSED",
        BadVers = "BADVERS",
        Other = "other",
    }
}
const TYPES: usize = AskedType::ALL.len();
const CODES: usize = Code::ALL.len();
label! {
    /// Why a query was refused an answer.
    Refusal {
        /// A class other than IN.
        Class = "class",
        /// AXFR, IXFR and the other types that are no data.
        MetaType = "meta_type",
        /// Outside the domain, and the client did not ask for recursion.
        RecursionNotDesired = "recursion_not_desired",
        /// Outside the domain, from a client with a globally routable address.
        ClientNotPermitted = "client_not_permitted",
        /// Outside the domain, and nobody to ask.
        NoUpstream = "no_upstream",
        /// As many queries wait for an upstream as may.
        TooManyForwards = "too_many_forwards",
    }
}
label! {
    /// What became of a forwarded query.
    Forwarded {
        CacheHit = "cache_hit",
        /// Joined a question that was already on its way.
        Joined = "joined",
        Answered = "answered",
        /// No upstream answered in time.
        Timeout = "timeout",
        /// No upstream could be reached.
        Unreachable = "unreachable",
        /// Every upstream answered with a failure; the last one is relayed.
        UpstreamFailed = "upstream_failed",
        /// Nobody could answer it a moment ago either.
        FailedBefore = "failed_before",
        /// An answer whose time is over, since no upstream had a better one in time.
        Stale = "stale",
        /// Asked anew in the background, shortly before the time of an answer is over.
        Prefetched = "prefetched",
        /// A second upstream was asked while the first took its time.
        Hedged = "hedged",
        /// Answered here: a name that has no meaning elsewhere, or that a route keeps here.
        Local = "local",
    }
}
label! {
    /// Why something was dropped without an answer, or a connection closed.
    Dropped {
        /// Fewer octets than a header.
        TooShort = "too_short",
        /// A response, never answered: two servers would talk for ever.
        NotAQuery = "not_a_query",
        /// Too many answers to the client's network.
        RateLimited = "rate_limited",
        /// No port to answer to.
        NoReturnPort = "no_return_port",
        ReceiveFailed = "receive_failed",
        SendFailed = "send_failed",
        /// The handling of this one message panicked.
        Panic = "panic",
        TcpConnectionLimit = "tcp_connection_limit",
        TcpAcceptFailed = "tcp_accept_failed",
        TcpQueryTooLong = "tcp_query_too_long",
        TcpIdle = "tcp_idle",
        TcpSlowReader = "tcp_slow_reader",
        /// No certificate to show, or a client that does not want it, or speaks no TLS.
        TlsFailed = "tls_failed",
        /// A handshake that took too long.
        TlsTimeout = "tls_timeout",
        /// A connection on which HTTP broke off.
        HttpsFailed = "https_failed",
        /// A message from an upstream that does not answer our question: late, or forged.
        UpstreamMismatch = "upstream_mismatch",
        /// An answer from an upstream in other letters than the question was sent in.
        UpstreamCase = "upstream_case",
    }
}
label! {
    /// What an answer says, as far as it matters to how many of them there are.
    AnswerKind { Records = "records", Negative = "negative", Error = "error" }
}
label! {
    /// What a client's cookie (RFC 7873) is worth.
    CookieKind {
        /// It has none of this server yet.
        New = "new",
        Valid = "valid",
        /// Too old, of another server, or of another address.
        Invalid = "invalid",
        /// It has a length that no cookie has.
        Malformed = "malformed",
    }
}
label! {
    /// Why a request over HTTPS is no query.
    HttpRefusal {
        NoSuchPath = "no_such_path",
        Method = "method",
        MediaType = "media_type",
        TooLong = "too_long",
        /// No message in it, or one that is no query.
        Malformed = "malformed",
        /// Its body took too long.
        Slow = "slow",
    }
}
label! {
    /// What an upstream made of a question.
    Asked {
        Answered = "answered",
        /// It answered with a failure of its own.
        Failed = "failed",
        Timeout = "timeout",
        Unreachable = "unreachable",
    }
}
label! {
    /// Which way a query was answered.
    Path { Zone = "zone", Cache = "cache", Upstream = "upstream" }
}

/// A counter a label value.
#[derive(Debug)]
pub(super) struct Counters<L> {
    vec: IntCounterVec,
    each: Vec<IntCounter>,
    label: PhantomData<L>,
}

impl<L: Label> Counters<L> {
    #[allow(
        clippy::expect_used,
        reason = "proof: name and label are literals of this file, valid and distinct"
    )]
    fn new(name: &str, help: &str, label: &str) -> Self {
        let vec = IntCounterVec::new(Opts::new(name, help), &[label]).expect("literal metric name");
        let each = L::ALL.iter().map(|value| vec.with_label_values(&[value.as_str()])).collect();
        Self { vec, each, label: PhantomData }
    }

    pub(super) fn inc(&self, value: L) {
        self.each[value.index()].inc();
    }

    #[cfg(test)]
    pub(super) fn get(&self, value: L) -> u64 {
        self.each[value.index()].get()
    }
}

/// Answers by type and code, not yet counted.
#[derive(Debug, Default)]
pub(super) struct Tally([[u32; CODES]; TYPES]);

impl Tally {
    pub(super) fn add(&mut self, asked: AskedType, code: Code) {
        self.0[asked.index()][code.index()] += 1;
    }
}

/// A counter for each way, type and code, there from the first such answer on.
#[derive(Debug)]
struct Answers {
    vec: IntCounterVec,
    each: Vec<OnceLock<IntCounter>>,
}

impl Answers {
    #[allow(
        clippy::expect_used,
        reason = "proof: name and labels are literals of this file, valid and distinct"
    )]
    fn new() -> Self {
        let vec = IntCounterVec::new(
            Opts::new(
                "plexus_dns_answers_total",
                "DNS answers by transport, type that was asked for and code.",
            ),
            &["transport", "type", "code"],
        )
        .expect("literal metric name");
        let cells = Transport::ALL.len() * TYPES * CODES;
        Self { vec, each: std::iter::repeat_with(OnceLock::new).take(cells).collect() }
    }

    fn of(&self, transport: Transport, asked: AskedType, code: Code) -> &IntCounter {
        let at = (transport.index() * TYPES + asked.index()) * CODES + code.index();
        let labels = [transport.as_str(), asked.as_str(), code.as_str()];
        self.each[at].get_or_init(|| self.vec.with_label_values(&labels))
    }
}

/// What is counted of one upstream. Upstreams are those of the configuration and of resolv.conf; one that is no longer among
/// them is forgotten.
#[derive(Debug)]
pub(super) struct UpstreamMetrics {
    name: String,
    asked: Vec<IntCounter>,
    /// What is smoothed of its times, in seconds.
    pub(super) seconds: Gauge,
    all: (IntCounterVec, GaugeVec),
}

impl UpstreamMetrics {
    pub(super) fn inc(&self, asked: Asked) {
        self.asked[asked.index()].inc();
    }

    pub(super) fn get(&self, asked: Asked) -> u64 {
        self.asked[asked.index()].get()
    }
}

impl Drop for UpstreamMetrics {
    fn drop(&mut self) {
        for asked in Asked::ALL {
            // They are there since it was made.
            let _ = self.all.0.remove_label_values(&[&self.name, asked.as_str()]);
        }
        let _ = self.all.1.remove_label_values(&[&self.name]);
    }
}

/// What the DNS server counts.
#[derive(Debug)]
pub struct Metrics {
    queries: IntCounterVec,
    queries_each: Vec<IntCounter>,
    answers: Answers,
    pub(super) query_log_suppressed: IntCounter,
    pub(super) refused: Counters<Refusal>,
    pub(super) forwarded: Counters<Forwarded>,
    pub(super) dropped: Counters<Dropped>,
    pub(super) rate_limited: Counters<AnswerKind>,
    pub(super) cookies: Counters<CookieKind>,
    seconds: HistogramVec,
    seconds_each: Vec<Histogram>,
    pub(super) truncated: IntCounter,
    pub(super) stale_answers: IntCounter,
    pub(super) https_refused: Counters<HttpRefusal>,
    pub(super) certificate_not_after: IntGauge,
    connections: IntGaugeVec,
    connections_each: Vec<IntGauge>,
    pub(super) forwards_in_flight: IntGauge,
    pub(super) cache_entries: IntGauge,
    pub(super) cache_bytes: IntGauge,
    upstreams: IntCounterVec,
    upstream_seconds: GaugeVec,
    pub(super) listeners: IntGauge,
    pub(super) listeners_failed: IntGauge,
}

impl Default for Metrics {
    #[allow(
        clippy::expect_used,
        reason = "proof: names and labels are literals of this file, valid and distinct"
    )]
    fn default() -> Self {
        let counter = |name, help| IntCounter::new(name, help).expect("literal metric name");
        let gauge = |name, help| IntGauge::new(name, help).expect("literal metric name");
        let counters = |name, help, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels).expect("literal metric name")
        };
        let queries = counters(
            "plexus_dns_queries_total",
            "DNS queries by transport and what became of them.",
            &["transport", "outcome"],
        );
        let connections = Opts::new("plexus_dns_connections", "Open connections of clients.");
        let connections = IntGaugeVec::new(connections, &["transport"]).expect("literal metric name");
        let queries_each = Transport::ALL
            .iter()
            .flat_map(|t| Verdict::ALL.iter().map(move |v| (t, v)))
            .map(|(t, v)| queries.with_label_values(&[t.as_str(), v.as_str()]))
            .collect();
        let buckets =
            vec![0.000_01, 0.000_03, 0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
        let seconds = HistogramOpts::new(
            "plexus_dns_answer_seconds",
            "Time from reading a query to its answer, by the way it was answered.",
        );
        let seconds = HistogramVec::new(seconds.buckets(buckets), &["path"]).expect("literal metric name");
        let seconds_each = Path::ALL.iter().map(|p| seconds.with_label_values(&[p.as_str()])).collect();
        Self {
            queries,
            queries_each,
            answers: Answers::new(),
            query_log_suppressed: counter(
                "plexus_dns_query_log_suppressed_total",
                "Lines that the query log does not have since there were too many.",
            ),
            refused: Counters::new("plexus_dns_refused_total", "DNS queries refused, by reason.", "reason"),
            forwarded: Counters::new(
                "plexus_dns_forwarded_total",
                "DNS queries for names outside the domain, by result.",
                "result",
            ),
            dropped: Counters::new(
                "plexus_dns_dropped_total",
                "DNS messages dropped and connections closed, by reason.",
                "reason",
            ),
            rate_limited: Counters::new(
                "plexus_dns_rate_limited_total",
                "Answers over UDP that were too many for a network: not sent, or cut short.",
                "answer",
            ),
            cookies: Counters::new(
                "plexus_dns_cookies_total",
                "Cookies that clients have shown, by what they are worth.",
                "cookie",
            ),
            seconds,
            seconds_each,
            truncated: counter(
                "plexus_dns_truncated_total",
                "UDP answers that were too long: the client is sent to TCP.",
            ),
            stale_answers: counter(
                "plexus_dns_stale_answers_total",
                "Answers from the last known good while the store was out of reach.",
            ),
            https_refused: Counters::new(
                "plexus_dns_https_refused_total",
                "Requests over HTTPS that are no queries, by reason.",
                "reason",
            ),
            certificate_not_after: gauge(
                "plexus_dns_certificate_not_after_seconds",
                "When the certificate that clients are shown expires, in seconds since 1970; 0: there is none.",
            ),
            connections_each: Stream::ALL
                .iter()
                .map(|t| connections.with_label_values(&[t.as_str()]))
                .collect(),
            connections,
            forwards_in_flight: gauge("plexus_dns_forwards_in_flight", "Queries that wait for an upstream."),
            cache_entries: gauge("plexus_dns_cache_entries", "Answers of upstreams that are kept."),
            cache_bytes: gauge("plexus_dns_cache_bytes", "What they take of memory, about."),
            upstreams: counters(
                "plexus_dns_upstream_queries_total",
                "Questions to an upstream, by result.",
                &["upstream", "result"],
            ),
            upstream_seconds: GaugeVec::new(
                Opts::new("plexus_dns_upstream_seconds", "How long an upstream takes to answer, smoothed."),
                &["upstream"],
            )
            .expect("literal metric name"),
            listeners: gauge("plexus_dns_listeners", "Addresses that are served."),
            listeners_failed: gauge(
                "plexus_dns_listeners_failed",
                "Configured addresses that could not be bound.",
            ),
        }
    }
}

impl Metrics {
    /// Adds every metric of this room to `registry`; fails if one of them is there already.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        let all: [Box<dyn Collector>; 21] = [
            Box::new(self.queries.clone()),
            Box::new(self.answers.vec.clone()),
            Box::new(self.query_log_suppressed.clone()),
            Box::new(self.refused.vec.clone()),
            Box::new(self.forwarded.vec.clone()),
            Box::new(self.dropped.vec.clone()),
            Box::new(self.rate_limited.vec.clone()),
            Box::new(self.cookies.vec.clone()),
            Box::new(self.seconds.clone()),
            Box::new(self.truncated.clone()),
            Box::new(self.stale_answers.clone()),
            Box::new(self.https_refused.vec.clone()),
            Box::new(self.certificate_not_after.clone()),
            Box::new(self.connections.clone()),
            Box::new(self.forwards_in_flight.clone()),
            Box::new(self.cache_entries.clone()),
            Box::new(self.cache_bytes.clone()),
            Box::new(self.upstreams.clone()),
            Box::new(self.upstream_seconds.clone()),
            Box::new(self.listeners.clone()),
            Box::new(self.listeners_failed.clone()),
        ];
        all.into_iter().try_for_each(|collector| registry.register(collector))
    }

    /// Open connections that came this way.
    pub(super) fn connections(&self, stream: Stream) -> &IntGauge {
        &self.connections_each[stream.index()]
    }

    /// Those of an upstream.
    pub(super) fn upstream(&self, name: String) -> UpstreamMetrics {
        let counter = |asked: &Asked| self.upstreams.with_label_values(&[&name, asked.as_str()]);
        UpstreamMetrics {
            asked: Asked::ALL.iter().map(counter).collect(),
            seconds: self.upstream_seconds.with_label_values(&[&name]),
            all: (self.upstreams.clone(), self.upstream_seconds.clone()),
            name,
        }
    }

    /// Counts answers that came this way.
    pub(super) fn answered(&self, transport: Transport, tally: &Tally) {
        for (asked, codes) in AskedType::ALL.iter().zip(&tally.0) {
            for (code, count) in Code::ALL.iter().zip(codes).filter(|(_, count)| **count > 0) {
                self.answers.of(transport, *asked, *code).inc_by(u64::from(*count));
            }
        }
    }

    pub(super) fn query(&self, transport: Transport, verdict: Verdict) {
        self.queries_each[transport.index() * Verdict::ALL.len() + verdict.index()].inc();
    }

    /// Counts so many at a time.
    pub(super) fn queries_of(&self, transport: Transport, counts: &[u64; Verdict::COUNT]) {
        for (counter, count) in self.queries_each[transport.index() * Verdict::ALL.len()..].iter().zip(counts)
        {
            if *count > 0 {
                counter.inc_by(*count);
            }
        }
    }

    /// So many answers that left together.
    pub(super) fn took_all(&self, path: Path, time: Duration, count: u64) {
        let local = self.seconds_each[path.index()].local();
        (0..count).for_each(|_| local.observe(time.as_secs_f64()));
        local.flush();
    }

    pub(super) fn took(&self, path: Path, time: Duration) {
        self.seconds_each[path.index()].observe(time.as_secs_f64());
    }

    #[cfg(test)]
    pub(super) fn answers(&self, transport: Transport, asked: AskedType, code: Code) -> u64 {
        self.answers.of(transport, asked, code).get()
    }

    #[cfg(test)]
    pub(super) fn queries(&self, transport: Transport, verdict: Verdict) -> u64 {
        self.queries_each[transport.index() * Verdict::ALL.len() + verdict.index()].get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_registers_once_and_is_named_for_the_program() {
        let (metrics, registry) = (Metrics::default(), Registry::new());
        metrics.register(&registry).unwrap();
        assert!(metrics.register(&registry).is_err());
        metrics.query(Transport::Tcp, Verdict::BadVersion);
        assert_eq!(metrics.queries(Transport::Tcp, Verdict::BadVersion), 1);
        assert_eq!(metrics.queries(Transport::Udp, Verdict::BadVersion), 0);
        let upstream = metrics.upstream("192.0.2.53:53".to_owned());
        upstream.inc(Asked::Timeout);
        let listed = |registry: &Registry| {
            registry.gather().iter().any(|family| family.name() == "plexus_dns_upstream_queries_total")
        };
        assert!(listed(&registry));
        drop(upstream);
        assert!(!listed(&registry), "one that is gone is forgotten");
        for family in registry.gather() {
            assert!(family.name().starts_with("plexus_dns_"), "{}", family.name());
        }
    }
}
