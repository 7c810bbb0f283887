//! Ahead of other programs, for a look while somebody else compiles.
//!
//! The scheduler shares the machine between sessions first (`sched_autogroup_enabled`) and only then by `nice`, so it is the
//! session's weight that is raised: client, balancer and backend keep theirs among each other. The kernel's softirq
//! threads are outside of it and get less, which is why figures to be published are taken on a quiet machine without this.

use std::fs;

use anyhow::Context as _;

const FILE: &str = "/proc/self/autogroup";
/// Ten times the weight of the others.
const NICE: i32 = -10;

/// The session's weight is raised until this is dropped.
#[derive(Debug)]
pub(crate) struct Ahead {
    before: String,
}

impl Ahead {
    /// Raises it.
    pub(crate) fn new() -> anyhow::Result<Self> {
        // "/autogroup-4 nice 0"
        let text = fs::read_to_string(FILE)
            .with_context(|| format!("{FILE}: --ahead needs CONFIG_SCHED_AUTOGROUP"))?;
        let before = text.split_whitespace().last().context(FILE)?.to_owned();
        fs::write(FILE, NICE.to_string()).with_context(|| format!("write {FILE}: --ahead needs root"))?;
        Ok(Self { before })
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Err(error) = fs::write(FILE, &self.before) {
            eprintln!("{FILE} stays at {NICE}: {error}");
        }
    }
}
