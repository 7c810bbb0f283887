//! Configurations as operators have them, and what becomes of them.

use std::fs;
use std::time::Duration;

use nerve::model::SettingKey;
use nerve::period::Period;

use super::*;
use crate::watch::{Condition, Kind, Looks, Pace, Retry, Toggle, Which};

/// A host's files.
struct Host {
    directory: tempfile::TempDir,
    configuration: Configuration,
}

impl Host {
    fn of(text: &str) -> (Self, InForce) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("synapse.conf.json");
        let mut host = Self { directory, configuration: Configuration::of(file, Kept::default()) };
        let in_force = host.write("synapse.conf.json", text);
        (host, in_force)
    }

    fn write(&mut self, name: &str, text: &str) -> InForce {
        fs::write(self.directory.path().join(name), text).unwrap();
        self.configuration.load()
    }
}

fn of(text: &str) -> InForce {
    Host::of(text).1
}

/// One service with these keys beside what it needs.
fn service(more: &str) -> String {
    format!(
        "services:\n  web:\n    discovery: {{method: zookeeper, hosts: ['zk1:2181'], path: /nerve/web}}\n    {more}\n"
    )
}

fn set(settings: &ServiceSettings) -> Vec<String> {
    let set = SettingKey::all().filter_map(|key| Some(format!("{}={}", key.name, key.get(settings)?)));
    set.collect()
}

fn names(in_force: &InForce) -> Vec<&str> {
    in_force.services.iter().map(|service| service.name.as_str()).collect()
}

/// Of the form of the documentation's, with what real ones have beside.
const WHOLE: &str = r#"{
 "service_conf_dir": "DIRECTORY",
 "services": {
  "web_main": {
   "use_previous_backends": true,
   "default_servers": [{"name": "fallback", "host": "10.0.9.9", "port": 8080}],
   "discovery": {
    "method": "zookeeper",
    "path": "/nerve/services/web/services",
    "hosts": ["zk1.example.net:2181", "zk2.example.net:2181"],
    "generator_config_path": "disabled",
    "discovery_jitter": 5,
    "label_filters": [{"label": "az", "value": "eu-1a", "condition": "equals"}]
   },
   "haproxy": {
    "port": 3213,
    "bind_address": "127.0.0.2",
    "server_options": "check inter 2s rise 3 fall 2",
    "backend_order": "asc",
    "listen": ["mode http", "option httpchk /ping"],
    "frontend": ["timeout client 30s"],
    "backend": ["timeout server 30s", "balance leastconn"]
   }
  },
  "db": {
   "leader_election": true,
   "use_previous_backends": false,
   "backend_port_override": "3307",
   "keep_default_servers": true,
   "default_servers": [{"name": "pin", "host": "10.0.9.10", "port": 8443}],
   "discovery": {"method": "zookeeper_poll", "path": "/nerve/services/db/services/", "hosts": "zk1.example.net:2181"},
   "haproxy": {"port": "3306", "frontend": ["mode tcp"], "backend": "mode tcp", "server_options": "check"},
   "file_output": {"disabled": true}
  },
  "peers": {
   "discovery": {"method": "base"},
   "default_servers": [{"name": "p1", "host": "10.0.2.1", "port": 7000, "labels": {"shard": 1}}],
   "haproxy": {"disabled": true, "port": 9999, "backend": ["cookie SRV insert"]}
  },
  "legacy": {
   "discovery": {"method": "yarn", "app": "legacy"},
   "haproxy": {"port": 3215, "listen": ["mode tcp"]}
  }
 },
 "haproxy": {
  "config_file_path": "/etc/haproxy/haproxy.cfg",
  "reload_command": "systemctl reload haproxy",
  "socket_file_path": ["/var/run/haproxy.sock"],
  "do_writes": true,
  "bind_address": "127.0.0.3",
  "global": ["daemon", "maxconn 4096"],
  "defaults": ["mode http", "timeout connect 5s", "timeout client 1m", "timeout server 1m", "retries 3", "errorfile 503 /x"],
  "extra_sections": {"listen stats :3212": ["mode http", "stats enable"]}
 },
 "file_output": {"output_directory": "/var/run/synapse/services"},
 "statsd": {"host": "127.0.0.1", "port": 8125}
}"#;

fn kind(service: &Service) -> &Kind {
    let Looks::One { kind, .. } = &service.watcher.looks else { panic!("{service:?}") };
    kind
}

#[test]
fn a_configuration_of_the_documentation_s_form_is_taken_whole() {
    let directory = tempfile::tempdir().unwrap();
    let search = "discovery: {method: zookeeper_dns, hosts: [zk1], path: /s, decode: {method: serverset, endpoint_name: http}}\nhaproxy: {}\n";
    fs::write(directory.path().join("search.yaml"), search).unwrap();
    fs::write(directory.path().join("notes.txt"), "not ours").unwrap();
    let in_force = of(&WHOLE.replace("DIRECTORY", &directory.path().display().to_string()));
    assert_eq!(names(&in_force), ["db", "peers", "search", "web-main"]);
    let [db, peers, search, web] = &in_force.services[..] else { panic!("{in_force:?}") };

    // Where they are found.
    let Kind::ZooKeeper(place) = kind(web) else { panic!("{web:?}") };
    assert_eq!((place.hosts.len(), place.path.as_str()), (2, "/nerve/services/web/services"));
    let options = &web.watcher.options;
    assert_eq!(options.default_servers[0].to_string(), "10.0.9.9:8080");
    assert_eq!(options.default_servers[0].name.as_deref(), Some("fallback"));
    let filter = &options.label_filters[0];
    assert_eq!((filter.label.as_str(), filter.condition), ("az", Condition::Equals));
    let options = &db.watcher.options;
    assert!(!options.use_previous_backends && options.keep_default_servers && options.leader_election);
    assert_eq!(options.backend_port_override.map(|port| port.get()), Some(3307));
    assert!(matches!(kind(db), Kind::ZooKeeper(place) if place.path == "/nerve/services/db/services"));
    let Kind::Static(servers) = kind(peers) else { panic!("{peers:?}") };
    assert_eq!(
        (servers[0].to_string(), servers[0].labels["shard"].as_str()),
        ("10.0.2.1:7000".to_owned(), "1")
    );
    assert!(peers.watcher.options.default_servers.is_empty());
    assert!(matches!(kind(search), Kind::ZooKeeper(place) if place.endpoint_name.as_deref() == Some("http")));

    // Where they are served, and how.
    let listen = |service: &Service| service.listen.as_ref().map(ToString::to_string);
    assert_eq!(listen(web).as_deref(), Some("127.0.0.2:3213"));
    assert_eq!(listen(db).as_deref(), Some("127.0.0.3:3306"));
    assert_eq!((listen(peers), listen(search)), (None, None));
    assert_eq!(set(&web.settings), ["policy=least_connections", "timeouts.connect=5s", "timeouts.idle=30s"]);
    assert_eq!(set(&db.settings), ["timeouts.connect=5s", "timeouts.idle=1m"]);
    assert_eq!(in_force.settings().len(), 3, "none of one that HAProxy does not serve");

    // As it stands there, which a document can be made of again.
    assert_eq!((&db.haproxy["port"], &peers.haproxy["disabled"]), (&"3306".into(), &true.into()));
    assert_eq!(in_force.haproxy, None, "nothing stays there");
    let again = nerve::document::Document::parse_json(&web.file, &web.haproxy.to_string()).unwrap();
    let order = again.decode_tolerantly(|section| section.required::<String>("backend_order"));
    assert_eq!(order.unwrap().0, "asc");

    // What is said.
    let [wrong] = &in_force.wrong[..] else { panic!("{:?}", in_force.wrong) };
    assert!(
        wrong.place.ends_with("synapse.conf.json")
            && wrong
                .message
                .contains("services.legacy.discovery.method: discovery method \"yarn\" is not supported")
            && wrong.message.ends_with("nothing of it is in force"),
        "{wrong:?}"
    );
    let begins = [
        "haproxy.defaults: not done: `errorfile 503 /x`",
        "haproxy.extra_sections: not done: listen stats :3212",
        "HAProxy's checks of servers",
        "search: mode http is served as TCP",
        "web_main: mode http is served as TCP",
    ];
    assert_eq!(in_force.lacks.len(), begins.len(), "{:?}", in_force.lacks);
    for (said, begin) in in_force.lacks.iter().zip(begins) {
        assert!(said.starts_with(begin), "{said}");
    }
    let target = in_force.target().unwrap();
    assert_eq!(target.directory.to_str(), Some("/var/run/synapse/services"));
    let written: Vec<String> = target.services.unwrap().into_values().collect();
    assert_eq!(written, ["peers", "search", "web_main"]);
}

#[test]
fn what_is_wrong_with_a_service_costs_that_service_and_is_told_with_its_key() {
    for (more, said) in [
        ("haproxy: {port: 99999}", "services.web.haproxy.port: 99999 is out of range"),
        ("haproxy: {port: 1, bind_address: 'no such host'}", "services.web.haproxy.bind_address"),
        ("backend_port_override: x", "services.web.backend_port_override"),
        ("default_servers: [{host: '', port: 1}]", "services.web.default_servers[0].host"),
        ("default_servers: ['a:1']", "services.web.default_servers[0]: found a string"),
        ("discovery_multi: {watchers: {}}", "services.web.discovery_multi.resolver: it is missing"),
    ] {
        let in_force = of(&(service(more) + "  api: {discovery: {method: base}}\n"));
        assert_eq!(names(&in_force), ["api"], "{more}");
        assert!(
            in_force.wrong.len() == 1 && in_force.wrong[0].message.contains(said),
            "{:?}",
            in_force.wrong
        );
    }
    for (discovery, said) in [
        ("{method: zookeeper, path: /x}", "services.a.discovery.hosts: it is missing"),
        ("{method: zookeeper, hosts: [], path: /x}", "services.a.discovery.hosts: it names no server"),
        ("{method: zookeeper, hosts: [z], path: ''}", "services.a.discovery.path"),
        (
            "{method: zookeeper, hosts: [z], path: /x, decode: {method: x}}",
            "services.a.discovery.decode.method",
        ),
        (
            "{method: base, label_filters: [{label: a, value: b, condition: like}]}",
            "label_filters[0].condition",
        ),
        ("{}", "services.a.discovery.method: it is missing"),
    ] {
        let in_force = of(&format!("services:\n  a: {{discovery: {discovery}}}\n"));
        assert!(
            in_force.wrong.len() == 1 && in_force.wrong[0].message.contains(said),
            "{:?}",
            in_force.wrong
        );
    }
    let in_force = of("services: {a: {}}\n");
    assert!(
        in_force.wrong[0].message.contains("services.a.discovery: it is missing"),
        "{:?}",
        in_force.wrong
    );
}

#[test]
fn of_two_services_with_one_name_or_one_port_here_the_second_is_refused() {
    let base = |port: u16| format!("{{discovery: {{method: base}}, haproxy: {{port: {port}}}}}");
    let text =
        format!("services:\n  a-b: {}\n  a_b: {}\n  c: {}\n  d: {}\n", base(1), base(2), base(1), base(3));
    let in_force = of(&text);
    assert_eq!(names(&in_force), ["a-b", "d"]);
    let said: Vec<&str> = in_force.wrong.iter().map(|wrong| wrong.message.as_str()).collect();
    assert!(said[0].starts_with("services.a_b: it is called a-b here, as \"a-b\" is"), "{said:?}");
    assert!(said[1].starts_with("services.c: it is to listen on 127.0.0.1:1, as \"a-b\" is"), "{said:?}");
}

#[test]
fn a_name_that_is_a_path_is_no_file() {
    let text = "services:\n  ../web: {discovery: {method: base}, haproxy: {disabled: true}}\nfile_output: {output_directory: /run/x}\n";
    let in_force = of(text);
    assert_eq!((names(&in_force), in_force.target().unwrap().services.unwrap().len()), (vec!["web"], 0));
    assert_eq!(in_force.lacks, ["../web: file_output: not done: its name cannot be that of a file"]);
}

#[test]
fn a_file_that_breaks_leaves_what_was_in_force_and_a_service_its_last_good_version() {
    let (mut host, before) = Host::of(&service("haproxy: {port: 3213}"));
    assert_eq!(before.wrong, []);
    let broken = host.write("synapse.conf.json", "{\"services\": ");
    assert_eq!((&broken.services, broken.wrong.len()), (&before.services, 1));
    assert!(broken.wrong[0].message.ends_with("what was read before stays in force"), "{broken:?}");
    let half = host.write("synapse.conf.json", &service("haproxy: {port: web}"));
    assert_eq!((&half.services, half.wrong.len()), (&before.services, 1));
    assert!(half.wrong[0].message.ends_with("its last good version stays in force"), "{half:?}");
    let gone = host.write("synapse.conf.json", "services: {}\n");
    assert_eq!(gone, InForce::default());
}

#[test]
fn an_address_is_the_one_that_haproxy_would_bind() {
    for (more, listen) in [
        ("haproxy: {port: 1}", Some("127.0.0.1:1")),
        ("haproxy: {port: 1, bind_address: '*'}", Some("0.0.0.0:1")),
        ("haproxy: {port: 1, bind_address: '0.0.0.0'}", Some("0.0.0.0:1")),
        ("haproxy: {port: 1, bind_address: '::1'}", Some("[::1]:1")),
        ("haproxy: {port: null, bind_address: /run/web.sock}", Some("unix:/run/web.sock")),
        ("haproxy: {bind_address: 127.0.0.2}", None),
        ("use_previous_backends: true", None),
    ] {
        let in_force = of(&service(more));
        assert_eq!(in_force.wrong, [], "{more}");
        let shown = in_force.services[0].listen.as_ref().map(|listen| match listen {
            Address::Unix(path) => format!("unix:{path}"),
            Address::Ip(address) => address.to_string(),
        });
        assert_eq!(shown.as_deref(), listen, "{more}");
    }
    let said = of(&service("haproxy: {port: 1, bind_options: ssl crt /x.pem, shared_frontend: [acl a b]}"));
    assert_eq!(said.lacks, ["web: not done: `bind ssl crt /x.pem`, `shared_frontend: acl a b`"]);
}

#[test]
fn what_stays_on_haproxy_is_told_as_synapse_would_and_served_by_nobody_else() {
    let kept = |names: &[&str]| {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("synapse.conf.json");
        fs::write(&file, WHOLE.replace("DIRECTORY", &directory.path().display().to_string())).unwrap();
        Configuration::of(file, names.iter().map(|name| (*name).to_owned()).collect()).load()
    };
    let one = kept(&["web_main"]);
    let haproxy = one.haproxy.as_ref().unwrap();
    assert_eq!(haproxy.reload_command.as_deref(), Some("systemctl reload haproxy"));
    let [web] = &haproxy.services[..] else { panic!("{haproxy:?}") };
    assert_eq!((web.service.as_str(), web.name.to_string().as_str()), ("web-main", "web_main"));
    assert_eq!(web.config.backend, ["timeout server 30s", "balance leastconn"]);
    let served = |in_force: &InForce| -> Vec<String> {
        let served = in_force.services.iter().filter(|service| service.listen.is_some());
        served.map(|service| service.synapse_name.clone()).collect()
    };
    assert_eq!(served(&one), ["db"]);
    assert!(!one.lacks.iter().any(|lack| lack.starts_with("web_main")), "{:?}", one.lacks);
    let all = kept(&["*"]);
    assert_eq!((all.haproxy.unwrap().services.len(), all.lacks.len()), (3, 0));
    // Without what HAProxy needs, that is said, and the rest goes on.
    let text = "services:\n  web: {discovery: {method: base}, haproxy: {port: 1}}\nhaproxy: {global: []}\n";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("synapse.conf.json");
    fs::write(&file, text).unwrap();
    let lacks = Configuration::of(file, ["*".to_owned()].into_iter().collect()).load();
    assert!(
        lacks.haproxy.is_none() && lacks.wrong[0].message.contains("haproxy.defaults"),
        "{:?}",
        lacks.wrong
    );
    assert_eq!(names(&lacks), ["web"]);
}

#[test]
fn several_places_are_parts_in_the_order_that_is_said() {
    let parts = |more: &str| {
        let in_force = of(&service(&format!(
            "discovery_multi: {{watchers: {{old: {{method: base}}, two: {{method: zookeeper, hosts: [z], path: /two}}}}, {more}}}"
        )));
        let Some(service) = in_force.services.first() else { return Err(in_force.wrong[0].message.clone()) };
        let Kind::Multi(multi) = kind(service) else { panic!("{service:?}") };
        Ok((
            multi.which.clone(),
            multi.parts.iter().map(|part| part.name.clone()).collect::<Vec<_>>().join(" "),
        ))
    };
    assert_eq!(parts("resolver: {method: union}"), Ok((Which::Union, "primary old two".to_owned())));
    let order = "resolver: {method: sequential, sequential_order: [two, primary]}";
    assert_eq!(parts(order), Ok((Which::Sequential, "two primary".to_owned())));
    let toggle =
        "resolver: {method: s3_toggle, s3_url: 's3://bucket/w.yaml', s3_polling_interval_seconds: 9}";
    let Ok((Which::Toggle(Toggle::Object(object)), names)) = parts(toggle) else {
        panic!("{:?}", parts(toggle))
    };
    assert_eq!(
        (object.name.to_string().as_str(), object.interval),
        ("s3://bucket/w.yaml", Period::seconds(9))
    );
    assert_eq!(names, "primary old two");
    for (more, said) in [
        ("resolver: {method: fallback}", "discovery_multi.resolver.method"),
        ("resolver: {method: s3_toggle, s3_polling_interval_seconds: 9}", "s3_url"),
        (
            "resolver: {method: s3_toggle, s3_url: 's3://bucket/w', s3_polling_interval_seconds: x}",
            "s3_polling_interval_seconds",
        ),
        (
            "resolver: {method: s3_toggle, s3_url: 'https://bucket/w', s3_polling_interval_seconds: 9}",
            "no s3://bucket/key",
        ),
        ("resolver: {method: sequential, sequential_order: [two, two]}", "\"two\" is none of the watchers"),
    ] {
        let wrong = parts(more).unwrap_err();
        assert!(wrong.contains(said), "{wrong}");
    }
}

#[test]
fn instances_of_ec2_have_the_port_that_stands_beside_their_tag_and_a_secret_is_nowhere_shown() {
    let tag = "tag_name: role, tag_value: web, aws_region: eu-west-1";
    let keys = "aws_access_key_id: AKIDEXAMPLE, aws_secret_access_key: s3cret, check_interval: 20";
    for (discovery, more, interval) in [
        (format!("{{method: ec2tag, {tag}, {keys}}}"), "backend_port_override: '8080'", "20s"),
        (
            format!("{{method: awstag, {tag}, aws_access_key_id: ''}}"),
            "haproxy: {server_port_override: 8080}",
            "15s",
        ),
    ] {
        let in_force = of(&format!("services:\n  a: {{discovery: {discovery}, {more}}}\n"));
        assert_eq!(in_force.wrong, [], "{discovery}");
        let Kind::Ec2(ec2) = kind(&in_force.services[0]) else { panic!("{in_force:?}") };
        assert_eq!((ec2.port.get(), ec2.interval.to_string().as_str()), (8080, interval));
        assert_eq!(kind(&in_force.services[0]).place(), "ec2://eu-west-1/role=web");
        assert!(!format!("{in_force:?}").contains("s3cret"));
    }
    let port = ", backend_port_override: 80";
    for (discovery, port, said) in [
        (format!("{{method: ec2tag, {tag}}}"), "", "`backend_port_override`"),
        (format!("{{method: ec2tag, {}}}", tag.replace("eu-west-1", "EU")), port, "aws_region"),
        ("{method: ec2tag, tag_name: a}".to_owned(), port, "tag_value"),
        (
            format!("{{method: ec2tag, {tag}, {}}}", keys.replace("AKIDEXAMPLE", "a/b")),
            port,
            "aws_access_key_id",
        ),
    ] {
        let wrong = of(&format!("services:\n  a: {{discovery: {discovery}{port}}}\n")).wrong;
        assert!(wrong[0].message.contains(said) && !wrong[0].message.contains("s3cret"), "{wrong:?}");
    }
}

#[test]
fn the_pace_of_a_service_is_what_synapse_calls_jitter_and_retry_policy() {
    let pace = |discovery: &str| {
        let in_force = of(&format!(
            "services:\n  a: {{discovery: {{method: zookeeper, hosts: [z], path: /a, {discovery}}}}}\n"
        ));
        let service = in_force.services.first().ok_or_else(|| in_force.wrong[0].message.clone())?;
        Ok::<_, String>(service.watcher.options.pace)
    };
    let retry =
        |base, longest| Some(Retry::new(Period::new(base).unwrap(), Period::new(longest).unwrap()).unwrap());
    let (half, minute) = (Duration::from_millis(500), Duration::from_secs(60));
    for (discovery, discovery_jitter, expected) in [
        ("label_filters: []", None, None),
        ("discovery_jitter: 5", Some(Period::seconds(5)), None),
        ("discovery_jitter: 121", None, None),
        ("discovery_jitter: 0", None, None),
        ("retry_policy: {}", None, retry(half, minute)),
        (
            "retry_policy: {max_attempts: 3, base_interval: 0, max_interval: 2}",
            None,
            retry(Period::MIN, Duration::from_secs(2)),
        ),
    ] {
        assert_eq!(pace(discovery), Ok(Pace { discovery_jitter, retry: expected }), "{discovery}");
    }
    let wrong = pace("retry_policy: {base_interval: 90}").unwrap_err();
    assert!(wrong.contains("retry_policy") && wrong.contains("is longer than"), "{wrong}");
    // Of parts it is the first one's that says it, for all of them.
    let in_force = of(&service(
        "discovery_multi: {watchers: {old: {method: zookeeper, hosts: [z], path: /o, discovery_jitter: 7}}, resolver: {method: union}}",
    ));
    assert_eq!(in_force.services[0].watcher.options.pace.discovery_jitter, Some(Period::seconds(7)));
}

#[test]
fn methods_of_other_systems_are_watchers_of_theirs() {
    for (discovery, place) in [
        (
            "{method: dns, servers: [{host: a.example, port: 80}], nameserver: 192.0.2.53}",
            "the configuration",
        ),
        (
            "{method: docker, servers: [{name: d, host: 192.0.2.7}], image_name: web, container_port: 80}",
            "http://192.0.2.7:4243",
        ),
        (
            "{method: marathon, marathon_api_url: 'http://m:8080', application_name: shop/web}",
            "http://m:8080/shop/web",
        ),
    ] {
        let in_force = of(&format!("services:\n  a: {{discovery: {discovery}}}\n"));
        assert_eq!(in_force.wrong, [], "{discovery}");
        let watcher = &in_force.services[0].watcher;
        assert_eq!(watcher.looks.place(), place);
        let asks = discovery.contains("dns").then(|| vec!["192.0.2.53:53".parse().unwrap()]);
        assert_eq!(watcher.options.resolvers, asks);
    }
}

#[test]
fn sections_in_zookeeper_replace_those_of_the_configuration_and_stay_while_they_are_wrong() {
    let text = "services:\n  web:\n    discovery: {method: multi, watchers: {a: {method: zookeeper, hosts: [z], path: /a}, b: {method: zookeeper, \
                hosts: [z], path: /b, generator_config_path: /conf/b}, c: {method: zookeeper, hosts: [z], path: /c, generator_config_path: disabled}}, \
                resolver: {method: union}}\n    haproxy: {port: 3213}\n    file_output: {disabled: true}\n\
                file_output: {output_directory: /out}\n";
    let (mut host, in_force) = Host::of(text);
    let nodes: Vec<Znode> = in_force.sections_at.iter().cloned().collect();
    let shown: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["zookeeper://z/a", "zookeeper://z/conf/b"]);
    let mut say = |texts: [&str; 2]| {
        let said = nodes.iter().cloned().zip(texts.map(Arc::from)).collect();
        let in_force = host.configuration.heed(said);
        let [web] = &in_force.services[..] else { panic!("{in_force:?}") };
        let listen = web.listen.as_ref().map(ToString::to_string);
        let wrong: Vec<String> =
            in_force.wrong.iter().map(|wrong| format!("{}: {}", wrong.place, wrong.message)).collect();
        (listen, set(&web.settings), web.is_written, wrong.join("\n"), web.lacks.join("\n"))
    };
    let port = |port: &str| Some(format!("127.0.0.1:{port}"));
    let own = (port("3213"), vec![], false, String::new(), String::new());
    assert_eq!(say(["", ""]), own);
    assert_eq!(say(["{}", " "]), own);
    // The whole of them: nothing is left of the configuration's, of which the first that says something counts.
    let told = say([
        r#"{"haproxy": {"port": "3214", "backend": ["balance leastconn"]}, "nginx": {}}"#,
        r#"{"haproxy": {"port": 1}}"#,
    ]);
    assert_eq!((&told.0, told.2, &*told.3), (&port("3214"), true, ""));
    assert_eq!(told.1, ["policy=least_connections"]);
    assert_eq!(told.4, "keys that mean nothing here: nginx");
    for (wrong, said) in [
        ("no", "what stands there is no JSON"),
        ("[1]", "what stands there is no JSON object"),
        (r#"{"haproxy": {"port": 99999}}"#, "haproxy.port: 99999 is out of range"),
    ] {
        let told = say([wrong, ""]);
        assert_eq!((told.0, told.2), (port("3214"), true), "{wrong}");
        let whole = format!("zookeeper://z/a: services.web: {said}");
        assert!(
            told.3.starts_with(&whole) && told.3.ends_with("its last good sections stay in force"),
            "{}",
            told.3
        );
    }
    assert_eq!(say(["", r#"{"file_output": {}}"#]).0, None);
    assert_eq!(say(["", ""]), own);
    let told = say(["no", ""]);
    assert_eq!((told.0, told.2), (own.0.clone(), own.2));
    assert!(told.3.ends_with("those of the configuration are in force"), "{}", told.3);
}
