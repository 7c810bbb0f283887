//! HAProxy, as the agent of its node keeps it: told of instances while it runs, and reloaded for nothing else.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use plexus_tests::{Cluster, Node, Process, ServiceFile, Settings, Signal, eventually, needs, throughout};

use crate::INSTANCE;

const SOON: Duration = Duration::from_secs(20);
/// Where HAProxy's frontends listen.
const FRONT: u16 = 3213;
/// The shortest time between two reloads.
const INTERVAL: Duration = Duration::from_secs(4);
const CHECK: &str = "haproxy -c -f";

/// A node's HAProxy: a master in the foreground, and its workers.
struct Haproxy<'a> {
    node: &'a Node,
    process: Process,
}

/// What an agent is told of it.
fn output(node: &Node, services: &str, more: &str) -> String {
    let directory = node.directory().display();
    format!(
        "[output.haproxy]\n\
         config_file_path = \"haproxy.cfg\"\n\
         socket_file_path = \"h.sock\"\n\
         reload_command = \"date +%s%3N >> {directory}/reloads; kill -USR2 $(cat {directory}/h.pid)\"\n\
         do_checks = true\n\
         check_command = \"{CHECK} {directory}/haproxy.cfg.tmp\"\n\
         restart_interval = {}\n\
         use_nerve_weights = true\n\
         bind_address = \"0.0.0.0\"\n\
         global = [\"stats socket {directory}/h.sock mode 600 level admin expose-fd listeners\"]\n\
         defaults = [\"mode tcp\", \"timeout connect 2s\", \"timeout client 10s\", \"timeout server 10s\", \"retries 3\", \
         \"option redispatch\", \"balance roundrobin\"]\n\
         {more}\n{services}\n",
        INTERVAL.as_secs()
    )
}

fn service(name: &str, port: u16) -> String {
    format!(
        "[[output.haproxy.service]]\nservice = \"{name}\"\nport = {port}\nlisten = [\"mode tcp\"]\n\
         server_options = \"check inter 500ms fall 3\"\n"
    )
}

/// Tells the node's agent of its HAProxy, whether it runs or not.
fn configure(cluster: &Cluster, node: &Node, services: &str, more: &str) {
    node.configure(&Settings { more: output(node, services, more), ..cluster.settings().clone() });
}

/// Two nodes with agents, and HAProxy on the first, settled.
fn start(cluster: &Cluster) -> Haproxy<'_> {
    let [a, b] = cluster.nodes();
    configure(cluster, a, &service("web", FRONT), "");
    for node in [a, b] {
        node.start_agent();
    }
    for node in [a, b] {
        node.wait_ready(SOON);
    }
    let haproxy = Haproxy::start(a);
    haproxy.is_settled();
    haproxy
}

impl<'a> Haproxy<'a> {
    /// From what the agent has written.
    fn start(node: &'a Node) -> Self {
        let file = node.directory().join("haproxy.cfg");
        let _ = eventually!(SOON, file.exists(), |is_there| *is_there);
        let mut command = node.namespace().command("haproxy");
        command.args(["-W", "-db", "-f"]).arg(&file);
        let process = Process::start("haproxy", &mut command, &node.directory().join("haproxy.log"));
        let haproxy = Self { node, process };
        let _ = eventually!(SOON, haproxy.pid(), |pid| !pid.is_empty());
        // Not before it takes the signal.
        let pid = haproxy.process.id().to_string();
        std::fs::write(node.directory().join("h.pid"), pid).expect("a file");
        haproxy
    }

    /// Asks at its stats socket; nothing, where nobody answers.
    fn ask(&self, question: &str) -> String {
        let asked = || {
            let mut stream = UnixStream::connect(self.node.directory().join("h.sock"))?;
            stream.set_read_timeout(Some(SOON))?;
            writeln!(stream, "{question}")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        asked().unwrap_or_default()
    }

    /// Its worker's process.
    fn pid(&self) -> String {
        let info = self.ask("show info");
        info.lines().find_map(|line| line.strip_prefix("Pid: ")).unwrap_or_default().to_owned()
    }

    /// The servers of a backend by their addresses: what they do, and their weights.
    fn servers(&self, backend: &str) -> BTreeMap<String, String> {
        let answer = self.ask(&format!("show servers state {backend}"));
        let lines = answer.lines().filter(|line| line.contains(&format!(" {backend} ")));
        lines
            .map(|line| {
                let columns: Vec<&str> = line.split(' ').collect();
                let state = match columns[6].parse::<u32>().expect("a number") {
                    admin if admin & 1 != 0 => "maint",
                    admin if admin & 8 != 0 => "drain",
                    _ => "ready",
                };
                (format!("{}:{}", columns[4], columns[18]), format!("{state} {}", columns[7]))
            })
            .collect()
    }

    #[track_caller]
    fn becomes(&self, backend: &str, expected: &[(&str, &str)]) {
        let expected: BTreeMap<String, String> =
            expected.iter().map(|(server, state)| ((*server).to_owned(), (*state).to_owned())).collect();
        let _ = eventually!(SOON, self.servers(backend), |servers| *servers == expected);
    }

    /// When it was told to reload, in milliseconds.
    fn reloads(&self) -> Vec<u64> {
        let log = std::fs::read_to_string(self.node.directory().join("reloads")).unwrap_or_default();
        log.lines().map(|line| line.parse().expect("a moment")).collect()
    }

    /// Waits until it runs what it is to.
    #[track_caller]
    fn is_settled(&self) {
        let of_file = || {
            let file = self.file();
            let mark = file.lines().find_map(|line| line.strip_prefix("\tsetenv PLEXUS_LOADED "));
            mark.expect("it says what it was made from").to_owned()
        };
        let pending = || self.node.metric("plexus_haproxy_reload_pending", "");
        let _ = eventually!(
            SOON,
            (self.ask("show env PLEXUS_LOADED").contains(&of_file()), pending(), self.problems()),
            |(is_loaded, pending, problems)| *is_loaded && *pending == Some(0.0) && problems.is_empty()
        );
    }

    /// What its agent says to be wrong with it.
    fn problems(&self) -> Vec<String> {
        let status = self.node.admin_json("/v1/plexus/status");
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        let ours = problems.iter().filter(|problem| problem["what"] == "haproxy");
        ours.map(|problem| problem["message"].to_string()).collect()
    }

    fn file(&self) -> String {
        std::fs::read_to_string(self.node.directory().join("haproxy.cfg")).expect("its configuration")
    }
}

#[test]
fn instances_come_go_drain_and_change_their_weight_without_a_reload() {
    needs!("etcd", "etcdctl", "haproxy");
    let cluster = Cluster::of(2).without_agents().start();
    let haproxy = start(&cluster);
    let [a, b] = cluster.nodes();
    let _first = a.serve("web", INSTANCE);
    let second = b.serve("web", 9001);
    let (one, two, three) = ("10.77.0.1:9000", "10.77.0.2:9001", "10.77.0.2:9002");
    haproxy.becomes("web", &[(one, "ready 100"), (two, "ready 100")]);
    let (pid, reloads) = (haproxy.pid(), haproxy.reloads());
    let load = a.load(a.at(FRONT));
    load.wait_for(100);
    // One more, which is then worth less.
    let third = b.serve("web", 9002);
    haproxy.becomes("web", &[(one, "ready 100"), (two, "ready 100"), (three, "ready 100")]);
    let count = |id: &str| load.so_far().by_instance.get(id).copied().unwrap_or(0);
    let _ = eventually!(SOON, count("web-b-9002"), |count| *count > 10);
    b.define(&ServiceFile::new("web", 9002).key("weight", "20"));
    haproxy.becomes("web", &[(one, "ready 100"), (two, "ready 100"), (three, "ready 20")]);
    // One is drained, and comes back.
    let _ = b.plexus(["drain", "web-b-9001"]).ok();
    haproxy.becomes("web", &[(one, "ready 100"), (two, "drain 100"), (three, "ready 20")]);
    load.wait_for(20);
    let before = count("web-b-9001");
    load.wait_for(100);
    assert_eq!(count("web-b-9001"), before);
    let _ = b.plexus(["undrain", "web-b-9001"]).ok();
    haproxy.becomes("web", &[(one, "ready 100"), (two, "ready 100"), (three, "ready 20")]);
    // One fails its check at its own node, and recovers.
    second.fail();
    haproxy.becomes("web", &[(one, "ready 100"), (two, "maint 100"), (three, "ready 20")]);
    second.recover();
    haproxy.becomes("web", &[(one, "ready 100"), (two, "ready 100"), (three, "ready 20")]);
    // One goes for good: nothing is left of it, once its connections have ended.
    b.remove_service_file("web-9002.toml");
    haproxy.becomes("web", &[(one, "ready 100"), (two, "ready 100")]);
    drop(third);
    let _again = b.serve("web", 9002);
    haproxy.becomes("web", &[(one, "ready 100"), (two, "ready 100"), (three, "ready 100")]);
    load.wait_for(100);
    load.stop().assert_unharmed();
    assert_eq!((haproxy.pid(), haproxy.reloads()), (pid, reloads));
    // It would start from the same.
    let _ = eventually!(SOON, haproxy.file(), |file| [one, two, three]
        .iter()
        .all(|server| file.contains(server)));
    let file = a.directory().join("haproxy.cfg").display().to_string();
    assert!(a.exec("haproxy", &["-c", "-f", &file]).success());
    for command in ["add", "delete", "weight", "state", "check"] {
        let label = format!("command=\"{command}\"");
        assert!(a.metric("plexus_haproxy_runtime_commands_total", &label) > Some(0.0), "{command}");
    }
    assert_eq!(a.metric("plexus_haproxy_failures_total", "reason=\"command\""), Some(0.0));
    assert_eq!(haproxy.problems(), [""; 0]);
}

#[test]
fn a_new_service_costs_one_reload_and_reloads_are_an_interval_apart() {
    needs!("etcd", "etcdctl", "haproxy");
    let cluster = Cluster::of(2).without_agents().start();
    let haproxy = start(&cluster);
    let [a, b] = cluster.nodes();
    let _backends = (a.serve("web", INSTANCE), b.serve("api", 9001));
    haproxy.becomes("web", &[("10.77.0.1:9000", "ready 100")]);
    let before = haproxy.reloads().len();
    let load = a.load(a.at(FRONT));
    load.wait_for(100);
    let mut services = service("web", FRONT);
    for (count, port) in (1..).zip(FRONT + 1..FRONT + 4) {
        services.push_str(&service("api", port).replacen(
            "listen",
            &format!("name = \"api{count}\"\nlisten"),
            1,
        ));
        configure(&cluster, a, &services, "");
        a.signal_agent(Signal::HUP);
        let _ = eventually!(SOON, a.get(a.at(port), "/").is_ok(), |answers| *answers);
        haproxy.becomes(&format!("api{count}"), &[("10.77.0.2:9001", "ready 100")]);
        haproxy.is_settled();
        assert_eq!(haproxy.reloads().len(), before + count);
    }
    let apart: Vec<u64> = haproxy.reloads().windows(2).map(|two| two[1] - two[0]).skip(before).collect();
    let least = u64::try_from(INTERVAL.as_millis()).expect("a number") - 50;
    assert!(apart.len() == 2 && apart.iter().all(|apart| *apart >= least), "{apart:?}");
    assert_eq!(a.metric("plexus_haproxy_reloads_total", "reason=\"sections\""), Some(3.0));
    load.stop().assert_unharmed();
}

#[test]
fn a_configuration_that_does_not_pass_changes_nothing_and_is_told() {
    needs!("etcd", "etcdctl", "haproxy");
    let cluster = Cluster::of(2).without_agents().start();
    let haproxy = start(&cluster);
    let [a, b] = cluster.nodes();
    let _first = a.serve("web", INSTANCE);
    haproxy.becomes("web", &[("10.77.0.1:9000", "ready 100")]);
    let is_checked = |file: &String| file.contains("10.77.0.1:9000") && !file.contains("disabled");
    let _ = eventually!(SOON, haproxy.file(), is_checked);
    let (pid, reloads, file) = (haproxy.pid(), haproxy.reloads(), haproxy.file());
    let bad = service("web", FRONT).replace("mode tcp", "mode tcp\", \"balance nonsense");
    configure(&cluster, a, &bad, "");
    a.signal_agent(Signal::HUP);
    let told = |haproxy: &Haproxy<'_>| haproxy.problems().concat();
    let _ = eventually!(SOON, told(&haproxy), |told| told.contains("does not pass the check")
        && told.contains("balance only supports"));
    assert!(a.plexus(["status"]).stdout.contains("does not pass the check"));
    assert!(a.metric("plexus_haproxy_failures_total", "reason=\"check\"") >= Some(1.0));
    // What can be said while it runs is said all the same.
    let _second = b.serve("web", 9001);
    haproxy.becomes("web", &[("10.77.0.1:9000", "ready 100"), ("10.77.0.2:9001", "ready 100")]);
    assert_eq!((haproxy.pid(), haproxy.reloads(), haproxy.file()), (pid, reloads.clone(), file));
    configure(&cluster, a, &service("web", FRONT), "");
    a.signal_agent(Signal::HUP);
    let _ = eventually!(SOON, haproxy.file(), |file| file.contains("10.77.0.2:9001"));
    haproxy.is_settled();
    assert_eq!(haproxy.reloads(), reloads, "it ran that all the time");
}

#[test]
fn haproxy_goes_on_without_its_agent_and_one_that_starts_again_does_not_reload_it() {
    needs!("etcd", "etcdctl", "haproxy");
    let cluster = Cluster::of(2).without_agents().start();
    let haproxy = start(&cluster);
    let [a, b] = cluster.nodes();
    let _backends = (b.serve("web", INSTANCE), b.serve("web", 9001));
    let (one, two, three) = ("10.77.0.2:9000", "10.77.0.2:9001", "10.77.0.2:9002");
    haproxy.becomes("web", &[(one, "ready 100"), (two, "ready 100")]);
    // It is written at most once a second: first may be that they are about to be checked.
    let _ = eventually!(SOON, haproxy.file(), |file| {
        file.contains(one) && file.contains(two) && !file.contains("disabled")
    });
    let (pid, reloads, file) = (haproxy.pid(), haproxy.reloads(), haproxy.file());
    let load = a.load(a.at(FRONT));
    load.wait_for(100);
    a.kill_agent();
    load.wait_for(100);
    a.restart_agent();
    haproxy.is_settled();
    throughout!(INTERVAL, (haproxy.pid(), haproxy.reloads()), |seen| *seen == (pid.clone(), reloads.clone()));
    assert_eq!(haproxy.file(), file);
    // What happened meanwhile it hears from the next one.
    a.kill_agent();
    b.remove_service_file("web-9001.toml");
    let third = b.serve("web", 9002);
    let _ = eventually!(SOON, b.serving("web"), |ids| *ids == ["web-b-9000", "web-b-9002"]);
    a.restart_agent();
    haproxy.becomes("web", &[(one, "ready 100"), (three, "ready 100")]);
    // Another agent that takes over finds everything as it is to be, too; and one that leaves leaves it running.
    drop(a.take_over());
    haproxy.is_settled();
    a.terminate_agent();
    a.wait_agent_end(SOON);
    load.wait_for(100);
    load.stop().assert_unharmed();
    assert_eq!((haproxy.pid(), haproxy.reloads()), (pid, reloads));
    drop(third);
}

#[test]
fn a_haproxy_that_is_started_again_is_told_what_its_file_does_not_say() {
    needs!("etcd", "etcdctl", "haproxy");
    let cluster = Cluster::of(2).without_agents().start();
    let mut haproxy = start(&cluster);
    let [a, b] = cluster.nodes();
    let _backends = (a.serve("web", INSTANCE), b.serve("web", 9001));
    let (one, two) = ("10.77.0.1:9000", "10.77.0.2:9001");
    haproxy.becomes("web", &[(one, "ready 100"), (two, "ready 100")]);
    let _ = b.plexus(["drain", "web-b-9001"]).ok();
    haproxy.becomes("web", &[(one, "ready 100"), (two, "drain 100")]);
    let is_disabled = |line: &str| line.contains(two) && line.ends_with(" disabled");
    let _ = eventually!(SOON, haproxy.file(), |file| file.lines().any(is_disabled));
    let reloads = haproxy.reloads();
    haproxy.process.kill();
    let _ = eventually!(SOON, haproxy.problems().concat(), |told| told.contains("nothing answers at"));
    let haproxy = Haproxy::start(a);
    haproxy.becomes("web", &[(one, "ready 100"), (two, "drain 100")]);
    haproxy.is_settled();
    assert_eq!(haproxy.reloads(), reloads);
}

#[test]
fn what_cannot_be_said_to_a_backend_costs_a_reload() {
    needs!("etcd", "etcdctl", "haproxy");
    let cluster = Cluster::of(2).without_agents().start();
    let haproxy = start(&cluster);
    let [a, b] = cluster.nodes();
    let by_table = service("web", FRONT).replace("mode tcp", "mode tcp\", \"balance static-rr");
    configure(&cluster, a, &by_table, "");
    a.signal_agent(Signal::HUP);
    let _ = eventually!(SOON, haproxy.file(), |file| file.contains("static-rr"));
    haproxy.is_settled();
    let _backends = (a.serve("web", INSTANCE), b.serve("web", 9001));
    let (one, two) = ("10.77.0.1:9000", "10.77.0.2:9001");
    haproxy.becomes("web", &[(one, "ready 100"), (two, "ready 100")]);
    haproxy.is_settled();
    let reloads = |reason: &str| a.metric("plexus_haproxy_reloads_total", &format!("reason=\"{reason}\""));
    assert!(reloads("new_server") >= Some(1.0));
    let before = haproxy.reloads().len();
    b.define(&ServiceFile::new("web", 9001).key("weight", "20"));
    haproxy.becomes("web", &[(one, "ready 100"), (two, "ready 20")]);
    haproxy.is_settled();
    assert_eq!((reloads("weight"), haproxy.reloads().len()), (Some(1.0), before + 1));
    assert_eq!(haproxy.problems(), [""; 0]);
}

#[test]
fn without_a_socket_every_change_is_a_reload() {
    needs!("etcd", "etcdctl", "haproxy");
    let cluster = Cluster::of(2).without_agents().start();
    let haproxy = start(&cluster);
    let [a, b] = cluster.nodes();
    let _first = a.serve("web", INSTANCE);
    haproxy.becomes("web", &[("10.77.0.1:9000", "ready 100")]);
    let before = haproxy.reloads().len();
    configure(&cluster, a, &service("web", FRONT), "do_socket = false\nstate_file_path = \"seen.json\"\n");
    a.signal_agent(Signal::HUP);
    let _second = b.serve("web", 9001);
    haproxy.becomes("web", &[("10.77.0.1:9000", "ready 100"), ("10.77.0.2:9001", "ready 100")]);
    // Who has gone stays, disabled.
    b.remove_service_file("web-9001.toml");
    haproxy.becomes("web", &[("10.77.0.1:9000", "ready 100"), ("10.77.0.2:9001", "maint 100")]);
    assert!(haproxy.reloads().len() >= before + 2);
    assert!(a.metric("plexus_haproxy_reloads_total", "reason=\"unknown\"") >= Some(2.0));
    assert_eq!(haproxy.problems(), [""; 0]);
}

#[test]
fn what_is_registered_is_one_line_and_what_cannot_be_heard_of_stays() {
    needs!("etcd", "etcdctl", "haproxy");
    let cluster = Cluster::of(2).without_agents().start();
    let haproxy = start(&cluster);
    let [a, _] = cluster.nodes();
    let _backend = a.backend("legacy", INSTANCE);
    let watch = "[[watch]]\nservice = \"legacy\"\nfile = \"legacy.json\"\n";
    let write = |servers: &str| {
        let (file, new) = (a.directory().join("legacy.json"), a.directory().join("legacy.new"));
        std::fs::write(&new, servers).and_then(|()| std::fs::rename(new, file)).expect("a file");
    };
    write("[]");
    configure(&cluster, a, &(service("web", FRONT) + &service("legacy", FRONT + 1) + watch), "");
    a.signal_agent(Signal::HUP);
    let _ = eventually!(SOON, haproxy.file(), |file| file.contains("backend legacy"));
    haproxy.is_settled();
    let (pid, reloads) = (haproxy.pid(), haproxy.reloads());
    write(
        r#"[{"host": "10.77.0.1", "port": 9000, "name": "good one", "labels": {"haproxy_server_options": "slowstart 1s"}},
            {"host": "10.77.0.1", "port": 9001, "name": "x\n\tserver evil 10.0.0.1:80"},
            {"host": "10.77.0.1", "port": 9002, "labels": {"haproxy_server_options": "x\nlisten evil"}},
            {"host": "10.77.0.1", "port": 9003, "labels": {"haproxy_server_options": "; shutdown sessions server web/x"}}]"#,
    );
    haproxy.becomes("legacy", &[("10.77.0.1:9000", "ready 100")]);
    let line = "\tserver good_one_10.77.0.1:9000 10.77.0.1:9000 id 1 check inter 500ms fall 3 slowstart 1s weight 100\n";
    let file = eventually!(SOON, haproxy.file(), |file| file.contains(line));
    assert!(!file.contains("evil") && !file.contains("shutdown"), "{file}");
    let told = eventually!(SOON, haproxy.problems().concat(), |told| told.contains("10.77.0.1:9003"));
    assert!(told.contains("10.77.0.1:9001") && told.contains("10.77.0.1:9002"), "{told}");
    assert_eq!(a.metric("plexus_haproxy_refused_total", "reason=\"server_options\""), Some(2.0));
    assert_eq!(a.metric("plexus_haproxy_refused_total", "reason=\"control_characters\""), Some(1.0));
    let _ = eventually!(SOON, a.get(a.at(FRONT + 1), "/").is_ok(), |answers| *answers);
    // An agent that starts, remembers nothing and cannot hear of a service leaves its servers what they are.
    a.kill_agent();
    std::fs::remove_file(a.directory().join("legacy.json")).expect("a file");
    let _ = std::fs::remove_file(a.directory().join("state/watchers.json"));
    a.restart_agent();
    haproxy.is_settled();
    throughout!(Duration::from_secs(3), a.get(a.at(FRONT + 1), "/").is_ok(), |answers| *answers);
    assert!(haproxy.file().contains(line));
    write("[\"10.77.0.1:9004\"]");
    haproxy.becomes("legacy", &[("10.77.0.1:9004", "ready 100")]);
    assert_eq!((haproxy.pid(), haproxy.reloads()), (pid, reloads));
}
