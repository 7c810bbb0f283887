//! The soak: three nodes under load for minutes, while endpoints, agents, links and the store fail at random.
//!
//! [`plan`] draws from a seed what goes wrong, `faults` carries it out, `load` asks meanwhile at a fixed pace, [`blame`]
//! says which errors a correct balancer could have avoided, `resources` what is left behind. [`names`] is another one, of the name
//! server. `plexus-soak` is the program.

pub mod blame;
pub mod names;
pub mod plan;
pub mod random;
pub mod record;
pub mod timeline;

mod clients;
mod crew;
mod faults;
mod load;
mod resources;
mod summary;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::node::Settings;
use crate::wait::{pause, wait_until};
use blame::{DRAIN, Kind, NOTICE, PATIENCE, SESSION};
use clients::Shared;
use faults::Faults;
use load::{Load, Target};
use plan::{ENDPOINTS, STEADY, id_of, port_of};
use resources::Sample;

/// The port that the service is published on.
const PUBLISHED: u16 = 8080;
/// `[proxy] udp_idle_timeout`: so that sessions are seen to end.
const UDP_IDLE: Duration = Duration::from_secs(5);
/// Between two looks at what agents hold.
const LOOK: Duration = Duration::from_secs(5);
/// The load before the first look: what is made once is made then.
const WARM_UP: Duration = Duration::from_secs(10);

/// How a soak is to be.
#[derive(Debug, Clone, Copy)]
pub struct Soak {
    /// How long the load lasts.
    pub length: Duration,
    /// What decides the faults.
    pub seed: u64,
    /// New connections a second, and datagrams a second.
    pub rate: u32,
}

impl Soak {
    /// Runs it and prints what was seen. Returns what did not hold; nothing when all did.
    ///
    /// # Panics
    /// It cannot be carried out: a machine, the store or an agent does not start.
    #[must_use]
    pub fn run(self) -> Vec<String> {
        let settings = |settings: &mut Settings| {
            (settings.notice, settings.drain_deadline, settings.session_ttl) = (NOTICE, DRAIN, SESSION);
            settings.more = format!(
                "[vip]\nrange = [\"10.96.0.0/16\"]\n[proxy]\nudp_idle_timeout = \"{}s\"\n",
                UDP_IDLE.as_secs()
            );
        };
        let cluster = Cluster::of(plan::NODES).settings(settings).start();
        let faults = Faults::new(&cluster);
        let target = self.target(&cluster);
        let shared = Arc::new(Shared::default());
        let timeline = Arc::clone(&shared.timeline);

        timeline.say("warming up");
        {
            let _load = Load::start(&target, &shared, self.seed);
            pause(WARM_UP);
        }
        let idle = wait_idle(&cluster, &shared);
        let warm = shared.record.take();
        let planned = plan::plan(self.seed, self.length);
        timeline.say(&format!("{} faults from seed {}", planned.len(), self.seed));

        let began = timeline.now();
        let load = Load::start(&target, &shared, self.seed);
        let ended = AtomicBool::new(false);
        let samples = std::thread::scope(|scope| {
            let watching = scope.spawn(|| watch(&cluster, &shared, &ended));
            // The watch ends also when this panics.
            let _ends = Ends(&ended);
            faults.carry_out(&planned, &timeline, began);
            pause((began + self.length).saturating_sub(timeline.now()));
            ended.store(true, Ordering::SeqCst);
            watching.join().expect("a watch that does not panic")
        });
        timeline.say("the load ends");
        drop(load);
        let seen = shared.record.take();
        let happened = timeline.so_far();
        let left = left_over(&cluster, &shared, &faults, &idle);
        let summary = summary::Summary {
            soak: self,
            warm: &warm,
            seen: &seen,
            happened: &happened,
            stalls: &timeline.stalls(),
            idle: &idle,
            samples: &samples,
            left: &left,
        };
        let broken = summary.print();
        if !broken.is_empty() {
            cluster.world().keep_logs();
        }
        broken
    }

    fn target(self, cluster: &Cluster) -> Target {
        let ids: Vec<String> = (0..ENDPOINTS).map(id_of).collect();
        cluster.wait_serving("web", &ids.iter().map(String::as_str).collect::<Vec<_>>());
        cluster.publish("web", PUBLISHED);
        let [first, ..] = cluster.nodes::<{ plan::NODES }>();
        let _ = first.plexus(["publish", "web", &format!("{PUBLISHED}/udp")]).ok();
        let vips = crate::eventually!(Duration::from_secs(10), first.vips("web"), |vips| vips.len() == 1);
        let outside = cluster.machine("client");
        let target = Target {
            outside,
            inside: cluster.all().map(|node| node.namespace().clone()).collect(),
            vip: vips[0],
            port: PUBLISHED,
            main_port: port_of(0),
            rate: self.rate,
        };
        target.wait_served();
        target
    }
}

/// Sets it when dropped.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn look(cluster: &Cluster, shared: &Shared) -> Vec<Sample> {
    let samples = cluster.all().enumerate();
    samples.filter_map(|(number, node)| Sample::take(shared.timeline.now(), number, node)).collect()
}

/// Looks every few seconds until it has ended, and prints each minute.
fn watch(cluster: &Cluster, shared: &Shared, ended: &AtomicBool) -> Vec<Sample> {
    let mut samples = Vec::new();
    let began = shared.timeline.now();
    for number in 0_u32.. {
        let due = began + LOOK * number;
        while shared.timeline.now() < due && !ended.load(Ordering::SeqCst) {
            shared.timeline.nap();
        }
        if ended.load(Ordering::SeqCst) {
            break;
        }
        let now = look(cluster, shared);
        if number % 12 == 0 {
            let [once, datagrams] = [Kind::Once, Kind::Datagram].map(|kind| shared.record.count(kind));
            shared.timeline.say(&format!("{once} connections and {datagrams} datagrams went well"));
            eprintln!("{}", resources::HEADINGS);
            now.iter().for_each(|sample| eprintln!("{sample}"));
        }
        samples.extend(now);
    }
    samples
}

/// Waits until nothing is open, and looks.
fn wait_idle(cluster: &Cluster, shared: &Shared) -> Vec<Sample> {
    let quiet = |samples: &Vec<Sample>| {
        samples.len() == plan::NODES
            && samples.iter().all(|sample| sample.connections + sample.sessions == 0.0)
    };
    let idle = wait_until(UDP_IDLE + PATIENCE, || look(cluster, shared), quiet);
    idle.unwrap_or_else(|samples| panic!("not idle after the warm-up: {samples:?}"))
}

/// What is still held when it should not be, once there was time to let go of it.
fn left_over(
    cluster: &Cluster,
    shared: &Shared,
    faults: &Faults<'_>,
    idle: &[Sample],
) -> (Vec<Sample>, Vec<String>) {
    let processes = faults.wait_replaced(Duration::from_secs(60));
    let mut left: Vec<String> =
        processes.iter().map(|id| format!("process {id} was taken over from and does not end")).collect();
    let more = |samples: &[Sample]| -> Vec<String> {
        let told = samples.iter().flat_map(|sample| {
            let name = plan::name_of(sample.node);
            sample
                .more_than(&idle[sample.node])
                .into_iter()
                .map(move |more| format!("node {name} has {more}"))
        });
        let missing = plan::NODES - samples.len();
        told.chain((missing > 0).then(|| format!("{missing} agents do not answer"))).collect()
    };
    let last =
        wait_until(Duration::from_secs(60), || look(cluster, shared), |samples| more(samples).is_empty());
    let last = last.unwrap_or_else(|last| last);
    left.extend(more(&last));
    let steady = last.iter().find(|sample| sample.node == STEADY);
    if steady.is_some_and(|steady| steady.process != idle[STEADY].process) {
        left.push(format!("the agent of {} was replaced though nobody touched it", plan::name_of(STEADY)));
    }
    (last, left)
}
