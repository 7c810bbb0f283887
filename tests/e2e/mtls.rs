//! What goes from one node to another is encrypted, and only nodes of the mesh may send it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use plexus_tests::{Cluster, Node, Process, Settings, eventually, needs};

use crate::{INSTANCE, PUBLISHED};

const SOON: Duration = Duration::from_secs(15);
/// What nobody may read on the way.
const SECRET: &str = "the-words-of-a-client";

/// Three nodes with nothing but their configuration.
fn nothing() -> Cluster {
    Cluster::of(3).without_agents().start()
}

/// From nothing to an authority and certificates for all, by the first four of the commands of `docs/security.md`.
fn certified(cluster: &Cluster) {
    let [a, b, c] = cluster.nodes();
    let authority = a.directory().join("ca");
    let more = "[identity]\nauthority = \"ca\"\n".to_owned();
    a.configure(&Settings { more, ..cluster.settings().clone() });
    let _ = a.plexus(["ca", "init", authority.to_str().expect("a text")]).ok();
    a.restart_agent();
    a.wait_ready(SOON);
    let token = a.plexus(["join-token", "create", "--uses", "2"]).ok();
    for node in [b, c] {
        node.configure(cluster.settings());
        node.set_agent_variable("PLEXUS_JOIN", token.trim());
        node.restart_agent();
        node.wait_ready(SOON);
    }
    for node in [a, b, c] {
        eventually!(SOON, tunnels(node), |known| *known == 3);
    }
}

/// How many nodes take tunnels, as one of them sees it.
fn tunnels(node: &Node) -> usize {
    let mtls = node.plexus_json(["mtls"]);
    let nodes = mtls["nodes"].as_array().cloned().unwrap_or_default();
    nodes.iter().filter(|node| node["tunnel_port"] == 7443).count()
}

fn wait_mode(cluster: &Cluster, mode: &str) {
    for node in cluster.all() {
        eventually!(SOON, node.plexus_json(["mtls"])["mode"].clone(), |known| known == mode);
    }
}

fn status(from: &Node, address: SocketAddr) -> Option<u16> {
    from.get(address, &format!("/{SECRET}")).map(|answer| answer.status).ok()
}

fn streams(node: &Node, end: &str) -> f64 {
    node.metric("plexus_tunnel_streams_total", &format!("end=\"{end}\"")).unwrap_or_default()
}

/// Everything that passes a node's link, in a file.
struct Capture {
    file: PathBuf,
    process: Process,
}

impl Capture {
    fn of(node: &Node, name: &str) -> Self {
        let file = node.directory().join(format!("{name}.pcap"));
        let mut command = node.namespace().command("tcpdump");
        command
            .args(["-i", "eth0", "--immediate-mode", "-U", "-w"])
            .arg(&file)
            .args(["-Z", "root", "not", "port", "2379"]);
        let log = node.directory().join(format!("{name}.log"));
        let process = Process::start(name, &mut command, &log);
        eventually!(SOON, process.output(), |log| log.contains("listening on"));
        Self { file, process }
    }

    fn has(&self, words: &str) -> bool {
        let octets = std::fs::read(&self.file).unwrap_or_default();
        octets.windows(words.len()).any(|some| some == words.as_bytes())
    }

    fn octets(&self) -> usize {
        std::fs::metadata(&self.file).map_or(0, |file| usize::try_from(file.len()).unwrap_or(usize::MAX))
    }

    fn end(mut self) {
        self.process.kill();
    }
}

#[test]
fn three_nodes_are_strict_after_five_commands_and_nothing_is_read_on_the_way() {
    needs!("etcd", "etcdctl", "tcpdump", "nft");
    let cluster = nothing();
    let [a, b, c] = cluster.nodes();
    certified(&cluster);
    let _backend = c.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-c-9000"]);
    cluster.publish("web", PUBLISHED);

    // In the clear, a listener on the way reads along: the test can see it.
    let before = Capture::of(c, "before");
    assert_eq!(status(a, a.at(PUBLISHED)), Some(200));
    eventually!(SOON, before.has(SECRET), |read| *read);
    before.end();

    let said = b.plexus(["mtls", "strict"]).ok();
    assert!(said.contains("by mutual TLS alone"), "{said}");
    wait_mode(&cluster, "strict");
    let _ = eventually!(SOON, b.can_connect(c.at(INSTANCE)), |open| !*open);
    let during = Capture::of(c, "during");
    let seen = streams(c, "receiver");
    for node in [a, b, c] {
        for _ in 0..20 {
            assert_eq!(status(node, node.at(PUBLISHED)), Some(200), "{}", node.name());
        }
    }
    assert!(streams(c, "receiver") >= seen + 40.0, "two nodes came by tunnels");
    let _ = eventually!(SOON, during.octets(), |octets| *octets > 10_000);
    assert!(!during.has(SECRET) && !during.has("web-c-9000"), "nothing of it");
    during.end();

    // Whoever comes otherwise is refused and counted, and the node itself is not.
    assert_eq!(status(c, c.at(INSTANCE)), Some(200));
    assert_eq!(status(b, c.at(INSTANCE)), None);
    eventually!(Duration::from_secs(30), c.metric("plexus_mtls_plain_refused_total", ""), |count| {
        count.is_some_and(|count| count >= 1.0)
    });
    assert!(c.agent_log().contains("in the clear, and are refused"), "{}", c.agent_log());
    let table = c.exec("nft", &["list", "table", "inet", "plexus-mtls"]).ok();
    assert!(table.contains(&format!("{} . {INSTANCE}", c.address())), "{table}");

    // What is strict does not open up with an agent that goes, however it goes.
    c.terminate_agent();
    let _ = c.wait_agent_end(SOON);
    assert_eq!((status(b, c.at(INSTANCE)), status(c, c.at(INSTANCE))), (None, Some(200)));
    c.restart_agent();
    c.wait_ready(SOON);
    assert_eq!(status(b, c.at(INSTANCE)), None);
    cluster.wait_serving("web", &["web-c-9000"]);
    eventually!(SOON, status(b, b.at(PUBLISHED)), |status| *status == Some(200));

    // Back again, the packet filter is as it was.
    let _ = a.plexus(["mtls", "off"]).ok();
    eventually!(SOON, status(b, c.at(INSTANCE)), |status| *status == Some(200));
    let tables = c.exec("nft", &["list", "tables"]).ok();
    assert!(!tables.contains("plexus-mtls"), "{tables}");
}

#[test]
fn a_live_mesh_becomes_strict_and_comes_back_and_no_connection_is_lost() {
    needs!("etcd", "etcdctl", "nft");
    let cluster = nothing();
    let [a, b, c] = cluster.nodes();
    certified(&cluster);
    let _backends = [b.serve("web", INSTANCE), c.serve("web", INSTANCE)];
    cluster.wait_serving("web", &["web-b-9000", "web-c-9000"]);
    cluster.publish("web", PUBLISHED);
    let load = a.load(a.at(PUBLISHED));
    load.wait_for(100);
    let mut held = Vec::new();
    for mode in ["permissive", "strict", "permissive", "off", "strict", "off"] {
        let mut open = a.hold(a.at(PUBLISHED)).expect("a connection");
        assert_eq!(open.get("/").expect("an answer").status, 200);
        held.push(open);
        let _ = a.plexus(["mtls", mode]).ok();
        wait_mode(&cluster, mode);
        let came = || {
            let before = streams(a, "sender");
            load.wait_for(200);
            streams(a, "sender") - before
        };
        let _ = eventually!(SOON, came(), |came| if mode == "off" { *came == 0.0 } else { *came >= 200.0 });
        for open in &mut held {
            assert_eq!(open.get("/").expect("it goes on").status, 200, "opened before {mode}");
        }
    }
    // Another agent takes over on the way, on the side that sends and on the side that receives.
    let _ = a.plexus(["mtls", "strict"]).ok();
    wait_mode(&cluster, "strict");
    for node in [a, b] {
        let mut before = node.take_over();
        load.wait_for(200);
        for open in &mut held {
            assert_eq!(open.get("/").expect("it goes on").status, 200);
        }
        drop(held.split_off(0));
        assert!(before.wait(SOON).success());
        load.wait_for(100);
    }
    let record = load.stop();
    assert!(record.failed.is_empty(), "{record:?}");
}

#[test]
fn a_node_that_is_revoked_is_cut_off_at_once_and_one_without_a_certificate_never_gets_in() {
    needs!("etcd", "etcdctl", "nft", "openssl");
    let cluster = nothing();
    let [a, b, c] = cluster.nodes();
    certified(&cluster);
    let _backend = c.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-c-9000"]);
    cluster.publish("web", PUBLISHED);
    let _ = a.plexus(["mtls", "strict"]).ok();
    wait_mode(&cluster, "strict");

    // Nobody speaks with the tunnel port without a certificate, nor by an older version of TLS.
    let tunnel = c.at(7443).to_string();
    for version in ["-tls1_3", "-tls1_2"] {
        let said = b.exec("timeout", &["5", "openssl", "s_client", "-connect", &tunnel, version, "-brief"]);
        assert!(version == "-tls1_3" || !said.success(), "{version}");
    }
    let failed = || c.metric("plexus_tunnel_failures_total", "end=\"receiver\",reason=\"handshake\"");
    eventually!(SOON, failed(), |count| count.is_some_and(|count| count >= 2.0));

    let mut held = b.hold(b.at(PUBLISHED)).expect("a connection");
    assert_eq!(held.get("/").expect("an answer").status, 200);
    let mut kept = a.hold(a.at(PUBLISHED)).expect("a connection");
    assert_eq!(kept.get("/").expect("an answer").status, 200);
    let _ = a.plexus(["node", "revoke", b.name()]).ok();
    eventually!(SOON, held.get("/").is_err(), |broken| *broken);
    eventually!(SOON, status(b, b.at(PUBLISHED)), |status| status.is_none());
    assert_eq!(kept.get("/").expect("it goes on").status, 200);
    assert_eq!(status(a, a.at(PUBLISHED)), Some(200));
}

#[test]
fn a_service_may_be_stricter_than_the_mesh_and_a_node_without_a_certificate_is_told_of() {
    needs!("etcd", "etcdctl", "nft");
    let cluster = Cluster::of(2).start();
    let [a, b] = cluster.nodes();
    let _backends = [b.serve("web", INSTANCE), b.serve("db", 9001)];
    cluster.wait_serving("web", &["web-b-9000"]);
    cluster.wait_serving("db", &["db-b-9001"]);
    cluster.publish("web", PUBLISHED);
    cluster.publish("db", 8081);
    let said = a.plexus(["mtls", "strict"]).refused();
    assert!(said.contains("a, b take no tunnels") && said.contains("--force"), "{said}");
    let _ = a.plexus(["set", "web", "mtls=strict"]).ok();
    eventually!(SOON, status(a, a.at(PUBLISHED)), |status| status.is_none());
    assert_eq!(status(b, b.at(PUBLISHED)), Some(200), "its own");
    assert_eq!(status(a, a.at(8081)), Some(200), "another service");
    eventually!(SOON, a.can_connect(b.at(INSTANCE)), |open| !*open);
    assert!(a.can_connect(b.at(9001)));
    let refused = a.metric("plexus_connections_without_tunnel_total", "service=\"web\",then=\"refused\"");
    assert!(refused.is_some_and(|count| count >= 1.0), "{refused:?}");
    let _ = a.plexus(["unset", "web", "mtls"]).ok();
    eventually!(SOON, status(a, a.at(PUBLISHED)), |status| *status == Some(200));
}
