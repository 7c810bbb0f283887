//! Places where services are known besides the mesh, each a real server: what it names is served, changes are followed, and while it is
//! away what it said last is used, also by an agent that starts then.

use std::time::Duration;

use plexus_tests::server::docker::Docker;
use plexus_tests::server::real::Server;
use plexus_tests::{Cluster, Node, eventually, needs};
use serde_json::Value;

use crate::docker::needs_docker;
use crate::{INSTANCE, PUBLISHED};

pub(crate) const SOON: Duration = Duration::from_secs(20);
const FIRST: &str = "10.77.0.1:9000";
const SECOND: &str = "10.77.0.1:9001";

/// How the watcher of this name stands.
pub(crate) fn watcher(node: &Node, name: &str) -> Value {
    let all = node.plexus_json(["watchers"])["watchers"].clone();
    let all = all.as_array().expect("a list");
    all.iter().find(|watcher| watcher["name"] == name).cloned().unwrap_or_default()
}

#[track_caller]
fn becomes(node: &Node, service: &str, expected: &[&str]) {
    let _ = eventually!(SOON, node.serving(service), |ids| ids == expected);
}

#[track_caller]
pub(crate) fn hears(node: &Node, name: &str, expected: bool) -> Value {
    eventually!(Duration::from_secs(60), watcher(node, name), |stands| stands["connected"] == expected)
}

/// One that cannot be used is said, and costs itself alone.
#[track_caller]
fn refuses(node: &Node, name: &str, what: &str) {
    let refused = |stands: &Value| stands["refused"].to_string().contains(what);
    let _ = eventually!(SOON, watcher(node, name), refused);
}

/// Without its place, and after a death, it serves what it knew: with this many answers from everywhere.
#[track_caller]
pub(crate) fn remembers(node: &Node, name: &str, service: &str, expected: &[&str]) {
    let _ = hears(node, name, false);
    assert_eq!(node.serving(service), expected);
    let file = node.directory().join("state/watchers.json");
    let kept = || std::fs::read_to_string(&file).unwrap_or_default();
    let address = expected[0].rsplit_once(':').expect("an address").0;
    let _ = eventually!(SOON, kept(), |kept| kept.contains(name) && kept.contains(address));
    node.kill_agent();
    node.start_agent();
    becomes(node, service, expected);
    let _ = hears(node, name, false);
}

fn with_a_mesh_of_its_own(cluster: &Cluster, node: &Node, more: &str) {
    let mut settings = cluster.settings().clone();
    (settings.store, settings.more) = ("embedded".to_owned(), more.to_owned());
    node.configure(&settings);
    node.start_agent();
    node.wait_ready(SOON);
}

#[test]
fn names_of_dns_are_servers_for_as_long_as_their_answers_hold() {
    needs!("etcd", "etcdctl", "knotd", "dig");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let _backends = (a.backend("web", INSTANCE), a.backend("web", 9001));
    let knot = Server::new(cluster.world(), a.namespace(), "knot");
    let file = knot.directory().join("test.zone").display().to_string();
    let write = file.clone();
    let zone = move |serial: u32, records: &str| {
        let apex = format!("@ 1 SOA a.test. b.test. {serial} 9 9 9 1\n@ NS a\na 1 A 10.77.0.1\n");
        std::fs::write(&write, format!("$ORIGIN test.\n{apex}{records}")).expect("a file");
    };
    let one = "_http._tcp.web 1 SRV 0 7 9000 a\n_http._tcp.web 1 SRV 9 1 1 a\n";
    zone(1, one);
    let directory = knot.directory().display();
    let config = format!(
        "server:\n  listen: 127.0.0.1@5353\n  rundir: {directory}\n  user: root:root\ndatabase:\n  storage: {directory}\n\
         zone:\n  - domain: test\n    file: {file}\n    journal-content: none\n    zonefile-sync: -1\n"
    );
    let config = knot.file("knot.conf", config);
    let knot = knot.command(&["knotd", "-c", &config]).started();
    let more = "[[watch]]\nservice = \"web\"\ndns = [\"_http._tcp.web.test\", \"elsewhere.invalid:80\"]\n\
                resolvers = [\"127.0.0.1:5353\"]\n\
                [[watch]]\nservice = \"named\"\nstatic = [\"a.test:9000\"]\nresolvers = [\"127.0.0.1:5353\"]\n";
    with_a_mesh_of_its_own(&cluster, a, more);
    becomes(a, "web", &[FIRST]);
    becomes(a, "named", &[FIRST]);
    refuses(a, "web-dns", "elsewhere.invalid");
    let endpoint = a.admin_json("/v1/plexus/services/web")["endpoints"][0].clone();
    assert_eq!(
        (&endpoint["weight"], &endpoint["labels"]["name"]),
        (&7.into(), &"a.test".into()),
        "{endpoint}"
    );
    let _ = a.plexus(["publish", "web", &PUBLISHED.to_string()]).ok();
    let _ = eventually!(SOON, a.get(a.at(PUBLISHED), "/").is_ok(), |answers| *answers);
    let load = a.load(a.at(PUBLISHED));
    zone(2, &format!("{one}_http._tcp.web 1 SRV 0 7 9001 a\n"));
    knot.signal("-HUP");
    becomes(a, "web", &[FIRST, SECOND]);
    load.stop().assert_unharmed();
    knot.stop();
    remembers(a, "web-dns", "web", &[FIRST, SECOND]);
    zone(3, one);
    knot.start();
    let _ = hears(a, "web-dns", true);
    becomes(a, "web", &[FIRST]);
    // A name that is gone has no servers, which is doubted.
    zone(4, "");
    knot.signal("-HUP");
    let instead = |stands: &Value| stands["instead"].is_string();
    let _ = eventually!(SOON, watcher(a, "web-dns"), instead);
    assert_eq!(a.serving("web"), [FIRST]);
}

#[test]
fn what_nerve_registers_in_etcd_is_served_where_nobody_shares_its_store() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(1).without_agents().start();
    let (etcd, [a]) = (cluster.etcd(), cluster.nodes());
    let _backends = (a.backend("web", INSTANCE), a.backend("web", 9001));
    let put = |name: &str, text: &str| drop(etcd.ctl(&["put", &format!("/nerve/web/{name}"), text]).ok());
    put("a/1", r#"{"host": "10.77.0.1", "port": 9000, "name": "a-host", "weight": 7}"#);
    let url = etcd.url();
    with_a_mesh_of_its_own(
        &cluster,
        a,
        &format!("[[watch]]\nservice = \"web\"\netcd = \"{url}/nerve/web\"\n"),
    );
    becomes(a, "web", &[FIRST]);
    put("b/2", r#"{"host": "10.77.0.1", "port": 9001}"#);
    put("c/3", "{");
    becomes(a, "web", &[FIRST, SECOND]);
    refuses(a, "web-etcd", "c/3");
    etcd.stop();
    remembers(a, "web-etcd", "web", &[FIRST, SECOND]);
    etcd.start_again();
    let _ = hears(a, "web-etcd", true);
    drop(etcd.ctl(&["del", "/nerve/web/a/1"]).ok());
    becomes(a, "web", &[SECOND]);
}

#[test]
fn a_service_of_consul_s_api_is_followed_as_it_changes() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(2).without_agents().start();
    let [a, b] = cluster.nodes();
    let watch = |name: &str, more: &str| {
        format!(
            "[[watch]]\nservice = \"{name}\"\nconsul = \"http://127.0.0.1:7070\"\nconsul_service = \"web\"\n{more}\n"
        )
    };
    let mut settings = cluster.settings().clone();
    b.configure(&settings);
    settings.more = watch("copy", "use_previous_backends = false") + &watch("v2", "tags = [\"v2\"]");
    a.configure(&settings);
    for node in [a, b] {
        node.start_agent();
        node.wait_ready(SOON);
    }
    let _one = b.serve("web", INSTANCE);
    becomes(a, "copy", &["10.77.0.2:9000"]);
    let _two = a.backend("web", INSTANCE);
    let tagged = ["register", "web", "--port", "9000", "--id", "two", "--tag", "v2", "--weight", "7"];
    let _ = a.plexus(tagged).ok();
    becomes(a, "copy", &["10.77.0.1:9000", "10.77.0.2:9000"]);
    becomes(a, "v2", &["10.77.0.1:9000"]);
    let endpoint = a.admin_json("/v1/plexus/services/v2")["endpoints"][0].clone();
    assert_eq!((&endpoint["weight"], &endpoint["labels"]["node"]), (&7.into(), &"a".into()), "{endpoint}");
    // One that drains is in maintenance, by Consul's words.
    let _ = a.plexus(["drain", "two"]).ok();
    becomes(a, "copy", &["10.77.0.2:9000"]);
    b.remove_service_file("web-9000.toml");
    let _ = eventually!(SOON, a.serving("copy"), Vec::is_empty);
    // The last word of the other one stays: it may be empty by mistake.
    assert_eq!(a.serving("v2"), ["10.77.0.1:9000"]);
}

#[test]
fn containers_are_found_by_their_image_or_their_labels() {
    needs_docker!();
    const SERVE: &str = "mkdir -p /www; echo here > /www/index.html; exec httpd -f -p 80 -h /www";
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let api = Docker::api(a);
    let watch = |service: &str, what: &str| {
        format!(
            "[[watch]]\nservice = \"{service}\"\ndocker = [\"unix://{}\"]\ncontainer_port = 80\n{what}\n",
            api.display()
        )
    };
    let image = plexus_tests::server::docker::IMAGE;
    let more =
        watch("all", &format!("image = \"{image}\"")) + &watch("web", "container_labels = { app = \"web\" }");
    with_a_mesh_of_its_own(&cluster, a, &more);
    // It may be missing, and appear later.
    let _ = hears(a, "web-docker", false);
    let docker = Docker::start(cluster.world(), a);
    docker.run("one", &["--label", "app=web"], SERVE);
    docker.run("two", &[], SERVE);
    let at = |name: &str| format!("{}:80", docker.inspect(name, "{{.NetworkSettings.IPAddress}}"));
    let (one, two) = (at("one"), at("two"));
    becomes(a, "web", &[&one]);
    let mut both = [one.as_str(), two.as_str()];
    both.sort_unstable();
    becomes(a, "all", &both);
    let _ = a.plexus(["publish", "web", &PUBLISHED.to_string()]).ok();
    let answer = || a.get(a.at(PUBLISHED), "/").map(|answer| answer.body.trim().to_owned()).ok();
    let _ = eventually!(SOON, answer(), |body| body.as_deref() == Some("here"));
    let _ = docker.docker(&["rm", "--force", "two"]).ok();
    becomes(a, "all", &[&one]);
    docker.kill();
    remembers(a, "web-docker", "web", &[&one]);
    docker.start_again();
    let _ = hears(a, "web-docker", true);
    docker.run("three", &["--label", "app=web"], SERVE);
    let three = at("three");
    let mut both = [one.as_str(), three.as_str()];
    both.sort_unstable();
    becomes(a, "web", &both);
}

#[test]
fn of_several_places_the_first_that_names_a_server_counts_or_the_one_of_this_node() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let write = |file: &str, text: &str| {
        let (new, file) = (a.directory().join("new"), a.directory().join(file));
        std::fs::write(&new, text).and_then(|()| std::fs::rename(new, file)).expect("a file");
    };
    write("one.json", "[\"10.77.0.1:9000\"]");
    write("two.json", "[\"10.77.0.1:9001\"]");
    write("weights.yaml", "one: 1\n");
    let parts = "[[watch.part]]\nname = \"one\"\nfile = \"one.json\"\n[[watch.part]]\nname = \"two\"\nfile = \"two.json\"\n";
    let watch = |service: &str, which: &str| {
        format!("[[watch]]\nservice = \"{service}\"\nuse_previous_backends = false\nmulti = {which}\n{parts}")
    };
    let more = watch("all", "\"union\"")
        + &watch("first", "\"sequential\"")
        + &watch("one", "\"toggle\"\ntoggle_file = \"weights.yaml\"");
    with_a_mesh_of_its_own(&cluster, a, &more);
    becomes(a, "all", &[FIRST, SECOND]);
    becomes(a, "first", &[FIRST]);
    becomes(a, "one", &[FIRST]);
    write("one.json", "[]");
    becomes(a, "all", &[SECOND]);
    becomes(a, "first", &[SECOND]);
    becomes(a, "one", &[]);
    write("weights.yaml", "two: 1\n");
    becomes(a, "one", &[SECOND]);
    // A part that is out of reach keeps its word, and is said.
    std::fs::remove_file(a.directory().join("two.json")).expect("a file");
    refuses(a, "all-multi", "two");
    assert_eq!(a.serving("all"), [SECOND]);
}
