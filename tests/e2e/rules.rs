//! Rules about who may talk to whom: allowed and denied by the clients' own addresses, live, and whatever becomes of the store.

use std::net::SocketAddr;
use std::time::Duration;

use plexus_tests::client::http::Held;
use plexus_tests::client::udp::Talk;
use plexus_tests::{Cluster, Namespace, Node, ServiceFile, eventually, needs, throughout};

use crate::{INSTANCE, PUBLISHED};

const SOON: Duration = Duration::from_secs(5);
/// Longer than an answer takes.
const ANSWER: Duration = Duration::from_millis(500);
/// The addresses of node a's containers, of which the second is one more of the first's machine.
const WEB: &str = "172.30.0.2";
const BATCH: &str = "172.30.0.3";
/// The node, as they see it.
const GATEWAY: &str = "172.30.0.1";

/// Two nodes; `api` on both, published; on the first `web` and `batch` in containers, which only ask.
struct World {
    cluster: Cluster,
    containers: Namespace,
}

impl World {
    fn new() -> Self {
        let cluster = Cluster::new(2);
        let [a, _] = cluster.nodes();
        let containers = a.namespace().container("box");
        let _ = containers.exec("ip", &["address", "add", &format!("{BATCH}/24"), "dev", "eth0"]).ok();
        a.define(&client("web", WEB, "prod"));
        a.define(&client("batch", BATCH, "dev"));
        // Nobody listens there: they fail their checks, and are clients all the same.
        for service in ["web", "batch"] {
            let _ = eventually!(SOON, a.known(service), |ids| *ids == [service]);
        }
        Self { cluster, containers }
    }

    fn a(&self) -> &Node {
        self.cluster.nodes::<2>()[0]
    }

    fn open(&self, client: &str) -> Option<Held> {
        let from = SocketAddr::new(client.parse().expect("an address"), 0);
        let to = SocketAddr::new(GATEWAY.parse().expect("an address"), PUBLISHED);
        self.containers.enter(move || {
            let mut held = Held::open_from(from, to).ok()?;
            held.get("/").is_ok().then_some(held)
        })
    }

    fn may(&self, client: &str) -> bool {
        self.open(client).is_some()
    }

    /// Whether `web`, `batch`, and a process of the host may.
    fn who_may(&self) -> [bool; 3] {
        [self.may(WEB), self.may(BATCH), self.a().get(self.a().at(PUBLISHED), "/").is_ok()]
    }

    #[track_caller]
    fn wait(&self, who: [bool; 3]) {
        let _ = eventually!(SOON, self.who_may(), |may| *may == who);
        // Not only until the next one.
        throughout!(ANSWER, self.who_may(), |may| *may == who);
    }
}

fn client(service: &str, address: &str, env: &str) -> ServiceFile {
    ServiceFile::new(service, 9100)
        .id(service)
        .key("address", &format!("\"{address}\""))
        .key("labels", &format!("{{ env = \"{env}\" }}"))
}

#[test]
fn a_denied_client_is_refused_and_nobody_else_and_what_is_open_goes_on() {
    needs!("etcd", "etcdctl");
    let world = World::new();
    let [a, b] = world.cluster.nodes();
    let _backends = [a, b].map(|node| node.serve("api", INSTANCE));
    world.cluster.wait_serving("api", &["api-a-9000", "api-b-9000"]);
    world.cluster.publish("api", PUBLISHED);
    let _ = a.plexus(["publish", "api", &format!("{PUBLISHED}/udp")]).ok();
    world.wait([true, true, true]);
    let to = SocketAddr::new(GATEWAY.parse().expect("an address"), PUBLISHED);
    let talk = || Talk::open(&world.containers, to).expect("a socket");
    let _ = eventually!(SOON, talk().ask(b"?", ANSWER), Option::is_some);
    let mut open = world.open(WEB).expect("a connection");

    let said = b.plexus(["deny", "web -> api"]).ok();
    assert!(said.contains("rule deny-web-to-api is added"), "{said}");
    world.wait([false, true, true]);
    assert_eq!(talk().ask(b"?", ANSWER), None, "a session of UDP is one as well");
    assert_eq!(open.get("/").expect("it was open before").status, 200);

    let labels = "reason=\"denied\",service=\"api\"";
    assert!(a.metric("plexus_connections_dropped_total", labels).unwrap_or_default() > 1.0);
    assert!(a.metric("plexus_udp_dropped_total", labels).unwrap_or_default() > 0.0);
    let by_rule = a.metric("plexus_rules_denied_total", "rule=\"deny-web-to-api\"");
    assert!(by_rule.unwrap_or_default() > 2.0, "{by_rule:?}");
    let log = a.agent_log();
    assert_eq!(log.matches("a connection is refused by the rules").count(), 1, "once a pair: {log}");
    for node in [a, b] {
        let why = node.plexus(["why", "api", "--from", "web"]).ok();
        assert!(why.contains("web -> api: denied by rule deny-web-to-api (deny web -> api)"), "{why}");
        let why = node.plexus(["why", "api", "--from", "batch"]).ok();
        assert!(why.contains("batch -> api: allowed by the default"), "{why}");
    }

    let _ = a.plexus(["rules", "remove", "deny-web-to-api"]).ok();
    world.wait([true, true, true]);
    let _ = eventually!(SOON, talk().ask(b"?", ANSWER), Option::is_some);
}

#[test]
fn where_the_default_denies_only_what_a_rule_allows_is_connected() {
    needs!("etcd", "etcdctl");
    let world = World::new();
    let [a, b] = world.cluster.nodes();
    let _backend = b.serve("api", INSTANCE);
    world.cluster.wait_serving("api", &["api-b-9000"]);
    world.cluster.publish("api", PUBLISHED);
    world.wait([true, true, true]);
    let _ = a.plexus(["rules", "default", "deny"]).ok();
    world.wait([false, false, false]);
    let _ = b.plexus(["allow", "web", "api"]).ok();
    world.wait([true, false, false]);
    // By labels, which are followed.
    let _ = b.plexus(["allow", "env=test", "*", "--name", "tests"]).ok();
    world.wait([true, false, false]);
    a.define(&client("batch", BATCH, "test"));
    world.wait([true, true, false]);
    // What is denied is denied, whatever allows it.
    let _ = b.plexus(["deny", "env=prod", "api"]).ok();
    world.wait([false, true, false]);
    a.define(&client("web", WEB, "none"));
    world.wait([true, true, false]);
    // Of whom nothing is known, `*` is true.
    let _ = b.plexus(["allow", "*", "api"]).ok();
    world.wait([true, true, true]);
}

#[test]
fn rules_hold_without_a_store_and_over_a_restart_without_one() {
    needs!("etcd", "etcdctl");
    let world = World::new();
    let [a, _] = world.cluster.nodes();
    let _backend = a.serve("api", INSTANCE);
    world.cluster.wait_serving("api", &["api-a-9000"]);
    world.cluster.publish("api", PUBLISHED);
    let _ = a.plexus(["deny", "web", "api"]).ok();
    world.wait([false, true, true]);
    world.cluster.cut_store();
    eventually!(Duration::from_secs(20), a.plexus_json(["status"])["catalog"] == "stale", |stale| *stale);
    world.wait([false, true, true]);
    a.terminate_agent();
    a.wait_agent_end(Duration::from_secs(30));
    a.restart_agent();
    // From the first connection on.
    eventually!(Duration::from_secs(20), (world.may(WEB), world.may(BATCH)), |(web, batch)| {
        assert!(!web, "it was let in before the rules were looked at");
        *batch
    });
    world.wait([false, true, true]);
    let refused = a.plexus(["rules", "default", "deny"]);
    assert!(!refused.success(), "{refused:?}");
    world.cluster.heal_store();
    let _ = eventually!(Duration::from_secs(20), a.plexus(["rules", "default", "deny"]), |ran| ran.success());
    world.wait([false, false, false]);
}
