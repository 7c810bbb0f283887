//! Clients of Consul's, as they are published: what they register, ask and report is what the mesh has.

use std::path::PathBuf;
use std::time::Duration;

use plexus_tests::{Cluster, Node, eventually, needs, repository};

const SOON: Duration = Duration::from_secs(15);

/// Python with py-consul, as `tests/run` has installed it.
pub(crate) fn python() -> Option<PathBuf> {
    let python = repository().join("target/test-python/bin/python");
    let has = repository().join("target/test-python/has-consul").exists();
    has.then_some(python)
}

/// Where Node finds `consul`.
pub(crate) fn modules() -> Option<PathBuf> {
    let modules = repository().join("target/test-node/node_modules");
    modules.join("ready").exists().then_some(modules)
}

const PYTHON: &str = r#"
import sys, time, consul, consul.exceptions
address, port = sys.argv[1], int(sys.argv[2])
c = consul.Consul(host="127.0.0.1", port=7070)
def until(what, good):
    end = time.time() + 15
    while True:
        seen = what()
        if good(seen): return seen
        assert time.time() < end, seen
        time.sleep(0.05)
assert ":" in c.status.leader()
assert c.agent.self()["Config"]["NodeName"] == "a"
until(c.agent.members, lambda members: sorted(m["Name"] for m in members) == ["a", "b"])
c.agent.service.register("web", service_id="web1", address=address, port=port, tags=["v2"], meta={"team": "x"},
    check=consul.Check.http(f"http://{address}:{port}/healthz", interval="200ms", timeout="200ms"))
c.agent.service.register("worker", port=1, check=consul.Check.ttl("10s"))
web = c.agent.services()["web1"]
assert (web["Service"], web["Address"], web["Port"], web["Tags"], web["Meta"]) == ("web", address, port, ["v2"], {"team": "x"}), web
until(c.agent.checks, lambda checks: checks["service:web1"]["Status"] == "passing")
assert c.agent.checks()["service:worker"]["Status"] == "critical"
c.agent.check.ttl_pass("service:worker", "fine")
check = until(c.agent.checks, lambda checks: checks["service:worker"]["Status"] == "passing")["service:worker"]
assert (check["ServiceID"], check["Output"]) == ("worker", "fine"), check
c.agent.check.ttl_fail("service:worker")
until(c.agent.checks, lambda checks: checks["service:worker"]["Status"] == "critical")
c.agent.check.register("port", consul.Check.tcp(address, port, "200ms", "200ms"), service_id="web1")
until(c.agent.checks, lambda checks: "service:web1:2" in checks and checks["service:web1:2"]["Status"] == "passing")
c.agent.check.deregister("service:web1:2")
until(c.agent.checks, lambda checks: "service:web1" in checks and "service:web1:2" not in checks)
c.agent.service.maintenance("web1", "true", "a while")
until(c.agent.checks, lambda checks: checks.get("_service_maintenance:web1", {}).get("Status") == "critical")
c.agent.service.maintenance("web1", "false")
until(c.agent.checks, lambda checks: "_service_maintenance:web1" not in checks)
c.agent.maintenance("true")
until(c.agent.checks, lambda checks: "_node_maintenance" in checks)
c.agent.maintenance("false")
c.agent.service.register("brief", port=1, check=consul.Check.tcp(address, 1, "200ms", "200ms", deregister="1s"))
assert "brief" in c.agent.services()
until(c.agent.services, lambda services: "brief" not in services)
c.agent.service.deregister("worker")
until(c.agent.services, lambda services: sorted(services) == ["web1"])
for bad in [dict(name="web_1", port=1), dict(name="web", port=1, check={"Args": ["/bin/true"], "Interval": "1s"}),
            dict(name="web", port=1, check={"HTTP": "http://other.example/", "Interval": "1s"})]:
    try:
        c.agent.service.register(**bad)
    except consul.exceptions.BadRequest as error:
        print(error)
    else:
        raise AssertionError(bad)
print("done")
"#;

const NODE: &str = r#"
import { createRequire } from "node:module";
const Consul = createRequire(process.argv[2] + "/")("consul");
const [address, port] = [process.argv[3], Number(process.argv[4])];
const make = Consul.default ?? Consul;
const consul = new make({ host: "127.0.0.1", port: 7070 });
const until = async (what, good) => {
    const end = Date.now() + 15000;
    for (;;) {
        const seen = await what();
        if (good(seen)) return seen;
        if (Date.now() > end) throw new Error(JSON.stringify(seen));
        await new Promise((done) => setTimeout(done, 50));
    }
};
await consul.agent.service.register({
    name: "web", id: "web1", address, port, tags: ["v2"],
    checks: [{ http: `http://${address}:${port}/healthz`, interval: "200ms", timeout: "200ms" }, { ttl: "10s", checkid: "alive" }],
});
await consul.agent.check.pass("alive");
await until(() => consul.agent.checks(), (checks) => Object.values(checks).length === 2 && Object.values(checks).every((check) => check.Status === "passing"));
const services = await consul.agent.services();
if (services.web1.Service !== "web") throw new Error(JSON.stringify(services));
await consul.agent.service.maintenance({ id: "web1", enable: true, reason: "a while" });
await until(() => consul.agent.checks(), (checks) => "_service_maintenance:web1" in checks);
await consul.agent.service.maintenance({ id: "web1", enable: false });
await consul.agent.service.deregister("web1");
await until(() => consul.agent.services(), (services) => Object.keys(services).length === 0);
console.log("done");
"#;

fn cluster() -> Cluster {
    Cluster::new(2)
}

/// Runs a client on a node to its end.
#[track_caller]
pub(crate) fn run(node: &Node, program: &str, arguments: &[&str]) -> String {
    node.exec("timeout", &[&["60", program], arguments].concat()).ok()
}

#[test]
fn a_client_in_python_registers_checks_reports_and_maintains() {
    needs!("etcd", "curl", "timeout");
    let Some(python) = python() else {
        eprintln!("SKIPPED: there is no py-consul; `tests/run` installs it where PyPI can be reached");
        return;
    };
    let cluster = cluster();
    let [a, _] = cluster.nodes();
    let backend = a.backend("web", 9000);
    let address = a.address().to_string();
    let said = run(a, &python.to_string_lossy(), &["-c", PYTHON, &address, "9000"]);
    assert!(said.contains("done") && said.contains("only the node's own files may say which"), "{said}");
    // Every node has it; the id has the node's name in it, for ids of Consul's are the node's own.
    cluster.wait_serving("web", &["web1@a"]);
    // It is kept over a restart, and a stop of the instance is seen.
    a.kill_agent();
    a.restart_agent();
    cluster.wait_serving("web", &["web1@a"]);
    drop(backend);
    let _ = eventually!(SOON, a.serving("web"), Vec::is_empty);
}

#[test]
fn a_client_in_javascript_registers_reports_and_deregisters() {
    needs!("etcd", "curl", "timeout", "node");
    let Some(modules) = modules() else {
        eprintln!(
            "SKIPPED: there is no consul of npm; `tests/run` installs it where its registry can be reached"
        );
        return;
    };
    let cluster = cluster();
    let [a, _] = cluster.nodes();
    let _backend = a.backend("web", 9000);
    let script = a.directory().join("client.mjs");
    std::fs::write(&script, NODE).unwrap();
    let address = a.address().to_string();
    let said = run(a, "node", &[&script.to_string_lossy(), &modules.to_string_lossy(), &address, "9000"]);
    assert_eq!(said.trim(), "done");
}
