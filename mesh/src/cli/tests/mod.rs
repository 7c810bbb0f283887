//! Transcripts: commands against a real admin server on loopback, over a catalog and a store that the test fills.

mod dns;
mod end;
mod names;
mod network;
mod rules;
mod upstreams;
mod usage;
mod watchers;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::CommandFactory;
use nerve::document::Document;
use nerve::model::{Health, Instance, InstanceId, Node, NodeName, ServiceName};
use nerve::registrar;
use nerve::source::{ApiSource, ConfigSource, Local, read_config};
use nerve::store::{EmbeddedStore, Key, Store};
use nerve::tasks::Tasks;
use serde_json::json;
use synapse::catalog::{Catalog, Change, Freshness, Writer};
use tokio::sync::watch;
use tokio::time::Instant;

use super::*;
use crate::admin::{self, Bound, Counts, Handles, Traffic};
use crate::api::{PlainFor, Problem, TookOver, WhyBalance, WhyListener, WhyPick, WhyPlain};
use crate::drain;
use crate::inherited::Inherited;
use crate::readiness::Readiness;
use crate::routes::{Kind, Route};

/// A node of its own: a catalog to fill, a store, and the admin server that the commands talk to.
struct World {
    address: SocketAddr,
    writer: Writer,
    store: Arc<dyn Store>,
    readiness: Readiness,
    drain: drain::DrainTrigger,
    _tasks: Tasks,
}

/// What a data plane would count: 7 connections each, 2 of them failed, to `web-2` alone.
struct Busy;

impl Traffic for Busy {
    fn endpoint(&self, _: &ServiceName, endpoint: &InstanceId) -> Counts {
        match endpoint.as_str() {
            "web-2" => Counts { in_flight: 3, connections: 7, connect_failures: 2 },
            _ => Counts::default(),
        }
    }

    fn balance(&self, service: &ServiceName) -> Option<(WhyBalance, HashMap<InstanceId, WhyPick>)> {
        let whole = WhyBalance {
            policy: "maglev".to_owned(),
            panic: false,
            connections: 3,
            queue: 1,
            serving: 2,
            ejected: 1,
        };
        let first = WhyPick {
            ejected: Some("connect_failures".to_owned()),
            ejected_for_ms: Some(1500),
            group: Some("v2".to_owned()),
            ..WhyPick::default()
        };
        let second = WhyPick {
            share_permille: 1000,
            slow_start_percent: Some(40),
            at_limit: true,
            latency_us: Some(2345),
            ..WhyPick::default()
        };
        let picks = [("web-1", first), ("web-2", second)];
        let picks = picks.map(|(id, pick)| (InstanceId::new(id).unwrap(), pick));
        (service.as_str() == "web").then(|| (whole, picks.into()))
    }

    fn listeners(&self, service: &ServiceName) -> Vec<WhyListener> {
        let listener = |port: u16, problem: Option<&str>| WhyListener {
            kind: "published".to_owned(),
            address: format!("0.0.0.0:{port}"),
            protocol: "tcp".to_owned(),
            target: None,
            this_node_only: port == 80,
            listening: problem.is_none(),
            held: port == 81,
            problem: problem.map(str::to_owned),
        };
        match service.as_str() {
            "web" => vec![
                listener(8080, None),
                listener(80, Some("address in use")),
                listener(81, Some("an instance has it")),
            ],
            _ => Vec::new(),
        }
    }
}

/// What this host uses already.
fn host_route() -> Route {
    let destination = "10.99.0.0/16".parse().unwrap();
    Route { destination, kind: Kind::Forwards, device: Some("tun0".to_owned()), protocol: 2 }
}

fn node(name: &str, address: &str) -> Arc<Node> {
    let json = json!({ "name": name, "address": address, "version": "0.1.0", "zone": "eu-1a" });
    Arc::new(serde_json::from_value(json).unwrap())
}

fn instance(id: &str, node: &str, address: &str) -> Instance {
    let json =
        json!({ "service": "web", "id": id, "node": node, "address": address, "port": 8080, "tags": ["v2"] });
    serde_json::from_value(json).unwrap()
}

fn plain_of(id: &str) -> WhyPlain {
    let of =
        |reason: &str, clients: &str| PlainFor { reason: reason.to_owned(), clients: clients.to_owned() };
    match id {
        "web-1" => WhyPlain {
            plain_for: vec![of("family", "with IPv6"), of("neighbour", "in 172.17.0.0/16")],
            ..WhyPlain::default()
        },
        "web-2" => WhyPlain { plain: Some("it is elsewhere".to_owned()), ..WhyPlain::default() },
        _ => WhyPlain::default(),
    }
}

/// The registrar of node `a`, with one instance from its configuration.
fn registrar(store: &Arc<dyn Store>, tasks: &Tasks) -> registrar::Handle {
    let local = Local { node: NodeName::new("a").unwrap(), address: "192.0.2.1".parse().unwrap() };
    let text = "[[service]]\nname = \"db\"\nport = 5432\n";
    let document = Document::parse("plexus.toml", text).unwrap();
    let defined = document.decode(|root| read_config(root, &local)).unwrap();
    registrar::start(
        registrar::Config::new(local.node.clone(), local.address, "0.1.0"),
        Arc::clone(store),
        &[&ConfigSource::new(defined)],
        ApiSource::open(None, local),
        tasks,
        registrar::Metrics::default(),
        None,
    )
}

impl World {
    async fn new() -> Self {
        let (catalog, writer) = Catalog::new();
        let store =
            EmbeddedStore::open(None, Duration::from_secs(5), nerve::store::Metrics::default()).unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let tasks = Tasks::new();
        let registrar = registrar(&store, &tasks);
        let registry = prometheus::Registry::new();
        let metrics = admin::Metrics::default();
        metrics.register(&registry).unwrap();
        let readiness = Readiness::new();
        let metrics_of_rules = crate::rules::Metrics::new().unwrap();
        let handles = Handles {
            who_may: crate::rules::Rules::new(catalog.clone(), metrics_of_rules),
            rules: admin::Rules::new(admin::Access::default()),
            attacher: Arc::new(crate::agent::attachments::Attachments::new(
                crate::overlay::Handle::default(),
                Local { node: "a".parse().unwrap(), address: "192.0.2.1".parse().unwrap() },
            )),
            node: node("a", "192.0.2.1"),
            started: Instant::now(),
            took_over: Some(TookOver {
                pid: 4711,
                version: "0.0.9".to_owned(),
                at_unix_seconds: 1_700_000_000,
            }),
            phase: watch::Sender::new("running").subscribe(),
            readiness: readiness.clone(),
            catalog,
            registrar: registrar.clone(),
            store: Arc::clone(&store),
            registry,
            traffic: Arc::new(Busy),
            virtual_addresses: Arc::new(|service| service.vips.clone()),
            plain: Arc::new(|_, instance| plain_of(instance.id.as_str())),
            host_routes: Arc::new(|| Box::pin(async { Ok(vec![host_route()]) })),
            examiner: Arc::new(|| Box::pin(async { Vec::new() })),
            identity: None,
            mtls: None,
            watchers: Arc::new(watchers::two),
            resolver: Some(Arc::new(Busy)),
            name_server: Arc::new(dns::a_name_server),
            problems: Arc::new(|| {
                let message =
                    "plexus.toml:3:1: log.levl: unknown key; the configuration that runs stays".to_owned();
                vec![Problem { what: "config".to_owned(), message }]
            }),
        };
        let config =
            admin::Config { listen: vec!["127.0.0.1:0".parse().unwrap()], ..admin::Config::default() };
        let bound = Bound::bind(&config, &Inherited::default()).await.unwrap();
        let address = bound.addresses()[0];
        let (trigger, watcher) = drain::channel();
        let server = bound.run(handles, metrics, tasks.clone(), watcher);
        tasks.spawn("admin", server);
        Self { address, writer, store, readiness, drain: trigger, _tasks: tasks }
    }

    /// Three instances of `web` on two nodes, one of them critical; `api` published and without an instance.
    async fn filled() -> Self {
        let mut world = Self::new().await;
        let mut critical = instance("web-3", "b", "192.0.2.2");
        critical.health = Health::Critical;
        critical.health_reason = "http GET /healthz: status 503".to_owned();
        let published = serde_json::from_value(json!({ "published": [{ "port": 8080 }] })).unwrap();
        world.writer.set_freshness(Freshness::Live);
        world.writer.apply([
            Change::PutNode(node("a", "192.0.2.1")),
            Change::PutNode(node("b", "192.0.2.2")),
            Change::PutInstance(Arc::new(instance("web-1", "a", "192.0.2.1"))),
            Change::PutInstance(Arc::new(instance("web-2", "b", "192.0.2.2"))),
            Change::PutInstance(Arc::new(critical)),
            Change::PutSettings(ServiceName::new("web").unwrap(), Arc::new(published)),
            Change::PutVip("10.96.0.1".parse().unwrap(), ServiceName::new("web").unwrap()),
        ]);
        world
    }

    /// What a command prints, or how it fails.
    async fn run(&self, command: &str) -> Result<String> {
        let admin = format!("http://{}", self.address);
        let words = ["plexus"].into_iter().chain(command.split(' ')).chain(["--admin", &admin]);
        let mut printed = Vec::new();
        execute(Arguments::try_parse_from(words)?.command, &mut Output::new(&mut printed, false)).await?;
        Ok(String::from_utf8(printed).unwrap())
    }

    async fn prints(&self, command: &str) -> String {
        self.run(command).await.unwrap_or_else(|error| panic!("plexus {command}: {error}"))
    }

    async fn fails(&self, command: &str) -> String {
        let error = self.run(command).await.expect_err(command);
        assert_eq!(error.exit_code(), 1, "{error}");
        error.to_string()
    }
}

#[tokio::test]
async fn services_shows_how_much_of_each_serves() {
    let world = World::filled().await;
    let expected = "\
NAME  SERVING  UNCONFIRMED  VIRTUAL    PUBLISHED
web   2/3      0            10.96.0.1  8080/tcp
";
    assert_eq!(world.prints("services").await, expected);
    let json: serde_json::Value = serde_json::from_str(&world.prints("services --json").await).unwrap();
    assert_eq!(json["services"][0]["serving"], 2);
}

#[tokio::test]
async fn endpoints_shows_who_gets_traffic() {
    let world = World::filled().await;
    let expected = "\
ID     NODE  ADDRESS         STATUS    WEIGHT  ZONE  TAGS  REASON
web-1  a     192.0.2.1:8080  serving   100     -     v2    -
web-2  b     192.0.2.2:8080  serving   100     -     v2    -
web-3  b     192.0.2.2:8080  critical  100     -     v2    http GET /healthz: status 503
";
    assert_eq!(world.prints("endpoints web").await, expected);
}

#[tokio::test]
async fn nodes_marks_the_one_that_answers() {
    let world = World::filled().await;
    let expected = "\
NAME  ADDRESS    ZONE   VERSION  STATUS  SERVING
a*    192.0.2.1  eu-1a  0.1.0    alive   1/1
b     192.0.2.2  eu-1a  0.1.0    alive   1/2
";
    assert_eq!(world.prints("nodes").await, expected);
}

#[tokio::test]
async fn why_tells_endpoints_and_listeners() {
    let world = World::filled().await;
    let expected = "\
web: 2 of 3 endpoints get traffic, as node a sees it
policy maglev, 3 connections, 1 waiting, 1 of 2 endpoints ejected

ID     NODE  ADDRESS         TRAFFIC       SHARE   IN FLIGHT  CONNECTIONS  FAILURES  LATENCY  REASON
web-1  a     192.0.2.1:8080  no: ejected   0.0%    0          0            0         -        ejected: connect_failures, for 1.5 s; group v2; sees this node's address for clients with IPv6, in 172.17.0.0/16
web-2  b     192.0.2.2:8080  yes           100.0%  3          7            2         2.345ms  at its limit; slow start, 40%; sees this node's address: it is elsewhere
web-3  b     192.0.2.2:8080  no: critical  -       0          0            0         -        http GET /healthz: status 503

its virtual address: 10.96.0.1

LISTENER   ADDRESS           LEADS TO              STATE      PROBLEM
published  0.0.0.0:8080/tcp  main port             listening  -
published  0.0.0.0:80/tcp    main port, this node  closed     address in use
published  0.0.0.0:81/tcp    main port             held       an instance has it
";
    assert_eq!(world.prints("why web").await, expected);
}

#[tokio::test]
async fn an_unknown_service_fails_with_the_name_that_was_meant() {
    let world = World::filled().await;
    let error = world.fails("endpoints wbe").await;
    assert_eq!(error, "listing the endpoints of wbe: no service is called \"wbe\"; did you mean \"web\"?");
    assert!(world.fails("why redis").await.ends_with("no service is called \"redis\""));
}

#[tokio::test]
async fn what_may_be_out_of_date_is_said_first() {
    let mut world = World::filled().await;
    let since = SystemTime::now() - Duration::from_secs(90);
    world.writer.set_freshness(Freshness::Stale { since, reason: "connection refused".to_owned() });
    world
        .writer
        .apply([Change::Unconfirm(ServiceName::new("web").unwrap(), InstanceId::new("web-1").unwrap())]);
    let printed = world.prints("endpoints web").await;
    assert!(printed.starts_with("STALE: last known good, not confirmed by the store for 1m 3"), "{printed}");
    assert!(printed.lines().next().unwrap().ends_with("connection refused"), "{printed}");
    assert!(printed.contains("web-1  a     192.0.2.1:8080  unconfirmed"), "{printed}");
    assert!(world.prints("status").await.contains("store: the store does not confirm what is served"));
}

#[tokio::test]
async fn a_catalog_that_heard_nothing_yet_says_so() {
    let world = World::new().await;
    let printed = world.prints("services").await;
    assert!(printed.contains("nothing was heard from the store yet"), "{printed}");
    assert!(world.fails("endpoints web").await.contains("the catalog is still empty"));
}

#[tokio::test]
async fn publishing_writes_the_store_and_tells_what_the_user_should_know() {
    let world = World::filled().await;
    let printed = world.prints("publish web 8080").await;
    assert_eq!(printed, "8080/tcp is published for web: every node opens it\n");
    assert!(world.prints("publish web 8080").await.starts_with("8080/tcp is already published"));
    let printed = world.prints("publish web 9090:metrics").await;
    assert!(printed.contains("note: no endpoint of web has a port named metrics"), "{printed}");
    let printed = world.prints("publish wbe 81").await;
    assert!(printed.contains("note: service wbe has no endpoint yet; did you mean \"web\"?"), "{printed}");
    let error = world.fails("publish api 8080").await;
    assert!(
        error.contains("service web publishes 8080/tcp") && error.contains("plexus unpublish web 8080/tcp"),
        "{error}"
    );

    assert!(world.prints("unpublish web 8080").await.contains("no longer published"));
    assert!(world.prints("unpublish web 9090").await.contains("9090:metrics/tcp is no longer published"));
    assert_eq!(world.prints("unpublish web 9090").await, "9090/tcp was not published for web\n");
    let path = Key::Service(ServiceName::new("web").unwrap()).path();
    assert_eq!(world.store.get(&path).await.unwrap(), None);
}

#[tokio::test]
async fn ranges_addresses_and_modes_are_published_and_shown() {
    let world = World::filled().await;
    let printed = world.prints("publish web 8000-8010").await;
    assert_eq!(printed, "8000-8010/tcp is published for web: every node opens it\n");
    let printed = world.prints("publish web 53:5353/udp --address 192.0.2.0/24 --address ::1").await;
    assert_eq!(
        printed,
        "53:5353/udp@192.0.2.0/24+::1 is published for web: every node with an address in 192.0.2.0/24 or ::1 opens it\n"
    );
    let printed = world.prints("publish web 9100 --mode host").await;
    assert_eq!(printed, "9100/tcp (host) is published for web: each node that runs an instance opens it\n");
    let error = world.fails("publish api 8010-8020 --mode host").await;
    assert!(error.contains("service web publishes 8000-8010/tcp"), "{error}");
    assert!(world.prints("unpublish web 8000-8010").await.contains("8000-8010/tcp is no longer published"));
    for wrong in ["publish web 9-8", "publish web 80 --address 192.0.2.1/24", "publish web 80 --mode swarm"] {
        assert_eq!(world.run(wrong).await.expect_err(wrong).exit_code(), 2);
    }
}

#[tokio::test]
async fn a_virtual_address_is_switched_off_and_on() {
    let world = World::filled().await;
    let printed = world.prints("vip web off").await;
    assert!(
        printed.contains("web has no virtual address: its name is answered with its endpoints"),
        "{printed}"
    );
    let path = Key::Service(ServiceName::new("web").unwrap()).path();
    let stored = world.store.get(&path).await.unwrap().unwrap().value;
    assert_eq!(String::from_utf8(stored).unwrap(), r#"{"vip":false}"#);
    assert!(world.prints("vip web on --json").await.contains("\"changed\": true"));
    assert!(world.prints("vip wbe off").await.contains("did you mean \"web\"?"));
}

#[tokio::test]
async fn a_store_that_is_gone_fails_the_publication_and_says_so() {
    let world = World::filled().await;
    world.store.shutdown().await;
    let error = world.fails("publish web 8080").await;
    assert!(error.starts_with("publishing 8080/tcp for web: ") && error.contains("try again"), "{error}");
}

#[tokio::test]
async fn status_lists_everything_that_fails() {
    let world = World::filled().await;
    let _guard = world.readiness.block("dns");
    let printed = world.prints("status").await;
    for line in [
        "node      a (192.0.2.1)",
        "running, up",
        "awaits    dns",
        "catalog   live, 1 services",
        "problems  1",
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    assert!(printed.contains("  config: plexus.toml:3:1: log.levl: unknown key"), "{printed}");
}

#[tokio::test]
async fn an_instance_is_registered_drained_and_deregistered() {
    let world = World::filled().await;
    let printed = world.prints("register cache --port 6379 --check tcp --interval 1s --tag v1").await;
    assert!(
        printed.starts_with(
            "instance cache-a-6379 of cache at 192.0.2.1:6379 is taken in; it gets traffic once"
        ),
        "{printed}"
    );
    let printed = world.prints("register cache --port 6379").await;
    assert!(printed.contains("is changed\nnote: it has no check"), "{printed}");
    assert!(world.prints("drain cache-a-6379").await.contains("is drained: it gets no new connections"));
    assert!(world.prints("drain cache-a-6379").await.contains("was already drained"));
    assert!(world.prints("drain --node").await.contains("node a is drained"));
    let printed = world.prints("undrain cache-a-6379 --service cache").await;
    assert!(printed.contains("is no longer drained\nnote: its node is still drained"), "{printed}");
    assert!(world.prints("undrain --node --json").await.contains("\"changed\": true"));
    let printed = world.prints("status").await;
    assert!(printed.contains("cache    cache-a-6379") && printed.contains("plexus.toml:1"), "{printed}");
    assert_eq!(
        world.prints("deregister cache-a-6379").await,
        "instance cache-a-6379 of cache is deregistered\n"
    );
    assert!(world.fails("deregister cache-a-6379").await.contains("this node has no instance cache-a-6379"));
}

#[tokio::test]
async fn a_wrong_registration_names_every_wrong_key() {
    let world = World::filled().await;
    let error = world.fails("register cache --port 6379 --check htp=/ --rise 0").await;
    assert!(
        error.contains("check[0]") && error.contains("names no kind of check") && error.contains("rise"),
        "{error}"
    );
    let error = world.fails("register db --port 5432").await;
    assert!(error.contains("instance db/db-a-5432 is defined in plexus.toml:1; change it there"), "{error}");
}

#[tokio::test]
async fn what_runs_elsewhere_is_refused_with_whom_to_ask() {
    let world = World::filled().await;
    let error = world.fails("drain web-2").await;
    assert!(error.contains("instance web-2 runs on node b (192.0.2.2), and this is node a"), "{error}");
    assert!(error.contains("pass --admin http://192.0.2.2:7070"), "{error}");
    assert!(world.fails("drain db-a-543").await.ends_with("did you mean \"db-a-5432\"?"));
    assert!(world.fails("deregister db-a-5432").await.contains("is defined in plexus.toml:1"));
}

#[tokio::test]
async fn settings_are_set_unset_and_shown_with_what_is_default() {
    let world = World::filled().await;
    let printed = world.prints("set web policy=maglev limits.queue=7").await;
    assert_eq!(
        printed,
        "limits.queue of web is 7; it was 1024, the default; policy of web is maglev; it was round_robin, the default\n"
    );
    assert_eq!(world.prints("set web policy=maglev").await, "web has these settings already\n");
    let error = world.fails("set web polic=maglev").await;
    assert!(error.ends_with("no setting is called \"polic\"; did you mean \"policy\"?"), "{error}");
    let error = world.fails("set web slow_start=soon").await;
    assert!(error.contains("slow_start: \"soon\" is no duration") && error.contains("such as"), "{error}");
    assert!(world.fails("set web subset=1 subset=2").await.contains("given twice"));
    assert!(world.prints("unset web policy limits.queue").await.contains("round_robin, the default"));
    let path = Key::Service(ServiceName::new("web").unwrap()).path();
    assert!(world.store.get(&path).await.unwrap().is_none());
    let shown = world.prints("settings web").await;
    assert!(shown.contains("policy ") && shown.contains("round_robin "), "{shown}");
    assert!(shown.lines().skip(1).all(|line| line.contains(" default ")), "{shown}");
    assert!(world.fails("settings wbe").await.contains("did you mean \"web\"?"));
}

#[tokio::test]
async fn a_split_is_set_and_cleared_and_tells_who_gets_nothing() {
    let world = World::filled().await;
    let printed = world.prints("split web v1=95 v2=5").await;
    assert!(printed.starts_with("split of web is v1=95,v2=5; it was off\n"), "{printed}");
    assert!(printed.contains("note: no endpoint of web is v1: its 95% go to the others"), "{printed}");
    assert!(world.fails("split web v1=95 v2=6").await.contains("101 %"));
    assert_eq!(world.prints("split web --clear").await, "split of web is off; it was v1=95,v2=5\n");
}

#[tokio::test]
async fn resolve_prints_the_records_and_why() {
    let world = World::filled().await;
    let expected = "\
web.mesh.internal. AAAA: NOERROR
web.mesh.internal. 5 IN AAAA 192.0.2.1
; 1 of 2 endpoints serves
";
    assert_eq!(world.prints("resolve web --type AAAA").await, expected);
}

#[tokio::test]
async fn orchestrators_and_prometheus_find_what_they_expect() {
    let world = World::filled().await;
    assert_eq!(raw(world.address, "GET", "/healthz", "").await.0, 200);
    let guard = world.readiness.block("catalog");
    let (status, body) = raw(world.address, "GET", "/readyz", "").await;
    assert_eq!((status, body.as_str()), (503, r#"{"ready":false,"awaited":["catalog"]}"#));
    drop(guard);
    assert_eq!(raw(world.address, "GET", "/readyz", "").await.0, 200);
    let (status, body) = raw(world.address, "GET", "/metrics", "").await;
    assert!(status == 200 && body.contains("plexus_admin_responses_total{code=\"503\"} 1"), "{body}");
}

#[tokio::test]
async fn what_is_refused_is_refused_in_json_with_the_right_status() {
    let world = World::filled().await;
    let json = "content-type: application/json\r\n";
    for (method, path, headers, status) in [
        ("GET", "/nothing", "", 404),
        ("POST", "/v1/plexus/services", json, 405),
        ("PUT", "/v1/plexus/services/web/ports", "content-type: text/plain\r\n", 403),
        ("DELETE", "/v1/plexus/services/web/ports/80/tcp", "", 403),
        ("PUT", "/v1/plexus/services/web/ports", json, 400),
        ("PUT", "/v1/plexus/services/Web/ports", json, 400),
        ("DELETE", "/v1/plexus/services/web/ports/0/tcp", json, 400),
        ("DELETE", "/v1/plexus/services/web/ports/80/sctp", json, 400),
        ("DELETE", "/v1/plexus/services/%ff/ports/80/tcp", json, 400),
        ("GET", "/v1/plexus/resolve", "", 400),
        ("GET", "/v1/plexus/why/redis", "", 404),
    ] {
        let (answered, body) = raw(world.address, method, path, headers).await;
        assert_eq!(answered, status, "{method} {path}: {body}");
        assert!(serde_json::from_str::<crate::api::ErrorBody>(&body).is_ok(), "{method} {path}: {body}");
    }
    let (status, _) = raw_as("rebound.example", world.address, "GET", "/v1/plexus/services", "").await;
    assert_eq!(status, 403);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let world = World::filled().await;
    let headers = format!("content-type: application/json\r\ncontent-length: {}\r\n", 10 << 20);
    assert_eq!(raw(world.address, "PUT", "/v1/plexus/services/web/ports", &headers).await.0, 413);
}

#[tokio::test]
async fn a_drained_server_answers_what_is_open_and_then_no_more() {
    let world = World::filled().await;
    let mut idle = tokio::net::TcpStream::connect(world.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut idle, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut byte = [0];
    tokio::io::AsyncReadExt::read_exact(&mut idle, &mut byte).await.unwrap();
    assert_eq!(world.drain.drain(Duration::from_secs(10)).await, drain::Drained::Completely);
    assert!(tokio::net::TcpStream::connect(world.address).await.is_err());
}

async fn raw(address: SocketAddr, method: &str, path: &str, headers: &str) -> (u16, String) {
    raw_as(&address.to_string(), address, method, path, headers).await
}

/// A request as anyone may send it: status and body of the answer.
async fn raw_as(host: &str, address: SocketAddr, method: &str, path: &str, headers: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A refusal may close before everything was read: what has arrived is the answer.
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{answer}"));
    (status, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned())
}
