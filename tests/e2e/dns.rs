//! Names are answered on every node, from what is known there.

use std::time::Duration;

use plexus_tests::client::dig;
use plexus_tests::{Cluster, eventually, needs};

use crate::INSTANCE;

const SOON: Duration = Duration::from_secs(3);

#[test]
fn a_service_s_name_is_the_addresses_of_what_serves() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let (_one, two) = (a.serve("web", INSTANCE), b.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    let both = [a.address().to_string(), b.address().to_string()];
    for node in [a, b, c] {
        for name in ["web.mesh.internal", "tasks.web.mesh.internal", "WEB.Mesh.Internal"] {
            let answer = node.dig(name, "A");
            assert_eq!(
                (answer.status.as_str(), &answer.data[..]),
                ("NOERROR", &both[..]),
                "{name}: {answer:?}"
            );
            assert!(answer.flags.contains(&"aa".to_owned()), "{answer:?}");
            assert!(answer.ttls.iter().all(|ttl| *ttl <= 1), "{answer:?}");
        }
    }
    two.fail();
    eventually!(SOON, c.dig("web.mesh.internal", "A").data, |data| *data == both[..1]);
}

#[test]
fn ports_are_told_by_srv_and_nodes_by_their_own_names() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let answer = b.dig("web.mesh.internal", "SRV");
    assert_eq!(answer.data.len(), 1, "{answer:?}");
    let fields: Vec<&str> = answer.data[0].split(' ').collect();
    assert_eq!(fields[2], INSTANCE.to_string(), "{answer:?}");
    // What an SRV record points to has an address.
    let target = b.dig(fields[3].trim_end_matches('.'), "A");
    assert_eq!(target.data, [a.address().to_string()], "{target:?}");
    assert_eq!(b.dig("a.node.mesh.internal", "A").data, [a.address().to_string()]);
}

#[test]
fn names_that_are_not_there_are_told_from_types_that_are_not_there() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let none = a.dig("nothing.mesh.internal", "A");
    assert_eq!(none.status, "NXDOMAIN");
    assert!(none.authority.iter().any(|line| line.contains("SOA")), "{none:?}");
    let no_data = a.dig("web.mesh.internal", "AAAA");
    assert_eq!((no_data.status.as_str(), no_data.data.len()), ("NOERROR", 0));
    assert!(no_data.authority.iter().any(|line| line.contains("SOA")), "{no_data:?}");
}

#[test]
fn many_addresses_are_a_few_at_a_time_and_all_of_them_over_tcp_where_all_are_asked_for() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    for n in 1..=60 {
        let service = plexus_tests::ServiceFile::new("many", 9000).check("");
        let service = service.id(&format!("many-{n}")).key("address", &format!("\"10.99.0.{n}\""));
        a.write_service_file(&format!("many-{n}.toml"), &service.text());
    }
    eventually!(Duration::from_secs(10), a.serving("many").len(), |count| *count == 60);
    let ask = |name, option| dig::ask(a.namespace(), a.address(), name, "A", &[option]);
    let some = ask("many.mesh.internal", "+ignore");
    assert!((2..60).contains(&some.data.len()) && !some.flags.contains(&"tc".to_owned()), "{some:?}");
    let truncated = ask("tasks.many.mesh.internal", "+ignore");
    assert!(truncated.flags.contains(&"tc".to_owned()), "{truncated:?}");
    assert!((20..60).contains(&truncated.data.len()), "who cannot ask over TCP has some: {truncated:?}");
    let sorted = |mut data: Vec<String>| {
        data.sort();
        data
    };
    let again = eventually!(
        Duration::from_secs(5),
        ask("tasks.many.mesh.internal", "+ignore"),
        |again| sorted(again.data.clone()) != sorted(truncated.data.clone())
    );
    assert_eq!(again.data.len(), truncated.data.len(), "others, and as many");
    assert_eq!(ask("tasks.many.mesh.internal", "+tcp").data.len(), 60);
}

#[test]
fn other_names_are_asked_of_the_upstreams() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = Cluster::of(2).without_agents().start();
    let [a, b] = cluster.nodes();
    // The upstream is a name server for another domain: the other node.
    let settings =
        |more: &str| plexus_tests::Settings { more: more.to_owned(), ..cluster.settings().clone() };
    let dns = |node: &plexus_tests::Node, keys: &str| {
        let text = std::fs::read_to_string(node.config_file()).expect("a configuration");
        std::fs::write(node.config_file(), text.replace("[dns]\n", &format!("[dns]\n{keys}\n")))
            .expect("written");
    };
    [a, b].iter().for_each(|node| node.configure(&settings("")));
    dns(a, &format!("upstreams = [\"{}\"]", b.at(53)));
    dns(b, "domain = \"corp.example\"");
    [a, b].iter().for_each(|node| node.restart_agent());
    let _backend = b.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-b-9000"]);
    assert_eq!(a.dig("web.mesh.internal", "A").data, [b.address().to_string()]);
    assert_eq!(a.dig("web.corp.example", "A").data, [b.address().to_string()]);
    assert_eq!(a.dig("none.corp.example", "A").status, "NXDOMAIN");
    b.kill_agent();
    assert_eq!(a.dig("other.corp.example", "A").status, "SERVFAIL");
}

#[test]
fn resolve_says_what_dns_answers_and_why() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let backend = a.serve("web", INSTANCE);
    let _other = b.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    backend.fail();
    cluster.wait_serving("web", &["web-b-9000"]);
    let said = b.plexus(["resolve", "web.mesh.internal"]).ok();
    assert!(said.contains(&b.address().to_string()), "{said}");
    assert_eq!(b.plexus_json(["resolve", "web.mesh.internal"])["code"], "NOERROR");
    assert_eq!(b.plexus_json(["resolve", "none.mesh.internal"])["code"], "NXDOMAIN");
}
