//! Who may do what with an agent.

use std::fs;
use std::time::Duration;

use plexus_tests::{Cluster, Node, Settings, Signal, eventually, needs};

use crate::INSTANCE;

const SOON: Duration = Duration::from_secs(5);
const READER: &str = "reader-0123456789abcdef";
const OPERATOR: &str = "operator-0123456789abcdef";

/// The status that the agent of `of` answers `from` another node, or itself, with.
fn ask(from: &Node, of: &Node, method: &str, path: &str, header: &str) -> String {
    let host = if from.name() == of.name() { "127.0.0.1:7070".to_owned() } else { of.at(7070).to_string() };
    let url = format!("http://{host}{path}");
    let arguments = [
        "-sS",
        "-m",
        "5",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "-X",
        method,
        "-H",
        header,
        "-H",
        "content-type: application/json",
        "-d",
        "{}",
        &url,
    ];
    from.exec("curl", &arguments).ok()
}

#[test]
fn roles_say_what_may_be_done_and_tokens_who_may_do_more() {
    needs!("etcd", "etcdctl", "curl");
    let cluster = Cluster::of(2).without_agents().start();
    let [a, b] = cluster.nodes();
    let (reader, watcher) = a.write_token("watcher", "read", READER);
    let (operator, on_call) = a.write_token("on-call", "operate", OPERATOR);
    let configure_a = |tokens: &[&str]| {
        a.configure(&Settings { more: tokens.concat(), ..cluster.settings().clone() });
        let text = fs::read_to_string(a.config_file()).expect("a configuration");
        let keys = format!("[admin]\nloopback_role = \"register\"\nlisten = [\"{}\", ", a.at(7070));
        fs::write(a.config_file(), text.replace("[admin]\nlisten = [", &keys)).expect("written");
    };
    configure_a(&[&watcher, &on_call]);
    b.configure(cluster.settings());
    [a, b].iter().for_each(|node| node.restart_agent());
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);

    let (nothing, guess) = ("x-y: z", "authorization: Bearer guess-0123456789abcdef");
    let (reads, operates) =
        (format!("x-consul-token: {READER}"), format!("authorization: Bearer {OPERATOR}"));
    let maintenance = "/v1/agent/maintenance?enable=false";
    for (method, path, header, far, near) in [
        ("GET", "/readyz", nothing, "200", "200"),
        ("GET", "/readyz", guess, "403", "403"),
        ("GET", "/metrics", nothing, "403", "200"),
        ("GET", "/v1/health/service/web", &reads, "200", "200"),
        ("GET", &format!("/v1/catalog/services?token={READER}"), nothing, "200", "200"),
        ("PUT", maintenance, nothing, "403", "403"),
        ("PUT", maintenance, &reads, "403", "403"),
        ("PUT", maintenance, &operates, "200", "200"),
    ] {
        let seen = (ask(b, a, method, path, header), ask(a, a, method, path, header));
        assert_eq!(seen, (far.to_owned(), near.to_owned()), "{method} {path} {header}");
    }
    let refused = |reason: &str| a.metric("plexus_admin_refused_total", &format!("reason=\"{reason}\""));
    assert_eq!(["unknown_token", "no_token", "role"].map(refused), [Some(2.0), Some(3.0), Some(2.0)]);

    // A program of this host registers itself, and no more.
    let said = a.plexus(["publish", "web", "8080"]).refused();
    assert!(said.contains("this needs the role \"operate\"") && said.contains("--token-file"), "{said}");
    let said = a.plexus(["publish", "web", "8080", "--token-file", &reader]).refused();
    assert!(said.contains("the token \"watcher\" has the role \"read\""), "{said}");
    let _ = a.plexus(["publish", "web", "8080", "--token-file", &operator]).ok();
    let _ = a.plexus(["register", "api", "--port", "9001", "--id", "api-1"]).ok();
    cluster.wait_serving("api", &["api-1"]);
    let _ = a.plexus(["drain", "api-1"]).ok();
    assert!(a.plexus(["drain", "--node"]).refused().contains("\"operate\""));

    // A container runtime's socket makes whoever speaks with it root: the agent speaks with none for just anyone.
    let socket = "/var/run/docker.sock";
    let said = a.plexus(["register", "root", "--socket", socket]).refused();
    assert!(said.contains("with the agent's rights") && said.contains("services.d"), "{said}");
    for check in [
        format!(r#"{{"http": "/containers/create", "method": "POST", "unix": "{socket}"}}"#),
        format!(r#"{{"docker": "web", "engine": "{socket}"}}"#),
        r#"{"systemd": "web", "bus": "/run/bus"}"#.to_owned(),
    ] {
        let instance = format!(r#"{{"name": "root", "port": 9002, "check": [{check}]}}"#);
        let json = "content-type: application/json";
        let url = "http://127.0.0.1:7070/v1/plexus/instances";
        let said = a.exec("curl", &["-sS", "-H", json, "-d", &instance, url]).ok();
        assert!(said.contains("connects to a unix socket of this node"), "{said}");
    }
    assert!(a.known("root").is_empty());
    let run = a.directory().join("app.sock");
    let run = run.to_str().expect("a text");
    let _ = a.plexus(["register", "app", "--socket", run, "--id", "app-1", "--token-file", &operator]).ok();
    cluster.wait_serving("app", &["app-1"]);

    // A token is exchanged while the agent runs, and stands nowhere.
    let (_, exchanged) = a.write_token("on-call", "operate", "another-0123456789abcdef");
    configure_a(&[&watcher, &exchanged]);
    a.signal_agent(Signal::HUP);
    eventually!(SOON, ask(b, a, "PUT", maintenance, &operates), |status| status == "403");
    let other = "authorization: Bearer another-0123456789abcdef";
    assert_eq!(ask(b, a, "PUT", maintenance, other), "200");
    let log = a.agent_log();
    assert!(log.contains("operated through the admin interface") && log.contains("on-call"), "{log}");
    let shown = a.plexus(["config", "check", a.config_file().to_str().expect("a text")]).ok();
    let metrics = a.admin("/metrics").expect("an answer").body;
    for text in [log, shown, metrics] {
        assert!(!text.contains("0123456789abcdef"), "{text}");
    }
}
