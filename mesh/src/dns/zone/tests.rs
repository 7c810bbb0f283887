//! The zone against a catalog made by hand; every answer also goes through the wire form and back.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use proptest::prelude::*;
use synapse::catalog::{Change, Reason, Writer};

use super::*;
use crate::dns::config::Config;

fn instance(service: &str, id: &str, address: &str, health: &str) -> Change {
    let json = serde_json::json!({
        "service": service, "id": id, "node": "a", "address": address, "port": 8080, "health": health,
        "ports": { "metrics": 9090 },
    });
    Change::PutInstance(Arc::new(serde_json::from_value(json).unwrap()))
}

fn node(name: &str, address: &str) -> Change {
    let json = serde_json::json!({ "name": name, "address": address, "version": "0" });
    Change::PutNode(Arc::new(serde_json::from_value(json).unwrap()))
}

fn zone() -> (Zone, Writer) {
    let (catalog, mut writer) = Catalog::new();
    writer.set_freshness(Freshness::Live);
    writer.apply([
        node("a", "192.0.2.1"),
        instance("web", "1", "192.0.2.1", "passing"),
        instance("web", "2", "192.0.2.2", "passing"),
        instance("web", "3", "2001:db8::3", "passing"),
        instance("web", "4", "192.0.2.4", "critical"),
        instance("sick", "1", "192.0.2.9", "starting"),
    ]);
    (Zone::new(&Config::default(), catalog, 7), writer)
}

fn ask_at_most(zone: &Zone, name: &str, kind: RecordType, most: usize) -> Answer {
    let answer = zone.answer(&Name::from_ascii(name).unwrap(), kind, most, &mut rand::rng());
    let mut message = Message::response(1, hickory_proto::op::OpCode::Query);
    message.add_answers(answer.answers.clone());
    message.add_authorities(answer.authority.clone());
    message.add_additionals(answer.additionals.clone());
    let back = Message::from_vec(&message.to_vec().unwrap()).unwrap();
    assert_eq!(back.answers, answer.answers);
    assert_eq!(back.authorities, answer.authority);
    assert_eq!(back.additionals, answer.additionals);
    answer
}

fn ask(zone: &Zone, name: &str, kind: RecordType) -> Answer {
    ask_at_most(zone, name, kind, 8)
}

fn ips(records: &[Record]) -> BTreeSet<IpAddr> {
    let ip = |record: &Record| match &record.data {
        RData::A(a) => Some(a.0.into()),
        RData::AAAA(aaaa) => Some(aaaa.0.into()),
        _ => None,
    };
    records.iter().filter_map(ip).collect()
}

fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|a| a.parse().unwrap()).collect()
}

#[test]
fn a_virtual_address_is_answered_where_it_leads_somewhere() {
    let (catalog, mut writer) = Catalog::new();
    let (ranges, usable) = tokio::sync::watch::channel(Arc::from([]));
    let config = Config { virtual_ranges: usable.into(), ..Config::default() };
    let zone = Zone::new(&config, catalog, 7);
    writer.set_freshness(Freshness::Live);
    let web = || nerve::model::ServiceName::new("web").unwrap();
    let vip = |address: &str| Change::PutVip(address.parse().unwrap(), web());
    writer.apply([
        node("a", "192.0.2.1"),
        instance("web", "1", "192.0.2.1", "critical"),
        instance("web", "2", "192.0.2.2", "passing"),
        instance("web", "3", "2001:db8::3", "passing"),
        vip("10.96.0.2"),
        vip("10.96.0.1"),
        vip("10.97.0.1"),
    ]);
    let a = |name: &str| ips(&ask(&zone, name, RecordType::A).answers);
    assert_eq!(a("web.mesh.internal."), set(&["192.0.2.2"]));
    ranges.send_replace(Arc::from(["10.96.0.0/16".parse().unwrap()]));
    assert_eq!(a("web.mesh.internal."), set(&["10.96.0.1"]));
    assert_eq!(a("tasks.web.mesh.internal."), set(&["192.0.2.2"]));
    let six = ask(&zone, "web.mesh.internal.", RecordType::AAAA);
    assert!(six.kind == Kind::NoData && six.authority.len() == 1, "no endpoint beside the address: {six:?}");
    let srv = ask(&zone, "web.mesh.internal.", RecordType::SRV);
    assert_eq!(srv.answers.len(), 2);
    let why = zone.explain("web.mesh.internal.").why;
    assert!(
        why.starts_with("the virtual address of service web, 10.96.0.1:") && why.contains("2 of 3"),
        "{why}"
    );
    let off = nerve::model::ServiceSettings { vip: nerve::model::VirtualIp::Off, ..Default::default() };
    writer.apply([Change::PutSettings(web(), Arc::new(off))]);
    assert_eq!(a("web.mesh.internal."), set(&["192.0.2.2"]));
}

#[test]
fn a_service_is_answered_with_its_serving_addresses_of_the_asked_family() {
    let (zone, _writer) = zone();
    for name in ["web.mesh.internal.", "tasks.web.mesh.internal.", "WeB.Mesh.INTERNAL."] {
        let answer = ask(&zone, name, RecordType::A);
        assert_eq!(ips(&answer.answers), set(&["192.0.2.1", "192.0.2.2"]), "{name}");
        assert!(
            answer.answers.iter().all(|r| r.ttl == 5 && r.name.to_ascii() == name),
            "the spelling is the client's"
        );
        assert_eq!(ips(&ask(&zone, name, RecordType::AAAA).answers), set(&["2001:db8::3"]));
    }
}

#[test]
fn two_instances_at_one_address_are_one_answer() {
    let (zone, mut writer) = zone();
    writer.apply([instance("web", "5", "192.0.2.1", "passing")]);
    assert_eq!(ask(&zone, "web.mesh.internal.", RecordType::A).answers.len(), 2);
}

#[test]
fn an_answer_is_bounded_and_over_time_names_everyone() {
    let (zone, mut writer) = zone();
    writer.apply((0..40).map(|n| instance("many", &n.to_string(), &format!("198.51.100.{n}"), "passing")));
    let (mut seen, mut first) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..500 {
        let answer = ask(&zone, "many.mesh.internal.", RecordType::A);
        assert_eq!(answer.answers.len(), 8);
        assert_eq!(ips(&answer.answers).len(), 8);
        seen.extend(ips(&answer.answers));
        first.extend(ips(&answer.answers[..1]));
    }
    assert_eq!((seen.len(), first.len()), (40, 40));
}

#[test]
fn srv_targets_carry_port_and_weight_and_resolve() {
    let (zone, _writer) = zone();
    for (name, port) in [
        ("web.mesh.internal.", 8080),
        ("_web._tcp.mesh.internal.", 8080),
        ("_metrics._tcp.web.mesh.internal.", 9090),
        ("_metrics._udp.web.mesh.internal.", 9090),
    ] {
        let answer = ask(&zone, name, RecordType::SRV);
        let mut hosts = BTreeSet::new();
        for record in &answer.answers {
            let RData::SRV(srv) = &record.data else { panic!("{record}") };
            assert_eq!((srv.port, srv.weight, srv.priority), (port, 100, 0), "{name}");
            let host = srv.target.to_ascii();
            let resolved =
                [RecordType::A, RecordType::AAAA].map(|kind| ips(&ask(&zone, &host, kind).answers));
            let additional: Vec<_> =
                answer.additionals.iter().filter(|r| r.name == srv.target).cloned().collect();
            assert_eq!(&resolved[0] | &resolved[1], ips(&additional), "{host}");
            hosts.insert(host);
        }
        let expected = ["a.node", "ip-192-0-2-2.addr", "ip-2001-db8-0-0-0-0-0-3.addr"];
        assert_eq!(hosts, expected.map(|h| format!("{h}.mesh.internal.")).into(), "{name}");
    }
}

#[test]
fn an_unknown_name_is_nxdomain_and_a_known_one_without_the_type_nodata_both_with_soa() {
    let (zone, _writer) = zone();
    let cases = [
        ("nope", RecordType::A, Kind::NxDomain),
        ("x.web", RecordType::A, Kind::NxDomain),
        ("nope.node", RecordType::A, Kind::NxDomain),
        ("tasks.nope", RecordType::A, Kind::NxDomain),
        ("_nope._tcp", RecordType::SRV, Kind::NxDomain),
        ("_nope._tcp.web", RecordType::SRV, Kind::NxDomain),
        ("ip-1-2-3-256.addr", RecordType::A, Kind::NxDomain),
        ("a.b.c.d.e.f", RecordType::A, Kind::NxDomain),
        ("web", RecordType::TXT, Kind::NoData),
        ("_web._tcp", RecordType::A, Kind::NoData),
        ("a.node", RecordType::AAAA, Kind::NoData),
        ("node", RecordType::A, Kind::NoData),
        ("addr", RecordType::A, Kind::NoData),
        ("_tcp", RecordType::A, Kind::NoData),
        ("_tcp.web", RecordType::A, Kind::NoData),
        ("sick", RecordType::A, Kind::NoData),
        ("_metrics._tcp.sick", RecordType::SRV, Kind::NoData),
    ];
    for (name, kind, expected) in cases {
        let answer = ask(&zone, &format!("{name}.mesh.internal."), kind);
        assert_eq!(answer.kind, expected, "{name}");
        assert!(answer.answers.is_empty() && answer.additionals.is_empty());
        let [soa] = &answer.authority[..] else { panic!("{name}: {:?}", answer.authority) };
        let RData::SOA(data) = &soa.data else { panic!("{soa}") };
        assert_eq!((soa.name.to_ascii().as_str(), soa.ttl, data.minimum), ("mesh.internal.", 2, 2));
    }
}

#[test]
fn a_service_that_nobody_serves_says_why() {
    let (zone, _writer) = zone();
    let note = ask(&zone, "sick.mesh.internal.", RecordType::A).note.unwrap();
    assert_eq!(note.text, "no instance of service sick serves: 1 starting");
    assert_eq!(ask(&zone, "web.mesh.internal.", RecordType::TXT).note, None);
}

#[test]
fn the_apex_has_soa_and_a_name_server_that_resolves() {
    let (zone, _writer) = zone();
    assert_eq!(ask(&zone, "mesh.internal.", RecordType::SOA).answers.len(), 1);
    let ns = ask(&zone, "mesh.internal.", RecordType::NS);
    let RData::NS(target) = &ns.answers[0].data else { panic!() };
    assert_eq!(ips(&ns.additionals), set(&["192.0.2.1"]));
    assert_eq!(ips(&ask(&zone, &target.0.to_ascii(), RecordType::A).answers), set(&["192.0.2.1"]));
    assert_eq!(ask(&zone, "mesh.internal.", RecordType::A).kind, Kind::NoData);
}

#[test]
fn every_domain_has_the_same_names_and_answers_keep_to_it() {
    let (catalog, mut writer) = Catalog::new();
    writer.set_freshness(Freshness::Live);
    writer.apply([
        node("a", "192.0.2.1"),
        instance("web", "1", "192.0.2.1", "passing"),
        instance("web", "2", "192.0.2.2", "passing"),
    ]);
    let config = Config { alt_domains: vec!["consul".parse().unwrap()], ..Config::default() };
    let zone = Zone::new(&config, catalog, 7);
    for domain in ["mesh.internal.", "consul."] {
        let name = |left: &str| format!("{left}.{domain}");
        for left in ["web", "web.service", "web.service.dc1"] {
            let answer = ask(&zone, &name(left), RecordType::A);
            assert_eq!(ips(&answer.answers), set(&["192.0.2.1", "192.0.2.2"]), "{left}.{domain}");
        }
        let srv = ask(&zone, &name("_web._tcp.service"), RecordType::SRV);
        let targets: BTreeSet<String> =
            srv.additionals.iter().map(|record| record.name.to_string()).collect();
        assert_eq!(targets, [name("a.node"), name("ip-192-0-2-2.addr")].into());
        let ns = ask(&zone, domain, RecordType::NS);
        assert_eq!(ns.answers[0].to_string(), format!("{domain} 5 IN NS {}", name("ns.addr")));
        let soa = ask(&zone, &name("nothing"), RecordType::A);
        assert_eq!((soa.kind, soa.authority[0].name.to_string().as_str()), (Kind::NxDomain, domain));
        assert_eq!(zone.explain(&name("web")).rule, Rule::Service);
    }
    let pointer = ask(&zone, "1.2.0.192.in-addr.arpa.", RecordType::PTR);
    assert_eq!(pointer.answers[0].data.to_string(), "a.node.mesh.internal.");
    assert!(!zone.covers(&Name::from_ascii("myconsul.").unwrap()));
    let outside = zone.explain("web").why;
    assert_eq!(outside, "web. is not under mesh.internal. or consul.; web.mesh.internal. is");
}

#[test]
fn times_to_live_are_those_of_what_is_asked_for() {
    let (catalog, mut writer) = Catalog::new();
    writer.set_freshness(Freshness::Live);
    writer.apply([
        node("a", "192.0.2.1"),
        instance("web", "1", "192.0.2.1", "passing"),
        instance("db-main", "1", "192.0.2.2", "passing"),
        instance("api", "1", "192.0.2.3", "passing"),
        Change::PutVip("10.96.0.1".parse().unwrap(), "api".parse().unwrap()),
        Change::PutVip("10.96.0.2".parse().unwrap(), "db-main".parse().unwrap()),
    ]);
    let ttl = |text: &str| text.parse().unwrap();
    let ttls = Ttls {
        services: ttl("3s"),
        virtual_addresses: ttl("40s"),
        nodes: ttl("6s"),
        reverse: ttl("7s"),
        of_services: [("db-*".parse().unwrap(), ttl("0s"))].into_iter().collect(),
        ..Ttls::all(ttl("9s"), ttl("1s"))
    };
    let ranges = tokio::sync::watch::channel(Arc::from(["10.96.0.0/16".parse().unwrap()])).1;
    let zone = Zone::new(&Config { ttls, virtual_ranges: ranges.into(), ..Config::default() }, catalog, 7);
    for (name, kind, expected) in [
        ("web.mesh.internal.", RecordType::A, vec![3]),
        ("web.service.mesh.internal.", RecordType::SRV, vec![3, 6]),
        ("1.web.mesh.internal.", RecordType::SRV, vec![3, 6]),
        ("api.mesh.internal.", RecordType::A, vec![40]),
        ("tasks.api.mesh.internal.", RecordType::A, vec![3]),
        ("db-main.mesh.internal.", RecordType::A, vec![0]),
        ("tasks.db-main.mesh.internal.", RecordType::A, vec![0]),
        ("a.node.mesh.internal.", RecordType::A, vec![6]),
        ("ip-192-0-2-1.addr.mesh.internal.", RecordType::A, vec![6]),
        ("mesh.internal.", RecordType::NS, vec![9, 6]),
        ("1.2.0.192.in-addr.arpa.", RecordType::PTR, vec![7]),
        ("nothing.mesh.internal.", RecordType::A, vec![1]),
    ] {
        let answer = ask(&zone, name, kind);
        let all = answer.answers.iter().chain(&answer.authority).chain(&answer.additionals);
        assert_eq!(all.map(|record| record.ttl).collect::<Vec<_>>(), expected, "{name} {kind}");
    }
    let soa = &ask(&zone, "mesh.internal.", RecordType::SOA).answers[0].data;
    assert!(matches!(soa, RData::SOA(soa) if soa.minimum == 1), "{soa}");
}

#[test]
fn any_is_answered_with_little() {
    let (zone, _writer) = zone();
    let answer = ask(&zone, "web.mesh.internal.", RecordType::ANY);
    assert!(matches!(&answer.answers[..], [one] if one.record_type() == RecordType::HINFO));
    assert_eq!(ask(&zone, "nope.mesh.internal.", RecordType::ANY).kind, Kind::NxDomain);
}

#[test]
fn before_the_catalog_has_heard_anything_nothing_is_said_not_to_exist() {
    let (catalog, mut writer) = Catalog::new();
    let zone = Zone::new(&Config::default(), catalog, 7);
    assert_eq!(ask(&zone, "nope.mesh.internal.", RecordType::A).kind, Kind::NotReady);
    assert_eq!(zone.explain("web.mesh.internal").outcome, Outcome::NotReady);
    writer.set_freshness(Freshness::Live);
    assert_eq!(ask(&zone, "nope.mesh.internal.", RecordType::A).kind, Kind::NxDomain);
}

#[test]
fn a_stale_catalog_answers_and_says_so() {
    let (zone, mut writer) = zone();
    writer.set_freshness(Freshness::Stale { since: SystemTime::now(), reason: "etcd is gone".to_owned() });
    let answer = ask(&zone, "web.mesh.internal.", RecordType::A);
    assert_eq!(answer.kind, Kind::Records);
    assert_eq!(
        answer.note.unwrap(),
        Note::new(Note::STALE_ANSWER, "last known good; the store: etcd is gone")
    );
    let none = ask(&zone, "sick.mesh.internal.", RecordType::A);
    assert!(none.stale && none.note.unwrap().text.starts_with("no instance"), "the nearer reason is told");
    assert_eq!(zone.explain("web.mesh.internal").stale.as_deref(), Some("etcd is gone"));
}

#[test]
fn a_node_called_tasks_keeps_its_name() {
    let (zone, mut writer) = zone();
    writer.apply([node("tasks", "192.0.2.77"), instance("node", "1", "192.0.2.78", "passing")]);
    assert_eq!(ips(&ask(&zone, "tasks.node.mesh.internal.", RecordType::A).answers), set(&["192.0.2.77"]));
    assert_eq!(ips(&ask(&zone, "node.mesh.internal.", RecordType::A).answers), set(&["192.0.2.78"]));
    assert_eq!(ips(&ask(&zone, "a.node.mesh.internal.", RecordType::A).answers), set(&["192.0.2.1"]));
}

#[test]
fn an_explanation_tells_rule_records_and_what_is_left_out() {
    let (zone, _writer) = zone();
    let told = zone.explain("Web.mesh.internal");
    assert_eq!(
        (told.rule, told.outcome, told.name.as_str()),
        (Rule::Service, Outcome::Answer, "web.mesh.internal.")
    );
    assert_eq!(told.records.len(), 2 + 1 + 3, "{:?}", told.records);
    assert!(told.records.contains(&"web.mesh.internal. 5 IN A 192.0.2.1".to_owned()), "{:?}", told.records);
    assert_eq!(
        told.excluded.iter().map(|e| (e.instance.as_str(), e.reason)).collect::<Vec<_>>(),
        [("4", Reason::Critical)]
    );
    assert_eq!(told.why, "3 of 4 endpoints of service web serve");
    let sick = zone.explain("sick.mesh.internal.");
    assert_eq!((sick.rule, sick.outcome, sick.excluded.len()), (Rule::Service, Outcome::NoData, 1));
    let short = zone.explain("web");
    assert_eq!(short.rule, Rule::Outside);
    assert_eq!(short.why, "web. is not under mesh.internal.; web.mesh.internal. is");
    assert_eq!(zone.explain(&"x".repeat(300)).rule, Rule::Invalid);
    let node = zone.explain("a.node.mesh.internal").records;
    assert_eq!(node, ["a.node.mesh.internal. 5 IN A 192.0.2.1", "a.node.mesh.internal. 5 IN TXT version=0"]);
}

/// A catalog of one service with instances of these keys.
fn web(instances: &[serde_json::Value], config: &Config) -> Zone {
    let (catalog, mut writer) = Catalog::new();
    writer.set_freshness(Freshness::Live);
    writer.apply([node("a", "192.0.2.1")]);
    writer.apply(instances.iter().enumerate().map(|(at, more)| {
        let mut record = serde_json::json!({
            "service": "web", "id": format!("web-{}", at + 1), "node": "a", "address": format!("192.0.2.{}", at + 1), "port": 80,
        });
        record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Change::PutInstance(Arc::new(serde_json::from_value(record).unwrap()))
    }));
    Zone::new(config, catalog, 7)
}

/// The last octets of the addresses of a name.
fn lasts(zone: &Zone, name: &str) -> String {
    let answer = ask(zone, &format!("{name}.mesh.internal."), RecordType::A);
    let lasts = ips(&answer.answers).into_iter().map(|ip| ip.to_string().pop().unwrap());
    match answer.kind {
        Kind::NxDomain => "none".to_owned(),
        _ => lasts.collect(),
    }
}

#[test]
fn tags_zones_and_instances_have_names_as_consul_has_them() {
    let zone = web(
        &[
            serde_json::json!({"tags": ["v1", "Blue.Green"], "zone": "eu-1a", "labels": {"role": "primary"}}),
            serde_json::json!({"tags": ["v1"], "zone": "eu-1b", "id": "blue.two"}),
            serde_json::json!({"tags": ["v2"], "zone": "eu-1b", "health": "critical"}),
        ],
        &Config::default(),
    );
    for (name, expected) in [
        ("web", "12"),
        ("web.service", "12"),
        ("web.service.dc1", "12"),
        ("web.dc1", "none"),
        ("web.service.dc2", "none"),
        ("v1.web.service", "12"),
        ("V1.web.service.DC1", "12"),
        ("blue.green.web.service", "1"),
        // All of this group fail.
        ("v2.web.service", "3"),
        ("v3.web.service", "none"),
        ("web.zone.eu-1a", "1"),
        ("web.zone.eu-1b", "2"),
        ("web.zone.eu-1c", "none"),
        ("web-1.web", "1"),
        ("WEB-3.web", "3"),
        ("blue.two.web", "2"),
        ("two.web", ""),
        ("wo.web", "none"),
        ("c0000202.addr", "2"),
        ("c000020.addr", "none"),
        ("a.node.dc1", "1"),
        ("service", ""),
        ("service.dc1", ""),
        ("dc1", ""),
    ] {
        assert_eq!(lasts(&zone, name), expected, "{name}");
    }
    let data = |name: &str, kind| {
        let answers = ask(&zone, &format!("{name}.mesh.internal."), kind).answers;
        answers.iter().map(|record| record.data.to_string()).collect::<BTreeSet<_>>()
    };
    let [one, two] = ["0 100 80 a.node.mesh.internal.", "0 100 80 ip-192-0-2-2.addr.mesh.internal."];
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<BTreeSet<_>>();
    for (name, expected) in [
        ("_web._tcp.service", owned(&[one, two])),
        ("_web._v1.service", owned(&[one, two])),
        ("_web._v3.service", owned(&[])),
        ("web-1.web", owned(&[one])),
    ] {
        assert_eq!(data(name, RecordType::SRV), expected, "{name}");
    }
    assert_eq!(data("web-1.web", RecordType::TXT), owned(&["role=primary"]));
    assert_eq!(zone.explain("v2.web.service.mesh.internal").rule, Rule::ConsulService);
}

#[tokio::test]
async fn addresses_have_the_names_of_who_has_them() {
    let (zone, mut writer) = zone();
    writer.apply([
        Change::PutVip("10.96.0.1".parse().unwrap(), "web".parse().unwrap()),
        instance("db", "db.7", "192.0.2.2", "critical"),
    ]);
    let zone = Arc::new(zone);
    let (keeper, names) = (Arc::clone(&zone), |address: &str| {
        let name = Name::from(address.parse::<IpAddr>().unwrap());
        let answer = ask(&zone, &name.to_ascii(), RecordType::PTR);
        answer.answers.iter().map(|record| record.data.to_string()).collect::<BTreeSet<_>>()
    });
    let tasks = nerve::tasks::Tasks::new();
    tasks.spawn("addresses", async move { keeper.follow_addresses().await });
    let owned =
        |texts: &[&str]| texts.iter().map(|text| format!("{text}mesh.internal.")).collect::<BTreeSet<_>>();
    assert_eq!(names("192.0.2.1"), owned(&["a.node."]));
    assert_eq!(names("10.96.0.1"), owned(&["web."]));
    let told = async |address: &str, texts: &[&str]| {
        let until = async {
            while names(address) != owned(texts) {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(10), until).await;
        assert!(waited.is_ok(), "{address}: {:?}", names(address));
    };
    told("192.0.2.2", &["2.web.", "db.7.db."]).await;
    told("2001:db8::3", &["3.web."]).await;
    writer.apply([Change::RemoveInstance("web".parse().unwrap(), "2".parse().unwrap())]);
    told("192.0.2.2", &["db.7.db."]).await;
    writer.apply([Change::RemoveInstance("db".parse().unwrap(), "db.7".parse().unwrap())]);
    told("192.0.2.2", &[]).await;
    let nobody = Name::from(IpAddr::from([192, 0, 2, 2]));
    assert!(!zone.covers(&nobody) && zone.covers(&Name::from(IpAddr::from([192, 0, 2, 1]))));
    let other = ask(&zone, "1.2.0.192.in-addr.arpa.", RecordType::A);
    assert_eq!((other.kind, other.authority.len()), (Kind::NoData, 0));
    assert_eq!(zone.explain("1.2.0.192.in-addr.arpa").rule, Rule::Reverse);
}

#[test]
fn the_best_that_there_are_are_named() {
    let of = |health: &str, backup: bool| serde_json::json!({"health": health, "backup": backup});
    let all = [
        of("passing", false),
        of("passing", true),
        of("warning", false),
        of("critical", false),
        of("starting", false),
    ];
    let lenient = Config { only_passing: false, panic: false, ..Config::default() };
    for (from, strictly, leniently) in
        [(0, "1", "13"), (1, "2", "3"), (2, "3", "3"), (3, "4", ""), (4, "", "")]
    {
        // Those before are drained.
        let instances: Vec<_> = (all.iter().enumerate())
            .map(|(at, one)| {
                let mut one = one.clone();
                one["draining"] = (at < from).into();
                one
            })
            .collect();
        assert_eq!(lasts(&web(&instances, &Config::default()), "web"), strictly, "{from}");
        assert_eq!(lasts(&web(&instances, &lenient), "web"), leniently, "{from}");
    }
}

#[test]
fn the_nearest_stand_first() {
    let at = |region: &str, zone: &str| serde_json::json!({"region": region, "zone": zone});
    let instances = [at("us", "1"), at("eu", "2"), at("eu", "1"), at("eu", "1"), at("us", "2")];
    let place = crate::dns::Place { region: "eu".parse().ok(), zone: "1".parse().ok() };
    let zone = web(&instances, &Config { place, ..Config::default() });
    let mut firsts = BTreeSet::new();
    for _ in 0..40 {
        let answer = ask(&zone, "web.mesh.internal.", RecordType::A);
        let order: String =
            answer.answers.iter().map(|record| record.data.to_string().pop().unwrap()).collect();
        let step = |range: std::ops::Range<usize>| order[range].chars().collect::<BTreeSet<_>>();
        assert_eq!(
            (step(0..2), step(2..3), step(3..5)),
            (['3', '4'].into(), ['2'].into(), ['1', '5'].into())
        );
        firsts.insert(order[..1].to_owned());
        let two = ask_at_most(&zone, "web.mesh.internal.", RecordType::A, 2);
        assert_eq!(ips(&two.answers), set(&["192.0.2.3", "192.0.2.4"]));
    }
    assert_eq!(firsts.len(), 2, "in turn");
}

fn label() -> impl Strategy<Value = Vec<u8>> {
    const WORDS: &[&str] = &[
        "web",
        "sick",
        "tasks",
        "node",
        "addr",
        "_tcp",
        "_udp",
        "_web",
        "_metrics",
        "a",
        "ns",
        "ip-1-2-3-4",
        "mesh",
    ];
    prop_oneof![
        3 => proptest::sample::select(WORDS).prop_map(|w| w.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 1..64),
    ]
}

proptest! {
    #[test]
    fn no_name_panics_and_answers_hold_only_what_serves(
        labels in proptest::collection::vec(label(), 0..5),
        kind in 0..300_u16,
        healths in proptest::collection::vec(0..3_usize, 0..12),
        most in 0..5_usize,
    ) {
        let (zone, mut writer) = zone();
        let words = ["passing", "starting", "critical"];
        writer.apply(healths.iter().enumerate().map(|(n, health)| {
            instance("web", &n.to_string(), &format!("203.0.113.{n}"), words[*health])
        }));
        let name = labels.iter().rev().fold(Name::from_ascii("mesh.internal.").unwrap(), |name, label| {
            name.prepend_label(label.as_slice()).unwrap_or(name)
        });
        prop_assert!(zone.covers(&name));
        // Else those that fail are named: three of the zone's own pass, until others have their ids.
        let is_one_passing = healths.contains(&0) || healths.len() < 4;
        for kind in [RecordType::from(kind), RecordType::A, RecordType::SRV] {
            let answer = zone.answer(&name, kind, most, &mut rand::rng());
            let all = name.iter().next() == Some(b"tasks");
            prop_assert!(all || answer.answers.len() <= most.max(1));
            prop_assert_eq!(answer.answers.is_empty(), answer.kind != Kind::Records);
            prop_assert_eq!(answer.authority.len(), usize::from(answer.kind != Kind::Records));
            for ip in ips(&answer.answers).union(&ips(&answer.additionals)) {
                if let IpAddr::V4(v4) = ip && v4.octets()[..3] == [203, 0, 113] {
                    let health = healths[usize::from(v4.octets()[3])];
                    prop_assert_eq!(health, if is_one_passing { 0 } else { 2 });
                }
            }
        }
        zone.explain(&name.to_ascii());
    }
}
