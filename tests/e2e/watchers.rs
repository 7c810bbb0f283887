//! Services that nobody registers: what files and configurations name, as every node sees it.

use std::time::Duration;

use plexus_tests::server::store::Make;
use plexus_tests::{Cluster, Node, Signal, eventually, needs, throughout};

use crate::{INSTANCE, PUBLISHED};

const SOON: Duration = Duration::from_secs(10);

/// Two nodes that watch a file of their own for `legacy`, and one server that stands in their configuration.
fn cluster() -> Cluster {
    let more = "[[watch]]\nservice = \"legacy\"\nfile = \"legacy.json\"\n\
                [[watch]]\nservice = \"legacy\"\nname = \"last\"\nstatic = [\"10.77.0.2:9001\"]\n";
    Cluster::of(2).settings(|settings| settings.more = more.to_owned()).start()
}

fn write(node: &Node, text: &str) {
    let (file, new) = (node.directory().join("legacy.json"), node.directory().join("legacy.new"));
    std::fs::write(&new, text).and_then(|()| std::fs::rename(new, file)).expect("a file");
}

/// How the watcher of this name stands.
fn watcher(node: &Node, name: &str) -> serde_json::Value {
    let all = node.plexus_json(["watchers"])["watchers"].clone();
    let all = all.as_array().expect("a list");
    all.iter().find(|watcher| watcher["name"] == name).cloned().unwrap_or_default()
}

#[test]
fn what_a_file_names_is_served_as_any_other_service() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = cluster();
    let [a, b] = cluster.nodes();
    let _backends = (a.backend("legacy", INSTANCE), b.backend("legacy", 9001));
    // Without its file the other one's word holds, and what lacks is said.
    let last = |node: &Node| eventually!(SOON, node.serving("legacy"), |ids| *ids == ["10.77.0.2:9001"]);
    let _ = (last(a), last(b));
    let lacks = watcher(a, "legacy-file");
    assert_eq!((&lacks["connected"], &lacks["kind"]), (&false.into(), &"file".into()), "{lacks}");
    assert!(a.plexus(["status"]).stdout.contains("legacy-file: "));
    write(
        a,
        "[{\"targets\": [\"10.77.0.1:9000\"], \"labels\": {\"az\": \"a\"}}, {\"host\": \"x y\", \"port\": 1}]",
    );
    let both = ["10.77.0.1:9000", "10.77.0.2:9001"];
    let _ = eventually!(SOON, a.serving("legacy"), |ids| *ids == both);
    let stands = watcher(a, "legacy-file");
    assert!(
        stands["connected"] == true && stands["refused"][0].as_str().is_some_and(|why| why.contains("x y")),
        "{stands}"
    );
    assert!(a.plexus(["endpoints", "legacy"]).stdout.contains("found by the watcher legacy-file"));
    assert_eq!(a.metric("plexus_watcher_entries", "watcher=\"legacy-file\""), Some(1.0));
    // Names, and published ports.
    let answer = || a.dig("tasks.legacy.mesh.internal", "A").data;
    let _ = eventually!(SOON, answer(), |data| *data == ["10.77.0.1", "10.77.0.2"]);
    cluster.publish("legacy", PUBLISHED);
    let load = a.load(a.at(PUBLISHED));
    load.wait_for(100);
    // What is malformed, empty or gone changes nothing.
    for text in ["[{", "[]", "[\"10.77.0.1:9000\"]", "{\"hosts\": 1}"] {
        write(a, text);
        let stands = eventually!(SOON, watcher(a, "legacy-file"), |stands| {
            let is_bad = text.starts_with("[{") || text.starts_with('{');
            stands["connected"] == !is_bad && stands["instead"].is_string() == (text == "[]")
        });
        assert_eq!(a.serving("legacy"), both, "{text}: {stands}");
    }
    std::fs::remove_file(a.directory().join("legacy.json")).expect("a file");
    let _ = eventually!(SOON, watcher(a, "legacy-file"), |stands| stands["last_error"]
        .to_string()
        .contains("cannot be read"));
    assert_eq!(a.serving("legacy"), both);
    load.stop().assert_unharmed();
    // Whoever registers one in the mesh says more of it, and goes first.
    write(a, "[\"10.77.0.1:9000\"]");
    let _ = a.plexus(["register", "legacy", "--port", "9000", "--id", "ours"]).ok();
    let _ = eventually!(SOON, a.serving("legacy"), |ids| *ids == ["10.77.0.2:9001", "ours"]);
    let _ = a.plexus(["deregister", "ours"]).ok();
    let _ = eventually!(SOON, a.serving("legacy"), |ids| *ids == both);
    // The configuration is read again: one watcher goes, and the other one stays what it is.
    let config = std::fs::read_to_string(a.config_file()).expect("its configuration");
    let without = config.split("[[watch]]\nservice = \"legacy\"\nname").next().expect("the rest");
    std::fs::write(a.config_file(), without).expect("its configuration");
    a.signal_agent(Signal::HUP);
    let _ = eventually!(SOON, a.serving("legacy"), |ids| *ids == ["10.77.0.1:9000"]);
    assert_eq!(watcher(a, "last"), serde_json::Value::Null);
    assert!(!a.plexus(["status"]).stdout.contains("restart the agent"));
}

#[test]
fn what_nerve_registers_in_zookeeper_is_served_where_nobody_shares_its_store() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar", "/usr/lib/python3/dist-packages/kazoo/client.py");
    let cluster = Cluster::of(2).on(Make::ZooKeeper).without_agents().start();
    let (zookeeper, [a, b]) = (cluster.zookeeper(), cluster.nodes());
    let (hosts, path) = (zookeeper.hosts(), "/nerve/services/web/services");
    let _backends = (a.backend("web", INSTANCE), a.backend("web", 9001));
    let start = |node: &Node, more: String| {
        let mut settings = cluster.settings().clone();
        // A mesh of its own: what the other one has registered there is not seen here.
        (settings.store, settings.more) = ("embedded".to_owned(), more);
        node.configure(&settings);
        node.start_agent();
        node.wait_ready(SOON);
    };
    let watch = |service: &str, path: &str, more: &str| {
        format!("[[watch]]\nservice = \"{service}\"\nzookeeper = [\"{hosts}\"]\npath = \"{path}\"\n{more}\n")
    };
    let set = "decode = \"serverset\"\nendpoint_name = \"http\"\nuse_previous_backends = false\n";
    start(b, watch("web", path, "") + &watch("set", "/sets/web", set));
    assert_eq!(b.serving("web"), [""; 0]);
    // Nerve itself, or an agent in its place.
    let nerve = a.directory().join("nerve.conf.json");
    let service = |encoded: bool| {
        format!(
            r#"{{"instance_id": "a-host", "services": {{"web": {{"host": "{}", "port": 9000, "zk_hosts": ["{hosts}"],
                "zk_path": "{path}", "use_path_encoding": {encoded}, "weight": 7, "checks": [{{"type": "tcp"}}]}}}}}}"#,
            a.address()
        )
    };
    std::fs::write(&nerve, service(false)).expect("a file");
    start(a, format!("[source.nerve]\nfile = \"{}\"\n", nerve.display()));
    let (first, second) = ("10.77.0.1:9000", "10.77.0.1:9001");
    let _ = eventually!(SOON, b.serving("web"), |ids| *ids == [first]);
    let endpoint = b.admin_json("/v1/plexus/services/web")["endpoints"][0].clone();
    assert_eq!(
        (&endpoint["weight"], &endpoint["labels"]["name"]),
        (&7.into(), &"a-host".into()),
        "{endpoint}"
    );
    let _ = b.plexus(["publish", "web", &PUBLISHED.to_string()]).ok();
    let _ = eventually!(SOON, b.get(b.at(PUBLISHED), "/").is_ok(), |answers| *answers);
    let load = b.load(b.at(PUBLISHED));
    load.wait_for(100);
    let mut before = b.take_over();
    load.wait_for(100);
    before.wait(SOON);
    // Others write there too, and not all of them well.
    zookeeper
        .create(&format!("{path}/b-host_7"), r#"{"host": "10.77.0.1", "port": "9001", "name": "b-host"}"#);
    zookeeper.create(&format!("{path}/broken_8"), "{");
    let _ = eventually!(SOON, b.serving("web"), |ids| *ids == [first, second]);
    let stands = watcher(b, "web-zookeeper");
    assert!(stands["refused"][0].as_str().is_some_and(|why| why.contains("broken_8")), "{stands}");
    // A registration that changes is another child, and its name may hold it.
    std::fs::write(&nerve, service(true)).expect("a file");
    a.signal_agent(Signal::HUP);
    let encoded = || zookeeper.children(path).iter().any(|child| child.starts_with("base64_"));
    let _ = eventually!(SOON, encoded(), |encoded| *encoded);
    throughout!(Duration::from_secs(1), b.serving("web"), |ids| *ids == [first, second]);
    // While ZooKeeper is away, and when all that was there is gone, what it said last is used; one by one they go.
    zookeeper.stop();
    let _ =
        eventually!(SOON, watcher(b, "web-zookeeper")["connected"].clone(), |connected| *connected == false);
    assert_eq!(b.serving("web"), [first, second]);
    zookeeper.start_again();
    let _ =
        eventually!(Duration::from_secs(60), watcher(b, "web-zookeeper")["connected"].clone(), |connected| {
            *connected == true
        });
    assert_eq!(b.serving("web"), [first, second]);
    zookeeper.remove(&format!("{path}/b-host_7"));
    let _ = eventually!(SOON, b.serving("web"), |ids| *ids == [first]);
    a.terminate_agent();
    let _ = eventually!(SOON, watcher(b, "web-zookeeper")["instead"].clone(), |instead| instead.is_string());
    assert_eq!(b.serving("web"), [first]);
    load.stop().assert_unharmed();
    // A server set, which appears later.
    let member = |port: u16, status: &str| {
        format!(
            r#"{{"serviceEndpoint": {{"host": "10.77.0.1", "port": 1}}, "status": "{status}",
                "additionalEndpoints": {{"http": {{"host": "10.77.0.1", "port": {port}}}}}}}"#
        )
    };
    zookeeper.create("/sets/web/member_1", &member(9000, "ALIVE"));
    zookeeper.create("/sets/web/member_2", &member(9001, "STOPPED"));
    let _ = eventually!(SOON, b.serving("set"), |ids| *ids == [first]);
    zookeeper.remove("/sets/web/member_1");
    let _ = eventually!(SOON, b.known("set"), Vec::is_empty);
}
