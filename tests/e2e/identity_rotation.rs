//! The authority is replaced by another one, and nobody is lost on the way.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use plexus_tests::{Cluster, Node, Settings, eventually, needs};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
const VARIABLE: &str = "PLEXUS_JOIN";
/// Certificates are renewed every few seconds.
const LIFE: &str = "10s";

fn identity(node: &Node) -> Value {
    node.plexus_json(["identity"])
}

fn authorities(node: &Node) -> Vec<String> {
    let said = identity(node)["authorities"].clone();
    serde_json::from_value(said).unwrap_or_default()
}

fn wait_identity(node: &Node) {
    eventually!(SOON, identity(node)["id"].clone(), |id| id.is_string());
}

fn phase(node: &Node) -> String {
    node.plexus_json(["ca", "status"])["rotation"]["phase"].as_str().unwrap_or_default().to_owned()
}

fn directory(node: &Node) -> String {
    node.directory().join("ca").to_str().expect("a text").to_owned()
}

fn copy(from: &Node, to: &Node) {
    let (from, to) = (directory(from), directory(to));
    let script = format!("mkdir -p {to} && cp -p {from}/* {to}/");
    let _ = plexus_tests::run(&["sh", "-c", &script]).expect("a shell").ok();
}

fn token(node: &Node) -> String {
    node.plexus(["join-token", "create", "--unlimited"]).ok().trim().to_owned()
}

fn join(node: &Node, token: &str) {
    node.set_agent_variable(VARIABLE, token);
    node.restart_agent();
    wait_identity(node);
}

/// Nodes of which the first two certify others, for so long; the others have nothing yet.
fn signed(nodes: usize, life: &str) -> Cluster {
    let cluster = Cluster::of(nodes).without_agents().start();
    let nodes: Vec<_> = cluster.all().collect();
    let [a, b, others @ ..] = &nodes[..] else { panic!("two nodes at least") };
    let _ = a.plexus(["ca", "init", &directory(a)]).ok();
    copy(a, b);
    let more = format!("[identity]\nauthority = \"ca\"\nlife = \"{life}\"\n");
    for node in [a, b] {
        node.configure(&Settings { more: more.clone(), ..cluster.settings().clone() });
        node.restart_agent();
        wait_identity(node);
    }
    others.iter().for_each(|node| node.configure(cluster.settings()));
    cluster
}

/// How often a signing node did not believe who has come.
fn disbelieved(node: &Node) -> f64 {
    ["expired", "unknown_issuer", "bad", "somebody_else", "revoked"]
        .iter()
        .filter_map(|why| {
            node.metric("plexus_identity_refused_total", &format!("reason=\"certificate_{why}\""))
        })
        .sum()
}

/// Connects by mutual TLS as `node`, with what it has on its disk now. What OpenSSL says of it.
fn connect(node: &Node, to: &Node) -> String {
    let read =
        fs::read_to_string(node.directory().join("state/identity/identity.json")).expect("an identity");
    let read: Value = serde_json::from_str(&read).expect("JSON");
    let own = node.directory().join("client");
    fs::create_dir_all(&own).expect("a directory");
    for part in ["key", "chain", "roots"] {
        fs::write(own.join(part), read[part].as_str().expect("a text")).expect("written");
    }
    // An empty question ends the conversation.
    let script = format!(
        "cd {} && printf '\\0\\0\\0\\0' | openssl s_client -connect {} -tls1_3 -alpn plexus-join/1 -cert chain -cert_chain chain \
         -key key -CAfile roots -verify_return_error -brief 2>&1; true",
        own.display(),
        to.at(7444)
    );
    node.exec("sh", &["-c", &script]).ok()
}

#[test]
fn the_authority_is_replaced_twice_while_clients_keep_connecting() {
    needs!("etcd", "etcdctl", "openssl");
    let cluster = signed(3, LIFE);
    let [a, b, c] = cluster.nodes();
    let before = token(a);
    join(c, &before);
    let first = authorities(c);
    assert_eq!(first.len(), 1);

    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut connected = 0;
            while !is_over.load(Ordering::Relaxed) {
                for to in [a, b] {
                    let said = connect(c, to);
                    assert!(said.contains("Verification: OK") && !said.contains("alert"), "{said}");
                    connected += 1;
                }
            }
            connected
        });
        for round in 0..2 {
            let last = authorities(c);
            let said = a.plexus(["ca", "rotate", &directory(a)]).ok();
            assert!(said.contains(&last[0]), "{said}");
            // Nothing is certified by it before its key is with every node that signs.
            let waits = || a.plexus_json(["ca", "status"])["rotation"].clone();
            eventually!(SOON, waits(), |said| said["waits_for"].to_string().contains("copy the directory"));
            assert_eq!((phase(a), authorities(b)), ("trust".to_owned(), last.clone()), "{round}");
            let said = b.plexus(["ca", "rotate", &directory(b)]).refused();
            assert!(said.contains("copy the directory"), "{said}");
            copy(a, b);
            eventually!(SOON, phase(a), |phase| phase == "done");
            for node in [a, b, c] {
                eventually!(SOON, authorities(node), |now| now.len() == 1 && *now != last);
                assert_eq!(authorities(node), authorities(a));
            }
            for node in [a, b] {
                let said = node.plexus(["ca", "rotate", &directory(node)]).ok();
                assert!(said.contains("is gone"), "{said}");
                assert!(!node.directory().join("ca/next-key.pem").exists());
            }
        }
        is_over.store(true, Ordering::Relaxed);
        let connected = client.join().expect("no connection fails");
        assert!(connected > 20, "{connected}");
    });
    assert_eq!((disbelieved(a), disbelieved(b)), (0.0, 0.0));
    assert_ne!(authorities(c), first);

    // Who knows the mesh by the first authority knows it no more; by a token of now it does.
    c.kill_agent();
    fs::remove_file(c.directory().join("state/identity/identity.json")).expect("removed");
    c.set_agent_variable(VARIABLE, &before);
    c.restart_agent();
    eventually!(SOON, identity(c)["problem"].to_string(), |problem| problem.contains("asking"));
    c.kill_agent();
    join(c, a.plexus(["join-token", "create", "--node", c.name()]).ok().trim());
}

#[test]
fn a_rotation_is_taken_back_and_nobody_is_lost() {
    needs!("etcd", "etcdctl", "openssl");
    let cluster = signed(3, LIFE);
    let [a, b, c] = cluster.nodes();
    join(c, &token(b));
    let first = authorities(c);
    let said = a.plexus(["ca", "rotate", &directory(a), "--abort"]).refused();
    assert!(said.contains("there is none"), "{said}");
    let _ = a.plexus(["ca", "rotate", &directory(a)]).ok();
    copy(a, b);
    eventually!(SOON, phase(a), |phase| phase == "renew");
    let said = b.plexus(["ca", "rotate", &directory(b), "--abort"]).ok();
    assert!(said.contains("taken back"), "{said}");
    eventually!(SOON, phase(a), |phase| phase == "aborted");
    for node in [a, b, c] {
        eventually!(SOON, authorities(node), |now| *now == first);
    }
    let said = a.plexus(["ca", "rotate", &directory(a)]).refused();
    assert!(said.contains("--abort"), "{said}");
    for node in [a, b] {
        let said = node.plexus(["ca", "rotate", &directory(node), "--abort"]).ok();
        assert!(said.contains("removed"), "{said}");
    }
    let said = connect(c, a);
    assert!(said.contains("Verification: OK"), "{said}");
    assert_eq!((disbelieved(a), disbelieved(b)), (0.0, 0.0));

    // Another one goes through.
    let _ = b.plexus(["ca", "rotate", &directory(b)]).ok();
    copy(b, a);
    eventually!(SOON, phase(a), |phase| phase == "done");
    eventually!(SOON, authorities(c), |now| now.len() == 1 && *now != first);
}

#[test]
fn a_node_that_was_away_comes_back_as_long_as_its_certificate_holds() {
    needs!("etcd", "etcdctl");
    let cluster = signed(3, "40s");
    let [a, b, c] = cluster.nodes();
    join(c, &token(a));
    let first = authorities(c);
    c.kill_agent();
    eventually!(SOON, a.known_nodes(), |nodes| !nodes.contains(&c.name().to_owned()));

    let _ = a.plexus(["ca", "rotate", &directory(a)]).ok();
    copy(a, b);
    eventually!(SOON, phase(a), |phase| phase == "renew");
    for node in [a, b] {
        eventually!(SOON, authorities(node), |now| now.len() == 2 && now[0] != first[0]);
    }
    let waits = || a.plexus_json(["ca", "status"])["rotation"]["waits_for"].to_string();
    eventually!(SOON, waits(), |said| said.contains("its agent does not run"));
    // It believes the old one alone, and shows a certificate of it.
    c.restart_agent();
    eventually!(SOON, phase(a), |phase| phase == "done");
    for node in [a, b, c] {
        eventually!(SOON, authorities(node), |now| now.len() == 1 && *now != first);
    }
    assert_eq!(identity(c)["problem"], Value::Null);
    let by_token =
        |node: &Node| node.metric("plexus_identity_certified_total", "by=\"token\"").unwrap_or_default();
    assert_eq!(by_token(a) + by_token(b), 1.0, "it did not join anew");
    assert_eq!((disbelieved(a), disbelieved(b)), (0.0, 0.0));
}
