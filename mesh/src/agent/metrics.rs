//! What the agent tells of itself.

use prometheus::{GaugeVec, IntGauge, Opts, Registry};

use super::Phase;

/// Version, phase and start of the agent.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    phase: GaugeVec,
    task_panics: IntGauge,
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
        registry.register(Box::new(info))?;
        registry.register(Box::new(phase.clone()))?;
        registry.register(Box::new(task_panics.clone()))?;
        Ok(Self { phase, task_panics })
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.reset();
        self.phase.with_label_values(&[phase.as_str()]).set(1.0);
    }

    pub(super) fn note_panics(&self, panics: u64) {
        self.task_panics.set(i64::try_from(panics).unwrap_or(i64::MAX));
    }
}
