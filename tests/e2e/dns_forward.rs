//! Names outside the domain are asked of servers of other makes: by routes, over TLS, and past those that are silent.

use std::cell::Cell;
use std::time::Duration;

use plexus_tests::client::dig;
use plexus_tests::server::real::Server;
use plexus_tests::{Cluster, Node, eventually, needs, run};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);

/// Runs its agent with these keys of `[dns]`, and these tables.
pub(crate) fn start(cluster: &Cluster, node: &Node, keys: &str, tables: &str) {
    let mut settings = cluster.settings().clone();
    (settings.store, settings.more) = ("embedded".to_owned(), tables.to_owned());
    node.configure(&settings);
    let text = std::fs::read_to_string(node.config_file()).expect("a configuration");
    std::fs::write(node.config_file(), text.replace("[dns]\n", &format!("[dns]\n{keys}\n")))
        .expect("written");
    node.start_agent();
    node.wait_ready(SOON);
}

/// Knot with a zone: its records besides the apex's, each with its time to live.
pub(crate) fn knot(cluster: &Cluster, node: &Node, zone: &str, port: u16, records: &str) -> Server {
    let server = Server::new(cluster.world(), node.namespace(), &format!("knot-{port}"));
    let file = write_zone(&server, zone, 1, records);
    let directory = server.directory().display();
    let config = format!(
        "server:\n  listen: 127.0.0.1@{port}\n  rundir: {directory}\n  user: root:root\n\
         database:\n  storage: {directory}\nzone:\n  - domain: {zone}\n    file: {file}\n    \
         journal-content: none\n    zonefile-sync: -1\n"
    );
    let config = server.file("knot.conf", config);
    server.command(&["knotd", "-c", &config]).started()
}

fn write_zone(server: &Server, zone: &str, serial: u32, records: &str) -> String {
    let apex = format!("@ 1 SOA ns.{zone}. b.{zone}. {serial} 9 9 9 1\n@ NS ns\nns 1 A 127.0.0.1\n");
    server.file("zone", format!("$ORIGIN {zone}.\n{apex}{records}"))
}

/// An authority, and a certificate of it for this name: key, certificate, authority.
pub(crate) fn certificate(server: &Server, name: &str) -> [String; 3] {
    let script = format!(
        "cd {directory}\nkey='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'\n\
         openssl req -x509 $key -days 2 -subj /CN=ca -keyout ca.key -out ca.pem\n\
         echo subjectAltName=DNS:{name} > ext\n\
         openssl req $key -subj /CN=server -keyout server.key -out server.csr\n\
         openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.pem\n",
        directory = server.directory().display()
    );
    let _ = run(&["sh", "-ec", &script]).expect("sh").ok();
    ["server.key", "server.pem", "ca.pem"].map(|file| server.directory().join(file).display().to_string())
}

/// unbound with names of its own, over UDP, and over TLS with a certificate for `dns.example.com`; and the file of its authority.
fn unbound(cluster: &Cluster, node: &Node, records: &[&str]) -> (Server, String) {
    let server = Server::new(cluster.world(), node.namespace(), "unbound");
    let [key, certificate, authority] = certificate(&server, "dns.example.com");
    let directory = server.directory().display();
    let data: String = records.iter().map(|record| format!("  local-data: \"{record}\"\n")).collect();
    let config = format!(
        "server:\n  interface: 127.0.0.1@5354\n  interface: 127.0.0.1@8530\n  tls-port: 8530\n  \
         tls-service-key: \"{key}\"\n  tls-service-pem: \"{certificate}\"\n  username: \"\"\n  chroot: \"\"\n  \
         directory: \"{directory}\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  log-queries: yes\n  \
         do-not-query-localhost: no\n  local-zone: \"far.example.\" static\n{data}remote-control:\n  \
         control-enable: no\n"
    );
    let config = server.file("unbound.conf", config);
    (server.command(&["unbound", "-d", "-c", &config]).started(), authority)
}

/// How an upstream does.
fn upstream(node: &Node, name: &str) -> Value {
    let all = node.plexus_json(["upstreams"])["upstreams"].clone();
    let all = all.as_array().cloned().unwrap_or_default();
    all.into_iter().find(|upstream| upstream["upstream"] == name).unwrap_or_default()
}

/// What a patient client gets.
fn ask(node: &Node, name: &str) -> dig::Answer {
    dig::ask(node.namespace(), "127.0.0.1".parse().expect("an address"), name, "A", &["+time=5"])
}

#[test]
fn names_go_by_their_routes_and_over_tls_to_whom_the_certificate_is_for() {
    needs!("etcd", "etcdctl", "dig", "knotd", "unbound", "openssl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let _knot = knot(&cluster, a, "corp.example", 5353, "www 60 A 192.0.2.7\n");
    let (unbound, authority) = unbound(&cluster, a, &["www.far.example. 60 A 192.0.2.8"]);
    let routes = "[[dns.route]]\ndomain = \"corp.example\"\nupstreams = [\"127.0.0.1:5353\"]\n\
                  [[dns.route]]\ndomain = \"secret.corp.example\"\nupstreams = []\n";
    let keys = |name: &str| {
        format!("upstreams = [\"tls://127.0.0.1:8530#{name}\"]\nupstream_ca_file = \"{authority}\"")
    };
    start(&cluster, a, &keys("dns.example.com"), routes);
    let _ = eventually!(SOON, ask(a, "www.far.example").data, |data| *data == ["192.0.2.8"]);
    assert_eq!(ask(a, "www.corp.example").data, ["192.0.2.7"]);
    assert_eq!(ask(a, "none.corp.example").status, "NXDOMAIN");
    assert_eq!(ask(a, "www.secret.corp.example").status, "NXDOMAIN");
    assert_eq!(ask(a, "printer.local").status, "NXDOMAIN");
    assert_eq!(ask(a, "localhost").data, ["127.0.0.1"]);
    let said = a.plexus(["resolve", "www.corp.example"]).ok();
    assert!(said.contains("forwarded to 127.0.0.1:5353 by the route for corp.example"), "{said}");
    assert!(upstream(a, "127.0.0.1:5353")["answered"].as_u64() >= Some(2));
    assert!(unbound.output().contains("www.far.example. A IN"), "{}", unbound.output());
    // With a certificate for another name it is not believed, and that is said.
    a.terminate_agent();
    let _ = a.wait_agent_end(SOON);
    start(&cluster, a, &keys("other.example.com"), routes);
    assert_eq!(ask(a, "www.far.example").status, "SERVFAIL");
    let problem = upstream(a, "tls://127.0.0.1:8530#other.example.com")["problem"].to_string();
    assert!(problem.contains("certificate"), "{problem}");
}

#[test]
fn what_was_known_is_given_while_its_server_is_away_and_what_is_in_use_is_never_waited_for() {
    needs!("etcd", "etcdctl", "dig", "knotd");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let knot = knot(&cluster, a, "corp.example", 5353, "www 2 A 192.0.2.7\nslow 1 A 192.0.2.9\n");
    start(&cluster, a, "upstreams = [\"127.0.0.1:5353\"]", "");
    let _ = eventually!(SOON, ask(a, "www.corp.example").data, |data| *data == ["192.0.2.7"]);
    let forwarded = |result: &str| {
        a.metric("plexus_dns_forwarded_total", &format!("result=\"{result}\"")).unwrap_or_default()
    };
    let use_it = || (ask(a, "www.corp.example"), forwarded("prefetched")).1;
    let _ = eventually!(SOON, use_it(), |prefetched| *prefetched >= 1.0);
    assert_eq!(ask(a, "slow.corp.example").data, ["192.0.2.9"]);
    let explained = |name: &str| a.exec("dig", &["@127.0.0.1", name, "+time=5", "+tries=1"]).stdout;
    knot.stop();
    let told = eventually!(SOON, explained("www.corp.example"), |text| text.contains("EDE: 3"));
    assert!(told.contains("192.0.2.7") && told.contains("status: NOERROR"), "{told}");
    assert!(forwarded("stale") >= 1.0);
    write_zone(&knot, "corp.example", 2, "www 2 A 192.0.2.8\nslow 1 A 192.0.2.10\n");
    knot.start();
    let _ = eventually!(SOON, ask(a, "www.corp.example").data, |data| *data == ["192.0.2.8"]);
    // One that says nothing at all is waited for, but not for as long as a client waits.
    knot.freeze();
    let told = eventually!(SOON, explained("slow.corp.example"), |text| text.contains("EDE: 3"));
    assert!(told.contains("status: NOERROR"), "{told}");
    knot.thaw();
    let _ = eventually!(SOON, ask(a, "slow.corp.example").data, |data| *data == ["192.0.2.10"]);
}

#[test]
fn a_silent_upstream_costs_a_moment_once_and_letters_are_mixed() {
    needs!("etcd", "etcdctl", "dig", "knotd", "unbound", "openssl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let names: Vec<String> = (0..20).map(|n| format!("a-name-of-many-letters-{n}.far.example")).collect();
    let records: String = (0..20).map(|n| format!("a-name-of-many-letters-{n} 60 A 192.0.2.{n}\n")).collect();
    let knot = knot(&cluster, a, "far.example", 5353, &records);
    let same: Vec<String> = (0..20).map(|n| format!("{}. 60 A 192.0.2.{n}", names[n])).collect();
    let same: Vec<&str> = same.iter().map(String::as_str).collect();
    let (unbound, _) = unbound(&cluster, a, &same);
    start(&cluster, a, "upstreams = [\"127.0.0.1:5353\", \"127.0.0.1:5354\"]", "");
    let both = || {
        [5353, 5354].map(|port| {
            let port = port.to_string();
            a.exec("dig", &["@127.0.0.1", "-p", &port, &names[0], "+short", "+time=1"]).stdout
        })
    };
    let _ = eventually!(SOON, both(), |both| both.iter().all(|answer| answer.trim() == "192.0.2.0"));
    assert_eq!(ask(a, &names[0]).data, ["192.0.2.0"]);
    // On a busy machine another may have been asked as well, and be preferred for a while.
    let fresh = Cell::new(0);
    let after_another = || {
        fresh.set(fresh.get() + 1);
        let _ = ask(a, &format!("none-{}.far.example", fresh.get()));
        upstream(a, "127.0.0.1:5353")
    };
    let _ = eventually!(SOON, after_another(), |upstream| upstream["answered"].as_u64() >= Some(1));
    knot.freeze();
    // `dig` waits for a second and asks once: the silent one is gone past in time, from the first question on.
    let in_time = names.iter().enumerate().skip(1);
    let in_time = in_time.filter(|(n, name)| a.dig(name, "A").data == [format!("192.0.2.{n}")]).count();
    assert!(in_time >= 15, "{in_time} of 19");
    let silent = eventually!(SOON, after_another(), |upstream| upstream["problem"].is_string());
    assert!(silent["problem"].to_string().contains("did not answer within 2s"), "{silent}");
    assert!(a.metric("plexus_dns_forwarded_total", "result=\"hedged\"") >= Some(1.0));
    let log = unbound.output();
    let asked = log.lines().filter(|line| line.to_lowercase().contains("a-name-of-many-letters"));
    let mixed = asked.filter(|line| !line.contains("a-name-of-many-letters")).count();
    assert!(mixed >= 10, "{mixed}: {log}");
    assert_eq!(a.metric("plexus_dns_dropped_total", "reason=\"upstream_case\""), Some(0.0));
    knot.thaw();
    // It is passed over for a minute at most, and what is known already is asked of nobody.
    let back = || after_another()["failures_in_a_row"].clone();
    let _ = eventually!(Duration::from_secs(90), back(), |failures| *failures == 0);
}
