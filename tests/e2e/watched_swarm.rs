//! A Docker swarm, real and of two nodes: its services are served on every node at the ports that it publishes, and wherever a task comes or
//! goes, a port is Docker's or ours and never nobody's for long.

use std::time::{Duration, Instant};

use plexus_tests::server::docker::{Docker, IMAGE};
use plexus_tests::{Cluster, Node, eventually};
use serde_json::Value;

use crate::docker::needs_docker;
use crate::watched_places::{SOON, hears, remembers, watcher};

/// What the swarm publishes.
const PORT: u16 = 8080;
/// A task may fail once and be started again.
const LATER: Duration = Duration::from_secs(60);
const ON_B: &str = "10.77.0.2:8080";
const ON_C: &str = "10.77.0.3:8080";
const AT_C: &str = "node.labels.zone==c";

fn serve(says: &str) -> String {
    format!(
        "mkdir -p /www; echo {says} > /www/index.html; trap exit TERM; httpd -p 80 -h /www; while :; do sleep 0.1; done"
    )
}

fn create(docker: &Docker, name: &str, more: &[&str]) {
    let create = ["service", "create", "--detach", "--no-resolve-image", "--name", name];
    let script = serve("here");
    let all: Vec<&str> = create.iter().chain(more).copied().chain([IMAGE, "sh", "-c", &script]).collect();
    let _ = docker.docker(&all).ok();
}

fn update(docker: &Docker, more: &[&str]) {
    let update = ["service", "update", "--detach", "--no-resolve-image"];
    let all: Vec<&str> = update.iter().chain(more).copied().chain(["shop_web"]).collect();
    let _ = docker.docker(&all).ok();
}

/// How the node's own listener on the published port stands: `listening`, `held` or `closed`.
fn listener(node: &Node) -> &'static str {
    let why = node.plexus_json(["why", "shop-web"]);
    let all = why["listeners"].as_array().cloned().unwrap_or_default();
    let known = all.iter().find(|one| one["address"].as_str().is_some_and(|at| at.ends_with(":8080")));
    match known.map(|one| (&one["listening"], &one["held"])) {
        Some((Value::Bool(true), _)) => "listening",
        Some((_, Value::Bool(true))) => "held",
        _ => "closed",
    }
}

#[track_caller]
fn stands(node: &Node, expected: &str) {
    let _ = eventually!(LATER, listener(node), |state| *state == expected);
}

/// The port of each node is asked from another machine.
#[track_caller]
fn answers(from: &Node, nodes: &[&Node], says: &str) {
    for node in nodes {
        let answer = || from.get(node.at(PORT), "/").map(|answer| answer.body.trim().to_owned()).ok();
        let _ = eventually!(LATER, answer(), |body| body.as_deref() == Some(says));
    }
}

/// How many tasks of the service have failed so far.
fn failed(docker: &Docker) -> usize {
    let listed = docker.docker(&["service", "ps", "--no-trunc", "--format", "{{.CurrentState}}", "shop_web"]);
    listed.ok().lines().filter(|state| state.starts_with("Failed") || state.starts_with("Rejected")).count()
}

/// Node `a` has no Docker, `b` is the manager of the swarm, `c` a worker.
fn swarm() -> (Cluster, [Docker; 2]) {
    let cluster = Cluster::of(3).without_agents().start();
    let nodes: [&Node; 3] = cluster.nodes();
    let [a, b, c] = nodes;
    let managers = [c, b].map(|node| format!("\"unix://{}\"", Docker::api(node).display()));
    for node in nodes {
        let mut settings = cluster.settings().clone();
        settings.more = format!("[[watch]]\nswarm = [{}]\n", managers.join(", "));
        node.configure(&settings);
        node.start_agent();
    }
    nodes.into_iter().for_each(|node| node.wait_ready(SOON));
    let dockers = [b, c].map(|node| Docker::start_for_swarm(cluster.world(), node));
    // It may be one later.
    let is_none = |stands: &Value| {
        let error = stands["last_error"].as_str().unwrap_or_default();
        error.matches("it is no manager of a swarm").count() == 2
    };
    let _ = eventually!(LATER, watcher(a, "swarm"), is_none);
    let [manager, worker] = &dockers;
    let _ = manager.docker(&["swarm", "init", "--advertise-addr", &b.address().to_string()]).ok();
    let id =
        |docker: &Docker| docker.docker(&["info", "--format", "{{.Swarm.NodeID}}"]).ok().trim().to_owned();
    let token = manager.docker(&["swarm", "join-token", "--quiet", "worker"]).ok().trim().to_owned();
    let _ = worker.docker(&["swarm", "join", "--token", &token, &format!("{}:2377", b.address())]).ok();
    for (docker, zone) in [(manager, "zone=b"), (worker, "zone=c")] {
        let _ = manager.docker(&["node", "update", "--label-add", zone, &id(docker)]).ok();
    }
    let _ = hears(a, "swarm", true);
    (cluster, dockers)
}

#[test]
fn what_a_swarm_publishes_is_reached_on_every_node_wherever_its_tasks_run() {
    needs_docker!();
    let (cluster, [manager, _worker]) = swarm();
    let nodes: [&Node; 3] = cluster.nodes();
    let [a, b, c] = nodes;
    let fixed = ["--publish", "mode=host,published=8080,target=80", "--label", "team=blue"];
    create(&manager, "shop_web", &[&fixed[..], &["--constraint", AT_C]].concat());
    create(&manager, "api", &["--publish", "mode=host,target=80"]);
    create(&manager, "alone", &[]);
    becomes_later(a, &[ON_C]);
    let _ = eventually!(LATER, a.serving("api"), |ids| ids.len() == 1);
    let endpoint = a.admin_json("/v1/plexus/services/shop-web")["endpoints"][0].clone();
    assert_eq!(
        (&endpoint["zone"], &endpoint["labels"]["team"], &endpoint["labels"]["name"]),
        (&"c".into(), &"blue".into(), &"shop_web.1".into()),
        "{endpoint}"
    );
    assert_eq!(a.known("alone"), [""; 0]);
    // On its own node the port is Docker's, which is no fault.
    for (node, state) in [(a, "listening"), (b, "listening"), (c, "held")] {
        stands(node, state);
    }
    answers(a, &nodes, "here");
    assert!(!c.plexus(["status"]).stdout.contains("8080"), "{}", c.plexus(["status"]).stdout);
    // One task for each of both nodes: where ours listens, it makes room.
    let load = a.load(a.at(PORT));
    load.wait_for(50);
    let scaled = Instant::now();
    update(&manager, &["--constraint-rm", AT_C, "--replicas", "2"]);
    let _ = eventually!(LATER, a.serving("shop-web"), |ids| *ids == [ON_B, ON_C]);
    eprintln!(
        "two tasks serve {:?} after that was asked for, {} have failed",
        scaled.elapsed(),
        failed(&manager)
    );
    stands(b, "held");
    answers(a, &nodes, "here");
    load.stop().assert_unharmed();
    // One goes: its node's port is ours again, and leads to the other one.
    update(&manager, &["--constraint-add", AT_C, "--replicas", "1"]);
    let left = Instant::now();
    becomes_later(a, &[ON_C]);
    stands(b, "listening");
    eprintln!("the port of a node is ours {:?} after its task was to go", left.elapsed());
    answers(a, &nodes, "here");
    // Another version.
    let args = format!("sh -c '{}'", serve("there"));
    update(&manager, &["--args", &args]);
    answers(a, &nodes, "there");
    becomes_later(a, &[ON_C]);
    for node in nodes {
        assert!(!node.agent_log().contains("a port is not open"), "{}", node.agent_log());
    }
    // What the store says of the port goes before.
    let _ = a.plexus(["publish", "api", "8080"]).ok();
    let problems = eventually!(SOON, a.plexus(["status"]).stdout, |said| said.contains("the watcher swarm"));
    assert!(problems.contains("8080/tcp is published by api too"), "{problems}");
    answers(b, &[a], "here");
    let _ = a.plexus(["unpublish", "api", "8080"]).ok();
    answers(b, &[a], "there");
}

#[track_caller]
fn becomes_later(node: &Node, expected: &[&str]) {
    let _ = eventually!(LATER, node.serving("shop-web"), |ids| ids == expected);
}

#[test]
fn while_no_manager_answers_what_the_swarm_said_last_is_served() {
    needs_docker!();
    let (cluster, [manager, _worker]) = swarm();
    let [a, b, c] = cluster.nodes();
    let fixed = ["--publish", "mode=host,published=8080,target=80", "--constraint", AT_C];
    create(&manager, "shop_web", &fixed);
    becomes_later(a, &[ON_C]);
    answers(b, &[a, c], "here");
    let load = b.load(a.at(PORT));
    load.wait_for(50);
    // What was said last is on disk: that it runs, and not only that it comes.
    let memory = |node: &Node| {
        std::fs::read_to_string(node.directory().join("state/watchers.json")).unwrap_or_default()
    };
    for node in [a, c] {
        let _ =
            eventually!(SOON, memory(node), |kept| kept.contains("passing") && !kept.contains("starting"));
    }
    manager.kill();
    let _ = hears(a, "swarm", false);
    load.stop().assert_unharmed();
    // An agent that starts now knows where, and which port is published for it.
    remembers(a, "swarm", "shop-web", &[ON_C]);
    answers(b, &[a, c], "here");
    c.kill_agent();
    c.start_agent();
    c.wait_ready(SOON);
    stands(c, "held");
    answers(b, &[c], "here");
    manager.start_again();
    let _ = hears(a, "swarm", true);
    update(&manager, &["--constraint-rm", AT_C, "--replicas", "2"]);
    becomes_later(a, &[ON_B, ON_C]);
    // A service that goes there goes here, and its port with it.
    let _ = manager.docker(&["service", "rm", "shop_web"]).ok();
    for node in [a, b, c] {
        let _ = eventually!(LATER, node.known("shop-web"), Vec::is_empty);
        let _ = eventually!(SOON, node.can_connect(node.at(PORT)), |open| !open);
    }
}
