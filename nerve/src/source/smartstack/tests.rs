//! Configurations as operators have them, and what becomes of them.

use std::fs;

use super::super::announcement::{Limit, NodeMode, Registry};
use super::super::{Announcement, Definition};
use super::*;

/// A host's files.
struct Host {
    directory: tempfile::TempDir,
    contents: Contents,
}

impl Host {
    fn of(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("nerve.conf.json");
        fs::write(&file, text).unwrap();
        let local = Local { node: "a".parse().unwrap(), address: "192.0.2.1".parse().unwrap() };
        let contents = Contents::new(SmartstackConfig { file, instance_id: None }, local);
        let mut host = Self { directory, contents };
        host.contents.load();
        host
    }

    fn write(&mut self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).unwrap();
        self.contents.load();
    }

    fn defined(&self) -> Vec<Definition> {
        self.contents.snapshot().definitions.iter().map(|located| located.definition.clone()).collect()
    }

    fn only(&self) -> Definition {
        let mut defined = self.defined();
        assert_eq!((defined.len(), self.problems()), (1, Vec::new()));
        defined.remove(0)
    }

    fn problems(&self) -> Vec<&str> {
        self.contents.services.wrong().iter().map(|problem| problem.message.as_str()).collect()
    }
}

fn service(more: &str) -> String {
    format!(
        "instance_id: web-07\nservices:\n  web:\n    host: 10.0.1.7\n    port: 8080\n    zk_hosts: ['z2:2181', 'z1:2181']\n    \
         zk_path: /nerve/web/services/\n{more}"
    )
}

fn announced(definition: &Definition) -> Announcement {
    (**definition.announced.as_ref().unwrap()).clone()
}

fn checks(definition: &Definition) -> Vec<String> {
    let shown = |spec: &crate::check::CheckSpec| {
        let timing = &spec.timing;
        let written = serde_json::to_value(&spec.probe).unwrap();
        let kind = spec.probe.kind();
        let parts = [&written[kind], &written["address"], &written["port"]].map(ToString::to_string);
        format!(
            "{kind} {} every {:?} within {:?} rise {} fall {}",
            parts.join(" "),
            timing.interval(),
            timing.timeout(),
            timing.rise(),
            timing.fall()
        )
    };
    definition.checks.iter().map(shown).collect()
}

#[test]
fn what_nerve_would_write_is_announced_to_the_letter() {
    let definition = Host::of(&service("")).only();
    assert_eq!(definition.key.to_string(), "web/web-a-8080");
    assert_eq!(definition.listens_on().to_string(), "10.0.1.7:8080");
    let expected = Announcement {
        registry: Registry::ZooKeeper {
            ensemble: "z1:2181,z2:2181".to_owned(),
            path: "/nerve/web/services".to_owned(),
            mode: NodeMode { ephemeral: true, sequential: true },
            encoded: false,
            renewed: None,
        },
        name: "web-07".to_owned(),
        data: r#"{"host":"10.0.1.7","port":8080,"name":"web-07"}"#.to_owned(),
        limit: Limit::default(),
    };
    assert_eq!(announced(&definition), expected);
    let more =
        "    weight: '10'\n    haproxy_server_options: backup\n    labels: {region: eu, az: eu-1a, n: 1}\n";
    let definition = Host::of(&service(more)).only();
    assert_eq!(
        announced(&definition).data,
        r#"{"host":"10.0.1.7","port":8080,"name":"web-07","weight":10,"haproxy_server_options":"backup","labels":{"region":"eu","az":"eu-1a","n":1}}"#
    );
    assert_eq!(definition.weight.0.get(), 10);
    let labels: Vec<_> = definition.labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
    assert_eq!(labels, ["az=eu-1a", "haproxy_server_options=backup", "n=1", "nerve=web", "region=eu"]);
}

#[test]
fn every_check_of_nerves_has_its_counterpart() {
    let more = "    check_interval: 2\n    checks:\n\
                - {type: tcp, timeout: 0.5, rise: 2, fall: 3}\n\
                - {type: http, uri: /health, timeout: 0.2, expect: ok, headers: {X-A: 1}}\n\
                - {type: http, uri: status, host: 10.0.1.7, port: 6666, ssl: true, open_timeout: 1, timeout: 1, ssl_timeout: 1}\n\
                - {type: redis, port: 6379}\n\
                - {type: rabbitmq, host: 10.0.1.9, username: u}\n\
                - {type: noop}\n"
        .replace("\n- ", "\n      - ");
    let definition = Host::of(&service(&more)).only();
    assert_eq!(
        checks(&definition),
        [
            "tcp true null null every 2s within 500ms rise 2 fall 3",
            "http \"/health\" \"127.0.0.1\" null every 2s within 400ms rise 1 fall 1",
            "https \"/status\" null 6666 every 3s within 3s rise 1 fall 1",
            "redis 6379 null null every 2s within 100ms rise 1 fall 1",
            "rabbitmq true \"10.0.1.9\" null every 2s within 100ms rise 1 fall 1",
        ]
    );
    let text = serde_json::to_string(&definition.checks).unwrap();
    for part in [
        r#""contains":"ok""#,
        r#""status":"200-399""#,
        r#""x-a":"1""#,
        r#""insecure":true"#,
        r#""key":"nerve-redis-service-check""#,
        r#""username":"u""#,
        r#""queue":"nerve""#,
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let mocked = Host::of(&service("    check_mocked: true\n    checks: [{type: tcp}]\n")).only();
    assert_eq!(mocked.checks, []);
}

#[test]
fn the_ways_to_register_are_told_apart() {
    let more = "    node_type: persistent\n    ttl_seconds: 60\n    use_path_encoding: true\n    \
                rate_limiting: {shadow_mode: false, average_rate: 0.5, max_burst: 3}\n";
    let of = announced(&Host::of(&service(more)).only());
    let Registry::ZooKeeper { mode, encoded, renewed, .. } = of.registry else { panic!("{of:?}") };
    assert_eq!(mode, NodeMode { ephemeral: false, sequential: false });
    assert_eq!((encoded, renewed), (true, Some(Duration::from_secs(60))));
    let burst = of.limit.max_burst.map(std::num::NonZeroU32::get);
    assert_eq!((of.limit.only_counted, of.limit.average_rate, burst), (false, Some(0.5), Some(3)));
    let etcd = "{\"instance_id\": \"h\", \"services\": {\"web\": {\"host\": \"::1\", \"port\": \"80\",\n\t\"reporter_type\": \"etcd\", \
                \"etcd_host\": \"e1\", \"etcd_path\": \"/\"}}}";
    let of = announced(&Host::of(etcd).only());
    assert_eq!(of.registry, Registry::Etcd { server: "e1:4003".to_owned(), path: String::new() });
    assert_eq!(of.data, r#"{"host":"::1","port":"80","name":"h"}"#);
}

#[test]
fn names_that_are_none_for_dns_are_mapped_and_copies_are_told_apart() {
    let text = service("    load_test_concurrency: 2\n").replace("  web:", "  Your_HTTP.service:");
    let defined = Host::of(&text).defined();
    let keys: Vec<_> = defined.iter().map(|definition| definition.key.service.to_string()).collect();
    assert_eq!(keys, ["your-http-service-0", "your-http-service-1"]);
    assert_eq!(defined[1].labels["nerve"], "Your_HTTP.service_1");
}

#[test]
fn a_directory_of_services_goes_before_the_main_file_and_a_mistake_costs_one_service() {
    let mut host = Host::of("instance_id: a");
    let directory = host.directory.path().join("services");
    fs::create_dir(&directory).unwrap();
    let one = "{host: 10.0.0.1, port: 1, zk_hosts: [z], zk_path: /x}";
    let main = |services: &str| {
        format!(
            "instance_id: a\nservice_conf_dir: {}\nlisten_port: 1\nservices: {services}\n",
            directory.display()
        )
    };
    fs::write(directory.join("web.yaml"), one.replace("port: 1", "port: 2")).unwrap();
    fs::write(directory.join("other.yml"), one).unwrap();
    host.write("nerve.conf.json", &main(&format!("{{web: {one}, api: {one}}}")));
    let ids = |host: &Host| -> Vec<String> {
        host.defined().iter().map(|definition| definition.key.id.to_string()).collect()
    };
    assert_eq!(ids(&host), ["api-a-1", "web-a-2"]);
    for (bad, expected) in [
        (one.replace("port: 1", "port: 70000"), "services.api.port: 70000 is out of range"),
        (one.replace("zk_path: /x", "zk_path: x"), "services.api.zk_path: \"x\" is no absolute path"),
        (one.replace("zk_hosts: [z], ", ""), "services.api.zk_hosts: it is missing"),
        (one.replace("{host", "{reporter_type: statsd, host"), "is a reporter that is a program of its own"),
        (
            one.replace("{host", "{checks: [{type: mysql}], host"),
            "services.api.checks[0].type: \"mysql\" is a kind",
        ),
        (one.replace("{host", "{checks: [{type: http}], host"), "services.api.checks[0].uri: it is missing"),
        (
            one.replace("10.0.0.1", "no-such-host.invalid"),
            "services.api.host: \"no-such-host.invalid\" cannot be looked up",
        ),
        ("[1]".to_owned(), "services.api: found a list; expected a table"),
    ] {
        host.write("nerve.conf.json", &main(&format!("{{web: {one}, api: {bad}}}")));
        assert_eq!(ids(&host), ["api-a-1", "web-a-2"], "{bad}");
        let problems = host.problems();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{bad}: {problems:?}");
        assert!(
            problems[0].contains("nerve.conf.json:4:") && problems[0].ends_with("stays in force"),
            "{problems:?}"
        );
    }
    host.write("nerve.conf.json", "instance_id: [");
    assert_eq!(ids(&host), ["api-a-1", "web-a-2"]);
    assert!(host.problems()[0].contains("not YAML"), "{:?}", host.problems());
    host.write("nerve.conf.json", &main("{}"));
    assert_eq!((ids(&host), host.problems().len()), (vec!["web-a-2".to_owned()], 0));
    fs::remove_dir_all(&directory).unwrap();
    host.write("nerve.conf.json", &main("{}"));
    assert_eq!(ids(&host), ["web-a-2"]);
    assert!(host.problems()[0].contains("cannot be listed"), "{:?}", host.problems());
}

#[tokio::test]
async fn a_reload_is_seen_and_the_heartbeat_is_written() {
    let host = Host::of("instance_id: a");
    let beats = host.directory.path().join("alive");
    let text = format!("{}\nheartbeat_path: {}\n", service(""), beats.display());
    fs::write(&host.contents.config.file, &text).unwrap();
    let tasks = Tasks::new();
    let (config, local) = (host.contents.config.clone(), host.contents.local.clone());
    let source = SmartstackSource::start(config, local, &tasks).await;
    let snapshots = source.snapshots();
    assert_eq!(snapshots.borrow().definitions.len(), 1);
    fs::write(&host.contents.config.file, text.replace(&service(""), "instance_id: a\n")).unwrap();
    source.reload().await;
    assert!(snapshots.borrow().definitions.is_empty());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !beats.exists() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tasks.shutdown().await;
}
