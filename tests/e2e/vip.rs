//! A virtual address leads to its service from every node and container, and stays.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use plexus_tests::client::http;
use plexus_tests::{
    Cluster, Node, Process, ServiceFile, Settings, eventually, needs, plexus_program, throughout,
};

use crate::{INSTANCE, PUBLISHED};

const SOON: Duration = Duration::from_secs(10);
const V4: &str = "10.96.0.0/16";
const BOTH: &str = "10.96.0.0/16\", \"fd96::/112";

/// Nodes that take `ranges` (with what stands between two of them) for services.
fn cluster(nodes: usize, ranges: &str, more: &str) -> Cluster {
    let vip = format!("[vip]\nrange = [\"{ranges}\"]\n{more}");
    Cluster::of(nodes).settings(|settings: &mut Settings| settings.more = vip).start()
}

/// The addresses of a service once every node names the same `count`.
#[track_caller]
fn agreed(cluster: &Cluster, service: &str, count: usize) -> Vec<IpAddr> {
    let seen = || cluster.all().map(|node| node.vips(service)).collect::<BTreeSet<_>>();
    let seen =
        eventually!(SOON, seen(), |seen| seen.len() == 1 && seen.iter().all(|vips| vips.len() == count));
    seen.into_iter().next().expect("one")
}

#[track_caller]
fn wait_answers(node: &Node, address: SocketAddr, id: &str) {
    let answer = || node.get(address, "/").ok().and_then(|answer| answer.instance());
    eventually!(SOON, (node.name(), answer()), |(_, instance)| instance.as_deref() == Some(id));
}

fn routes(node: &Node) -> String {
    let list =
        |family: &str| node.exec("ip", &[family, "route", "show", "table", "local", "proto", "80"]).ok();
    format!("{}{}", list("-4"), list("-6"))
}

#[test]
fn a_service_has_one_address_that_every_node_and_container_reaches() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = cluster(3, BOTH, "");
    let [a, b, c] = cluster.nodes();
    let _metrics = a.backend("metrics", 9100);
    let _backends = [a, b].map(|node| node.backend("web", INSTANCE));
    for node in [a, b] {
        node.define(&ServiceFile::new("web", INSTANCE).key("ports", "{ metrics = 9100 }"));
    }
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    let vips = agreed(&cluster, "web", 2);
    assert!(vips[0].is_ipv4() && vips[1].is_ipv6(), "{vips:?}");
    let container = c.namespace().container("box");
    for vip in &vips {
        let (main, named) = (SocketAddr::new(*vip, INSTANCE), SocketAddr::new(*vip, 9100));
        for node in [a, b, c] {
            wait_answers(node, main, "web-a-9000");
            wait_answers(node, main, "web-b-9000");
        }
        // Node b has no such port, and the balancer finds that out.
        wait_answers(c, named, "metrics-a-9100");
        let asked = container.enter(move || http::get(main, "/").map(|answer| answer.status));
        assert_eq!(asked.ok(), Some(200), "{vip} from a container");
        assert!(!c.can_connect(SocketAddr::new(*vip, 9999)));
    }
    for node in [a, b, c] {
        assert_eq!(node.dig("web.mesh.internal", "A").data, [vips[0].to_string()]);
        assert_eq!(node.dig("web.mesh.internal", "AAAA").data, [vips[1].to_string()]);
        let mut tasks = node.dig("tasks.web.mesh.internal", "A").data;
        tasks.sort();
        assert_eq!(tasks, [a.address().to_string(), b.address().to_string()]);
    }
    let shown = c.plexus(["services"]).ok();
    assert!(shown.contains(&vips[0].to_string()), "{shown}");
    let why = c.plexus(["why", "web"]).ok();
    assert!(why.contains(&format!("{}:{INSTANCE}/tcp", vips[0])), "{why}");
    let told = c.plexus(["resolve", "web.mesh.internal"]).ok();
    assert!(told.contains("virtual address of service web") && told.contains(&vips[0].to_string()), "{told}");
}

#[test]
fn an_address_stays_whatever_restarts_and_is_answered_without_the_store() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = cluster(3, V4, "");
    let [a, b, c] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let vips = agreed(&cluster, "web", 1);
    let main = SocketAddr::new(vips[0], INSTANCE);
    b.kill_agent();
    assert!(routes(b).contains(V4), "a killed agent's route is there for the next");
    b.restart_agent();
    c.terminate_agent();
    c.wait_agent_end(SOON);
    assert_eq!(routes(c), "", "an agent that leaves takes its route along");
    c.restart_agent();
    assert_eq!(agreed(&cluster, "web", 1), vips);
    [b, c].iter().for_each(|node| wait_answers(node, main, "web-a-9000"));
    // The only instance is gone for a moment: its address waits for it.
    a.remove_service_file("web-9000.toml");
    cluster.wait_serving("web", &[]);
    a.define(&ServiceFile::new("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000"]);
    assert_eq!(agreed(&cluster, "web", 1), vips);
    // From the memory on disk, which is written a moment after a change.
    let remembered = || {
        plexus_tests::run(&[
            "grep",
            "-rqs",
            &vips[0].to_string(),
            &b.directory().join("state").to_string_lossy(),
        ])
    };
    eventually!(SOON, remembered().is_ok_and(|ran| ran.success()), |it_does| *it_does);
    cluster.etcd().stop();
    b.kill_agent();
    b.restart_agent();
    wait_answers(b, main, "web-a-9000");
    assert_eq!(b.dig("web.mesh.internal", "A").data, [vips[0].to_string()]);
}

#[test]
fn an_agent_that_takes_over_answers_on_virtual_addresses_from_the_first_moment() {
    needs!("etcd", "etcdctl");
    let cluster = cluster(2, V4, "");
    let [a, b] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let main = SocketAddr::new(agreed(&cluster, "web", 1)[0], INSTANCE);
    wait_answers(b, main, "web-a-9000");
    let load = b.load(main);
    load.wait_for(50);
    for _ in 0..3 {
        assert!(b.take_over().wait(SOON).success());
        load.wait_for(50);
    }
    load.stop().assert_unharmed();
}

#[test]
fn an_agent_that_leaves_tells_the_clients_of_virtual_addresses_before_their_route_goes() {
    needs!("etcd", "etcdctl");
    let cluster = cluster(2, V4, "");
    let [a, b] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let main = SocketAddr::new(agreed(&cluster, "web", 1)[0], INSTANCE);
    wait_answers(b, main, "web-a-9000");
    let mut held: Vec<_> = (0..100).map(|_| b.hold(main).expect("a connection")).collect();
    held.iter_mut().for_each(|held| assert_eq!(held.get("/").expect("an answer").status, 200));
    b.terminate_agent();
    b.wait_agent_end(2 * SOON);
    let told = held.iter().filter(|held| held.has_ended()).count();
    assert_eq!(told, held.len(), "whoever was not told waits for ever");
}

#[test]
fn a_route_that_is_flushed_is_back_within_a_second_and_others_are_left_alone() {
    needs!("etcd", "etcdctl");
    let cluster = cluster(2, BOTH, "");
    let [a, b] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let vips = agreed(&cluster, "web", 2);
    let foreign = ["route", "add", "local", "203.0.113.0/24", "dev", "lo"];
    let _ = b.exec("ip", &foreign).ok();
    vips.iter().for_each(|vip| wait_answers(b, SocketAddr::new(*vip, INSTANCE), "web-a-9000"));
    let _ = b.exec("ip", &["route", "flush", "table", "local", "proto", "80"]).ok();
    let _ = b.exec("ip", &["-6", "route", "flush", "table", "local", "proto", "80"]).ok();
    // Looked at and not tried: an attempt in between would leave by the default route and wait for an answer.
    let all = |routes: &String| routes.contains("10.96.0.0/16") && routes.contains("fd96::/112");
    eventually!(Duration::from_secs(1), routes(b), all);
    for vip in &vips {
        assert!(b.can_connect(SocketAddr::new(*vip, INSTANCE)), "{vip}");
    }
    // An interface that goes down takes its routes along without a word.
    let _ = b.exec("ip", &["link", "set", "lo", "down"]).ok();
    let _ = b.exec("ip", &["link", "set", "lo", "up"]).ok();
    eventually!(Duration::from_secs(6), routes(b), |routes| routes.contains("10.96.0.0/16")
        && routes.contains("fd96::/112"));
    let _ = b.exec("ip", &["route", "replace", "local", "203.0.113.0/24", "dev", "lo"]).ok();
    b.terminate_agent();
    b.wait_agent_end(SOON);
    let left = b.exec("ip", &["route", "show", "table", "local"]).ok();
    assert!(left.contains("203.0.113.0/24") && !left.contains("10.96.0.0/16"), "{left}");
}

#[test]
fn a_range_that_a_node_uses_is_off_there_by_name_and_on_elsewhere() {
    needs!("etcd", "etcdctl", "dig");
    let vip = format!("[vip]\nrange = [\"{V4}\"]");
    let cluster =
        Cluster::of(2).settings(|settings: &mut Settings| settings.more = vip).without_agents().start();
    let [a, b] = cluster.nodes();
    let _ = b.exec("ip", &["route", "add", "10.96.7.0/24", "dev", "eth0"]).ok();
    [a, b].iter().for_each(|node| node.restart_agent());
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    eventually!(SOON, a.vips("web").len(), |count| *count == 1);
    let status = b.plexus(["status"]).ok();
    assert!(status.contains("10.96.0.0/16") && status.contains("10.96.7.0/24 on eth0"), "{status}");
    assert_eq!((b.vips("web"), routes(b)), (vec![], String::new()));
    assert_eq!(b.dig("web.mesh.internal", "A").data, [a.address().to_string()]);
    // Once the range is free it is taken, without a restart.
    let _ = b.exec("ip", &["route", "del", "10.96.7.0/24"]).ok();
    eventually!(Duration::from_secs(2), b.vips("web"), |vips| *vips == a.vips("web"));
    let main = SocketAddr::new(a.vips("web")[0], INSTANCE);
    wait_answers(b, main, "web-a-9000");
    // What takes a part of it now is said by nobody's loss.
    let _ = b.exec("ip", &["route", "add", "10.96.7.0/24", "dev", "eth0"]).ok();
    throughout!(Duration::from_secs(1), b.can_connect(main), |open| *open);
}

#[test]
fn an_agent_that_may_not_make_routes_says_so_and_does_the_rest() {
    needs!("etcd", "etcdctl", "dig", "setpriv");
    let vip = format!("[vip]\nrange = [\"{V4}\"]");
    let cluster =
        Cluster::of(2).settings(|settings: &mut Settings| settings.more = vip).without_agents().start();
    let [a, b] = cluster.nodes();
    a.restart_agent();
    let mut command = b.namespace().command("setpriv");
    command.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--"]);
    command
        .arg(plexus_program())
        .arg("agent")
        .arg("--config")
        .arg(b.config_file())
        .current_dir(b.directory());
    let agent = Process::start("the agent of b", &mut command, &cluster.world().log("agent-b"));
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    eventually!(SOON, a.vips("web").len(), |count| *count == 1);
    let status = b.plexus(["status"]).ok();
    assert!(
        status.contains("CAP_NET_ADMIN") && status.contains("ip route add local 10.96.0.0/16 dev lo"),
        "{status}"
    );
    assert_eq!(agent.output().matches("CAP_NET_ADMIN").count(), 1, "said once");
    assert_eq!(b.dig("web.mesh.internal", "A").data, [a.address().to_string()]);
    cluster.publish("web", PUBLISHED);
    // Whoever may makes the route, and that is enough.
    let _ = b.exec("ip", &["route", "add", "local", V4, "dev", "lo"]).ok();
    eventually!(SOON, b.vips("web"), |vips| *vips == a.vips("web"));
    wait_answers(b, SocketAddr::new(a.vips("web")[0], INSTANCE), "web-a-9000");
}

#[test]
fn an_address_is_freed_when_its_service_is_gone_for_long_or_wants_none() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = cluster(3, V4, "release_after = \"2s\"");
    let [a, b, _] = cluster.nodes();
    let _backends = [a.serve("web", INSTANCE), b.serve("api", 9001)];
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.wait_serving("api", &["api-b-9001"]);
    let (web, api) = (agreed(&cluster, "web", 1)[0], agreed(&cluster, "api", 1)[0]);
    let claims = || cluster.etcd().keys("/plexus/v1/vips");
    assert_eq!(claims().len(), 2);
    let gone = Instant::now();
    a.remove_service_file("web-9000.toml");
    eventually!(SOON, claims(), |claims| claims.len() == 1);
    assert!(gone.elapsed() >= Duration::from_secs(2), "{:?}", gone.elapsed());
    assert!(claims()[0].ends_with(&api.to_string()));
    // It comes back, and has the address again that its name gives it.
    a.define(&ServiceFile::new("web", INSTANCE));
    assert_eq!(agreed(&cluster, "web", 1), [web]);
    let _ = b.plexus(["vip", "api", "off"]).ok();
    assert_eq!(agreed(&cluster, "api", 0), [] as [IpAddr; 0]);
    assert_eq!(a.dig("api.mesh.internal", "A").data, [b.address().to_string()]);
    eventually!(SOON, claims().len(), |count| *count == 1);
    let _ = b.plexus(["vip", "api", "on"]).ok();
    assert_eq!(agreed(&cluster, "api", 1), [api]);
}

#[test]
fn agents_that_race_for_many_services_give_each_one_address() {
    needs!("etcd", "etcdctl");
    let cluster = cluster(3, "10.96.0.0/24", "release_after = \"2s\"");
    let [a, b, c] = cluster.nodes();
    // On every node at once, in a range that they fill by two thirds: many first choices are taken.
    let services: Vec<String> = (0..170).map(|number| format!("s{number}")).collect();
    let text: String =
        services.iter().map(|name| ServiceFile::new(name, INSTANCE).check("").text()).collect();
    [a, b, c].iter().for_each(|node| node.write_service_file("many.toml", &text));
    let all = |node: &Node| {
        let listed =
            node.admin_json("/v1/plexus/services")["services"].as_array().cloned().unwrap_or_default();
        let pair = |service: &serde_json::Value| {
            let vips = service["vips"].as_array().filter(|vips| vips.len() == 1)?;
            Some((service["name"].as_str()?.to_owned(), vips[0].as_str()?.to_owned()))
        };
        listed.iter().filter_map(pair).collect::<BTreeSet<_>>()
    };
    for node in [a, b, c] {
        eventually!(Duration::from_secs(20), all(node).len(), |seen| *seen == 170);
    }
    let first = all(a);
    assert!(all(b) == first && all(c) == first);
    assert_eq!(first.iter().map(|(_, vip)| vip).collect::<BTreeSet<_>>().len(), 170);
    // A second one that the race gave to some is freed again.
    let claims = || cluster.etcd().keys("/plexus/v1/vips/").len();
    eventually!(Duration::from_secs(20), claims(), |count| *count == 170);
    assert!(all(a) == first);
}

#[test]
fn a_port_that_is_published_everywhere_leaves_virtual_addresses_to_their_services() {
    needs!("etcd", "etcdctl");
    let cluster = cluster(2, V4, "");
    let [a, b] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let main = SocketAddr::new(agreed(&cluster, "web", 1)[0], INSTANCE);
    wait_answers(b, main, "web-a-9000");
    // The port that the address listens on already.
    let _ = b.plexus(["publish", "web", "9000"]).ok();
    eventually!(Duration::from_secs(1), b.can_connect(b.at(INSTANCE)), |open| *open);
    wait_answers(b, main, "web-a-9000");
    let why = b.plexus(["why", "web"]).ok();
    assert!(!why.contains("closed"), "{why}");
    let _ = b.plexus(["unpublish", "web", "9000"]).ok();
    eventually!(Duration::from_secs(1), b.can_connect(b.at(INSTANCE)), |open| !*open);
    wait_answers(b, main, "web-a-9000");
    // Another service's port of the same number is on every other address.
    let _api = a.serve("api", 9100);
    cluster.wait_serving("api", &["api-a-9100"]);
    let _ = b.plexus(["publish", "api", "9000", "--mode", "ingress"]).ok();
    wait_answers(b, b.at(INSTANCE), "api-a-9100");
    for _ in 0..20 {
        wait_answers(b, main, "web-a-9000");
    }
    let why = b.plexus(["why", "web"]).ok();
    assert!(!why.contains("closed"), "{why}");
}
