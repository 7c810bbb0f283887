//! What is admitted, of whom it is believed, and from when on.

use std::net::SocketAddr;
use std::time::Duration;

use nerve::model::{NodeName, RuleRecord, RuleSet};
use nerve::source::{ConfigSource, Draft, Local, Located, Origin, Source};
use nerve::store::{EmbeddedStore, Store};
use prometheus::Registry;
use synapse::catalog::{Change, Freshness, Writer};

use super::*;

/// The host has it, so it is any process's.
const HOST: &str = "192.0.2.1";
const WEB: &str = "172.30.0.2";
const BOTH: &str = "172.30.0.3";

struct World {
    writer: Writer,
    rules: Rules,
    source: ConfigSource,
    store: Arc<dyn Store>,
    watcher: Option<watcher::Handle>,
    tasks: Tasks,
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn address(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

fn local() -> Local {
    Local { node: "a".parse().unwrap(), address: HOST.parse().unwrap() }
}

fn defined(service: &str, at: &str, label: Option<&str>) -> Located {
    let mut draft = Draft::new(name(service), 80.try_into().unwrap());
    draft.address = address(at);
    draft.labels.extend(label.map(|env| ("env".to_owned(), env.to_owned())));
    let origin = Origin::Config { file: "x".into(), line: 1 };
    Located { definition: draft.resolve(&local()).unwrap(), origin }
}

fn set(text: &serde_json::Value) -> Arc<RuleSet> {
    Arc::new(RuleRecord::read(text.to_string().as_bytes()).unwrap().understood().0)
}

fn denying(pairs: &[(&str, &str)]) -> Arc<RuleSet> {
    let rule = |(at, (from, to)): (usize, &(&str, &str))| {
        (format!("deny-{at}"), serde_json::json!({"effect": "deny", "from": from, "to": to}))
    };
    let rules: serde_json::Map<_, _> = pairs.iter().enumerate().map(rule).collect();
    set(&serde_json::json!({ "rules": rules }))
}

fn instance(service: &str, node: &str, at: &str, env: &str) -> Arc<Instance> {
    let json = serde_json::json!({
        "service": service, "id": format!("{service}-{node}-{at}"), "node": node, "address": at, "port": 80, "labels": {"env": env},
    });
    Arc::new(serde_json::from_value(json).unwrap())
}

impl World {
    /// A node with `web` in a container of its own, `db` on the host, and one that is both `web` and `batch`.
    fn new() -> Self {
        let (catalog, writer) = Catalog::new();
        let rules = Rules::new(catalog, Metrics::new().unwrap());
        let source = ConfigSource::new(vec![
            defined("web", WEB, Some("prod")),
            defined("db", HOST, None),
            defined("web", BOTH, Some("dev")),
            defined("batch", BOTH, None),
        ]);
        let store =
            EmbeddedStore::open(None, Duration::from_secs(5), nerve::store::Metrics::default()).unwrap();
        Self { writer, rules, source, store: Arc::new(store), watcher: None, tasks: Tasks::new() }
    }

    async fn start(&mut self) {
        let (_, writer) = Catalog::new();
        let (config, metrics) = (watcher::Config::default(), synapse::Metrics::new().unwrap());
        let watcher = self.watcher.get_or_insert_with(|| {
            watcher::start(config, Arc::clone(&self.store), writer, None, metrics, &self.tasks)
        });
        let means = Means {
            sources: vec![self.source.snapshots()],
            host_addresses: Arc::new(|| Ok(vec![HOST.parse().unwrap()])),
            watcher: watcher.clone(),
        };
        self.rules.start(means, &self.tasks).await;
    }

    fn put(&mut self, rules: Arc<RuleSet>) {
        self.writer.apply([Change::PutRules(rules)]);
    }

    fn admits(&self, client: &str, service: &str) -> bool {
        self.rules.admit(address(client), &name(service))
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waited = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(10), waited).await.is_ok(), "never: {what}");
    }
}

#[tokio::test]
async fn a_client_is_known_by_an_address_that_nobody_else_has() {
    let mut world = World::new();
    world.put(denying(&[("web", "api"), ("db", "api"), ("batch", "cache")]));
    world.start().await;
    assert!(!world.admits(WEB, "api") && world.admits(WEB, "cache"));
    assert!(!world.admits(&format!("::ffff:{WEB}"), "api"), "an address of IPv4 however it is written");
    // The host's own, loopback, and nobody's: no instance, so only `*` would be about them.
    for client in [HOST, "127.0.0.1", "198.51.100.7"] {
        assert!(world.admits(client, "api"), "{client}");
    }
    assert!(world.rules.admit(None, &name("api")));
    assert!(!world.admits(BOTH, "api") && !world.admits(BOTH, "cache"), "what any of them is denied");
    assert_eq!(world.rules.identify(address(WEB), &name("api")), Some(name("web")));
    assert_eq!(world.rules.identify(address(HOST), &name("api")), None);
}

#[tokio::test]
async fn who_is_several_may_do_what_any_of_them_may() {
    let mut world = World::new();
    let rule = serde_json::json!({"effect": "allow", "from": "web", "to": "api"});
    world.put(set(&serde_json::json!({"default": "deny", "rules": {"a": rule}})));
    world.start().await;
    assert!(world.admits(WEB, "api") && world.admits(BOTH, "api"));
    assert!(
        !world.admits(BOTH, "cache") && !world.admits(HOST, "api") && !world.rules.admit(None, &name("api"))
    );
    assert_eq!(world.rules.identify(address(BOTH), &name("api")), Some(name("web")));
}

#[tokio::test]
async fn rules_that_forbid_something_forbid_everything_until_they_were_looked_at() {
    let mut world = World::new();
    assert!(world.admits(WEB, "api"));
    world.put(denying(&[("web", "api")]));
    assert!(!world.admits(WEB, "api") && !world.admits(HOST, "cache"));
    world.start().await;
    assert!(!world.admits(WEB, "api") && world.admits(HOST, "cache"));
}

#[tokio::test]
async fn a_first_rule_on_a_node_that_runs_forbids_nothing_else_meanwhile() {
    let mut world = World::new();
    world.writer.set_freshness(Freshness::Live);
    world.start().await;
    world.put(denying(&[("web", "api")]));
    assert!(world.admits(HOST, "cache"));
    world.until("in force", |world| !world.admits(WEB, "api")).await;
    world.put(denying(&[("web", "cache")]));
    world.until("changed", |world| world.admits(WEB, "api") && !world.admits(WEB, "cache")).await;
    world.put(Arc::default());
    assert!(world.admits(WEB, "cache"));
}

#[tokio::test]
async fn clients_and_labels_are_followed() {
    let mut world = World::new();
    world.writer.apply([Change::PutInstance(instance("api", "b", "192.0.2.2", "prod"))]);
    world.put(denying(&[("env=dev", "env=prod")]));
    world.start().await;
    assert!(world.admits(WEB, "api") && !world.admits(BOTH, "api"));
    world.source.replace(vec![defined("web", WEB, Some("dev"))]);
    world.until("another label", |world| !world.admits(WEB, "api") && world.admits(BOTH, "api")).await;
    world.writer.apply([Change::PutInstance(instance("api", "b", "192.0.2.2", "dev"))]);
    world.until("another service", |world| world.admits(WEB, "api")).await;
    // One of several is enough to deny.
    world.writer.apply([Change::PutInstance(instance("api", "c", "192.0.2.3", "prod"))]);
    world.until("one of them", |world| !world.admits(WEB, "api")).await;
}

#[tokio::test]
async fn what_a_node_says_of_its_client_is_believed_if_it_has_such_an_instance() {
    let mut world = World::new();
    let api = instance("api", "a", WEB, "prod");
    let rule = |from: &str| serde_json::json!({"effect": "allow", "from": from, "to": "api"});
    world.writer.apply([
        Change::PutInstance(instance("web", "b", "192.0.2.2", "prod")),
        Change::PutInstance(instance("batch", "c", "10.42.3.1", "dev")),
        Change::PutInstance(instance("batch", "c", "10.42.3.2", "prod")),
    ]);
    world.put(set(
        &serde_json::json!({"default": "deny", "rules": {"a": rule("web"), "b": rule("env=prod")}}),
    ));
    world.start().await;
    let (b, c): (NodeName, NodeName) = ("b".parse().unwrap(), "c".parse().unwrap());
    let client: Option<SocketAddr> = Some("10.42.3.2:1".parse().unwrap());
    for (node, claim, client, by) in [
        (&b, Some("web"), None, Some(By::Rule("a".parse().unwrap()))),
        (&b, None, None, None),
        (&c, Some("web"), None, None),
        (&b, Some("nobody"), None, None),
        (&b, Some("no name"), None, None),
        // Which of the two it is, its address tells; without it, it may be the other.
        (&c, Some("batch"), None, None),
        (&c, Some("batch"), client, Some(By::Rule("b".parse().unwrap()))),
        (&c, Some("batch"), Some("10.42.3.1:1".parse().unwrap()), None),
    ] {
        let target = "192.0.2.1:80".parse().unwrap();
        let call = TunnelCall { node, service: "api", target, client, client_service: claim };
        let verdict = world.rules.of_stream(&call, &api);
        let effect = if by.is_some() { Effect::Allow } else { Effect::Deny };
        assert_eq!(verdict, Verdict { effect, by: by.unwrap_or(By::Default) }, "{node} says {claim:?}");
    }
}

#[tokio::test]
async fn refusals_are_counted_by_what_refuses() {
    let mut world = World::new();
    world.put(denying(&[("web", "api")]));
    world.start().await;
    (0..3).for_each(|_| assert!(!world.admits(WEB, "api")));
    let registry = Registry::new();
    world.rules.0.metrics.register(&registry).unwrap();
    let text =
        |registry: &Registry| prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    assert!(text(&registry).contains("plexus_rules_denied_total{rule=\"deny-0\"} 3"), "{}", text(&registry));
    world.put(Arc::default());
    world.until("forgotten", |_| !text(&registry).contains("deny-0")).await;
}
