//! Checks that run programs, listen, or ask managers of this node: each against the real thing.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use plexus_tests::server::docker::Docker;
use plexus_tests::{Cluster, Node, Process, ServiceFile, eventually, needs, repository, throughout};
use serde_json::Value;

use crate::INSTANCE;
use crate::docker::needs_docker;

const SOON: Duration = Duration::from_secs(10);

/// Defines an instance of `app` on its node with this check.
fn define(node: &Node, check: &str) {
    node.define(&ServiceFile::new("app", INSTANCE).check(check));
}

/// The first check of `app`, as its node has it.
fn check(node: &Node) -> Value {
    node.admin_json("/v1/plexus/instances")["instances"][0]["checks"][0].clone()
}

/// Waits until the instance is as said on its node, and other nodes give it traffic or not.
#[track_caller]
fn becomes(node: &Node, other: &Node, health: &str, text: &str) {
    let seen = || (check(node), node.admin_json("/v1/plexus/instances")["instances"][0]["health"].clone());
    let _ = eventually!(SOON, seen(), |(check, instance)| {
        check["health"] == health
            && *instance == health
            && check["last"]["text"].as_str().is_some_and(|said| said.contains(text))
    });
    let ids: &[&str] = if matches!(health, "passing" | "warning") { &["app-a-9000"] } else { &[] };
    eventually!(SOON, other.serving("app"), |serving| *serving == ids);
}

/// A program of this text in the node's directory.
fn program(node: &Node, name: &str, text: &str) -> PathBuf {
    let path = node.directory().join(name);
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
    path
}

#[test]
fn a_program_s_exit_code_is_the_verdict_and_what_it_prints_is_shown() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let script = node_script(a, "echo \"fine on $PLEXUS_ADDRESS:$PLEXUS_PORT\"; echo more");
    define(
        a,
        &format!(
            "{{ exec = [\"/bin/sh\", {script:?}], interval = \"100ms\", timeout = \"100ms\", rise = 1, fall = 2 }}"
        ),
    );
    becomes(a, b, "passing", "exit 0: fine on 10.77.0.1:9000");
    assert_eq!(check(a)["last"]["output"], "fine on 10.77.0.1:9000\nmore\n");
    let _ = node_script(a, "echo 'disk 91%'; exit 1");
    becomes(a, b, "warning", "exit 1: disk 91%");
    // Everyone is told.
    let why = eventually!(SOON, b.plexus(["why", "app"]).ok(), |why| why.contains("disk 91%"));
    assert!(why.contains("yes"), "{why}");
    let here = a.plexus(["why", "app"]).ok();
    assert!(here.contains("LAST PROBE") && here.contains("warning"), "{here}");
    let _ = node_script(a, "exit 2");
    becomes(a, b, "critical", "exit 2");
    let _ = node_script(a, "exec sleep 1000");
    becomes(a, b, "critical", "no answer within 100ms");
    let children = || a.exec("pgrep", &["-c", "-P", &a.agent_pid().to_string(), "sleep"]).stdout;
    eventually!(SOON, children(), |count| count.trim().parse::<u32>().is_ok_and(|count| count <= 1));
    let _ = node_script(a, "exit 0");
    becomes(a, b, "passing", "exit 0");
    let counted =
        |result: &str| a.metric("plexus_check_probes_total", &format!("kind=\"exec\",result=\"{result}\""));
    for result in ["pass", "warn", "fail", "timeout"] {
        assert!(counted(result).is_some_and(|count| count > 0.0), "{result}");
    }
    let zombies = a.exec("ps", &["--ppid", &a.agent_pid().to_string(), "-o", "stat="]).stdout;
    assert!(!zombies.contains('Z'), "{zombies}");
}

/// The script of the `exec` check, in one piece.
fn node_script(node: &Node, text: &str) -> PathBuf {
    let new = program(node, "check.new", &format!("{text}\n"));
    let path = node.directory().join("check.sh");
    fs::rename(new, &path).expect("renamed");
    path
}

#[test]
fn what_runs_programs_or_sends_files_is_taken_from_files_alone() {
    needs!("etcd", "etcdctl", "curl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let register = |check: &str| {
        let body = format!("{{\"name\": \"app\", \"port\": 9000, \"check\": [{check}]}}");
        let url = "http://127.0.0.1:7070/v1/plexus/instances";
        a.exec("curl", &["-s", "-X", "POST", "-H", "content-type: application/json", "-d", &body, url]).ok()
    };
    for check in [
        "{\"exec\": [\"/bin/true\"]}",
        "{\"external\": [\"/bin/cat\"]}",
        "{\"redis\": true, \"password_file\": \"/etc/shadow\"}",
    ] {
        let said = register(check);
        assert!(said.contains("only the node's own files may say which"), "{said}");
    }
    assert!(register("{\"ttl\": \"10s\"}").contains("is taken in"));
}

#[test]
fn an_application_reports_in_consul_s_shape_or_ours_and_its_silence_is_critical() {
    needs!("etcd", "etcdctl", "curl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    define(a, "{ ttl = \"2s\" }");
    let put = |path: &str, body: Option<&str>| {
        let url = format!("http://127.0.0.1:7070{path}");
        let mut arguments = vec!["-s", "-w", "%{http_code}", "-X", "PUT"];
        if let Some(body) = body {
            arguments.extend(["-H", "content-type: application/json", "-d", body]);
        }
        arguments.push(&url);
        a.exec("curl", &arguments).ok()
    };
    eventually!(SOON, check(a)["id"].clone(), |id| *id == "service:app-a-9000");
    assert_eq!(check(a)["health"], "starting");
    // Without a content type, as clients of Consul send it.
    assert_eq!(put("/v1/agent/check/pass/service:app-a-9000?note=up%20and%20well", None), "200");
    becomes(a, b, "passing", "up and well");
    assert_eq!(put("/v1/agent/check/warn/service:app-a-9000", None), "200");
    becomes(a, b, "warning", "it reports warning");
    becomes(a, b, "critical", "no report within 2s");
    let update = "{\"Status\": \"passing\", \"Output\": \"again\"}";
    assert_eq!(put("/v1/agent/check/update/service:app-a-9000", Some(update)), "200");
    becomes(a, b, "passing", "again");
    let ours = "{\"status\": \"critical\", \"output\": \"out of memory\"}";
    assert!(put("/v1/plexus/checks/service:app-a-9000", Some(ours)).contains("app-a-9000"));
    becomes(a, b, "critical", "out of memory");
    let unknown = put("/v1/agent/check/pass/nobody", None);
    assert!(unknown.contains("no `ttl` check") && unknown.ends_with("404"), "{unknown}");
    assert!(put("/v1/agent/check/explode/x", None).ends_with("404"));
}

#[test]
fn the_external_program_of_the_documentation_works_as_it_stands_there() {
    needs!("etcd", "etcdctl", "python3");
    let document = fs::read_to_string(repository().join("docs/checks.md")).expect("the document");
    let text = document.split("```python\n").nth(1).and_then(|rest| rest.split("```").next());
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let program = program(a, "check-spool", text.expect("the example"));
    let spool = a.directory().join("spool");
    fs::create_dir(&spool).expect("a directory");
    let options = format!("{{ spool = {spool:?}, limit = \"2\" }}");
    define(
        a,
        &format!(
            "{{ external = [\"/usr/bin/env\", \"python3\", {program:?}], options = {options}, interval = \"100ms\", \
             timeout = \"100ms\", rise = 1, fall = 2, start_period = \"5s\" }}"
        ),
    );
    let fill =
        |count: usize| (0..count).for_each(|n| fs::write(spool.join(n.to_string()), "").expect("a file"));
    becomes(a, b, "passing", "0 files wait");
    fill(3);
    becomes(a, b, "warning", "3 files wait");
    fill(5);
    becomes(a, b, "critical", "5 files wait");
    // One process for all of it; when it is killed it is started again.
    let processes = || a.exec("pgrep", &["-f", &program.display().to_string()]).stdout;
    let first = processes();
    assert_eq!(first.lines().count(), 1, "{first}");
    let _ = a.exec("kill", &["-STOP", first.trim()]).ok();
    becomes(a, b, "critical", "no answer within 100ms");
    let _ = a.exec("kill", &["-KILL", first.trim()]).ok();
    fs::remove_dir_all(&spool).expect("removed");
    becomes(a, b, "critical", "FileNotFoundError");
    assert_ne!(processes(), first);
    fs::create_dir(&spool).expect("a directory");
    becomes(a, b, "passing", "0 files wait");
    a.remove_service_file("app-9000.toml");
    eventually!(SOON, processes(), String::is_empty);
}

/// A systemd of its own, with a bus beside it: the manager of a user, in namespaces that look as if it had booted them.
fn systemd(node: &Node) -> (Process, PathBuf) {
    let directory = node.directory().join("systemd");
    fs::create_dir_all(directory.join("systemd/user")).expect("a directory");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).expect("ours");
    let unit = "[Service]\nExecStart=/bin/sleep 1000000\n";
    fs::write(directory.join("systemd/user/demo.service"), unit).expect("a unit");
    let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && \
                  dbus-daemon --session --address=\"$DBUS_SESSION_BUS_ADDRESS\" --fork --nopidfile && systemd --user; true";
    let bus = directory.join("bus");
    let mut command = node.namespace().command("unshare");
    command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.args(["sh", "-c", script]).env("XDG_RUNTIME_DIR", &directory).env("HOME", &directory);
    command.env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", bus.display()));
    (Process::start("systemd", &mut command, &directory.join("log")), bus)
}

/// Tells the systemd on this bus what to do with the unit.
#[track_caller]
fn systemctl(node: &Node, bus: &Path, verb: &str) {
    let directory = bus.parent().expect("a directory").display().to_string();
    let environment = [
        format!("XDG_RUNTIME_DIR={directory}"),
        format!("DBUS_SESSION_BUS_ADDRESS=unix:path={directory}/bus"),
    ];
    let arguments =
        [&environment[0], &environment[1], "busctl", "--user", "call", "org.freedesktop.systemd1"];
    let unit = [
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
        verb,
        "ss",
        "demo.service",
        "replace",
    ];
    let all: Vec<&str> = arguments.into_iter().chain(unit).collect();
    let _ = eventually!(SOON, node.exec("env", &all), |ran| ran.success());
}

#[test]
fn a_unit_of_a_real_systemd_is_followed() {
    needs!("etcd", "etcdctl", "systemd", "dbus-daemon", "busctl", "unshare");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let (mut systemd, bus) = systemd(a);
    define(
        a,
        &format!(
            "{{ systemd = \"demo\", bus = {bus:?}, interval = \"100ms\", timeout = \"100ms\", rise = 1, fall = 2 }}"
        ),
    );
    systemctl(a, &bus, "StartUnit");
    becomes(a, b, "passing", "active (running)");
    systemctl(a, &bus, "StopUnit");
    becomes(a, b, "critical", "inactive (dead)");
    systemctl(a, &bus, "StartUnit");
    becomes(a, b, "passing", "active (running)");
    // A manager that is stopped answers nobody, and one that is gone is not there.
    let shell = a.exec("pgrep", &["-P", &systemd.id().to_string()]).ok().trim().to_owned();
    let manager = a.exec("pgrep", &["-x", "systemd", "-P", &shell]).ok().trim().to_owned();
    let _ = a.exec("kill", &["-STOP", &manager]).ok();
    becomes(a, b, "critical", "no answer within 100ms");
    let _ = a.exec("kill", &["-CONT", &manager]).ok();
    becomes(a, b, "passing", "active (running)");
    define(a, &format!("{{ systemd = \"nowhere.service\", bus = {bus:?}, interval = \"100ms\", fall = 1 }}"));
    becomes(a, b, "critical", "there is no such unit");
    systemd.kill();
    becomes(a, b, "critical", "connect to");
}

#[test]
fn a_container_s_own_health_check_is_read() {
    needs_docker!();
    let (cluster, dockers) = crate::docker::cluster(2);
    let [a, b] = cluster.nodes();
    let engine = Docker::api(a);
    define(
        a,
        &format!(
            "{{ docker = \"app\", engine = {engine:?}, interval = \"200ms\", timeout = \"200ms\", rise = 1, fall = 2 }}"
        ),
    );
    becomes(a, b, "critical", "no such container");
    let healthy =
        ["--health-cmd", "echo looked; test ! -e /sick", "--health-interval", "1s", "--health-retries", "1"];
    dockers[0].run("app", &healthy, "exec sleep 1000000");
    becomes(a, b, "passing", "healthy: looked");
    let _ = dockers[0].exec("app", &["touch", "/sick"]).ok();
    becomes(a, b, "critical", "unhealthy: looked");
    let _ = dockers[0].exec("app", &["rm", "/sick"]).ok();
    becomes(a, b, "passing", "healthy");
    dockers[0].freeze();
    becomes(a, b, "critical", "no answer within 200ms");
    dockers[0].thaw();
    becomes(a, b, "passing", "healthy");
    let _ = dockers[0].docker(&["pause", "app"]).ok();
    becomes(a, b, "critical", "the container is paused");
    let _ = dockers[0].docker(&["unpause", "app"]).ok();
    becomes(a, b, "passing", "healthy");
    let _ = dockers[0].docker(&["rm", "--force", "app"]).ok();
    dockers[0].run("app", &[], "exec sleep 1000000");
    becomes(a, b, "critical", "no HEALTHCHECK");
}

#[test]
fn a_service_lowers_its_own_weight_and_drains_itself() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backend = a.backend("app", INSTANCE);
    let answer = Arc::new(Mutex::new("up\n".to_owned()));
    let says = Arc::clone(&answer);
    let address = a.at(9999);
    let listener = a.namespace().enter(move || TcpListener::bind(address).expect("a port"));
    let _agent = std::thread::spawn(move || {
        for stream in listener.incoming() {
            let said = says.lock().expect("unpoisoned").clone();
            let mut stream = stream.expect("a connection");
            let _ = stream.write_all(said.as_bytes());
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read(&mut [0; 1]);
        }
    });
    let say = |text: &str| text.clone_into(&mut answer.lock().expect("unpoisoned"));
    a.define(
        &ServiceFile::new("app", INSTANCE)
            .key("weight", "200")
            .check("{ weight_from = 9999, interval = \"100ms\", timeout = \"100ms\", rise = 1, fall = 2 }"),
    );
    let endpoint = || b.admin_json("/v1/plexus/services/app")["endpoints"][0].clone();
    let _ = eventually!(SOON, endpoint(), |seen| seen["weight"] == 200 && seen["serving"] == true);
    say("25%\n");
    let _ = eventually!(SOON, endpoint(), |seen| seen["weight"] == 50 && seen["serving"] == true);
    say("drain\n");
    let _ = eventually!(SOON, endpoint(), |seen| seen["excluded"] == "draining");
    say("ready,up,100%\n");
    let _ = eventually!(SOON, endpoint(), |seen| seen["weight"] == 200 && seen["serving"] == true);
    say("down # disk\n");
    let _ = eventually!(SOON, endpoint(), |seen| seen["excluded"] == "critical");
    say("10%\n");
    let _ = eventually!(SOON, endpoint(), |seen| seen["weight"] == 20 && seen["serving"] == true);
    // What means nothing is a warning, and changes nothing.
    say("hello\n");
    becomes(a, b, "warning", "means nothing");
    throughout!(Duration::from_millis(500), endpoint()["weight"].clone(), |weight| *weight == 20);
}

#[test]
fn an_instance_that_comes_and_goes_is_held_down_and_says_so() {
    needs!("etcd", "etcdctl", "curl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    define(a, "{ ttl = \"1h\", id = \"app\" }");
    let report = |verb: &str| {
        let url = format!("http://127.0.0.1:7070/v1/agent/check/{verb}/app");
        let _ = a.exec("curl", &["-sf", "-X", "PUT", &url]).ok();
        let health = if verb == "pass" { "passing" } else { "critical" };
        eventually!(SOON, check(a)["health"].clone(), |seen| *seen == health);
    };
    eventually!(SOON, check(a)["id"].clone(), |id| *id == "app");
    report("pass");
    becomes(a, b, "passing", "");
    for _ in 0..5 {
        report("fail");
        report("pass");
    }
    // Its check passes; it gets nothing all the same, and every node can say why.
    let why = eventually!(SOON, b.plexus(["why", "app"]).stdout, |why| why.contains("flapping"));
    assert!(why.contains("changed 10 times within 2m, held down for 30s"), "{why}");
    assert_eq!(check(a)["health"], "passing");
    assert_eq!(a.metric("plexus_check_flapping_total", ""), Some(1.0));
}
