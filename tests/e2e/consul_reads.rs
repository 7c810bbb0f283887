//! Clients of Consul's that look for services, as they are published: they find what the mesh has, and hear of what changes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use plexus_tests::server::real::Server;
use plexus_tests::{Cluster, Node, ServiceFile, eventually, needs, throughout};
use serde_json::{Value, json};

use crate::INSTANCE;
use crate::consul::{modules, python, run};

const SOON: Duration = Duration::from_secs(20);

/// What is answered, with its headers in lower case.
#[derive(Debug)]
struct Told {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Value,
}

impl Told {
    fn index(&self) -> u64 {
        self.headers["x-consul-index"].parse().expect("an index")
    }

    /// This field of each row.
    fn each(&self, pointer: &str) -> Vec<&str> {
        let rows = self.body.as_array().unwrap_or_else(|| panic!("no list: {self:?}"));
        rows.iter().map(|row| row.pointer(pointer).and_then(Value::as_str).unwrap_or_default()).collect()
    }
}

/// Asks a node's agent as a person with curl does.
#[track_caller]
fn ask_with(node: &Node, path: &str, more: &[&str]) -> Told {
    let url = format!("http://127.0.0.1:7070/v1/{path}");
    let arguments = [&["-sS", "-i", "-G", "--max-time", "60", &url], more].concat();
    let said = node.exec("curl", &arguments).ok();
    let (head, body) = said.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {said}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let headers = head.lines().filter_map(|line| line.split_once(": "));
    Told {
        status: status.unwrap_or_else(|| panic!("no status: {said}")),
        headers: headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect(),
        body: serde_json::from_str(body).unwrap_or_else(|error| panic!("no JSON ({error}): {said}")),
    }
}

#[track_caller]
fn ask(node: &Node, path: &str) -> Told {
    ask_with(node, path, &[])
}

/// The same with a filter.
#[track_caller]
fn filtered(node: &Node, path: &str, filter: &str) -> Told {
    ask_with(node, path, &["--data-urlencode", &format!("filter={filter}")])
}

/// The names of an object's fields, in order.
fn names(value: &Value) -> Vec<&str> {
    let fields = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
    let mut names: Vec<&str> = fields.keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// As Prometheus has it. Debian's Prometheus is built without Consul; VictoriaMetrics reads the same file, and speaks for itself.
const SCRAPES: &str = "
global: { scrape_interval: 1s, scrape_timeout: 1s }
scrape_configs:
  - job_name: mesh
    consul_sd_configs:
      - server: 127.0.0.1:7070
        services: [web]
    relabel_configs:
      - { source_labels: [__meta_consul_health], target_label: health }
";

/// The address of each target, whether it is scraped, and what this label of its service is.
fn targets(node: &Node, label: &str) -> Vec<(String, String, String)> {
    let text = |target: &Value, pointer: &str| {
        target.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let Ok(answer) = node.get(SocketAddr::from(([127, 0, 0, 1], 9090)), "/api/v1/targets?state=active")
    else {
        return Vec::new();
    };
    let answer: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let all = answer["data"]["activeTargets"].as_array().cloned().unwrap_or_default();
    let mut shown: Vec<_> = all
        .iter()
        .map(|target| {
            let found = text(target, &format!("/discoveredLabels/__meta_consul_{label}"));
            let label = if label == "health" { text(target, "/labels/health") } else { found };
            (text(target, "/labels/instance"), text(target, "/health"), label)
        })
        .collect();
    shown.sort_unstable();
    shown
}

#[test]
fn what_reads_prometheus_configuration_scrapes_every_instance_and_follows_those_that_come_and_go() {
    needs!("etcd", "victoria-metrics");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let (first, second) = (a.serve("web", INSTANCE), b.serve("web", INSTANCE));
    a.define(&ServiceFile::new("web", INSTANCE).key("tags", r#"["v2", "blue"]"#));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    let server = Server::new(cluster.world(), a.namespace(), "victoria-metrics");
    let config = format!("-promscrape.config={}", server.file("prometheus.yml", SCRAPES));
    let data = format!("-storageDataPath={}", server.directory().join("data").display());
    let _server = server
        .command(&[
            "victoria-metrics",
            "-httpListenAddr=127.0.0.1:9090",
            "-promscrape.consulSDCheckInterval=1s",
        ])
        .command(&[&config, &data])
        .started();
    let scraped = |addresses: &[String], label: &str, values: &[&str]| {
        let expected: Vec<_> = addresses
            .iter()
            .zip(values)
            .map(|(address, value)| (address.clone(), "up".to_owned(), (*value).to_owned()))
            .collect();
        let _ = eventually!(Duration::from_secs(40), targets(a, label), |seen| *seen == expected);
    };
    let at = |node: &Node, port: u16| node.at(port).to_string();
    let both = [at(a, INSTANCE), at(b, INSTANCE)];
    scraped(&both, "service_id", &["web-a-9000", "web-b-9000"]);
    scraped(&both, "node", &["a", "b"]);
    scraped(&both, "dc", &["dc1", "dc1"]);
    scraped(&both, "tags", &[",blue,v2,", ",,"]);
    scraped(&both, "health", &["passing", "passing"]);
    // One comes.
    let _third = a.serve("web", 9001);
    let all = [at(a, INSTANCE), at(a, 9001), at(b, INSTANCE)];
    scraped(&all, "service_id", &["web-a-9000", "web-a-9001", "web-b-9000"]);
    // One is not well, but answers; then it is drained.
    first.fail();
    scraped(&all, "health", &["critical", "passing", "passing"]);
    first.recover();
    let _ = a.plexus(["drain", "web-a-9001"]).ok();
    scraped(&all, "health", &["passing", "maintenance", "passing"]);
    // One goes.
    b.remove_service_file("web-9000.toml");
    drop(second);
    scraped(&all[..2], "service_id", &["web-a-9000", "web-a-9001"]);
}

const PYTHON: &str = r#"
import sys, threading, time, consul
c = consul.Consul(host="127.0.0.1", port=7070)
def until(what, good):
    end = time.time() + 20
    while True:
        seen = what()
        if good(seen): return seen
        assert time.time() < end, seen
        time.sleep(0.05)
c.agent.service.register("db", service_id="db1", address="127.0.0.1", port=1, tags=["primary"], meta={"team": "x"},
    check=consul.Check.ttl("60s"))
until(lambda: c.catalog.services()[1], lambda services: services == {"db": ["primary"], "web": ["v2"]})
until(lambda: c.catalog.nodes()[1], lambda nodes: [node["Node"] for node in nodes] == ["a", "b"])
assert c.catalog.datacenters() == ["dc1"]
found = c.catalog.service("web", tag="v2")[1]
assert [(one["Node"], one["ServiceID"], one["ServicePort"]) for one in found] == [("a", "web-a-9000", 9000), ("b", "web-b-9000", 9000)], found
assert c.catalog.node("a")[1]["Services"]["db1"]["Meta"] == {"team": "x"}
assert c.catalog.node("nobody")[1] is None
assert c.health.service("nothing")[1] == []
assert c.health.service("db", passing=True)[1] == []
entry = c.health.service("db")[1][0]
assert (entry["Service"]["ID"], entry["Node"]["Node"], entry["Checks"][-1]["Status"]) == ("db1", "a", "critical"), entry
assert "service:db1" in [check["CheckID"] for check in c.health.state("critical")[1]]
assert {check["CheckID"] for check in c.health.node("a")[1]} == {"serfHealth", "service:db1", "service:web-a-9000"}
assert [check["ServiceID"] for check in c.health.checks("db")[1]] == ["db1"]
def passing(**more):
    index, entries = consul.Consul(host="127.0.0.1", port=7070).health.service("db", passing=True, **more)
    return int(index), [entry["Service"]["ID"] for entry in entries]
index, ids = passing()
began = time.monotonic()
assert passing(index=index, wait="1s") == (index, [])
assert time.monotonic() - began >= 1
told = []
waits = threading.Thread(target=lambda: told.append(passing(index=index, wait="60s")))
waits.start()
c.agent.service.register("other", port=2)
until(lambda: c.catalog.services()[1], lambda services: "other" in services)
time.sleep(1)
assert not told, told
c.agent.check.ttl_pass("service:db1", "fine")
waits.join(20)
assert told and told[0][0] > index and told[0][1] == ["db1"], told
try:
    c.catalog.services(dc="elsewhere")
except consul.ConsulException as error:
    assert "No path to datacenter" in str(error), error
else:
    raise AssertionError("there is no such datacenter")
print("done")
"#;

const NODE: &str = r#"
import { createRequire } from "node:module";
const Consul = createRequire(process.argv[2] + "/")("consul");
const consul = new (Consul.default ?? Consul)({ host: "127.0.0.1", port: 7070 });
const until = async (what, good) => {
    const end = Date.now() + 20000;
    for (;;) {
        const seen = await what();
        if (good(seen)) return seen;
        if (Date.now() > end) throw new Error(JSON.stringify(seen));
        await new Promise((done) => setTimeout(done, 50));
    }
};
const same = (seen, expected) => {
    if (JSON.stringify(seen) !== JSON.stringify(expected)) throw new Error(JSON.stringify(seen));
};
same(await consul.catalog.service.list(), { web: ["v2"] });
same((await consul.catalog.service.nodes("web")).map((one) => one.ServiceID), ["web-a-9000", "web-b-9000"]);
same((await consul.catalog.node.list()).map((node) => node.Node), ["a", "b"]);
same(Object.keys((await consul.catalog.node.services("b")).Services), ["web-b-9000"]);
same(await consul.catalog.datacenters(), ["dc1"]);
same((await consul.health.checks("web")).map((check) => check.Status), ["passing", "passing"]);
same((await consul.health.state("critical")).length, 0);
same((await consul.health.service({ service: "web", tag: "v2", passing: true, near: "_agent" })).map((one) => one.Node.Node), ["a", "b"]);
same((await consul.health.service({ service: "web", filter: 'Node.Node == "b"' })).map((one) => one.Node.Node), ["b"]);
const seen = [];
const watch = consul.watch({ method: consul.health.service, options: { service: "web", passing: true }, backoffFactor: 50 });
watch.on("change", (entries) => seen.push(entries.map((one) => one.Service.ID).join(" ")));
watch.on("error", (error) => seen.push(String(error)));
await until(() => seen.length, (length) => length === 1);
await consul.agent.service.register({ name: "other", port: 2 });
await until(() => consul.catalog.service.list(), (services) => "other" in services);
await consul.agent.service.maintenance({ id: "web-a-9000", enable: true });
await until(() => seen.length, (length) => length === 2);
await consul.agent.service.maintenance({ id: "web-a-9000", enable: false });
await until(() => seen.length, (length) => length === 3);
watch.end();
same(seen, ["web-a-9000 web-b-9000", "web-b-9000", "web-a-9000 web-b-9000"]);
console.log("done");
"#;

/// Two nodes with an instance of `web` each.
fn webs() -> (Cluster, [plexus_tests::server::backend::Backend; 2]) {
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let backends = [a.backend("web", INSTANCE), b.backend("web", INSTANCE)];
    for node in [a, b] {
        node.define(&ServiceFile::new("web", INSTANCE).key("tags", r#"["v2"]"#));
    }
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    (cluster, backends)
}

#[test]
fn a_client_in_python_finds_services_and_hears_of_their_changes_alone() {
    needs!("etcd", "timeout");
    let Some(python) = python() else {
        eprintln!("SKIPPED: there is no py-consul; `tests/run` installs it where PyPI can be reached");
        return;
    };
    let (cluster, _backends) = webs();
    let [a, _] = cluster.nodes();
    assert_eq!(run(a, &python.to_string_lossy(), &["-c", PYTHON]).trim(), "done");
}

#[test]
fn a_client_in_javascript_finds_services_and_watches_them() {
    needs!("etcd", "timeout", "node");
    let Some(modules) = modules() else {
        eprintln!(
            "SKIPPED: there is no consul of npm; `tests/run` installs it where its registry can be reached"
        );
        return;
    };
    let (cluster, _backends) = webs();
    let [a, _] = cluster.nodes();
    let script = a.directory().join("reads.mjs");
    std::fs::write(&script, NODE).unwrap();
    assert_eq!(run(a, "node", &[&script.to_string_lossy(), &modules.to_string_lossy()]).trim(), "done");
}

/// Asks for another index than this one, and calls `meanwhile` once the agent has begun to wait.
fn while_waiting<T>(
    node: &Node,
    path: &str,
    index: u64,
    meanwhile: impl FnOnce(&dyn Fn() -> bool) -> T,
) -> (T, Told) {
    thread::scope(|scope| {
        let waits = scope.spawn(|| ask(node, &format!("{path}?index={index}&wait=50s")));
        let _ = eventually!(SOON, node.metric("plexus_admin_waiting", ""), |waiting| *waiting == Some(1.0));
        let done = meanwhile(&|| waits.is_finished());
        (done, waits.join().expect("an answer"))
    })
}

#[test]
fn who_waits_for_a_service_hears_of_its_changes_and_of_no_other() {
    needs!("etcd", "curl");
    let (cluster, _backends) = webs();
    let [a, b] = cluster.nodes();
    let path = "health/service/web";
    let index = ask(b, path).index();
    assert_eq!(ask(b, path).index(), index, "nothing has changed");
    let (more, told) = while_waiting(b, path, index, |is_told| {
        let other = a.serve("api", 9001);
        let _ = eventually!(SOON, b.serving("api"), |ids| *ids == ["api-a-9001"]);
        let _ = a.plexus(["set", "web", "policy=maglev"]).ok();
        throughout!(Duration::from_secs(2), is_told(), |told| !told);
        (other, a.serve("web", 9002))
    });
    assert!(told.index() > index, "{told:?}");
    assert_eq!(told.each("/Service/ID"), ["web-a-9000", "web-a-9002", "web-b-9000"]);
    // Which services there are, and which nodes, has not changed by it; an answer that is another one already comes at once.
    let (services, nodes) = (ask(b, "catalog/services").index(), ask(b, "catalog/nodes").index());
    let _ = eventually!(SOON, b.serving("web").len(), |count| *count == 3);
    let began = Instant::now();
    let told = ask(b, &format!("{path}?index={index}&wait=50s"));
    assert!(began.elapsed() < SOON && told.index() > index, "{:?} {told:?}", began.elapsed());
    assert_eq!((ask(b, "catalog/services").index(), ask(b, "catalog/nodes").index()), (services, nodes));
    // One that is not there yet may be waited for, and a node as well.
    let absent = ask(b, "catalog/service/new");
    assert_eq!((absent.status, &absent.body), (200, &json!([])));
    let (new, told) = while_waiting(b, "catalog/service/new", absent.index(), |_| a.serve("new", 9003));
    assert_eq!((told.each("/ServiceID"), told.index() > absent.index()), (vec!["new-a-9003"], true));
    let index = ask(b, "catalog/nodes").index();
    let ((), told) = while_waiting(b, "catalog/nodes", index, |_| a.terminate_agent());
    assert_eq!((told.each("/Node"), told.index() > index), (vec!["b"], true));
    // Who goes away while it waits leaves nothing behind.
    let index = ask(b, path).index();
    let gone = b.exec("curl", &["-sS", "-m", "1", &format!("http://127.0.0.1:7070/v1/{path}?index={index}")]);
    assert_eq!(gone.code, Some(28), "{gone}");
    let _ = eventually!(SOON, b.metric("plexus_admin_waiting", ""), |waiting| *waiting == Some(0.0));
    // The next agent goes on counting, and the one before answers those who wait.
    let (before, told) = while_waiting(b, path, index, |_| b.take_over());
    assert_eq!((told.status, told.index()), (200, index));
    drop(before);
    let _ = eventually!(SOON, ask(b, path).index(), |next| *next > index);
    // An agent that leaves answers those who wait; one that is started again does not count anew.
    let index = ask(b, path).index();
    let ((), told) = while_waiting(b, path, index, |_| b.terminate_agent());
    assert_eq!((told.status, told.index() >= index), (200, true));
    let _ = b.wait_agent_end(SOON);
    b.restart_agent();
    let _ = eventually!(SOON, b.serving("web"), |ids| !ids.is_empty());
    assert!(ask(b, path).index() > told.index());
    drop((more, new));
}

/// A server that only the configuration names.
const WATCH: &str = "[[watch]]\nservice = \"legacy\"\nstatic = [\"10.77.0.9:9001\"]\n";

/// Two nodes with an instance of `web` each, and that server.
fn found_and_registered() -> (Cluster, [plexus_tests::server::backend::Backend; 2]) {
    let cluster = Cluster::of(2).settings(|settings| settings.more = WATCH.to_owned()).start();
    let [a, b] = cluster.nodes();
    let backends = [a.backend("web", INSTANCE), b.backend("web", INSTANCE)];
    let web = ServiceFile::new("web", INSTANCE).key("labels", r#"{ team = "x" }"#);
    a.define(&web.clone().key("tags", r#"["v1", "blue"]"#));
    b.define(&web.key("tags", r#"["v2", "blue"]"#));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    (cluster, backends)
}

/// The fields of a node and of an instance, where the two are one row.
const OF_NODE: [&str; 6] = ["Address", "Datacenter", "ID", "Node", "NodeMeta", "TaggedAddresses"];
const OF_SERVICE: [&str; 10] = [
    "ServiceAddress",
    "ServiceEnableTagOverride",
    "ServiceID",
    "ServiceKind",
    "ServiceMeta",
    "ServiceName",
    "ServicePort",
    "ServiceTaggedAddresses",
    "ServiceTags",
    "ServiceWeights",
];
const OF_CHECK: [&str; 13] = [
    "CheckID",
    "CreateIndex",
    "Definition",
    "ModifyIndex",
    "Name",
    "Node",
    "Notes",
    "Output",
    "ServiceID",
    "ServiceName",
    "ServiceTags",
    "Status",
    "Type",
];

/// With what every row has, in order.
fn with_indexes<'a>(fields: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut fields: Vec<&str> = fields.chain(["CreateIndex", "ModifyIndex"]).collect();
    fields.sort_unstable();
    fields
}

#[test]
fn the_catalog_is_told_in_the_shapes_and_with_the_headers_of_consul_s() {
    needs!("etcd", "curl");
    let (cluster, _backends) = found_and_registered();
    let [a, _] = cluster.nodes();
    let told = ask(a, "catalog/services");
    assert_eq!((told.status, told.body), (200, json!({"legacy": [], "web": ["blue", "v1", "v2"]})));
    let header = |name: &str| told.headers[name].as_str();
    assert_eq!(header("content-type"), "application/json");
    assert_eq!((header("x-consul-knownleader"), header("x-consul-lastcontact")), ("true", "0"));
    assert_eq!(header("x-consul-effective-consistency"), "stale");
    assert!(header("x-consul-index").parse::<u64>().is_ok_and(|index| index > 0));

    let rows = ask(a, "catalog/service/web");
    let row = &rows.body[0];
    assert_eq!(names(row), with_indexes(OF_NODE.into_iter().chain(OF_SERVICE)));
    assert_eq!(
        (&row["Node"], &row["Address"], &row["Datacenter"]),
        (&"a".into(), &"10.77.0.1".into(), &"dc1".into())
    );
    assert_eq!((&row["ServiceAddress"], &row["ServicePort"]), (&"10.77.0.1".into(), &9000.into()));
    assert_eq!((&row["ServiceTags"], &row["ServiceMeta"]), (&json!(["blue", "v1"]), &json!({"team": "x"})));
    assert_eq!(row["ServiceWeights"], json!({"Passing": 100, "Warning": 100}));
    assert_eq!(row["ServiceTaggedAddresses"]["lan_ipv4"], json!({"Address": "10.77.0.1", "Port": 9000}));
    assert_eq!(row["ModifyIndex"].as_u64(), Some(rows.index()));

    // What a watcher has found is there too, with a node of its own.
    let legacy = ask(a, "health/service/legacy");
    assert_eq!(
        (legacy.each("/Service/ID"), legacy.each("/Node/Node")),
        (vec!["10.77.0.9:9001"], vec!["10-77-0-9"])
    );
    assert_eq!(ask(a, "catalog/nodes").each("/Node"), ["10-77-0-9", "a", "b"]);
    let node = ask(a, "catalog/node/b").body;
    assert_eq!((names(&node), names(&node["Services"])), (vec!["Node", "Services"], vec!["web-b-9000"]));
    let node = ask(a, "catalog/node-services/10-77-0-9").body;
    assert_eq!((&node["Node"]["Address"], &node["Services"][0]["Port"]), (&"10.77.0.9".into(), &9001.into()));
    assert_eq!(ask(a, "catalog/datacenters").body, json!(["dc1"]));
    assert_eq!(ask(a, "status/peers").body, json!([ask(a, "status/leader").body]));
}

#[test]
fn health_is_told_in_the_shapes_of_consul_s() {
    needs!("etcd", "curl");
    let (cluster, _backends) = found_and_registered();
    let [a, _] = cluster.nodes();
    let entry = &ask(a, "health/service/web").body[1];
    assert_eq!(names(entry), ["Checks", "Node", "Service"]);
    let of_node = OF_NODE.into_iter().map(|name| if name == "NodeMeta" { "Meta" } else { name });
    assert_eq!(names(&entry["Node"]), with_indexes(of_node));
    let of_service = OF_SERVICE.iter().map(|name| name.strip_prefix("Service").expect("a field of it"));
    let of_service = of_service.map(|name| if name == "Name" { "Service" } else { name });
    assert_eq!(names(&entry["Service"]), with_indexes(of_service));
    assert_eq!(
        (&entry["Service"]["ID"], &entry["Service"]["Service"]),
        (&"web-b-9000".into(), &"web".into())
    );
    let checks: Vec<_> = entry["Checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| (&check["CheckID"], &check["Status"]))
        .collect();
    let passing: &Value = &"passing".into();
    assert_eq!(checks, [(&"serfHealth".into(), passing), (&"service:web-b-9000".into(), passing)]);
    assert_eq!(names(&entry["Checks"][1]), OF_CHECK);
    assert_eq!(ask(a, "health/node/a").each("/CheckID"), ["serfHealth", "service:web-a-9000"]);
    assert_eq!(ask(a, "health/checks/web").each("/ServiceID"), ["web-a-9000", "web-b-9000"]);
    assert_eq!(ask(a, "health/state/passing").body.as_array().map(Vec::len), Some(5));
    assert_eq!(ask(a, "health/state/warning").body, json!([]));
}

#[test]
fn what_is_not_there_and_what_is_not_understood_is_told_as_consul_tells_it() {
    needs!("etcd", "curl");
    let (cluster, _backends) = found_and_registered();
    let [a, _] = cluster.nodes();
    assert_eq!(ask(a, "catalog/node/nobody").body, Value::Null);
    assert_eq!(ask(a, "catalog/node-services/nobody").body, json!({"Node": null, "Services": []}));
    for path in [
        "catalog/service/nothing",
        "health/service/my_service",
        "health/checks/nothing",
        "health/node/nobody",
    ] {
        let told = ask(a, path);
        assert_eq!((told.status, &told.body), (200, &json!([])), "{path}");
    }
    for (path, status, error) in [
        ("catalog/services?dc=dc2", 500, "No path to datacenter"),
        ("health/service/web?index=soon", 400, "is no index"),
        ("health/service/web?passing=maybe", 400, "?passing"),
        ("health/state/dead", 400, "no state of a check"),
        ("health/service/web?filter=Service.Name==web", 400, "there is no `Service.Name` here"),
        ("catalog/service/web?filter=(ServicePort==9000", 400, "it ends where `)` is expected"),
    ] {
        let told = ask(a, path);
        assert_eq!(told.status, status, "{path}: {told:?}");
        assert!(told.body["error"].as_str().is_some_and(|said| said.contains(error)), "{path}: {told:?}");
    }
    // A page of another site does not get at it by a name of its own.
    let rebound = ask_with(a, "health/service/web", &["-H", "host: rebound.example"]);
    assert_eq!(rebound.status, 403);
}

#[test]
fn what_is_asked_for_is_narrowed_ordered_and_as_healthy_as_it_should_be() {
    needs!("etcd", "curl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let backends = [a.backend("web", INSTANCE), a.backend("web", 9001), b.backend("web", INSTANCE)];
    let web = |port: u16, tags: &str| ServiceFile::new("web", port).key("tags", tags);
    a.define(&web(INSTANCE, r#"["v1", "blue"]"#));
    a.define(&web(9001, r#"["v2", "blue"]"#).key("labels", r#"{ team = "x" }"#));
    b.define(&web(INSTANCE, r#"["v2"]"#));
    let (first, second, third) = ("web-a-9000", "web-a-9001", "web-b-9000");
    cluster.wait_serving("web", &[first, second, third]);
    let ids = |node: &Node, query: &str| -> Vec<String> {
        let told = ask(node, &format!("health/service/web?{query}"));
        told.each("/Service/ID").into_iter().map(str::to_owned).collect()
    };
    assert_eq!(ids(a, "tag=v2"), [second, third]);
    assert_eq!(ids(a, "tag=v2&tag=BLUE"), [second]);
    assert_eq!(ids(a, "near=_agent"), [first, second, third]);
    assert_eq!(ids(b, "near=_agent&pretty&stale&cached"), [third, first, second]);
    assert_eq!(ids(b, "near=a"), [first, second, third]);
    assert_eq!(ids(b, "near=nobody"), [first, second, third]);
    let version = ask(a, "catalog/nodes").body[0]["Meta"]["version"].as_str().expect("a version").to_owned();
    assert_eq!(ids(a, &format!("node-meta=version:{version}")).len(), 3);
    assert_eq!(ids(a, "node-meta=version:none"), [""; 0]);
    assert_eq!(ask(a, "catalog/services?node-meta=version:none").body, json!({}));
    for (filter, expected) in [
        (r#"Service.Tags contains "v2""#, vec![second, third]),
        (r#""v2" in Service.Tags and Node.Node == "a""#, vec![second]),
        (r#"Service.Meta.team == "x" or Node.Node != "a""#, vec![second, third]),
        ("Service.Meta is empty and not (Service.Port == 9001)", vec![first, third]),
        (r#"Service.ID matches "^web-.-9000$""#, vec![first, third]),
        (r#"Checks.Status == "critical""#, vec![]),
    ] {
        assert_eq!(filtered(a, "health/service/web", filter).each("/Service/ID"), expected, "{filter}");
    }
    let filter = r#"ServiceTags contains "v1""#;
    assert_eq!(filtered(a, "catalog/service/web", filter).each("/ServiceID"), [first]);
    assert_eq!(filtered(a, "catalog/services", filter).body, json!({"web": ["blue", "v1"]}));
    assert_eq!(filtered(a, "catalog/nodes", r#"Node == "b""#).each("/Node"), ["b"]);

    // One fails, one is drained: Consul's words for it, on the other node too.
    backends[0].fail();
    let _ = eventually!(SOON, ids(b, "passing"), |ids| *ids == [second, third]);
    let _ = a.plexus(["drain", second]).ok();
    let _ = eventually!(SOON, ids(b, "passing=1"), |ids| *ids == [third]);
    assert_eq!(ids(b, "passing=false").len(), 3);
    let critical = ask(b, "health/state/critical");
    assert_eq!(critical.each("/CheckID"), ["service:web-a-9000", "_service_maintenance:web-a-9001"]);
    assert!(critical.each("/Output")[0].contains("503"), "{critical:?}");
    let _ = b.plexus(["drain", "--node"]).ok();
    let maintained = |told: &Told| told.each("/CheckID").contains(&"_node_maintenance");
    let _ = eventually!(SOON, ask(a, "health/node/b"), maintained);
    let _ = eventually!(SOON, ids(a, "passing"), Vec::is_empty);

    // Without the store all of it is answered, and it is said that nobody confirms it.
    cluster.etcd().stop();
    let told = eventually!(SOON, ask(a, "health/service/web"), |told| told.headers["x-consul-knownleader"]
        == "false");
    assert_eq!((told.status, told.body.as_array().map(Vec::len)), (200, Some(3)));
    let _ =
        eventually!(SOON, ask(a, "health/service/web"), |told| told.headers["x-consul-lastcontact"] != "0");
}

#[test]
fn an_agent_that_has_heard_nothing_yet_says_so_instead_of_nothing() {
    needs!("curl");
    let cluster = Cluster::of(1).store("etcd://10.77.0.77:2379").without_agents().start();
    let [a] = cluster.nodes();
    a.start_agent();
    let _ = eventually!(SOON, a.admin("/healthz").is_ok(), |answers| *answers);
    for path in ["catalog/services", "health/service/web", "catalog/nodes"] {
        let told = ask(a, path);
        assert_eq!(
            (told.status, &told.body["error"]),
            (500, &"No cluster leader".into()),
            "{path}: {told:?}"
        );
    }
}
