//! What the agent tells of itself.

use prometheus::{GaugeVec, IntCounterVec, IntGauge, Opts, Registry};

use super::Phase;
use super::handover::Outcome;

/// Version, phase and start of the agent.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    phase: GaugeVec,
    task_panics: IntGauge,
    handovers: IntCounterVec,
}

impl Metrics {
    /// Registered from the start: there is nothing to wait for.
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let info =
            GaugeVec::new(Opts::new("plexus_agent_info", "1, with the version of the agent."), &["version"])?;
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        let phase = GaugeVec::new(
            Opts::new("plexus_agent_phase", "1 for the phase that the agent is in."),
            &["phase"],
        )?;
        let task_panics =
            IntGauge::new("plexus_task_panics", "Tasks of the control plane that panicked since the start.")?;
        let handovers =
            Opts::new("plexus_handover_total", "Changes of process on this node, by how they ended.");
        let handovers = IntCounterVec::new(handovers, &["result"])?;
        for outcome in Outcome::ALL {
            handovers.with_label_values(&[outcome.as_str()]).reset();
        }
        registry.register(Box::new(handovers.clone()))?;
        registry.register(Box::new(info))?;
        registry.register(Box::new(phase.clone()))?;
        registry.register(Box::new(task_panics.clone()))?;
        Ok(Self { phase, task_panics, handovers })
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.reset();
        self.phase.with_label_values(&[phase.as_str()]).set(1.0);
    }

    pub(super) fn note_handover(&self, outcome: Outcome) {
        self.handovers.with_label_values(&[outcome.as_str()]).inc();
    }

    pub(super) fn note_panics(&self, panics: u64) {
        self.task_panics.set(i64::try_from(panics).unwrap_or(i64::MAX));
    }
}
