//! Configurations of SmartStack's Nerve, run as they are, beside real ZooKeeper and etcd: what those hold is what Nerve writes there.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use plexus_tests::server::store::Make;
use plexus_tests::server::zookeeper::ZooKeeper;
use plexus_tests::{Cluster, Node, Signal, eventually, needs};

const SOON: Duration = Duration::from_secs(30);

/// Where a node keeps its configuration of Nerve.
fn file(node: &Node) -> PathBuf {
    node.directory().join("nerve.conf.json")
}

/// Starts the agent of a node with this configuration of Nerve.
fn start(cluster: &Cluster, node: &Node, text: &str) {
    fs::write(file(node), text).unwrap();
    let mut settings = cluster.settings().clone();
    settings.more = format!("[source.nerve]\nfile = \"{}\"\n", file(node).display());
    node.configure(&settings);
    node.start_agent();
    node.wait_ready(SOON);
}

fn reload(node: &Node, text: &str) {
    fs::write(file(node), text).unwrap();
    node.signal_agent(Signal::HUP);
}

/// The one child of a path, once there is one.
#[track_caller]
fn child(zookeeper: &ZooKeeper, path: &str) -> String {
    eventually!(SOON, zookeeper.children(path), |children| children.len() == 1).remove(0)
}

#[test]
fn a_configuration_of_nerve_runs_unchanged_and_writes_what_nerve_writes() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar", "/usr/lib/python3/dist-packages/kazoo/client.py");
    let cluster = Cluster::of(2).on(Make::ZooKeeper).without_agents().start();
    let (zookeeper, [a, b]) = (cluster.zookeeper(), cluster.nodes());
    let web = a.backend("web", 9000);
    let services = a.directory().join("nerve-services");
    fs::create_dir(&services).unwrap();
    let (host, hosts) = (a.address(), zookeeper.hosts());
    let cache = format!(
        "# as an operator has it\nhost: {host}\nport: 9000\nzk_hosts: ['{hosts}']\nzk_path: /nerve/services/cache/services\n\
         use_path_encoding: true\nnode_type: persistent_sequential\nweight: 7\n\
         labels:\n  region: eu\n  az: eu-1a\nchecks:\n  - type: tcp\n"
    );
    fs::write(services.join("cache.yaml"), cache).unwrap();
    let main = format!(
        r#"{{
  "instance_id": "a-host",
  "service_conf_dir": "{dir}",
  "listen_port": 1025,
  "statsd": {{"host": "localhost", "port": 8125}},
  "services": {{
    "your_http_service": {{
      "host": "{host}",
      "port": 9000,
      "reporter_type": "zookeeper",
      "zk_hosts": ["{hosts}"],
      "zk_path": "/nerve/services/your_http_service/services",
      "check_interval": 0.3,
      "haproxy_server_options": "backup",
      "checks": [
        {{"type": "http", "host": "{host}", "uri": "/healthz", "timeout": 0.2, "rise": 1, "fall": 2}}
      ]
    }}
  }}
}}"#,
        dir = services.display(),
    );
    start(&cluster, b, "{\"instance_id\": \"b-host\"}");
    start(&cluster, a, &main);

    // The mesh knows them by names that DNS has.
    cluster.wait_serving("your-http-service", &["your-http-service-a-9000"]);
    cluster.wait_serving("cache", &["cache-a-9000"]);
    // What old Synapses read.
    let path = "/nerve/services/your_http_service/services";
    let name = child(zookeeper, path);
    assert_eq!(name, "a-host_0000000000");
    let data =
        format!(r#"{{"host":"{host}","port":9000,"name":"a-host","haproxy_server_options":"backup"}}"#);
    assert_eq!(zookeeper.znode(&format!("{path}/{name}")), Some((data, true)));
    let encoded = "/nerve/services/cache/services";
    let name = child(zookeeper, encoded);
    let data = format!(
        r#"{{"host":"{host}","port":9000,"name":"a-host","weight":7,"labels":{{"region":"eu","az":"eu-1a"}}}}"#
    );
    let text = a.exec("sh", &["-c", "printf %s \"$0\" | base64 -w0 | tr +/ -_", &data]).ok();
    let text = text.trim();
    assert_eq!(name, format!("base64_{}_{text}_0000000000", text.len()));
    assert_eq!(zookeeper.znode(&format!("{encoded}/{name}")), Some((data, false)));

    // It fails, and is well again: as for Nerve, another number.
    web.fail();
    cluster.wait_serving("your-http-service", &[]);
    let _ = eventually!(SOON, zookeeper.children(path), Vec::is_empty);
    web.recover();
    assert_eq!(child(zookeeper, path), "a-host_0000000001");

    // A change: the new registration, then the old one is gone. A mistake changes nothing.
    reload(a, &main.replace("backup", "check"));
    let changed = eventually!(SOON, zookeeper.children(path), |children| *children == ["a-host_0000000002"]);
    let (data, _) = zookeeper.znode(&format!("{path}/{}", changed[0])).unwrap();
    assert!(data.ends_with(r#","haproxy_server_options":"check"}"#), "{data}");
    reload(a, &main.replace("\"port\": 9000", "\"port\": 90000"));
    let status = || a.plexus(["status"]).ok();
    let said = eventually!(SOON, status(), |said| said.contains("90000 is out of range"));
    assert!(said.contains("nerve.conf.json:9:") && said.contains("stays in force"), "{said}");
    assert_eq!(zookeeper.children(path), changed);

    // Somebody removes it: it is made anew.
    zookeeper.remove(&format!("{path}/{}", changed[0]));
    let _ = eventually!(Duration::from_secs(60), zookeeper.children(path), |children| *children
        == ["a-host_0000000003"]);
    // A drain and the end of the agent take them back, also those that no session ends.
    let _ = a.plexus(["drain", "your-http-service-a-9000"]).ok();
    let _ = eventually!(SOON, zookeeper.children(path), Vec::is_empty);
    let _ = a.plexus(["undrain", "your-http-service-a-9000"]).ok();
    let _ = child(zookeeper, path);
    a.terminate_agent();
    let both = || (zookeeper.children(path), zookeeper.children(encoded));
    let _ = eventually!(SOON, both(), |(plain, encoded)| plain.is_empty() && encoded.is_empty());
}

#[test]
fn registrations_of_nerve_s_form_outlive_agents_and_servers_without_twins() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar", "/usr/lib/python3/dist-packages/kazoo/client.py");
    let cluster = Cluster::of(1).on(Make::ZooKeeper).without_agents().start();
    let (zookeeper, [a]) = (cluster.zookeeper(), cluster.nodes());
    let _web = a.backend("web", 9000);
    let hosts = zookeeper.hosts();
    let service = |kind: &str| {
        format!(
            "{{host: {}, port: 9000, zk_hosts: ['{hosts}'], zk_path: /x/{kind}, node_type: {kind}, \
             checks: [{{type: tcp, timeout: 0.2}}]}}",
            a.address()
        )
    };
    let kinds = ["ephemeral_sequential", "ephemeral", "persistent_sequential", "persistent"];
    let services: Vec<String> = kinds.iter().map(|kind| format!("  {kind}: {}\n", service(kind))).collect();
    start(&cluster, a, &format!("instance_id: h\nservices:\n{}", services.concat()));
    let all = || kinds.map(|kind| zookeeper.children(&format!("/x/{kind}")).len());
    let _ = eventually!(SOON, all(), |all| *all == [1; 4]);
    assert_eq!(zookeeper.children("/x/ephemeral"), ["h_"]);
    let numbered = zookeeper.children("/x/persistent_sequential");

    // Killed and started again: what its session held goes with that, the rest is its own.
    a.kill_agent();
    a.restart_agent();
    let _ = eventually!(SOON, all(), |all| *all == [1; 4]);
    assert_eq!(zookeeper.children("/x/persistent_sequential"), numbered);
    // Replaced by another process: that one's stand before these go.
    let before = a.take_over();
    let _ = eventually!(SOON, zookeeper.leased("/x/ephemeral/h_"), |held| held.len() == 1);
    drop(before);
    let _ = eventually!(SOON, all(), |all| *all == [1; 4]);
    // The server stands still for longer than a session lives, and has other sessions afterwards.
    zookeeper.freeze();
    plexus_tests::pause(cluster.settings().session_ttl * 2);
    zookeeper.thaw();
    let _ = eventually!(SOON, all(), |all| *all == [1; 4]);
    // It is stopped and started: the problem is told, and gone.
    zookeeper.stop();
    let status = || a.plexus(["status"]).ok();
    let _ = eventually!(SOON, status(), |said| said.contains("announcements") && said.contains(&hosts));
    zookeeper.start_again();
    let _ = eventually!(SOON, all(), |all| *all == [1; 4]);
    let _ = eventually!(SOON, status(), |said| !said.contains("announcements"));
}

#[test]
fn what_nerve_writes_to_etcd_stands_under_a_lease() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(1).without_agents().start();
    let (etcd, [a]) = (cluster.etcd(), cluster.nodes());
    let server = etcd.url().trim_start_matches("etcd://").to_owned();
    let (server, port) = server.split_once(':').unwrap();
    let text = format!(
        "instance_id: h\nservices:\n  web: {{host: {}, port: 9000, reporter_type: etcd, etcd_host: {server}, etcd_port: {port}, \
         etcd_path: /nerve/web, checks: [{{type: tcp, timeout: 0.2}}]}}\n",
        a.address()
    );
    let backend = a.backend("web", 9000);
    start(&cluster, a, &text);
    let held = || {
        a.exec(
            "etcdctl",
            &["--endpoints", &format!("http://{server}:{port}"), "get", "--prefix", "/nerve/web"],
        )
        .stdout
    };
    let expected =
        format!("/nerve/web/h/web-a-9000\n{{\"host\":\"{}\",\"port\":9000,\"name\":\"h\"}}\n", a.address());
    let _ = eventually!(SOON, held(), |held| *held == expected);
    drop(backend);
    let _ = eventually!(SOON, held(), String::is_empty);
    let _backend = a.backend("web", 9000);
    let _ = eventually!(SOON, held(), |held| *held == expected);
    // Nobody takes it back, and it goes.
    a.kill_agent();
    let _ = eventually!(SOON, held(), String::is_empty);
}

#[test]
fn a_configuration_of_nerve_is_checked_without_an_agent() {
    needs!();
    let cluster = Cluster::of(1).store("embedded").without_agents().start();
    let [a] = cluster.nodes();
    let (config, nerve) = (a.config_file().display().to_string(), file(a).display().to_string());
    let check = || {
        let program = plexus_tests::plexus_program();
        a.exec(
            &program.to_string_lossy(),
            &["agent", "--config", &config, "--nerve", &nerve, "--check-config"],
        )
    };
    let good = "instance_id: h\nservices: {web: {host: 127.0.0.1, port: 80, zk_hosts: [z], zk_path: /x}}\n";
    fs::write(file(a), good).unwrap();
    assert_eq!(check().ok().trim(), "the configuration is right; it defines 1 instances");
    fs::write(file(a), good.replace("port: 80", "prot: 80")).unwrap();
    let refused = check();
    assert!(
        !refused.success()
            && refused.stderr.contains("nerve.conf.json:2:17: services.web.port: it is missing"),
        "{refused:?}"
    );
}
