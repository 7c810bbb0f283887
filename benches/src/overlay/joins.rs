//! Eight nodes that another one joins: from the moment that its record is in the store to that at which all have the way to it.
//!
//! The kernels of all nodes are watched, and the store.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path as FilePath, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use nerve::store::{Change, DEFAULT_PREFIX, Path, WatchEvent};
use plexus_tests::{Cluster, Node, eventually};

use serde_json::json;

use super::{cluster, quantile, vni};
use crate::etcd;

const NODES: usize = 8;
const ROUNDS: usize = 200;
const LONGEST: Duration = Duration::from_secs(20);
const DAY: f64 = 86_400.0;
const HALF_A_DAY: f64 = DAY / 2.0;

pub(super) fn run() -> anyhow::Result<()> {
    let cluster = cluster(NODES, "\"10.42.0.0/16\"");
    let nodes: Vec<&Node> = cluster.all().collect();
    let link = format!("plxv{}", vni(nodes[0], "default")?);
    let directory = tempfile::tempdir()?;
    let mut monitors = Vec::new();
    for node in &nodes {
        let peers =
            || node.exec("ip", &["route", "show", "dev", &link, "proto", "82"]).stdout.lines().count();
        let _ = eventually!(LONGEST, peers(), |peers| *peers == NODES - 1);
        monitors.push(Monitor::start(node, directory.path())?);
    }
    let claims = Claims::follow(&cluster)?;
    let free = free_slot(nodes[0]).context("no subnet is free")?;
    let mut times = Vec::new();
    for round in 1..=ROUNDS {
        times.push(join(&cluster, &monitors, &claims, &link, (free, round))?);
    }
    let [median, tail, longest] = [0.5, 0.99, 1.0].map(|share| quantile(&mut times, share));
    println!(
        "| {NODES} nodes, joined by another one {} times | median | 99th percentile | longest |",
        times.len()
    );
    println!("| --- | ---: | ---: | ---: |");
    println!(
        "| the node's record is in the store → all others have the way to it | {median:.1} ms | {tail:.1} ms | {longest:.1} ms |"
    );
    Ok(())
}

/// A node's record comes into the store, and goes again. Milliseconds from then until the last of the others has the way to it.
fn join(
    cluster: &Cluster,
    monitors: &[Monitor],
    claims: &Claims,
    link: &str,
    (slot, round): (u64, usize),
) -> anyhow::Result<f64> {
    let (path, subnet) = (format!("subnets/default/{slot}"), format!("10.42.{slot}.0/24"));
    let key = format!("{DEFAULT_PREFIX}/{path}");
    let record = json!({"node": "new", "address": "198.18.0.1", "mac": format!("02:50:4c:00:00:{slot:02x}")});
    let _ = cluster.etcd().ctl(&["put", &key, &record.to_string()]).ok();
    let told = |comes: bool| {
        monitors.iter().map(|monitor| monitor.told(link, &subnet, comes).len()).collect::<Vec<_>>()
    };
    let _ = eventually!(LONGEST, told(true), |told| told.iter().all(|count| *count == round));
    let claimed = claims.last(&path).context("the store told of no record")?;
    let _ = cluster.etcd().ctl(&["del", &key]).ok();
    let _ = eventually!(LONGEST, told(false), |told| told.iter().all(|count| *count == round));
    let reached = monitors.iter().filter_map(|monitor| monitor.told(link, &subnet, true).last().copied());
    Ok(reached.map(|at| milliseconds(claimed, at)).fold(f64::MIN, f64::max))
}

fn free_slot(node: &Node) -> Option<u64> {
    let inspected = node.plexus_json(["network", "inspect", "default"]);
    let taken = inspected["subnets"]
        .as_array()?
        .iter()
        .filter_map(|subnet| subnet["slot"].as_u64())
        .collect::<Vec<_>>();
    (0..256).find(|slot| !taken.contains(slot))
}

/// Seconds since midnight, which is what `ip` prints too.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_secs_f64() % DAY
}

fn milliseconds(from: f64, to: f64) -> f64 {
    (to - from + DAY + HALF_A_DAY) % DAY * 1e3 - HALF_A_DAY * 1e3
}

/// What a node's kernel tells of its routes, with the time.
struct Monitor {
    process: Child,
    file: PathBuf,
}

impl Monitor {
    fn start(node: &Node, directory: &FilePath) -> anyhow::Result<Self> {
        let file = directory.join(node.name());
        let mut command = node.namespace().command("ip");
        let process = command.args(["-ts", "monitor", "route"]).stdout(File::create(&file)?).spawn()?;
        Ok(Self { process, file })
    }

    /// When the ways to a subnet came, or went, by the time of day in seconds.
    fn told(&self, link: &str, subnet: &str, comes: bool) -> Vec<f64> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let line = |line: &str| {
            let (time, route) = line.strip_prefix('[')?.split_once("] ")?;
            let went = route.strip_prefix("Deleted ");
            let route = if comes { Some(route).filter(|_| went.is_none()) } else { went }?;
            let mut seconds = 0.0;
            for part in time.split_once('T')?.1.split(':') {
                seconds = seconds * 60.0 + part.parse::<f64>().ok()?;
            }
            let is_it =
                route.split_whitespace().next() == Some(subnet) && route.contains(&format!("dev {link} "));
            is_it.then_some(seconds)
        };
        text.lines().filter_map(line).collect()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // An error means that it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The subnets that were claimed, by the path of their record below `subnets`, with the time of day in seconds.
struct Claims(Arc<Mutex<BTreeMap<String, f64>>>);

impl Claims {
    /// Follows the store, from a machine on the switch, to the end of the program.
    fn follow(cluster: &Cluster) -> anyhow::Result<Self> {
        let claims = Self(Arc::default());
        let known = Arc::clone(&claims.0);
        let node = cluster.all().next().context("a node")?;
        let _ = etcd::inside(node.namespace(), &cluster.settings().store, async move |store| {
            let mut watch = store.watch(&Path::new("subnets")?);
            while let Some(event) = watch.next().await {
                let WatchEvent::Changes(changes) = event else { continue };
                let at = now();
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                for change in changes {
                    if let Change::Put(entry) = change {
                        known.insert(entry.path.to_string(), at);
                    }
                }
            }
            Ok(())
        })?;
        Ok(claims)
    }

    fn last(&self, path: &str) -> Option<f64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied()
    }
}
