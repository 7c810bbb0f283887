//! Configurations of SmartStack's Synapse, run as they are, beside a real ZooKeeper that holds registrations of Nerve's form.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plexus_tests::server::real::Server;
use plexus_tests::server::store::Make;
use plexus_tests::{Cluster, Node, Signal, eventually, needs, throughout};

const SOON: Duration = Duration::from_secs(30);

/// Where a node keeps its configuration of Synapse.
fn file(node: &Node) -> PathBuf {
    node.directory().join("synapse.conf.json")
}

/// Where it has its services as files.
fn written(node: &Node, service: &str) -> PathBuf {
    node.directory().join("services").join(format!("{service}.json"))
}

/// Starts the agent of a node with this configuration of Synapse, and a store that it shares with nobody.
fn start(cluster: &Cluster, node: &Node, text: &str) {
    start_with(cluster, node, text, "");
}

/// The same with more keys of `[source.synapse]`.
fn start_with(cluster: &Cluster, node: &Node, text: &str, more: &str) {
    fs::write(file(node), text).expect("a file");
    let mut settings = cluster.settings().clone();
    settings.store = "embedded".to_owned();
    settings.more = format!("[source.synapse]\nfile = \"{}\"\n{more}", file(node).display());
    node.configure(&settings);
    node.start_agent();
    node.wait_ready(SOON);
}

fn reload(node: &Node, text: &str) {
    fs::write(file(node), text).expect("a file");
    node.signal_agent(Signal::HUP);
}

/// Who answers there, asked several times.
fn who(node: &Node, at: SocketAddr) -> Vec<String> {
    let mut all: Vec<String> =
        (0..6).filter_map(|_| node.get(at, "/").ok().and_then(|answer| answer.instance())).collect();
    all.sort();
    all.dedup();
    all
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// As Nerve writes it.
fn registration(host: &str, port: u16, name: &str, more: &str) -> String {
    format!(r#"{{"host":"{host}","port":{port},"name":"{name}"{more}}}"#)
}

/// Of the form of the documentation's, with one service that cannot be.
fn whole(host: &str, hosts: &str, path: &str, services: &Path, output: &Path) -> String {
    format!(
        r#"{{
 "service_conf_dir": "{dir}",
 "services": {{
  "web_main": {{
   "default_servers": [{{"name": "fallback", "host": "{host}", "port": 9002}}],
   "discovery": {{"method": "zookeeper", "hosts": ["{hosts}"], "path": "{path}",
    "label_filters": [{{"label": "az", "value": "a", "condition": "equals"}}]}},
   "haproxy": {{
    "port": 3213,
    "server_options": "check inter 2s rise 3 fall 2",
    "listen": ["mode http", "option httpchk /ping"],
    "backend": ["balance leastconn", "timeout server 30s", "cookie SRV insert"]
   }}
  }},
  "leader": {{
   "leader_election": true,
   "discovery": {{"method": "zookeeper", "hosts": "{hosts}", "path": "{path}"}},
   "haproxy": {{"port": 3216, "frontend": ["mode tcp"], "backend": ["mode tcp"]}}
  }},
  "legacy": {{
   "discovery": {{"method": "yarn", "app": "legacy"}},
   "haproxy": {{"port": 3215}}
  }}
 }},
 "haproxy": {{"global": ["daemon"], "defaults": ["timeout connect 5s", "timeout client 1m"], "do_reloads": true}},
 "file_output": {{"output_directory": "{output}"}}
}}"#,
        dir = services.display(),
        output = output.display(),
    )
}

#[test]
fn a_configuration_of_synapse_serves_its_ports_unchanged_and_writes_its_files() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar", "/usr/lib/python3/dist-packages/kazoo/client.py");
    let cluster = Cluster::of(2).on(Make::ZooKeeper).without_agents().start();
    let (zookeeper, [a, b]) = (cluster.zookeeper(), cluster.nodes());
    let (hosts, path) = (zookeeper.hosts(), "/nerve/services/web/services");
    let _backends = (a.backend("web", 9000), a.backend("web", 9001), a.backend("stub", 9002));
    let host = a.address().to_string();
    zookeeper.create(
        &format!("{path}/a-host_0000000007"),
        &registration(&host, 9000, "a-host", r#","labels":{"az":"a"}"#),
    );
    zookeeper.create(
        &format!("{path}/c-host_0000000008"),
        &registration(&host, 9002, "c-host", r#","labels":{"az":"c"}"#),
    );
    let services = b.directory().join("synapse-services");
    fs::create_dir(&services).expect("a directory");
    let stub = format!(
        "discovery: {{method: base}}\ndefault_servers:\n  - {{name: s, host: {host}, port: 9002}}\nhaproxy: {{port: 3214, bind_address: 0.0.0.0}}\n"
    );
    fs::write(services.join("stub.yaml"), stub).expect("a file");
    let text = whole(&host, &hosts, path, &services, &b.directory().join("services"));
    start(&cluster, b, &text);

    // Its ports, for this machine and where it says so for others.
    let (web, stub, leader) = (at("127.0.0.1:3213"), b.at(3214), at("127.0.0.1:3216"));
    let _ = eventually!(SOON, who(b, web), |who| *who == ["web-a-9000"]);
    let _ = eventually!(SOON, who(a, stub), |who| *who == ["stub-a-9002"]);
    let _ = eventually!(SOON, who(b, leader), |who| *who == ["web-a-9000"]);
    assert!(!a.can_connect(b.at(3213)));
    // What is wrong costs what it is said of, and what HAProxy would do is told.
    let status = b.plexus(["status"]).ok();
    assert!(
        status.contains("services.legacy.discovery.method: discovery method \"yarn\" is not supported")
            && status.contains("synapse.conf.json:21:"),
        "{status}"
    );
    let log = b.agent_log();
    assert!(log.contains("web_main: not done: `cookie SRV insert`; mode http is served as TCP"), "{log}");
    assert_eq!(log.matches("HAProxy's checks of servers").count(), 1, "{log}");
    // Its lines are settings here, until the mesh has some.
    let setting = |name: &str| {
        let answer = b.plexus_json(["settings", "web-main"]);
        let settings = answer["settings"].as_array().cloned().unwrap_or_default();
        let value = settings.iter().find(|one| one["name"] == name).map(|one| one["value"].clone());
        (value.unwrap_or_default(), answer["of_node"] == true)
    };
    assert_eq!(setting("policy"), ("least_connections".into(), true));
    assert_eq!(setting("timeouts.idle"), ("1m".into(), true));
    let _ = b.plexus(["set", "web-main", "policy=random"]).ok();
    let _ = eventually!(SOON, setting("policy"), |policy| *policy == ("random".into(), false));
    let _ = b.plexus(["unset", "web-main", "policy"]).ok();
    let _ = eventually!(SOON, setting("policy"), |policy| *policy == ("least_connections".into(), true));

    // Registrations come and go; nobody is harmed.
    let first = format!(
        r#"{{"name":"a-host","host":"{host}","port":9000,"id":7,"weight":null,"haproxy_server_options":null,"labels":{{"az":"a"}}}}"#
    );
    let content = |service: &str| fs::read_to_string(written(b, service)).unwrap_or_default();
    let _ = eventually!(SOON, content("web_main"), |text| *text == format!("[{first}]"));
    assert_eq!(
        content("stub"),
        format!(
            r#"[{{"name":"s","host":"{host}","port":9002,"id":null,"weight":null,"haproxy_server_options":null,"labels":null}}]"#
        )
    );
    let load = b.load(web);
    load.wait_for(100);
    let second = format!("{path}/b-host_0000000009");
    zookeeper.create(&second, &registration(&host, 9001, "b-host", r#","weight":7,"labels":{"az":"a"}"#));
    let _ = eventually!(SOON, who(b, web), |who| *who == ["web-a-9000", "web-a-9001"]);
    let weighed = eventually!(SOON, content("web_main"), |text| text.contains("b-host"));
    assert!(weighed.contains(r#""id":9,"weight":7"#) && !weighed.contains("null,\"haproxy"), "{weighed}");
    assert_eq!(who(b, leader), ["web-a-9000"]);
    zookeeper.remove(&format!("{path}/a-host_0000000007"));
    let _ = eventually!(SOON, who(b, web), |who| *who == ["web-a-9001"]);
    // The next one leads, which the filter of the other service leaves out.
    let _ = eventually!(SOON, who(b, leader), |who| *who == ["stub-a-9002"]);
    // With none of them the default servers stand in, as for Synapse.
    zookeeper.remove(&second);
    let _ = eventually!(SOON, who(b, web), |who| *who == ["stub-a-9002"]);
    zookeeper.create(&second, &registration(&host, 9001, "b-host", r#","labels":{"az":"a"}"#));
    let _ = eventually!(SOON, who(b, web), |who| *who == ["web-a-9001"]);

    load.stop().assert_unharmed();
}

#[test]
fn a_configuration_of_synapse_is_read_again_and_outlives_processes_and_zookeeper() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar", "/usr/lib/python3/dist-packages/kazoo/client.py");
    let cluster = Cluster::of(2).on(Make::ZooKeeper).without_agents().start();
    let (zookeeper, [a, b]) = (cluster.zookeeper(), cluster.nodes());
    let (hosts, path, host) = (zookeeper.hosts(), "/nerve/services/web/services", a.address().to_string());
    let _backends = (a.backend("web", 9000), a.backend("stub", 9002));
    zookeeper.create(&format!("{path}/a-host_0000000007"), &registration(&host, 9000, "a-host", ""));
    let stub = format!("default_servers: [{{name: s, host: {host}, port: 9002}}]");
    let discovery = format!("discovery: {{method: zookeeper, hosts: ['{hosts}'], path: {path}}}");
    let text = format!(
        "services:\n  plain: {{{discovery}, haproxy: {{port: 3213}}}}\n  spare: {{{discovery}, {stub}, haproxy: {{port: 3214}}}}\n\
         file_output: {{output_directory: {}}}\n",
        b.directory().join("services").display()
    );
    start(&cluster, b, &text);
    let (plain, spare, added) = (at("127.0.0.1:3213"), at("127.0.0.1:3214"), at("127.0.0.1:3217"));
    let _ = eventually!(SOON, who(b, plain), |who| *who == ["web-a-9000"]);
    let load = b.load(plain);
    load.wait_for(100);

    // Read again: a service more before those that stay, which nobody touches; a broken file; one less, with its file.
    let more =
        format!("services:\n  added: {{discovery: {{method: base}}, {stub}, haproxy: {{port: 3217}}}}\n");
    reload(b, &text.replacen("services:\n", &more, 1));
    let _ = eventually!(SOON, who(b, added), |who| *who == ["stub-a-9002"]);
    let _ = eventually!(SOON, written(b, "added").is_file(), |there| *there);
    reload(b, "{\"services\": ");
    let status = || b.plexus(["status"]).ok();
    let _ = eventually!(SOON, status(), |said| said.contains("what was read before stays in force"));
    throughout!(Duration::from_millis(500), who(b, added), |who| *who == ["stub-a-9002"]);
    reload(b, &text);
    let _ = eventually!(SOON, b.can_connect(added), |open| !*open);
    let _ = eventually!(SOON, written(b, "added").exists(), |there| !*there);
    let _ = eventually!(SOON, status(), |said| !said.contains("what was read before"));

    // Another process takes over.
    let mut before = b.take_over();
    load.wait_for(100);
    // It finishes what it has.
    before.wait(SOON);
    load.stop().assert_unharmed();

    // One that starts without ZooKeeper has what it remembers; without that the default servers, and leaves files of which it knows
    // nothing.
    let content = |service: &str| fs::read_to_string(written(b, service)).unwrap_or_default();
    let before = eventually!(SOON, content("plain"), |text| text.contains("a-host"));
    zookeeper.stop();
    let findings = b.directory().join("state/watchers.json");
    let kept = || fs::read_to_string(&findings).unwrap_or_default();
    let _ = eventually!(SOON, kept(), |kept| kept.contains("synapse:spare"));
    b.kill_agent();
    b.restart_agent();
    let _ = eventually!(SOON, who(b, spare), |who| *who == ["web-a-9000"]);
    b.kill_agent();
    fs::remove_file(&findings).expect("a file");
    b.restart_agent();
    let _ = eventually!(SOON, who(b, spare), |who| *who == ["stub-a-9002"]);
    let _ = eventually!(SOON, content("spare"), |text| text.contains("9002"));
    throughout!(Duration::from_secs(1), content("plain"), |text| *text == before);
    zookeeper.start_again();
    let _ = eventually!(Duration::from_secs(60), (who(b, plain), who(b, spare)), |(plain, spare)| {
        *plain == ["web-a-9000"] && plain == spare
    });
}

#[test]
fn sections_that_stand_in_zookeeper_are_followed_and_remembered() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar", "/usr/lib/python3/dist-packages/kazoo/client.py");
    let cluster = Cluster::of(1).on(Make::ZooKeeper).without_agents().start();
    let (zookeeper, [a]) = (cluster.zookeeper(), cluster.nodes());
    let (hosts, path, host) = (zookeeper.hosts(), "/nerve/services/web/services", a.address().to_string());
    let _backend = a.backend("web", 9000);
    zookeeper.create(&format!("{path}/a-host_0000000007"), &registration(&host, 9000, "a-host", ""));
    let text = format!(
        "services:\n  web:\n    discovery: {{method: zookeeper, hosts: ['{hosts}'], path: {path}}}\n    haproxy: {{port: 3213}}\n"
    );
    start(&cluster, a, &text);
    let [own, first, second] = ["127.0.0.1:3213", "127.0.0.1:3214", "127.0.0.1:3215"].map(at);
    let _ = eventually!(SOON, who(a, own), |who| *who == ["web-a-9000"]);
    assert_eq!(zookeeper.connections(), Some(1), "one session for its children and its data");

    // They replace those of the configuration, port and all, and go on so.
    zookeeper.set(path, r#"{"haproxy": {"port": 3214, "backend": ["balance leastconn"]}}"#);
    let _ = eventually!(SOON, who(a, first), |who| *who == ["web-a-9000"]);
    let _ = eventually!(SOON, a.can_connect(own), |open| !*open);
    zookeeper.set(path, r#"{"haproxy": {"port": 3215}}"#);
    let _ = eventually!(SOON, who(a, second), |who| *who == ["web-a-9000"]);
    let _ = eventually!(SOON, a.can_connect(first), |open| !*open);
    let status = || a.plexus(["status"]).ok();
    zookeeper.set(path, "{\"haproxy\": ");
    let _ = eventually!(SOON, status(), |said| said.contains("its last good sections stay in force"));
    assert_eq!(who(a, second), ["web-a-9000"]);
    zookeeper.set(path, r#"{"haproxy": {"port": 3214}}"#);
    let _ = eventually!(SOON, who(a, first), |who| *who == ["web-a-9000"]);
    let _ = eventually!(SOON, status(), |said| !said.contains("its last good sections"));

    // One that starts without ZooKeeper knows them.
    let kept = || fs::read_to_string(a.directory().join("state/sections.json")).unwrap_or_default();
    let _ = eventually!(SOON, kept(), |kept| kept.contains("3214"));
    let found = || fs::read_to_string(a.directory().join("state/watchers.json")).unwrap_or_default();
    let _ = eventually!(SOON, found(), |found| found.contains("9000"));
    zookeeper.stop();
    let _ = eventually!(SOON, status(), |said| said.contains("sections cannot be read"));
    a.kill_agent();
    a.restart_agent();
    let _ = eventually!(SOON, who(a, first), |who| *who == ["web-a-9000"]);
    assert!(!a.can_connect(own));
    zookeeper.start_again();
    let _ = eventually!(Duration::from_secs(60), status(), |said| !said.contains("sections cannot be read"));

    // Empty, they are those of the configuration again; and where nobody is interested any more the session ends.
    zookeeper.set(path, "");
    let _ = eventually!(SOON, who(a, own), |who| *who == ["web-a-9000"]);
    let _ = eventually!(SOON, zookeeper.connections(), |connections| *connections == Some(1));
    reload(a, "services: {}\n");
    let _ = eventually!(SOON, zookeeper.connections(), |connections| *connections == Some(0));
}

#[test]
fn both_halves_of_smartstack_meet_registrations_of_their_old_form() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar", "/usr/lib/python3/dist-packages/kazoo/client.py");
    let cluster = Cluster::of(2).on(Make::ZooKeeper).without_agents().start();
    let (zookeeper, [a, b]) = (cluster.zookeeper(), cluster.nodes());
    let (hosts, path, host) = (zookeeper.hosts(), "/nerve/services/web/services", a.address().to_string());
    let (new, _old) = (a.backend("web", 9000), b.backend("web", 9001));
    // One node registers by `--nerve`, which old Synapses read too.
    let nerve = a.directory().join("nerve.conf.json");
    let service = format!(
        r#"{{"instance_id": "a-host", "services": {{"web": {{"host": "{host}", "port": 9000, "zk_hosts": ["{hosts}"], "zk_path": "{path}",
            "check_interval": 0.3, "checks": [{{"type": "tcp", "timeout": 0.2}}]}}}}}}"#
    );
    fs::write(&nerve, service).expect("a file");
    let mut settings = cluster.settings().clone();
    settings.store = "embedded".to_owned();
    settings.more = format!("[source.nerve]\nfile = \"{}\"\n", nerve.display());
    a.configure(&settings);
    a.start_agent();
    a.wait_ready(SOON);
    // Another one consumes by `--synapse`, and balances over what an old Nerve has registered as well.
    zookeeper.create(
        &format!("{path}/b-host_0000000099"),
        &registration(&b.address().to_string(), 9001, "b-host", ""),
    );
    let text = format!(
        "services:\n  web:\n    discovery: {{method: zookeeper, hosts: ['{hosts}'], path: {path}}}\n    haproxy:\n      port: 3213\n      listen: [mode tcp]\n\
         haproxy: {{global: [], defaults: []}}\n"
    );
    start(&cluster, b, &text);
    let web = at("127.0.0.1:3213");
    let _ = eventually!(SOON, who(b, web), |who| *who == ["web-a-9000", "web-b-9001"]);
    // It fails, which one check of its own node says, and is well again.
    new.kill();
    let _ = eventually!(SOON, b.serving("web").len(), |serving| *serving == 1);
    let load = b.load(web);
    load.wait_for(100);
    let _new = a.backend("web", 9000);
    let _ = eventually!(SOON, who(b, web), |who| *who == ["web-a-9000", "web-b-9001"]);
    a.terminate_agent();
    let _ = eventually!(SOON, b.serving("web").len(), |serving| *serving == 1);
    load.stop().assert_unharmed();
}

#[test]
fn a_configuration_of_synapse_is_checked_without_an_agent() {
    needs!();
    let cluster = Cluster::of(1).store("embedded").without_agents().start();
    let [a] = cluster.nodes();
    let (config, synapse) = (a.config_file().display().to_string(), file(a).display().to_string());
    let check = || {
        let program = plexus_tests::plexus_program();
        let arguments = ["agent", "--config", &config, "--synapse", &synapse, "--check-config"];
        a.exec(&program.to_string_lossy(), &arguments)
    };
    let good = "services:\n  web:\n    discovery: {method: base}\n    haproxy: {port: 3213, backend: [acl x path /x]}\n";
    fs::write(file(a), good).expect("a file");
    let said = check().ok();
    let lines: Vec<&str> = said.trim().lines().collect();
    assert_eq!(
        lines,
        [
            "the configuration is right; it defines 0 instances and takes 1 services of Synapse's",
            "web: not done: `acl x path /x`"
        ]
    );
    fs::write(file(a), good.replace("3213", "web")).expect("a file");
    let refused = check();
    assert!(
        !refused.success() && refused.stderr.contains("synapse.conf.json:4:21: services.web.haproxy.port: "),
        "{refused:?}"
    );
}

#[test]
fn services_that_stay_on_haproxy_are_written_as_synapse_does_and_the_others_served_here() {
    needs!("etcd", "etcdctl", "haproxy");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let backends = [a.backend("web", 9000), a.backend("api", 9001)];
    let haproxy = Server::new(cluster.world(), a.namespace(), "haproxy");
    let directory = haproxy.directory().display().to_string();
    let service = |port: u16, target: u16| {
        format!(
            r#"{{"discovery": {{"method": "base"}}, "default_servers": [{{"name": "one", "host": "{}", "port": {target}}}],
                "haproxy": {{"port": {port}, "listen": ["mode tcp"], "server_options": "check"}}}}"#,
            a.address()
        )
    };
    let text = format!(
        r#"{{"services": {{"web_main": {}, "api": {}}},
            "haproxy": {{"global": ["stats socket {directory}/h.sock mode 600 level admin"],
             "defaults": ["mode tcp", "timeout connect 2s", "timeout client 10s", "timeout server 10s"],
             "config_file_path": "{directory}/haproxy.cfg", "socket_file_path": "{directory}/h.sock", "reload_command": "true"}}}}"#,
        service(3213, 9000),
        service(3214, 9001)
    );
    start_with(&cluster, a, &text, "haproxy = [\"web_main\"]\n");
    let _ = eventually!(SOON, who(a, at("127.0.0.1:3214")), |who| *who == [backends[1].id()]);
    let config = format!("{directory}/haproxy.cfg");
    let written = || fs::read_to_string(&config).unwrap_or_default();
    let _ = eventually!(SOON, written(), |text| text.contains("web_main") && text.contains(":9000"));
    assert!(!written().contains("api"), "{}", written());
    assert!(!a.can_connect(at("127.0.0.1:3213")), "nobody but HAProxy is to listen there");
    let _haproxy = haproxy.command(&["haproxy", "-db", "-f", &config]).started();
    let _ = eventually!(SOON, who(a, at("127.0.0.1:3213")), |who| *who == [backends[0].id()]);
}
