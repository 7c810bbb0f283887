//! The soak of the name server: minutes of questions, good and broken, as fast as they are answered, while the fleet changes
//! without a pause. Each answer is held against what the store had at that time.

mod askers;
mod message;
mod model;
mod questions;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::node::Node;
use crate::wait::pause;
use askers::{Seen, Shared};
use model::Model;

use super::random::Random;
use super::resources::{HEADINGS, Sample, growth};

/// Between two looks at what the agent holds.
const LOOK: Duration = Duration::from_secs(5);
/// What is made once is made by then.
const WARM_UP: Duration = Duration::from_secs(60);
/// Who asks over UDP at a time.
const ASKERS: usize = 2;

/// How a soak is to be.
#[derive(Debug, Clone, Copy)]
pub struct Soak {
    /// How long it lasts.
    pub length: Duration,
    /// What decides questions and changes.
    pub seed: u64,
    /// Changes a second.
    pub rate: u32,
}

impl Soak {
    /// Runs it and prints what was seen. Returns what did not hold; nothing when all did.
    ///
    /// # Panics
    /// It cannot be carried out: the machine, the store or the agent does not start.
    #[must_use]
    pub fn run(self) -> Vec<String> {
        let cluster = Cluster::of(1).start();
        let [node] = cluster.nodes();
        // From the machine itself: nobody is limited there.
        let server = "127.0.0.1:53".parse().expect("an address");
        let (model, seen) = (Model::new(), Seen::default());
        let shared = Arc::new(Shared { model, server, stop: AtomicBool::new(false), seen });
        let mut random = Random::new(self.seed);
        let process = node.agent_id();
        let store = cluster.etcd().members()[0].clients();
        eprintln!("seed {}, {} changes a second, {:?}", self.seed, self.rate, self.length);
        let mut threads = Vec::new();
        let mut begin = |what: &str, work: fn(&Arc<Shared>, Random)| {
            let (shared, random) = (Arc::clone(&shared), random.fork());
            threads
                .push(node.namespace().spawn(what, move || work(&shared, random)).expect("a thread inside"));
        };
        (0..ASKERS).for_each(|_| begin("udp", askers::over_udp));
        begin("tcp", askers::over_tcp);
        begin("nonsense", askers::nonsense);
        let (writing, row, rate) = (Arc::clone(&shared), random.fork(), self.rate);
        let writer = node.namespace().spawn("writer", move || writer::write(&writing, store, rate, row));
        let samples = watch(node, &shared, self.length);
        shared.stop.store(true, Ordering::Relaxed);
        let mut broken: Vec<String> = Vec::new();
        for thread in threads {
            if thread.join().is_err() {
                broken.push("an asker panicked".to_owned());
            }
        }
        let changes = writer.expect("a thread inside").join().unwrap_or(0);
        broken.extend(self.judge(&shared.seen, &samples, changes));
        if node.agent_has_ended() || node.agent_id() != process {
            broken.push("the agent is not the one that it was".to_owned());
        }
        for broken in &broken {
            eprintln!("does not hold: {broken}");
        }
        if broken.is_empty() {
            eprintln!("all bars hold");
        } else {
            cluster.world().keep_logs();
        }
        broken
    }

    fn judge(self, seen: &Seen, samples: &[Sample], changes: u64) -> Vec<String> {
        let count = |what: &std::sync::atomic::AtomicU64| what.load(Ordering::Relaxed);
        let seconds = self.length.as_secs_f64();
        let (udp, tcp) = (count(&seen.udp), count(&seen.tcp));
        let (sent, refused) = (count(&seen.broken), count(&seen.refused));
        eprintln!(
            "{udp} right answers over UDP, {tcp} over TCP: {:.0} a second",
            (udp + tcp) as f64 / seconds
        );
        eprintln!("{sent} broken messages, {refused} of them answered; {changes} changes");
        let (wrong, unanswered) = (count(&seen.wrong), count(&seen.unanswered));
        let mut broken = Vec::new();
        let mut must = |holds: bool, what: String| {
            if !holds {
                broken.push(what);
            }
        };
        must(wrong == 0, format!("{wrong} wrong answers, {unanswered} of them none"));
        must(udp > 0 && tcp > 0 && sent > 0, "somebody did not ask at all".to_owned());
        let least = seconds * f64::from(self.rate) * 0.8;
        must(changes as f64 > least, format!("{changes} changes, of {least:.0} at least"));
        let panics = samples.iter().map(|sample| sample.panics).fold(0.0, f64::max);
        must(panics == 0.0, format!("{panics} tasks panicked"));
        let judged: Vec<&Sample> = samples.iter().filter(|sample| sample.at >= WARM_UP).collect();
        if let Some((slope, most)) = growth(&judged) {
            eprintln!("memory: {slope:+.0} KiB a minute, at most {most:.0}");
            must(slope <= most, format!("memory grows by {slope:.0} KiB a minute"));
        }
        broken
    }
}

/// Looks every few seconds, and prints each minute.
fn watch(node: &Node, shared: &Shared, length: Duration) -> Vec<Sample> {
    let (began, mut samples) = (Instant::now(), Vec::new());
    eprintln!("{HEADINGS}");
    for number in 0_u32.. {
        pause((LOOK * number).min(length).saturating_sub(began.elapsed()));
        let sample = Sample::take(began.elapsed(), 0, node);
        if let Some(sample) = sample.as_ref().filter(|_| number % 12 == 0) {
            let right = shared.seen.udp.load(Ordering::Relaxed);
            eprintln!("{sample}  {right} answers over UDP");
        }
        samples.extend(sample);
        if began.elapsed() >= length {
            break;
        }
    }
    samples
}
