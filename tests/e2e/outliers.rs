//! What connections run into decides: endpoints that reset or are slow are passed over, each time for longer, and endpoints that
//! all fail are not answered with a storm of attempts.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use plexus_tests::client::load::Load;
use plexus_tests::server::backend::Backend;
use plexus_tests::{Cluster, Node, ServiceFile, eventually, needs, pause};
use serde_json::Value;

use crate::{INSTANCE, PUBLISHED};

const SOON: Duration = Duration::from_secs(10);
/// Of the setting that ejections begin with, in milliseconds.
const FIRST: u64 = 1000;

/// What the moody endpoint does with a connection.
#[derive(Debug, Clone, Copy)]
enum Mood {
    Answers,
    Resets,
    Dawdles,
}

/// Two nodes with a backend and one with an endpoint that does as it is told. None is checked: only what connections run
/// into tells.
struct Trio {
    mood: Arc<AtomicU8>,
    _backends: [Backend; 2],
    // Last: the others stand in it.
    cluster: Cluster,
}

impl Trio {
    fn new() -> Self {
        let cluster = Cluster::new(3);
        let [a, b, c] = cluster.nodes();
        let backends = [a, b].map(|node| node.backend("web", INSTANCE));
        let mood = Arc::new(AtomicU8::new(Mood::Answers as u8));
        let (of_endpoint, address) = (Arc::clone(&mood), c.at(INSTANCE));
        // It ends with the test's process.
        let endpoint = c.namespace().spawn("moody endpoint", move || be_moody(address, &of_endpoint));
        let _ = endpoint.expect("a thread inside the namespace");
        [a, b, c].iter().for_each(|node| node.define(&ServiceFile::new("web", INSTANCE).check("")));
        cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
        cluster.publish("web", PUBLISHED);
        Self { mood, _backends: backends, cluster }
    }

    fn turns(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }

    /// Waits for three ejections, each for twice as long as the one before, and looks at what is told of the first.
    #[track_caller]
    fn wait_ejected_longer_each_time(&self, by: &Node, reason: &str) {
        eventually!(SOON, pick(by)["ejected"].clone(), |word| *word == reason);
        let why = by.plexus(["why", "web"]).ok();
        assert!(why.contains("no: ejected") && why.contains(&format!("ejected: {reason}, for")), "{why}");
        for least in [FIRST, 2 * FIRST] {
            let left = || pick(by)["ejected_for_ms"].as_u64().unwrap_or(0);
            let left = eventually!(3 * SOON, left(), |left| *left > least);
            assert!(left <= 2 * least, "it was doubled, and not more: {left} ms");
        }
        assert!(by.metric("plexus_balance_ejections_total", reason) >= Some(3.0));
    }

    /// It is well again: back for good, and used.
    #[track_caller]
    fn wait_back(&self, by: &Node, load: &Load) {
        eventually!(SOON, pick(by)["ejected"].clone(), Value::is_null);
        let back = load.now();
        eventually!(SOON, load.so_far().last_by_instance.get("web-c-9000").copied(), |last| *last
            > Some(back));
    }
}

/// What a node's balancer makes of the moody endpoint.
fn pick(node: &Node) -> Value {
    let why = node.admin_json("/v1/plexus/why/web");
    let endpoints = why["endpoints"].as_array().cloned().unwrap_or_default();
    let found = endpoints.iter().find(|endpoint| endpoint["id"] == "web-c-9000");
    found.map(|endpoint| endpoint["pick"].clone()).unwrap_or_default()
}

fn be_moody(address: SocketAddr, mood: &Arc<AtomicU8>) {
    let listener = TcpListener::bind(address).expect("a free port");
    for stream in listener.incoming().flatten() {
        let mood = mood.load(Ordering::SeqCst);
        std::thread::spawn(move || serve(stream, mood));
    }
}

fn serve(stream: TcpStream, mood: u8) -> std::io::Result<()> {
    if mood == Mood::Resets as u8 {
        // Whoever closes what it has not read resets.
        stream.peek(&mut [0])?;
        return Ok(());
    }
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && line != "\r\n" {
        line.clear();
    }
    if mood == Mood::Dawdles as u8 {
        // Slowness itself is what is tried.
        pause(Duration::from_millis(400));
    }
    let body = r#"{"instance":"web-c-9000"}"#;
    write!(reader.get_mut(), "HTTP/1.1 200 -\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn an_endpoint_that_resets_before_it_says_anything_is_out_for_longer_each_time() {
    needs!("etcd", "etcdctl");
    let trio = Trio::new();
    let [a, b, _] = trio.cluster.nodes();
    let _ = a.plexus(["set", "web", "outlier.resets=3"]).ok();
    let settled = || b.plexus(["settings", "web"]).ok();
    eventually!(SOON, settled(), |shown| {
        shown.lines().any(|line| line.contains("outlier.resets") && line.contains('3'))
    });
    let load = b.load(b.at(PUBLISHED));
    load.wait_for(60);
    load.so_far().assert_unharmed();
    trio.turns(Mood::Resets);
    trio.wait_ejected_longer_each_time(b, "resets");
    trio.turns(Mood::Answers);
    trio.wait_back(b, &load);
    let record = load.stop();
    // Three in a row, some that were under way, and one or two each time that it was let in.
    assert!((5..40).contains(&record.failed.len()), "{record}");
}

#[test]
fn an_endpoint_that_is_much_slower_than_the_others_is_out_for_longer_each_time() {
    needs!("etcd", "etcdctl");
    let trio = Trio::new();
    let [a, b, _] = trio.cluster.nodes();
    let _ = a.plexus(["set", "web", "outlier.latency_factor=3"]).ok();
    let load = b.load(b.at(PUBLISHED));
    load.wait_for(60);
    assert!(pick(b)["ejected"].is_null());
    trio.turns(Mood::Dawdles);
    trio.wait_ejected_longer_each_time(b, "latency");
    trio.turns(Mood::Answers);
    trio.wait_back(b, &load);
    load.stop().assert_unharmed();
}

#[test]
fn endpoints_that_all_refuse_are_tried_within_the_retry_budget() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    [a, b, c].iter().for_each(|node| node.define(&ServiceFile::new("web", INSTANCE).check("")));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
    let _ = a.plexus(["set", "web", "retry.budget=10", "retry.min_per_second=1"]).ok();
    cluster.publish("web", PUBLISHED);
    let picks = || a.metric("plexus_balance_picks_total", "web").unwrap_or(0.0);
    let attempts = || {
        let why = a.admin_json("/v1/plexus/why/web");
        let endpoints = why["endpoints"].as_array().cloned().unwrap_or_default();
        endpoints.iter().filter_map(|endpoint| endpoint["connect_failures"].as_f64()).sum::<f64>()
    };
    let began = Instant::now();
    let refused = (0..300).filter(|_| c.get(a.at(PUBLISHED), "/").is_err()).count();
    assert_eq!(refused, 300);
    let (picks, attempts) = (picks(), attempts());
    // A tenth of the connections and one a second, of this window of ten seconds and, at its edge, of the one before.
    let windows = 2.0 + (began.elapsed().as_secs_f64() / 10.0).floor();
    let most = picks + 2.0 * picks / 10.0 + 10.0 * windows;
    assert!(
        picks >= 300.0 && attempts > picks && attempts <= most,
        "{attempts} attempts for {picks}, at most {most}"
    );
    let told = a.metric("plexus_balance_refused_total", "retry_budget").unwrap_or(0.0);
    assert!(told >= 200.0, "{told} of {picks} were not tried again, and that is counted");
    // The budget is no verdict: whoever comes when they are back is served.
    let _backends = [a, b, c].map(|node| node.backend("web", INSTANCE));
    eventually!(2 * SOON, (0..20).all(|_| c.get(a.at(PUBLISHED), "/").is_ok()), |served| *served);
}
