//! What a soak came to, and which of its bars do not hold.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Soak;
use super::blame::{Excuse, Failed, Kind, excuse};
use super::plan::{STEADY, name_of};
use super::record::Seen;
use super::resources::{HEADINGS, Sample, growth};
use super::timeline::Happened;

/// Over less time memory says nothing: what is bounded is still being filled.
const JUDGED: Duration = Duration::from_secs(4 * 60);
/// The load fell behind its pace by more: then it was none of that rate.
const BEHIND: Duration = Duration::from_secs(3);
/// More unavoidable errors in a thousand exchanges would mean that the faults, and not the balancer, were what was tried.
const EXCUSED: usize = 150;

/// All that was seen.
pub(super) struct Summary<'a> {
    pub(super) soak: Soak,
    /// In the warm-up, when nothing went wrong yet.
    pub(super) warm: &'a Seen,
    pub(super) seen: &'a Seen,
    pub(super) happened: &'a [Happened],
    /// When the machine stood still.
    pub(super) stalls: &'a [(Duration, Duration)],
    pub(super) idle: &'a [Sample],
    pub(super) samples: &'a [Sample],
    /// The last look, and what was left behind.
    pub(super) left: &'a (Vec<Sample>, Vec<String>),
}

impl Summary<'_> {
    /// Prints it; returns the bars that do not hold.
    pub(super) fn print(&self) -> Vec<String> {
        let Soak { length, seed, rate } = self.soak;
        eprintln!(
            "\n{} s at {rate} a second, seed {seed}, {} faults\n",
            length.as_secs(),
            self.happened.len()
        );
        self.print_clients();
        let mut broken = self.judge_errors();
        eprintln!("\n{HEADINGS}");
        let look = |samples: &[Sample]| samples.iter().for_each(|sample| eprintln!("{sample}"));
        look(self.idle);
        look(&self.left.0);
        broken.extend(self.left.1.iter().cloned());
        broken.extend(self.judge_memory());
        let panicked = self.samples.iter().chain(&self.left.0).find(|sample| sample.panics > 0.0);
        broken.extend(
            panicked.map(|sample| format!("a task of the agent of {} panicked", name_of(sample.node))),
        );
        if self.seen.latest > BEHIND {
            broken.push(format!("the load fell {:?} behind its pace: it proves little", self.seen.latest));
        }
        if let Some(longest) = self.stalls.iter().map(|(began, ended)| *ended - *began).max() {
            broken.push(format!(
                "this machine stood still {} times, up to {longest:.2?}: too much else runs on it",
                self.stalls.len()
            ));
        }
        for bar in &broken {
            eprintln!("DOES NOT HOLD: {bar}");
        }
        eprintln!("{}", if broken.is_empty() { "\nall bars hold" } else { "" });
        broken
    }

    fn print_clients(&self) {
        eprintln!("what       connections  exchanges   failed        p50        p99");
        for kind in Kind::ALL {
            let failed = self.seen.failed.iter().filter(|failed| failed.kind == kind).count();
            eprintln!(
                "{kind:9}  {:11}  {:9}  {failed:7}  {:>9.2?}  {:>9.2?}",
                self.seen.begun.get(&kind).copied().unwrap_or(0),
                self.seen.took.get(&kind).map_or(0, Vec::len),
                self.seen.percentile(kind, 50),
                self.seen.percentile(kind, 99),
            );
        }
    }

    fn judge_errors(&self) -> Vec<String> {
        let mut excused: BTreeMap<(Excuse, Kind), usize> = BTreeMap::new();
        let mut avoidable: Vec<&Failed> = Vec::new();
        for failed in &self.seen.failed {
            match excuse(failed, self.happened) {
                Some(excuse) => *excused.entry((excuse, failed.kind)).or_default() += 1,
                None => avoidable.push(failed),
            }
        }
        eprintln!("\nerrors that nobody could have avoided:");
        for ((excuse, kind), count) in &excused {
            eprintln!("{count:7}  {kind:9}  {excuse}");
        }
        eprintln!("errors that a correct balancer could have avoided: {}", avoidable.len());
        for failed in avoidable.iter().take(50) {
            eprintln!("  {failed}");
            let near = Duration::from_secs(10);
            for fault in self.happened {
                if fault.began <= failed.ended && fault.over().saturating_add(near) >= failed.began {
                    eprintln!("      {fault}");
                }
            }
            for (began, ended) in self.stalls {
                if *began <= failed.ended && *ended >= failed.began {
                    let (began, ended) = (began.as_secs_f64(), ended.as_secs_f64());
                    eprintln!("      this machine stood still ({began:.3} to {ended:.3})");
                }
            }
        }
        let mut broken = Vec::new();
        if !avoidable.is_empty() {
            broken.push(format!("{} errors could have been avoided", avoidable.len()));
        }
        if let Some(failed) = self.warm.failed.first() {
            broken.push(format!("{} errors before any fault: {failed}", self.warm.failed.len()));
        }
        let exchanges: usize = self.seen.took.values().map(Vec::len).sum();
        let unavoidable: usize = excused.values().sum();
        if unavoidable * 1000 > exchanges * EXCUSED {
            broken.push(format!("{unavoidable} excused errors among {exchanges} exchanges prove little"));
        }
        broken
    }

    /// Of the one agent that lives throughout, in the second half.
    fn judge_memory(&self) -> Option<String> {
        let steady: Vec<&Sample> = self.samples.iter().filter(|sample| sample.node == STEADY).collect();
        let half = &steady[steady.len() / 2..];
        let (slope, most) = growth(half)?;
        eprintln!("memory of the agent of {}: {slope:+.0} KiB a minute, at most {most:.0}", name_of(STEADY));
        if self.soak.length < JUDGED {
            eprintln!("(not judged: it takes {} minutes)", JUDGED.as_secs() / 60);
            return None;
        }
        (slope > most).then(|| format!("memory grows by {slope:.0} KiB a minute, and may by {most:.0}"))
    }
}
