//! Nodes that prove who they are.

use std::fs;
use std::time::Duration;

use plexus_tests::server::api::Api;
use plexus_tests::server::cfssl::Cfssl;
use plexus_tests::{Cluster, Node, Settings, eventually, needs};

const SOON: Duration = Duration::from_secs(15);
const VARIABLE: &str = "PLEXUS_JOIN";

/// What `plexus identity` says; a key of it as text.
fn identity(node: &Node, key: &str) -> String {
    node.plexus_json(["identity"])[key].as_str().unwrap_or_default().to_owned()
}

fn wait_identity(node: &Node) {
    let id = format!("spiffe://mesh.internal/node/{}", node.name());
    eventually!(SOON, identity(node, "id"), |known| *known == id);
}

fn join(node: &Node, token: &str) {
    node.set_agent_variable(VARIABLE, token);
    start_anew(node);
}

fn start_anew(node: &Node) {
    if !node.agent_has_ended() {
        node.kill_agent();
    }
    node.restart_agent();
}

fn refused(signer: &Node, reason: &str) -> f64 {
    signer.metric("plexus_identity_refused_total", &format!("reason=\"{reason}\"")).unwrap_or_default()
}

/// Two nodes, of which the first certifies others for so long, and a third one that has nothing yet.
fn certified(life: &str) -> Cluster {
    let cluster = Cluster::of(3).without_agents().start();
    let [a, b, c] = cluster.nodes();
    let authority = a.directory().join("ca");
    let said = a.plexus(["ca", "init", authority.to_str().expect("a text")]).ok();
    assert!(said.contains("authority of mesh.internal"), "{said}");
    let more = format!("[identity]\nauthority = \"ca\"\nlife = \"{life}\"\n");
    a.configure(&Settings { more, ..cluster.settings().clone() });
    [b, c].iter().for_each(|node| node.configure(cluster.settings()));
    a.restart_agent();
    wait_identity(a);
    let token = a.plexus(["join-token", "create"]).ok();
    join(b, token.trim());
    wait_identity(b);
    c.restart_agent();
    cluster
}

#[test]
fn a_node_joins_by_a_token_and_is_known_after_a_restart_without_one() {
    needs!("etcd", "etcdctl");
    let cluster = certified("1h");
    let [a, b, c] = cluster.nodes();
    let authorities = |node: &Node| node.plexus_json(["identity"])["authorities"].clone();
    assert_eq!(authorities(a), authorities(b));

    // Nobody is certified who has nothing to show; a token lets in as many as it says.
    let said = c.plexus(["identity"]).refused();
    assert!(said.contains("--join TOKEN"), "{said}");
    let said = b.plexus(["join-token", "create"]).refused();
    assert!(said.contains("does not sign"), "{said}");
    let token = a.plexus(["join-token", "create", "--node", "another"]).ok();
    join(c, token.trim());
    eventually!(SOON, identity(c, "problem"), |problem| problem.contains("is for the node another alone"));
    assert!(refused(a, "token_for_another") >= 1.0);
    assert_eq!(identity(c, "id"), "");
    let token = a.plexus(["join-token", "create", "--ttl", "5m"]).ok();
    join(c, token.trim());
    wait_identity(c);

    // What it has is its own, and enough for the next start.
    let kept = c.directory().join("state/identity/identity.json");
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&kept).expect("a file"));
    assert_eq!(mode & 0o777, 0o600);
    let until = identity(c, "not_after");
    join(c, token.trim());
    wait_identity(c);
    assert_eq!(identity(c, "not_after"), until, "the one of before");

    // The token is spent, and stands nowhere.
    fs::remove_file(&kept).expect("removed");
    start_anew(c);
    eventually!(SOON, identity(c, "problem"), |problem| problem.contains("token_used_up")
        || problem.contains("name_taken"));
    let metrics = a.admin("/metrics").expect("an answer").body;
    for text in [a.agent_log(), c.agent_log(), metrics] {
        assert!(!text.contains(token.trim()) && !text.contains("PRIVATE KEY"), "{text}");
    }
}

#[test]
fn certificates_are_renewed_and_those_of_a_revoked_node_are_not() {
    needs!("etcd", "etcdctl");
    let cluster = certified("10s");
    let [a, b, c] = cluster.nodes();
    join(c, a.plexus(["join-token", "create"]).ok().trim());
    wait_identity(c);
    for node in [a, b, c] {
        let first = identity(node, "not_after");
        eventually!(SOON, identity(node, "not_after"), |until| *until != first);
    }

    // Any node takes the word of an operator, and each hears of it.
    let said = b.plexus(["node", "revoke", c.name()]).ok();
    assert!(said.contains("join-token create --node"), "{said}");
    for node in [a, b, c] {
        let revoked = || node.plexus_json(["identity"])["revoked"][0]["node"].clone();
        eventually!(SOON, revoked(), |revoked| revoked == c.name());
        assert_eq!(node.metric("plexus_identity_revoked_nodes", ""), Some(1.0));
    }
    eventually!(SOON, identity(c, "problem"), |problem| problem.contains("asking"));
    let before = identity(b, "not_after");
    eventually!(SOON, identity(b, "not_after"), |until| *until != before);

    // A token for anyone does not bring it back, one for itself does.
    join(c, a.plexus(["join-token", "create", "--uses", "9"]).ok().trim());
    eventually!(SOON, identity(c, "problem"), |problem| problem.contains("were revoked"));
    assert!(refused(a, "revoked") >= 1.0);
    join(c, a.plexus(["join-token", "create", "--node", c.name(), "--unlimited"]).ok().trim());
    eventually!(SOON, identity(c, "problem"), |problem| problem.is_empty());
    wait_identity(c);

    // Without who signs, what is there holds until it ends; then it is said, and put right when one is back.
    a.kill_agent();
    eventually!(SOON, identity(b, "problem"), |problem| !problem.is_empty());
    a.start_agent();
    eventually!(SOON, identity(b, "problem"), |problem| problem.is_empty());
}

#[test]
fn an_authority_that_is_not_kept_well_is_not_used() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let directory = a.directory().join("ca");
    let directory = directory.to_str().expect("a text");
    let _ = a.plexus(["ca", "init", directory]).ok();
    let said = a.plexus(["ca", "init", directory]).refused();
    assert!(said.contains("not overwritten"), "{said}");
    let _ = a.exec("chmod", &["644", &format!("{directory}/root-key.pem")]).ok();
    let more = "[identity]\nauthority = \"ca\"\n".to_owned();
    a.configure(&Settings { more, ..cluster.settings().clone() });
    a.start_agent();
    assert!(!a.wait_agent_end(SOON).success());
    assert!(a.agent_log().contains("chmod 600"), "{}", a.agent_log());
}

/// An authority of somebody else's, and a certificate of it for this name, for so many days, as that one would write it.
fn written(node: &Node, name: &str, days: u32) {
    let directory = node.directory().join("tls");
    fs::create_dir_all(&directory).expect("a directory");
    let script = format!(
        "set -e
         cd {}
         ec='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
         [ -e ca.pem ] || openssl req -x509 $ec -days 9 -subj /CN=corp -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.pem
         openssl req $ec -subj /CN=x -keyout new.key -out x.csr
         echo subjectAltName=URI:spiffe://corp.example/{name} > ext
         openssl x509 -req -in x.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} -extfile ext -out new.pem
         mv new.key tls.key; mv new.pem tls.crt",
        directory.display()
    );
    let _ = node.exec("sh", &["-c", &script]).ok();
}

#[test]
fn a_certificate_that_somebody_else_renews_is_taken_from_files() {
    needs!("etcd", "etcdctl", "openssl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let files = "[identity]\ncertificate = \"tls/tls.crt\"\nkey = \"tls/tls.key\"\nroots = \"tls/ca.pem\"\n";
    let configure = |more: String| a.configure(&Settings { more, ..cluster.settings().clone() });
    configure(format!("{files}authority = \"ca\"\n"));
    a.start_agent();
    assert!(!a.wait_agent_end(SOON).success());
    assert!(a.agent_log().contains("identity.certificate and identity.authority"), "{}", a.agent_log());

    // They come later, and are renewed while the agent runs.
    configure(files.to_owned());
    a.restart_agent();
    eventually!(SOON, identity(a, "problem"), |problem| problem.contains("tls.crt"));
    written(a, "node/a", 2);
    eventually!(SOON, identity(a, "id"), |id| id == "spiffe://corp.example/node/a");
    eventually!(SOON, identity(a, "problem"), |problem| problem.is_empty());
    let first = identity(a, "not_after");
    written(a, "node/a", 3);
    eventually!(SOON, identity(a, "not_after"), |until| *until != first);
    let good = identity(a, "not_after");

    // What is no use is told, and what was there before stays.
    for (name, days, said) in [
        (
            "node/b",
            2,
            "is the certificate of spiffe://corp.example/node/b, and this node is spiffe://corp.example/node/a",
        ),
        ("ns/default/sa/web", 2, "spiffe://corp.example/ns/default/sa/web"),
    ] {
        written(a, name, days);
        eventually!(SOON, identity(a, "problem"), |problem| problem.contains(said));
        assert_eq!(
            (identity(a, "id"), identity(a, "not_after")),
            ("spiffe://corp.example/node/a".to_owned(), good.clone())
        );
    }
    written(a, "node/a", 4);
    eventually!(SOON, identity(a, "problem"), |problem| problem.is_empty());
    let script =
        format!("cd {} && cp ca.key new.key && mv new.key tls.key", a.directory().join("tls").display());
    let _ = a.exec("sh", &["-c", &script]).ok();
    eventually!(SOON, identity(a, "problem"), |problem| problem.contains("of another key"));
    written(a, "node/a", 4);
    eventually!(SOON, identity(a, "problem"), |problem| problem.is_empty());
    assert_eq!(a.plexus_json(["identity"])["authorities"].as_array().map(Vec::len), Some(1));
}

#[test]
fn an_authority_elsewhere_certifies_whom_a_node_that_signs_lets_in() {
    needs!("etcd", "etcdctl", "openssl");
    let cluster = Cluster::of(2).without_agents().start();
    let [a, b] = cluster.nodes();
    let authority =
        Api::start(a.namespace(), 8888, Cfssl::new(&a.directory().join("cfssl"), b"\x01\x23\xab"));
    let script = format!(
        "cd {} && umask 077 && echo 0123AB > auth-key && head -c 32 /dev/urandom | base64 > token-key",
        a.directory().display()
    );
    let _ = a.exec("sh", &["-c", &script]).ok();
    let more = format!(
        "[identity.external]\nurl = \"{}\"\nauth_key_file = \"auth-key\"\nroots = \"cfssl/ca.pem\"\ntoken_key_file = \"token-key\"\n",
        authority.url()
    );
    a.configure(&Settings { more, ..cluster.settings().clone() });
    a.restart_agent();
    wait_identity(a);
    b.configure(cluster.settings());
    let token = a.plexus(["join-token", "create", "--unlimited"]).ok();
    join(b, token.trim());
    wait_identity(b);
    // This node, what it shows those who ask, and the other one.
    assert!(authority.speaks().signed() >= 3);
    assert_eq!(identity(a, "id"), "spiffe://mesh.internal/node/a");
    assert_eq!(a.plexus_json(["identity"])["authorities"], b.plexus_json(["identity"])["authorities"]);

    // What it makes is what was asked for, or nobody's.
    let forget = |node: &Node| {
        node.kill_agent();
        fs::remove_file(node.directory().join("state/identity/identity.json")).expect("removed");
        node.restart_agent();
    };
    authority.speaks().lie(Some("spiffe://mesh.internal/node/a"));
    let named = a.plexus(["join-token", "create", "--node", b.name(), "--unlimited"]).ok();
    b.set_agent_variable(VARIABLE, named.trim());
    forget(b);
    eventually!(SOON, identity(b, "problem"), |problem| problem
        .contains("something else than was asked for"));
    assert!(refused(a, "external") >= 1.0);
    authority.speaks().lie(None);
    eventually!(SOON, identity(b, "id"), |id| id == "spiffe://mesh.internal/node/b");

    // While it is away, what holds holds; a key that it does not know is said.
    authority.stop();
    forget(b);
    eventually!(SOON, identity(b, "problem"), |problem| problem.contains("asking http"));
    assert_eq!(identity(a, "problem"), "");
    authority.start_again();
    wait_identity(b);
    let _ = a.exec("sh", &["-c", &format!("echo ff > {}/auth-key", a.directory().display())]).ok();
    start_anew(a);
    eventually!(SOON, identity(a, "problem"), |problem| problem.contains("invalid token"));
}
