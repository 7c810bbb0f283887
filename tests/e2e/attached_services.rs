//! What is attached to an overlay network is an instance of what its labels and aliases say, for as long as it is attached.

use std::collections::BTreeSet;
use std::time::Duration;

use plexus_tests::{Cluster, Namespace, Node, Process, backend_program, eventually, needs};
use serde_json::{Value, json};

use crate::overlay::{CONFIGURATION, SOON, wait_peers};
use crate::{INSTANCE, PUBLISHED};

/// What is said at once is seen elsewhere within this: no check and no tick has part in it.
const AT_ONCE: Duration = Duration::from_secs(2);
const INSTANCES: &str = "/plexus/v1/instances/";
/// A web server whose check is quick to judge.
const WEB: [&str; 8] = [
    "plexus.service=web",
    "plexus.port=9000",
    "plexus.ports=metrics=9000",
    "plexus.check=/healthz",
    "plexus.interval=200ms",
    "plexus.timeout=200ms",
    "plexus.rise=1",
    "plexus.fall=2",
];

/// A network namespace of a node, with a server in it that says where it is.
struct Server {
    namespace: Namespace,
    process: Process,
}

impl Server {
    fn on(cluster: &Cluster, node: &Node, name: &str) -> Self {
        let namespace = Namespace::add(format!("{}-{name}", node.namespace().name()), node.address());
        let mut command = namespace.command(backend_program());
        command.args([&format!("[::]:{INSTANCE}"), "web", namespace.name(), node.name()]);
        let process = Process::start(namespace.name(), &mut command, &cluster.world().log(namespace.name()));
        Self { namespace, process }
    }

    /// Attaches it with these labels and aliases; what the command says as JSON.
    #[track_caller]
    fn attach(&self, node: &Node, network: &str, labels: &[&str], aliases: &[&str]) -> Value {
        let mut arguments = vec!["attach", self.namespace.name(), "--network", network, "--json"];
        arguments.extend(labels.iter().flat_map(|label| ["--label", *label]));
        arguments.extend(aliases.iter().flat_map(|alias| ["--alias", *alias]));
        if network != "default" {
            arguments.extend(["--interface", "eth1"]);
        }
        let program = plexus_tests::plexus_program().to_string_lossy();
        serde_json::from_str(&node.exec(&program, &arguments).ok()).expect("JSON")
    }

    /// What it is called as an instance.
    fn instance(&self, service: &str, node: &Node) -> String {
        format!("{service}-{}-{}", node.name(), self.namespace.name())
    }
}

fn v4(attached: &Value) -> String {
    attached["addresses"][0].as_str().expect("an address").to_owned()
}

fn cluster(nodes: usize) -> Cluster {
    let settings = |settings: &mut plexus_tests::Settings| {
        settings.more = CONFIGURATION.to_owned();
        // An agent that is killed is back long before.
        settings.session_ttl = Duration::from_secs(20);
    };
    let cluster = Cluster::of(nodes).settings(settings).start();
    cluster.all().for_each(|node| wait_peers(node, "default", nodes - 1));
    cluster
}

/// The nodes whose servers answer on a port of this one.
fn answering(node: &Node, port: u16) -> BTreeSet<String> {
    let ask = || {
        let answer = node.get(node.at(port), "/").ok().filter(|answer| answer.status == 200)?;
        let said: Value = serde_json::from_str(&answer.body).ok()?;
        said["node"].as_str().map(str::to_owned)
    };
    (0..8).filter_map(|_| ask()).collect()
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

#[test]
fn servers_in_namespaces_are_found_balanced_checked_drained_and_gone() {
    needs!("etcd", "etcdctl", "nft", "dig");
    let cluster = cluster(3);
    let [a, b, c] = cluster.nodes();
    let mut servers = [a, b].map(|node| Server::on(&cluster, node, "one"));
    let attached = [a, b].map(|node| {
        let server = if node.name() == "a" { &servers[0] } else { &servers[1] };
        server.attach(node, "default", &WEB, &[])
    });
    let ids = [servers[0].instance("web", a), servers[1].instance("web", b)];
    let addresses = sorted(attached.iter().map(v4).collect());
    assert!(addresses.iter().all(|address| address.starts_with("10.42.")), "{addresses:?}");
    cluster.wait_serving("web", &[&ids[0], &ids[1]]);
    // By name, the containers' own addresses; by a port of a node that has none of them, both; by a port's name too.
    assert_eq!(sorted(c.dig("web.mesh.internal", "A").data), addresses);
    cluster.publish("web", PUBLISHED);
    let both = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
    let _ = eventually!(SOON, answering(c, PUBLISHED), |nodes| *nodes == both);
    let _ = c.plexus(["publish", "web", "8090:metrics"]).ok();
    let _ = eventually!(SOON, answering(c, 8090), |nodes| *nodes == both);
    // It is shown where it is attached, with what was said of it.
    let listed = a.admin_json("/v1/plexus/attachments")["attachments"][0].clone();
    let instance =
        json!({"service": "web", "id": ids[0], "address": format!("{}:{INSTANCE}", v4(&attached[0]))});
    assert_eq!(
        (&listed["labels"]["plexus.check"], &listed["instances"]),
        (&json!("/healthz"), &json!([instance]))
    );
    for shown in [a.plexus(["attachments"]).ok(), a.plexus(["network", "inspect", "default"]).ok()] {
        assert!(shown.contains(&format!("web/{}", ids[0])), "{shown}");
    }
    // What another source defines is changed there.
    let refused = a.plexus(["deregister", &ids[0]]).refused();
    assert!(refused.contains("the attachment"), "{refused}");
    // Drained as any instance is, and back.
    let _ = b.plexus(["drain", &ids[1]]).ok();
    cluster.wait_serving("web", &[&ids[0]]);
    let _ = b.plexus(["undrain", &ids[1]]).ok();
    cluster.wait_serving("web", &[&ids[0], &ids[1]]);
    // A server that dies is known to every node, with the reason, and its record stays.
    servers[0].process.kill();
    cluster.wait_serving("web", &[&ids[1]]);
    let why = c.plexus(["why", "web"]).ok();
    assert!(why.contains("critical") && why.contains("http GET /healthz"), "{why}");
    assert_eq!(answering(c, PUBLISHED), BTreeSet::from(["b".to_owned()]));
    assert_eq!(cluster.etcd().keys(INSTANCES).len(), 2);
    // A namespace that is gone took it along.
    let _ = a.exec("ip", &["netns", "del", servers[0].namespace.name()]).ok();
    let _ = eventually!(SOON, c.known("web"), |known| *known == [ids[1].clone()]);
    // What is detached is deregistered at once, on every node.
    let _ = b.plexus(["detach", servers[1].namespace.name(), "--network", "default"]).ok();
    let _ = eventually!(AT_ONCE, cluster.etcd().keys(INSTANCES), Vec::is_empty);
    for node in [a, b, c] {
        let _ = eventually!(AT_ONCE, node.known("web"), Vec::is_empty);
    }
}

#[test]
fn agents_that_are_killed_and_replaced_keep_what_is_attached_registered() {
    needs!("etcd", "etcdctl", "nft");
    let cluster = cluster(2);
    let [a, b] = cluster.nodes();
    let server = Server::on(&cluster, a, "one");
    let attached = server.attach(a, "default", &WEB, &["shop"]);
    let id = server.instance("web", a);
    cluster.wait_serving("web", &[&id]);
    cluster.publish("web", PUBLISHED);
    let key = format!("{INSTANCES}web/{id}");
    let record = || cluster.etcd().ctl(&["get", &key, "--print-value-only"]).ok();
    let before = record();
    let changes = cluster.etcd().watch(INSTANCES);
    let load = b.load(b.at(PUBLISHED));
    load.wait_for(50);
    for round in 0..3 {
        if round == 2 {
            drop(a.take_over());
        } else {
            a.kill_agent();
            a.restart_agent();
        }
        let _ = eventually!(SOON, a.serving("web"), |ids| *ids == [id.clone()]);
        let _ = eventually!(SOON, record(), |record| *record == before);
        let listed = a.admin_json("/v1/plexus/attachments")["attachments"][0].clone();
        for key in ["labels", "aliases", "addresses", "instances"] {
            assert_eq!(listed[key], attached[key], "{key}");
        }
    }
    load.stop().assert_unharmed();
    let (written, deleted) = changes.so_far();
    assert_eq!(deleted, Vec::<String>::new());
    assert!(!written.is_empty() && written.iter().all(|written| *written == key), "{written:?}");
    // The next agent ends it as the one that attached it would have.
    let _ = a.plexus(["detach", server.namespace.name(), "--network", "default"]).ok();
    let _ = eventually!(AT_ONCE, changes.so_far().1, |deleted| *deleted == [key.clone()]);
}

#[test]
fn several_services_and_networks_of_one_container_are_one_instance_each() {
    needs!("etcd", "etcdctl", "nft", "dig");
    let cluster = cluster(2);
    let [a, b] = cluster.nodes();
    let _ = a.plexus(["network", "create", "blue", "--cidr", "10.43.0.0/16"]).ok();
    wait_peers(a, "blue", 1);
    let server = Server::on(&cluster, a, "one");
    let both =
        ["plexus.service=web,api", "plexus.port=9000", "plexus.service.api.port=9001", "plexus.tags=v2"];
    let default = server.attach(a, "default", &both, &["unused"]);
    assert_eq!(default["instances"].as_array().map(Vec::len), Some(2));
    let [web, api] = ["web", "api"].map(|service| server.instance(service, a));
    cluster.wait_serving("web", &[&web]);
    cluster.wait_serving("api", &[&api]);
    let srv = b.dig("api.mesh.internal", "SRV").data;
    assert!(srv.len() == 1 && srv[0].starts_with("0 100 9001 "), "{srv:?}");
    assert_eq!(b.known("unused"), Vec::<String>::new());
    // Called so on another network as well it is still one of each, by the network whose name comes first.
    let blue = server.attach(a, "blue", &["plexus.port=9000"], &["web", "other"]);
    cluster.wait_serving("other", &[&server.instance("other", a)]);
    assert_eq!(b.known("web"), std::slice::from_ref(&web));
    let _ = eventually!(SOON, b.dig("web.mesh.internal", "A").data, |data| *data == [v4(&blue)]);
    assert_eq!(b.dig("api.mesh.internal", "A").data, [v4(&default)]);
    let _ = a.plexus(["detach", server.namespace.name(), "--network", "blue"]).ok();
    let _ = eventually!(SOON, b.dig("web.mesh.internal", "A").data, |data| *data == [v4(&default)]);
    let _ = eventually!(SOON, b.known("other"), Vec::is_empty);
}

#[test]
fn labels_that_are_wrong_attach_nothing_and_are_named() {
    needs!("etcd", "etcdctl", "nft");
    let cluster = cluster(1);
    let [a] = cluster.nodes();
    let server = Server::on(&cluster, a, "one");
    let name = server.namespace.name();
    let attach = |more: &[&str]| {
        let program = plexus_tests::plexus_program().to_string_lossy();
        a.exec(&program, &[&["attach", name, "--network", "default"], more].concat())
    };
    for (more, said) in [
        (
            &["--label", "plexus.service=web"][..],
            "plexus.service: there is no port of web; add the label plexus.port",
        ),
        (
            &["--label", "plexus.service=web", "--label", "plexus.port=http"],
            "plexus.port: \"http\" is no port",
        ),
        (&["--label", "plexus.sevice=web"], "plexus.sevice: there is no such label"),
        (&["--alias", "web"], "the alias web leads nowhere"),
        (&["--label", "plexus.port=80"], "plexus.port: nothing says of which service that is"),
        (
            &["--alias", "web", "--label", "plexus.port=80", "--label", "plexus.port=81"],
            "plexus.port is given twice",
        ),
        (&["--alias", "My_Web"], "\"My_Web\" is no service name"),
        (&["--label", "plexus.service"], "it has no `=`"),
    ] {
        let refused = attach(more).refused();
        assert!(refused.contains(said), "{more:?}: {refused}");
        assert_eq!(a.admin_json("/v1/plexus/attachments")["attachments"], json!([]));
        assert!(!server.namespace.exec("ip", &["link"]).ok().contains("eth0"));
    }
    // Free data alone says nothing of services, and travels nowhere.
    let _ = attach(&["--label", "role=primary"]).ok();
    assert_eq!(
        a.admin_json("/v1/plexus/attachments")["attachments"][0]["labels"],
        json!({"role": "primary"})
    );
    assert_eq!(cluster.etcd().keys(INSTANCES), Vec::<String>::new());
}
