//! What overlay networks count.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Subnets, peers, and what is done in the kernel.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// By how the store decided: `done`, `taken`, `failed`.
    pub(super) claims: IntCounterVec,
    /// Leases that ended while the agent ran.
    pub(super) leases_lost: IntCounter,
    /// Networks that this node has links of.
    pub(super) networks: IntGauge,
    /// Nodes that its containers can reach, by network.
    pub(super) peers: IntGaugeVec,
    /// Entries set and removed in the kernel: routes, neighbours and forwarding entries.
    pub(super) entries: IntCounterVec,
    /// Times that something of ours was missing or wrong in the kernel.
    pub(super) repairs: IntCounter,
    /// Comparisons with the kernel, by the part and the reason: the words of `due::Part` and `due::Reason`.
    pub(super) comparisons: IntCounterVec,
    /// Times that the kernel told more than could be read, by what of: `routing`, `filter`.
    pub(super) overruns: IntCounterVec,
    /// Containers whose packets to other nodes take the short way.
    pub(super) fast_path: IntGauge,
    /// Those of them that programs in the kernel see the packets of.
    pub(super) programs: IntGauge,
    /// Nodes of encrypted networks, by what packets to them are encrypted with: `wireguard`, `esp`; `none`: nothing is sent to them.
    pub(super) encrypted: IntGaugeVec,
    /// Keys of encrypted networks, by cipher and what became of them: `made`, `ended`.
    pub(super) keys: IntCounterVec,
    /// Probes of other nodes, by what was done: `answered`, `refused`, `failed`.
    pub(super) probes: IntCounterVec,
}

impl Metrics {
    /// Counters at zero, not registered yet.
    pub fn new() -> prometheus::Result<Self> {
        Ok(Self {
            claims: IntCounterVec::new(
                Opts::new(
                    "plexus_overlay_claims_total",
                    "Subnets that this agent tried to claim, by outcome.",
                ),
                &["outcome"],
            )?,
            leases_lost: IntCounter::new(
                "plexus_overlay_leases_lost_total",
                "Leases of this node's subnets that ended while the agent ran.",
            )?,
            networks: IntGauge::new(
                "plexus_overlay_networks",
                "Overlay networks that this node has links of.",
            )?,
            peers: IntGaugeVec::new(
                Opts::new(
                    "plexus_overlay_peers",
                    "Nodes whose containers can be reached from here, by network.",
                ),
                &["network"],
            )?,
            entries: IntCounterVec::new(
                Opts::new(
                    "plexus_overlay_entries_total",
                    "Routes, neighbours and forwarding entries of peers that were set or removed in the kernel.",
                ),
                &["change"],
            )?,
            repairs: IntCounter::new(
                "plexus_overlay_repairs_total",
                "Times that something of an overlay network was missing or wrong in the kernel and was put right.",
            )?,
            comparisons: IntCounterVec::new(
                Opts::new(
                    "plexus_overlay_comparisons_total",
                    "Times that a part of overlay networks was compared with the kernel, by part and reason.",
                ),
                &["part", "reason"],
            )?,
            overruns: IntCounterVec::new(
                Opts::new(
                    "plexus_overlay_overruns_total",
                    "Times that the kernel told of more changes than its socket holds, after which everything is compared, by what they \
                     were of.",
                ),
                &["of"],
            )?,
            fast_path: IntGauge::new(
                "plexus_overlay_fast_path_containers",
                "Containers whose packets to containers of other nodes take the short way past this host's packet filter.",
            )?,
            programs: IntGauge::new(
                "plexus_overlay_fast_path_program_containers",
                "Containers whose packets to containers of other nodes are sent on by programs in the kernel.",
            )?,
            encrypted: IntGaugeVec::new(
                Opts::new(
                    "plexus_overlay_encrypted_peers",
                    "Nodes of encrypted networks, by what packets to them are encrypted with; none: nothing is sent to them.",
                ),
                &["cipher"],
            )?,
            keys: IntCounterVec::new(
                Opts::new(
                    "plexus_overlay_keys_total",
                    "Keys of this node for encrypted networks, by cipher and what became of them.",
                ),
                &["cipher", "change"],
            )?,
            probes: IntCounterVec::new(
                Opts::new("plexus_overlay_probes_total", "Probes that came to this node, by outcome."),
                &["outcome"],
            )?,
        })
    }

    /// So many peers are reached by this cipher.
    pub(super) fn count_encrypted(&self, cipher: &str, count: usize) {
        self.encrypted.with_label_values(&[cipher]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Makes them visible.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.claims.clone()))?;
        registry.register(Box::new(self.leases_lost.clone()))?;
        registry.register(Box::new(self.networks.clone()))?;
        registry.register(Box::new(self.peers.clone()))?;
        registry.register(Box::new(self.entries.clone()))?;
        registry.register(Box::new(self.repairs.clone()))?;
        registry.register(Box::new(self.comparisons.clone()))?;
        registry.register(Box::new(self.overruns.clone()))?;
        registry.register(Box::new(self.fast_path.clone()))?;
        registry.register(Box::new(self.programs.clone()))?;
        registry.register(Box::new(self.encrypted.clone()))?;
        registry.register(Box::new(self.keys.clone()))?;
        registry.register(Box::new(self.probes.clone()))
    }
}
