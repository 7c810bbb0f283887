//! Docker's containers on overlay networks: real dockerds on several nodes, whatever happens to them and to the agents.

use std::net::{IpAddr, SocketAddr};
use std::thread::JoinHandle;
use std::time::Duration;

use plexus_tests::server::docker::{Docker, IMAGE};
use plexus_tests::{Cluster, Node, Ran, eventually};

pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Longer than what Docker has forgotten is kept.
const FORGOTTEN: Duration = Duration::from_secs(60);
const OVERLAY: &str =
    "[overlay]\nenabled = true\ndefault = [\"10.42.0.0/16\", \"fd00:42::/48\"]\nlease = \"1m\"\n";
pub(crate) const CREATE: [&str; 6] = ["network", "create", "--driver", "plexus", "--ipam-driver", "plexus"];
/// Serves the name of its container by HTTP.
const SERVE: &str = "mkdir -p /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www";
const WAIT: &str = "exec sleep 1000000";

/// Returns from a test where Docker cannot be run.
macro_rules! needs_docker {
    () => {
        plexus_tests::needs!(
            "etcd",
            "etcdctl",
            "nft",
            "ping",
            "dig",
            "curl",
            "tar",
            "iptables",
            "tini",
            "busybox",
            "containerd",
            "dockerd",
            "docker",
            "docker-compose",
        );
        if let Some(why) = plexus_tests::server::docker::Docker::lacks() {
            plexus_tests::skipped(why);
            return;
        }
    };
}
pub(crate) use needs_docker;

/// Nodes whose agents serve a Docker each.
pub(crate) fn cluster(nodes: usize) -> (Cluster, Vec<Docker>) {
    let cluster = Cluster::of(nodes).without_agents().start();
    for node in cluster.all() {
        let (plugin, api) = (Docker::plugin(node), Docker::api(node));
        let docker =
            format!("enabled = true\nplugin = \"{}\"\napi = \"{}\"\n", plugin.display(), api.display());
        let more = format!("{OVERLAY}[docker]\n{docker}");
        let mut settings = cluster.settings().clone();
        settings.more = more;
        node.configure(&settings);
        node.start_agent();
    }
    for node in cluster.all() {
        node.wait_ready(SOON);
        let _ = eventually!(SOON, peers(node), |peers| *peers == Some((nodes - 1) as f64));
    }
    let dockers = cluster.all().map(|node| Docker::start(cluster.world(), node)).collect();
    (cluster, dockers)
}

fn peers(node: &Node) -> Option<f64> {
    node.metric("plexus_overlay_peers", "network=\"default\"")
}

/// Creates a network of this name, with further options.
#[track_caller]
fn create(docker: &Docker, name: &str, options: &[&str]) {
    let all: Vec<&str> = CREATE.iter().chain(options).copied().chain([name]).collect();
    let _ = docker.docker(&all).ok();
}

#[track_caller]
fn address(docker: &Docker, container: &str, network: &str) -> IpAddr {
    let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
    docker.inspect(container, &format).parse().expect("an address")
}

fn reaches(docker: &Docker, container: &str, other: &str) -> bool {
    docker.exec(container, &["ping", "-c", "1", "-W", "1", other]).success()
}

#[track_caller]
fn says(docker: &Docker, container: &str, server: &str, name: &str) {
    let url = format!("http://{server}/");
    let _ = eventually!(
        SOON,
        docker.exec(container, &["timeout", "15", "wget", "-q", "-O", "-", &url]).stdout,
        |said| { said.trim() == name }
    );
}

/// The addresses that the ledger of a node has given.
fn given(node: &Node) -> Vec<String> {
    let attached =
        node.admin_json("/v1/plexus/attachments")["attachments"].as_array().cloned().unwrap_or_default();
    let addresses = attached
        .iter()
        .flat_map(|attachment| attachment["addresses"].as_array().cloned().unwrap_or_default());
    addresses.filter_map(|address| address.as_str().map(str::to_owned)).collect()
}

fn links(node: &Node) -> String {
    node.exec("ip", &["-br", "link"]).ok()
}

#[test]
fn containers_of_every_docker_reach_each_other_by_their_own_addresses() {
    needs_docker!();
    let (cluster, dockers) = cluster(3);
    let nodes: [&Node; 3] = cluster.nodes();
    for (docker, node) in dockers.iter().zip(nodes) {
        create(docker, "mynet", &["--ipv6"]);
        let hostname = format!("on-{}", node.name());
        docker.run("web", &["--network", "mynet", "--hostname", &hostname], SERVE);
    }
    for docker in &dockers {
        for (other, node) in dockers.iter().zip(nodes) {
            let v4 = address(other, "web", "mynet").to_string();
            let v6 = other.inspect("web", "{{.NetworkSettings.Networks.mynet.GlobalIPv6Address}}");
            for address in [&v4, &v6] {
                let _ = eventually!(SOON, reaches(docker, "web", address), |reaches| *reaches);
            }
            let hostname = format!("on-{}", node.name());
            says(docker, "web", &v4, &hostname);
            says(docker, "web", &format!("[{v6}]"), &hostname);
        }
    }
    // The balancer's node reaches them as well, and they have a way out to the nodes.
    let served = SocketAddr::new(address(&dockers[2], "web", "mynet"), 80);
    assert_eq!(nodes[0].get(served, "/").expect("an answer").body.trim(), "on-c");
    let out = dockers[0].exec("web", &["ping", "-c", "1", "-W", "1", &nodes[1].address().to_string()]);
    assert!(out.success(), "{out}");
    let listed = given(nodes[0]);
    assert!(
        listed.contains(&address(&dockers[0], "web", "mynet").to_string()) && listed.len() == 2,
        "{listed:?}"
    );
    // Nothing is left of a container that is removed.
    let _ = dockers[0].docker(&["rm", "--force", "web"]).ok();
    assert_eq!(given(nodes[0]), [""; 0]);
    assert!(!links(nodes[0]).contains("plxe") && !links(nodes[0]).contains("plxc"), "{}", links(nodes[0]));
    let _ = dockers[0].docker(&["network", "rm", "mynet"]).ok();
}

#[test]
fn a_container_may_be_on_two_networks_publish_ports_or_have_no_way_out() {
    needs_docker!();
    let (cluster, dockers) = cluster(2);
    let [a, b] = cluster.nodes();
    let [here, there] = dockers.as_slice() else { panic!("two of them") };
    let _ = a.plexus(["network", "create", "blue", "--cidr", "10.43.0.0/16"]).ok();
    let blue = |node: &Node| node.metric("plexus_overlay_peers", "network=\"blue\"");
    for node in [a, b] {
        let _ = eventually!(SOON, blue(node), |peers| *peers == Some(1.0));
    }
    for docker in [here, there] {
        create(docker, "first", &[]);
        create(docker, "second", &["--subnet", "10.43.0.0/16"]);
        create(docker, "closed", &["--internal", "--ipam-opt", "network=blue"]);
    }
    here.run("both", &["--network", "first"], WAIT);
    let _ = here.docker(&["network", "connect", "second", "both"]).ok();
    there.run("one", &["--network", "first"], WAIT);
    there.run("two", &["--network", "second"], WAIT);
    there.run("inner", &["--network", "closed"], WAIT);
    for (container, network) in [("one", "first"), ("two", "second"), ("inner", "closed")] {
        let to = address(there, container, network).to_string();
        let _ = eventually!(SOON, reaches(here, "both", &to), |reaches| *reaches);
    }
    assert!(!reaches(there, "one", &address(there, "two", "second").to_string()));
    // Of an internal network nobody gets out.
    let routes = there.exec("inner", &["ip", "route"]).ok();
    assert!(!routes.contains("default") && routes.contains("10.43.0.0/16"), "{routes}");
    // An address may be asked for where the range is given.
    let own = address(there, "two", "second").to_string();
    let asked = format!("{}.77", own.rsplit_once('.').expect("dots").0);
    there.run("asked", &["--network", "second", "--ip", &asked], WAIT);
    assert_eq!(address(there, "asked", "second").to_string(), asked);
    // Ports are published by Docker itself, and the network is reached all the same.
    here.run("public", &["--network", "first", "--hostname", "public", "--publish", "8080:80"], SERVE);
    let published = SocketAddr::from((a.address(), 8080));
    let ask = || b.get(published, "/").map(|answer| answer.body).map_err(|error| error.to_string());
    let _ = eventually!(SOON, ask(), |said| said.as_ref().is_ok_and(|said| said.trim() == "public"));
    assert!(reaches(here, "public", &address(there, "one", "first").to_string()));
    says(there, "one", &address(here, "public", "first").to_string(), "public");
}

#[test]
fn a_connection_goes_on_while_agent_and_dockerd_are_killed_and_nothing_is_given_twice() {
    needs_docker!();
    let (cluster, dockers) = cluster(2);
    let [a, b] = cluster.nodes();
    let [here, there] = dockers.as_slice() else { panic!("two of them") };
    for docker in [here, there] {
        create(docker, "mynet", &[]);
    }
    // A listener that says what it is told again, and a connection to it from another node.
    let echo = "exec nc -ll -p 7 -e cat";
    there.run("echo", &["--network", "mynet"], echo);
    here.run("kept", &["--network", "mynet"], WAIT);
    let echo = SocketAddr::new(address(there, "echo", "mynet"), 7);
    let mut held =
        eventually!(SOON, a.namespace().enter(move || Talk::open(echo)), Result::is_ok).expect("open");
    held.say("at first");
    for node in [a, b] {
        node.kill_agent();
        held.say("without an agent");
        node.restart_agent();
        held.say("with the next agent");
    }
    drop(b.take_over());
    held.say("with an agent that took over");
    let kept = address(here, "kept", "mynet");
    for docker in [here, there] {
        docker.kill();
        held.say("without dockerd");
        docker.start_again();
        held.say("with the next dockerd");
    }
    assert_eq!(address(here, "kept", "mynet"), kept);
    assert!(reaches(here, "kept", &echo.ip().to_string()));
    // Containers come while there is no store, and none has another's address.
    cluster.cut_store();
    let more: Vec<String> = (0..5).map(|n| format!("more{n}")).collect();
    for name in &more {
        here.run(name, &["--network", "mynet"], WAIT);
    }
    let mut all: Vec<IpAddr> = more.iter().map(|name| address(here, name, "mynet")).collect();
    all.push(kept);
    assert!(all.iter().all(|address| given(a).contains(&address.to_string())), "{all:?} {:?}", given(a));
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), more.len() + 1);
    assert!(reaches(here, "more0", &echo.ip().to_string()));
    cluster.heal_store();
    held.say("to the end");
    // Who asks while there is no agent gets what it asked for once there is one.
    a.kill_agent();
    let waits = here.docker_in_background(&[
        "run",
        "--detach",
        "--name",
        "late",
        "--network",
        "mynet",
        IMAGE,
        "sh",
        "-c",
        WAIT,
    ]);
    a.restart_agent();
    let ran = waits.join().expect("it does not panic");
    assert!(ran.success(), "{ran}");
    assert!(reaches(here, "late", &echo.ip().to_string()));
    let _ = here.docker(&["rm", "--force", "late", "kept", "more0", "more1", "more2", "more3", "more4"]).ok();
    assert_eq!(given(a), [""; 0]);
}

#[test]
fn containers_pass_where_iptables_drops_by_its_policy_and_docker_goes_on_with_its_own_rules() {
    needs_docker!();
    let (cluster, dockers) = cluster(2);
    let [a, b] = cluster.nodes();
    let [here, there] = dockers.as_slice() else { panic!("two of them") };
    for (docker, node) in [(here, a), (there, b)] {
        create(docker, "mynet", &[]);
        docker.run("one", &["--network", "mynet"], WAIT);
        docker.run("two", &["--network", "mynet"], WAIT);
        // As Docker sets it where it is the one that turns forwarding on.
        let _ = docker.inside("iptables", &["--policy", "FORWARD", "DROP"]).ok();
        let ours = || {
            docker.inside("iptables", &["--list-rules", "FORWARD"]).ok().matches("--comment plexus").count()
        };
        let _ = eventually!(SOON, ours(), |rules| *rules == 3);
        assert!(
            node.exec("ping", &["-c", "1", "-W", "1", &address(docker, "one", "mynet").to_string()])
                .success()
        );
    }
    for other in [address(here, "two", "mynet"), address(there, "one", "mynet"), b.address()] {
        let _ = eventually!(SOON, reaches(here, "one", &other.to_string()), |reaches| *reaches);
    }
    // Docker's own bridges stay closed, and Docker can still be started and publish ports.
    here.run("apart", &[], WAIT);
    let apart = here.inspect("apart", "{{.NetworkSettings.IPAddress}}");
    assert!(!reaches(here, "one", &apart));
    here.stop();
    here.start_again();
    here.run("public", &["--network", "mynet", "--hostname", "public", "--publish", "8080:80"], SERVE);
    let published = SocketAddr::from((a.address(), 8080));
    let ask = || b.get(published, "/").map(|answer| answer.body).map_err(|error| error.to_string());
    let _ = eventually!(SOON, ask(), |said| said.as_ref().is_ok_and(|said| said.trim() == "public"));
    assert!(
        !reaches(here, "one", &apart) && reaches(here, "one", &address(there, "two", "mynet").to_string())
    );
    // Rules that are not needed any more go.
    let _ = here.inside("iptables", &["--policy", "FORWARD", "ACCEPT"]).ok();
    let rules = || here.inside("iptables", &["--list-rules", "FORWARD"]).ok();
    let _ = eventually!(SOON, rules(), |rules| !rules.contains("plexus"));
}

#[test]
fn services_of_compose_are_found_by_their_names_on_every_node() {
    needs_docker!();
    let (cluster, dockers) = cluster(2);
    let [a, b] = cluster.nodes();
    let [here, there] = dockers.as_slice() else { panic!("two of them") };
    let project = |hostname: &str| {
        format!(
            "version: '2.4'\n\
         services:\n  \
           web:\n    image: {IMAGE}\n    hostname: {hostname}\n    expose: ['80']\n    command: sh -c '{SERVE}'\n    \
             networks: {{default: {{aliases: [shop]}}}}\n  \
           client:\n    image: {IMAGE}\n    command: {WAIT}\n\
         networks:\n  default:\n    driver: plexus\n    ipam: {{driver: plexus, options: {{network: default}}}}\n",
            WAIT = WAIT.trim_start_matches("exec "),
        )
    };
    let _ = here.compose("shop", &project("on-a"), &["up", "-d"]).ok();
    let _ = there.compose("shop", &project("on-b"), &["up", "-d", "client"]).ok();
    let web = address(here, "shop_web_1", "shop_default");
    for name in ["web", "shop"] {
        cluster.wait_serving(name, &[&instance(here, name, "a", "shop_web_1")]);
    }
    for node in [a, b] {
        assert_eq!(node.dig("web.mesh.internal", "A").data, [web.to_string()]);
    }
    // Through the resolver that Docker gives to its containers, in full and in short.
    for name in ["web.mesh.internal", "shop.mesh.internal", "web", "shop"] {
        says(there, "shop_client_1", name, "on-a");
    }
    // From outside, by a port of any node: the balancer of one, a container of another.
    cluster.publish("web", 8080);
    assert_eq!(b.get(b.at(8080), "/").expect("an answer").body.trim(), "on-a");
    // One more on the other node, and the first one goes.
    let _ = there.compose("shop", &project("on-b"), &["up", "-d"]).ok();
    let (first, second) =
        (instance(here, "web", "a", "shop_web_1"), instance(there, "web", "b", "shop_web_1"));
    cluster.wait_serving("web", &[&first, &second]);
    let _ = here.compose("shop", &project("on-a"), &["stop", "web"]).ok();
    cluster.wait_serving("web", &[&second]);
    // Agent and Docker are gone, and come back.
    there.kill();
    b.kill_agent();
    b.restart_agent();
    there.start_again();
    cluster.wait_serving("web", &[&second]);
    says(here, "shop_client_1", "web.mesh.internal", "on-b");
    let _ = there.compose("shop", &project("on-b"), &["down"]).ok();
    cluster.wait_serving("web", &[]);
    assert_eq!(given(b), [""; 0]);
}

#[test]
fn one_container_is_several_services_at_the_address_of_the_network_that_each_is_called_on() {
    needs_docker!();
    let (cluster, dockers) = cluster(2);
    let [a, b] = cluster.nodes();
    let here = &dockers[0];
    let _ = a.plexus(["network", "create", "blue", "--cidr", "10.43.0.0/16"]).ok();
    let _ = eventually!(SOON, links(a).matches("plxb").count(), |bridges| *bridges == 2);
    create(here, "front", &[]);
    create(here, "rear", &["--subnet", "10.43.0.0/16"]);
    let connect = |name: &str| here.docker(&["network", "connect", "--alias", "db", "rear", name]).ok();
    here.run("called", &["--network", "front", "--network-alias", "shop", "--expose", "80"], SERVE);
    let _ = connect("called");
    let (front, rear) = (address(here, "called", "front"), address(here, "called", "rear"));
    assert!(front.to_string().starts_with("10.42.") && rear.to_string().starts_with("10.43."));
    for (name, address) in [("shop", front), ("db", rear)] {
        cluster.wait_serving(name, &[&instance(here, name, "a", "called")]);
        let name = format!("{name}.mesh.internal");
        let _ = eventually!(SOON, b.dig(&name, "A").data, |data| *data == [address.to_string()]);
    }
    // Labels name services, each with a port and a check of its own, and the network.
    let labels = [
        "plexus.service=web,metrics,missing",
        "plexus.port=80",
        "plexus.check=tcp",
        "plexus.network=rear",
        "plexus.service.metrics.check=/",
        "plexus.service.missing.port=81",
    ];
    let labels = labels.iter().flat_map(|label| ["--label", label]);
    here.run("labelled", &["--network", "front"].into_iter().chain(labels).collect::<Vec<_>>(), SERVE);
    let status = || a.plexus(["status"]).ok();
    let _ = eventually!(SOON, status(), |said| said.contains("plexus.network: it is not on a network rear"));
    let _ = connect("labelled");
    for name in ["web", "metrics"] {
        cluster.wait_serving(name, &[&instance(here, name, "a", "labelled")]);
        let address = address(here, "labelled", "rear").to_string();
        assert_eq!(b.dig(&format!("{name}.mesh.internal"), "A").data, [address]);
    }
    let missing = || b.plexus(["why", "missing"]).ok();
    let _ = eventually!(SOON, missing(), |why| why.contains(":81") && why.contains("critical"));
    // A label that is mistyped is no service, and is told.
    here.run("wrong", &["--network", "front", "--label", "plexus.prot=80"], WAIT);
    let said = eventually!(SOON, status(), |said| said.contains("plexus.prot"));
    assert!(said.contains("Docker's container wrong") && said.contains("there is no such label"), "{said}");
}

/// What a container is called as an instance.
#[track_caller]
fn instance(docker: &Docker, service: &str, node: &str, container: &str) -> String {
    format!("{service}-{node}-{}", &docker.inspect(container, "{{.Id}}")[..12])
}

#[test]
fn containers_that_start_while_the_agent_is_killed_have_each_an_address_of_their_own() {
    needs_docker!();
    let (cluster, dockers) = cluster(1);
    let [a] = cluster.nodes();
    let docker = &dockers[0];
    create(docker, "mynet", &["--ipv6"]);
    let names: Vec<String> = (0..10).map(|n| format!("one{n}")).collect();
    let start = |name: &String| {
        docker.docker_in_background(&[
            "run",
            "--detach",
            "--name",
            name,
            "--network",
            "mynet",
            IMAGE,
            "sh",
            "-c",
            WAIT,
        ])
    };
    let mut started: Vec<_> = names.iter().map(start).collect();
    let mut kills = 0;
    let is_done = |started: &[JoinHandle<Ran>]| started.iter().all(JoinHandle::is_finished);
    while !is_done(&started) && kills < 5 {
        a.kill_agent();
        a.restart_agent();
        kills += 1;
        // It gets as far as an address or two.
        let before = given(a).len();
        let moves = || given(a).len() > before || is_done(&started);
        let _ = eventually!(SOON, moves(), |moves| *moves);
    }
    assert!(kills > 1, "they were started between two kills");
    for (ran, name) in started.drain(..).zip(&names) {
        let ran = ran.join().expect("it does not panic");
        // Docker does not say again what the killed one was told, and gives up after a while.
        if !ran.success() {
            assert!(["do it once more", "plexus.sock"].iter().any(|why| ran.stderr.contains(why)), "{ran}");
            let _ = docker.docker(&["start", name]).ok();
        }
    }
    let mut all: Vec<IpAddr> = names.iter().map(|name| address(docker, name, "mynet")).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), names.len());
    // What was asked for and not told, since the agent was killed in between, is given back.
    let _ = eventually!(FORGOTTEN, given(a).len(), |given| *given == 2 * names.len());
    assert!(all.iter().all(|address| given(a).contains(&address.to_string())), "{all:?} {:?}", given(a));
    let removal: Vec<&str> = ["rm", "--force"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let _ = docker.docker(&removal).ok();
    let _ = eventually!(FORGOTTEN, given(a), Vec::is_empty);
    assert!(!links(a).contains("plxe") && !links(a).contains("plxc"), "{}", links(a));
}

#[test]
fn what_docker_has_forgotten_is_given_back() {
    needs_docker!();
    let (cluster, dockers) = cluster(1);
    let [a] = cluster.nodes();
    let docker = dockers.into_iter().next().expect("one of them");
    create(&docker, "mynet", &[]);
    docker.run("lost", &["--network", "mynet"], WAIT);
    let lost = address(&docker, "lost", "mynet").to_string();
    assert_eq!(given(a), std::slice::from_ref(&lost));
    // The machine's Docker is lost with everything that it knew.
    docker.lose();
    let _ = eventually!(FORGOTTEN, given(a), Vec::is_empty);
    assert!(!links(a).contains("plxe"), "{}", links(a));
    let docker = Docker::start(cluster.world(), a);
    create(&docker, "mynet", &[]);
    docker.run("next", &["--network", "mynet"], WAIT);
    assert_ne!(address(&docker, "next", "mynet").to_string(), lost);
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    needs_docker!();
    let (cluster, dockers) = cluster(1);
    let [a] = cluster.nodes();
    let docker = &dockers[0];
    let _ = a.plexus(["network", "create", "six", "--cidr", "fd00:66::/48"]).ok();
    let _ = eventually!(SOON, links(a).matches("plxb").count(), |bridges| *bridges == 2);
    for (options, said) in [
        (&["--ipam-opt", "network=blue"][..], "there is no network blue"),
        (&["--subnet", "10.99.0.0/16"], "plexus network create NAME --cidr 10.99.0.0/16"),
        (&["--subnet", "10.42.0.0/16", "--ip-range", "10.42.7.0/24"], "--ip-range 10.42.7.0/24 is not for"),
        (&["--subnet", "10.42.0.0/16", "--gateway", "10.42.9.9"], "leave --gateway away"),
        (&["--ipam-opt", "network=six"], "network six has no IPv4 range"),
        (&["--ipam-opt", "colour=blue"], "there is network=NAME"),
        (&["--opt", "mtu=1400"], "-o mtu is not known"),
        (&["--opt", "network=six"], "--ipam-opt network=six as well"),
    ] {
        let all: Vec<&str> = CREATE.iter().chain(options).copied().chain(["refused"]).collect();
        let refused = docker.docker(&all).refused();
        assert!(refused.contains(said), "{options:?}: {refused}");
    }
    let foreign = docker.docker(&["network", "create", "--driver", "plexus", "foreign"]).refused();
    assert!(foreign.contains("create it with --ipam-driver plexus"), "{foreign}");
    // The protocol's own form, also for what there is none of, and for what is no request.
    let plugin = Docker::plugin(a);
    let call = |name: &str, body: &str| {
        let url = format!("http://plugin/{name}");
        let socket = plugin.to_string_lossy().into_owned();
        a.exec("curl", &["--silent", "--unix-socket", &socket, "--data", body, &url]).ok()
    };
    assert_eq!(call("Plugin.Activate", ""), r#"{"Implements":["NetworkDriver","IpamDriver"]}"#);
    assert!(call("NetworkDriver.Dance", "{}").starts_with(r#"{"Err":"there is no call NetworkDriver.Dance"#));
    assert!(call("NetworkDriver.Join", "").contains("do it once more"));
    assert!(call("NetworkDriver.Join", "{").starts_with(r#"{"Err":"the request cannot be read"#));
    assert!(call("NetworkDriver.Join", r#"{"NetworkID":"../x"}"#).contains("is no id of a network"));
    assert_eq!(given(a), [""; 0]);
    // Somebody removes the socket: it is made again.
    std::fs::remove_file(&plugin).expect("it is there");
    let _ = eventually!(SOON, plugin.exists(), |is_there| *is_there);
    create(docker, "mynet", &[]);
}

/// A connection whose other end says everything again.
#[derive(Debug)]
struct Talk(std::net::TcpStream);

impl Talk {
    fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(SOON))?;
        Ok(Self(stream))
    }

    #[track_caller]
    fn say(&mut self, text: &str) {
        use std::io::{Read as _, Write as _};
        let mut heard = vec![0; text.len()];
        let done = self.0.write_all(text.as_bytes()).and_then(|()| self.0.read_exact(&mut heard));
        assert!(done.is_ok() && heard == text.as_bytes(), "{text}: {done:?}");
    }
}
