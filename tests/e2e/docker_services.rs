//! Services that are Docker's containers: what labels, Registrator's conventions and a swarm say of them, and how they come and go under load.

use std::time::{Duration, Instant};

use plexus_tests::server::docker::{Docker, IMAGE};
use plexus_tests::{Cluster, Node, eventually};

use crate::PUBLISHED;
use crate::docker::{CREATE, SOON, cluster, needs_docker};

/// Serves by HTTP, and goes on for two seconds and more after it is told to stop, as a program does that ends well.
const SERVE: &str =
    "mkdir -p /www; echo here > /www/index.html; trap 'sleep 2; exit' TERM; httpd -p 80 -h /www
while :; do sleep 1; done";
/// Well once this file is there.
const HEALTH: [&str; 6] =
    ["--health-cmd", "test -e /tmp/well", "--health-interval", "250ms", "--health-start-period", "0s"];

fn answers(node: &Node) -> bool {
    node.get(node.at(PUBLISHED), "/").is_ok_and(|answer| answer.body.trim() == "here")
}

fn is_healthy(docker: &Docker, container: &str) -> bool {
    docker.inspect(container, "{{.State.Health.Status}}") == "healthy"
}

/// The id of a container's instance.
fn id(docker: &Docker, service: &str, node: &Node, container: &str) -> String {
    format!("{service}-{}-{}", node.name(), &docker.inspect(container, "{{.Id}}")[..12])
}

#[test]
fn a_container_with_labels_is_served_on_every_node_s_port_and_its_stop_fails_no_connection() {
    needs_docker!();
    let (cluster, dockers) = cluster(2);
    let nodes: [&Node; 2] = cluster.nodes();
    for docker in &dockers {
        let _ = docker.docker(&[&CREATE[..], &["mynet"]].concat()).ok();
    }
    let _ = nodes[0].plexus(["publish", "shop", &PUBLISHED.to_string()]).ok();
    let labels = ["--network", "mynet", "--label", "plexus.service=shop", "--label", "plexus.port=80"];
    let options = [&labels[..], &HEALTH].concat();
    dockers[0].run("one", &options, SERVE);
    let _ = eventually!(SOON, nodes[0].can_connect(nodes[0].at(PUBLISHED)), |open| *open);
    assert!(!answers(nodes[1]), "it is not well yet");
    let _ = dockers[0].exec("one", &["touch", "/tmp/well"]).ok();
    let _ = eventually!(SOON, is_healthy(&dockers[0], "one"), |healthy| *healthy);
    let healthy = Instant::now();
    for node in nodes {
        let _ = eventually!(SOON, answers(node), |answers| *answers);
    }
    eprintln!("served on every node {:?} after it was seen to be healthy", healthy.elapsed());
    dockers[1].run("two", &options, SERVE);
    let _ = dockers[1].exec("two", &["touch", "/tmp/well"]).ok();
    let [one, two] = [(0, "one"), (1, "two")].map(|(at, name)| id(&dockers[at], "shop", nodes[at], name));
    cluster.wait_serving("shop", &[&one, &two]);
    // One that does nothing is no instance for as long.
    let _ = dockers[1].docker(&["pause", "two"]).ok();
    cluster.wait_serving("shop", &[&one]);
    let _ = dockers[1].docker(&["unpause", "two"]).ok();
    cluster.wait_serving("shop", &[&one, &two]);
    let loads = nodes.map(|node| node.load(node.at(PUBLISHED)));
    loads.iter().for_each(|load| load.wait_for(100));
    let stop = dockers[0].docker_in_background(&["stop", "one"]);
    // It gets nothing more while it still serves.
    cluster.wait_serving("shop", &[&two]);
    assert_eq!(dockers[0].inspect("one", "{{.State.Running}}"), "true");
    assert!(nodes[0].agent_log().contains("instance is being stopped, and drained"));
    let _ = stop.join().expect("it does not panic").ok();
    let _ = dockers[0].docker(&["start", "one"]).ok();
    cluster.wait_serving("shop", &[&one, &two]);
    loads.iter().for_each(|load| load.wait_for(100));
    for load in loads {
        load.stop().assert_unharmed();
    }
    // A signal that stops nothing changes nothing.
    let _ = dockers[0].docker(&["kill", "--signal", "HUP", "one"]);
    assert_eq!(nodes[0].agent_log().matches("instance is being stopped").count(), 1);
}

/// Two nodes without overlay networks; the second one's Docker can be of a swarm.
fn plain() -> (Cluster, [Docker; 2]) {
    let cluster = Cluster::of(2).without_agents().start();
    let nodes: [&Node; 2] = cluster.nodes();
    for node in nodes {
        let mut settings = cluster.settings().clone();
        settings.more = format!("[docker]\nenabled = true\napi = \"{}\"\n", Docker::api(node).display());
        node.configure(&settings);
        node.start_agent();
    }
    nodes.into_iter().for_each(|node| node.wait_ready(SOON));
    let dockers =
        [Docker::start(cluster.world(), nodes[0]), Docker::start_for_swarm(cluster.world(), nodes[1])];
    (cluster, dockers)
}

#[test]
fn containers_of_registrator_and_tasks_of_a_swarm_are_reached_where_they_are_published() {
    needs_docker!();
    let (cluster, [here, there]) = plain();
    let [a, b] = cluster.nodes();
    // Registrator's words, in environment and labels; the port is one that Docker chooses.
    let said = [
        "--publish",
        "80",
        "--env",
        "SERVICE_NAME=front",
        "--env",
        "SERVICE_80_CHECK_HTTP=/",
        "--env",
        "SERVICE_CHECK_INTERVAL=200ms",
        "--label",
        "SERVICE_TAGS=v1,blue",
        "--env",
        "SERVICE_REGION=eu",
    ];
    here.run("one", &said, SERVE);
    cluster.wait_serving("front", &[&id(&here, "front", a, "one")]);
    cluster.publish("front", PUBLISHED);
    for node in [a, b] {
        let _ = eventually!(SOON, answers(node), |answers| *answers);
    }
    let shown = a.plexus(["why", "front", "--json"]).ok();
    assert!(shown.contains("http GET /") && shown.contains("\"blue\""), "{shown}");
    // Without words of anybody it is what it is called, and what nobody publishes is nothing.
    here.run("plain", &["--publish", "80"], SERVE);
    here.run("hidden", &["--expose", "80"], SERVE);
    cluster.wait_serving("plain", &[&id(&here, "plain", a, "plain")]);
    assert_eq!(a.known("hidden"), [""; 0]);
    // What is wrong is said, with the word that it stands in.
    here.run("wrong", &["--publish", "80", "--env", "SERVICE_NAME=my_web"], SERVE);
    let problems = eventually!(SOON, a.plexus(["status"]).stdout, |said| said.contains("SERVICE_"));
    assert!(problems.contains("\"my_web\" is no service name"), "{problems}");
    // A swarm's tasks are instances of its service, on the node that they run on.
    let _ = there.docker(&["swarm", "init", "--advertise-addr", &b.address().to_string()]).ok();
    let create = [
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
        "shop_web",
        "--publish",
        "mode=host,target=80,published=8081",
        IMAGE,
        "sh",
        "-c",
        SERVE,
    ];
    let _ = there.docker(&create).ok();
    let serving = eventually!(Duration::from_secs(60), a.serving("shop-web"), |serving| serving.len() == 1);
    assert!(serving[0].starts_with("shop-web-b-"), "{serving:?}");
    let _ = a.plexus(["publish", "shop-web", "8082"]).ok();
    let served = || a.get(a.at(8082), "/").is_ok_and(|answer| answer.body.trim() == "here");
    let _ = eventually!(SOON, served(), |served| *served);
    let _ = there.docker(&["service", "rm", "shop_web"]).ok();
    let _ = eventually!(SOON, a.known("shop-web"), Vec::is_empty);
}
