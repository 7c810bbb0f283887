//! Names under more than one domain, services that are names elsewhere, and how long each answer may be kept.

use std::time::Duration;

use plexus_tests::client::dig;
use plexus_tests::{Cluster, Node, eventually, needs};

use crate::INSTANCE;
use crate::dns_forward::{knot, start};

const SOON: Duration = Duration::from_secs(20);

fn ask(node: &Node, name: &str, kind: &str, options: &[&str]) -> dig::Answer {
    let options: Vec<&str> = ["+time=5"].iter().chain(options).copied().collect();
    dig::ask(node.namespace(), "127.0.0.1".parse().expect("an address"), name, kind, &options)
}

#[test]
fn a_service_elsewhere_is_led_to_and_answered_under_every_domain() {
    needs!("etcd", "etcdctl", "dig", "knotd");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let records = "db 60 A 192.0.2.7\nold 60 CNAME db\n";
    let _knot = knot(&cluster, a, "corp.example", 5353, records);
    start(&cluster, a, "alt_domains = [\"consul\"]\nupstreams = [\"127.0.0.1:5353\"]", "");
    assert!(a.plexus(["set", "db", "external=192.0.2.7"]).refused().contains("an address is an instance's"));
    let _ = a.plexus(["set", "db", "external=db.corp.example:5432"]).ok();
    for name in ["db.mesh.internal", "db.service.consul", "DB.service.dc1.consul"] {
        let answer = eventually!(SOON, ask(a, name, "A", &[]), |answer| answer.data.len() == 2);
        assert_eq!(answer.data, ["192.0.2.7", "db.corp.example."], "{name}");
        assert!(["aa", "ra"].iter().all(|flag| answer.flags.iter().any(|one| one == flag)), "{answer:?}");
    }
    let alone = ask(a, "db.mesh.internal", "A", &["+norecurse"]);
    assert_eq!((alone.status.as_str(), &alone.data[..]), ("NOERROR", &["db.corp.example.".to_owned()][..]));
    let none = ask(a, "db.mesh.internal", "AAAA", &[]);
    assert_eq!((none.status.as_str(), &none.data[..]), ("NOERROR", &["db.corp.example.".to_owned()][..]));
    assert!(none.authority.iter().any(|line| line.starts_with("corp.example.")), "{none:?}");
    assert_eq!(ask(a, "_db._tcp.consul", "SRV", &[]).data, ["0 0 5432 db.corp.example."]);
    let said = a.plexus(["resolve", "db.mesh.internal"]).ok();
    assert!(said.contains("CNAME db.corp.example.") && said.contains("`external`"), "{said}");
    // Over an alias of the other side as well, and to a name that is not there.
    let _ = a.plexus(["set", "db", "external=old.corp.example"]).ok();
    let _ = eventually!(SOON, ask(a, "db.consul", "A", &[]).data.len(), |count| *count == 3);
    let _ = a.plexus(["set", "db", "external=none.corp.example"]).ok();
    let _ = eventually!(SOON, ask(a, "db.consul", "A", &[]).status, |status| status == "NXDOMAIN");
    let _ = a.plexus(["unset", "db", "external"]).ok();
    let _ = eventually!(SOON, ask(a, "db.consul", "A", &[]).data, Vec::is_empty);
}

#[test]
fn each_domain_has_its_apex_and_each_kind_of_name_its_time_to_live() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let ttls = "[dns.ttls]\nnodes = \"1m\"\nnegative = \"7s\"\nby_name = { \"w*\" = \"0s\" }\n";
    start(&cluster, a, "alt_domains = [\"consul\"]", ttls);
    let _web = a.serve("web", INSTANCE);
    let _api = a.serve("api", INSTANCE + 1);
    for domain in ["mesh.internal", "consul"] {
        let name = |left: &str| format!("{left}.{domain}");
        for (service, ttl) in [("web", 0), ("api", 1)] {
            let ask = || ask(a, &name(service), "A", &[]);
            let answer = eventually!(SOON, ask(), |answer| !answer.data.is_empty());
            assert_eq!((answer.data, answer.ttls), (vec![a.address().to_string()], vec![ttl]));
        }
        let srv = ask(a, &name("web.service"), "SRV", &[]);
        assert_eq!(srv.data, [format!("0 100 {INSTANCE} a.node.{domain}.")], "{srv:?}");
        assert_eq!(ask(a, &name("a.node"), "A", &[]).ttls, [60]);
        assert_eq!(ask(a, domain, "NS", &[]).data, [format!("ns.addr.{domain}.")]);
        let none = ask(a, &name("nothing"), "A", &[]);
        assert_eq!(none.status, "NXDOMAIN");
        let soa: Vec<&str> = none.authority[0].split_whitespace().collect();
        assert_eq!((soa[0], soa[1], soa[10]), (&*format!("{domain}."), "7", "7"), "{none:?}");
    }
    let _ = a.plexus(["resolve", "web.service.consul"]).ok();
}
