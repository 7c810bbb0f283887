//! Overlay networks as operators see them: created, listed, looked at, removed, and refused by name.

use std::time::Duration;

use plexus_tests::{Cluster, Node, Ran, eventually, needs};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);
const PREFIX: &str = "/plexus/v1";

/// The names of the networks that a node knows.
fn known(node: &Node) -> Vec<String> {
    let networks = node.admin_json("/v1/plexus/networks")["networks"].as_array().cloned().unwrap_or_default();
    networks.iter().filter_map(|network| Some(network["name"].as_str()?.to_owned())).collect()
}

#[track_caller]
fn wait_known(cluster: &Cluster, names: &[&str]) {
    for node in cluster.all() {
        eventually!(SOON, known(node), |known| known == names);
    }
}

/// A command that is refused with exit code 1 and says all of this.
#[track_caller]
fn assert_refused(ran: &Ran, said: &[&str]) {
    assert_eq!(ran.code, Some(1), "{ran}");
    assert!(said.iter().all(|said| ran.stderr.contains(said)), "{ran}");
}

/// What an agent writes that holds a subnet, written by hand: the store neither knows nor minds.
fn hold(cluster: &Cluster, slot: u32, node: &str) {
    let subnet =
        json!({"node": node, "address": "192.0.2.1", "mac": "02:ab:00:00:00:01", "in_use": true}).to_string();
    let _ = cluster.etcd().ctl(&["put", &format!("{PREFIX}/subnets/blue/{slot}"), &subnet]).ok();
}

fn subnets(node: &Node) -> Vec<Value> {
    node.admin_json("/v1/plexus/networks/blue")["subnets"].as_array().cloned().unwrap_or_default()
}

#[test]
fn a_network_is_created_on_one_node_seen_on_every_one_and_removed() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    assert!(a.plexus(["network", "ls"]).ok().contains("there is no network"));
    let made = a.plexus(["network", "create", "blue", "--cidr", "10.42.0.0/16", "--cidr", "fd42::/48"]);
    assert!(made.ok().contains("network blue is created: 10.42.0.0/16 in /24 and fd42::/48 in /64, VNI "));
    wait_known(&cluster, &["blue"]);
    let again = b.plexus_json(["network", "create", "blue", "--cidr", "10.42.0.0/16", "--cidr", "fd42::/48"]);
    assert_eq!(again["changed"], false, "{again}");
    let listed = b.plexus(["network", "ls"]).ok();
    assert!(listed.contains("blue") && listed.contains("0/256"), "{listed}");
    hold(&cluster, 7, "b");
    let [subnet]: [Value; 1] = eventually!(SOON, subnets(a), |held| held.len() == 1).try_into().expect("one");
    assert_eq!(subnet["prefixes"], json!(["10.42.7.0/24", "fd42:0:0:7::/64"]));
    assert_eq!((&subnet["node"], &subnet["mac"]), (&json!("b"), &json!("02:ab:00:00:00:01")));
    let shown = a.plexus(["network", "inspect", "blue"]).ok();
    for said in ["10.42.7.0/24, fd42:0:0:7::/64", "192.0.2.1", "1 of at most 256"] {
        assert!(shown.contains(said), "{shown}");
    }
    assert_refused(&b.plexus(["network", "rm", "blue"]), &["containers are attached to it on b", "--force"]);
    assert_eq!(known(b), ["blue"]);
    let removed = b.plexus(["network", "rm", "blue", "--force"]).ok();
    assert!(removed.contains("network blue is removed"), "{removed}");
    wait_known(&cluster, &[]);
    assert!(b.plexus(["network", "rm", "blue"]).ok().contains("there is no network blue"));
    assert_refused(&b.plexus(["network", "inspect", "blue"]), &["no network is called \"blue\""]);
}

#[test]
fn what_is_taken_is_refused_with_the_name_of_whoever_has_it() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _ = a.plexus(["network", "create", "blue", "--cidr", "10.42.0.0/16", "--vni", "7"]).ok();
    // By another agent, at once: the store is asked, not what this one has heard.
    let create = |name: &str, cidr: &str, vni: &str| {
        b.plexus(["network", "create", name, "--cidr", cidr, "--vni", vni, "--subnet-len", "26"])
    };
    assert_refused(
        &create("red", "10.42.128.0/17", "8"),
        &["network red cannot have 10.42.128.0/17", "network blue has 10.42.0.0/16"],
    );
    assert_refused(
        &create("red", "10.43.0.0/16", "7"),
        &["network red cannot have VNI 7", "network blue has it"],
    );
    assert_refused(
        &create("blue", "10.43.0.0/16", "8"),
        &["10.42.0.0/16 in /24, VNI 7", "plexus network rm blue"],
    );
    // The network that the nodes themselves are in, and a route of this one.
    let own = format!("{}/32", b.address());
    assert_refused(
        &b.plexus(["network", "create", "red", "--cidr", "10.77.0.0/16"]),
        &[
            "network red cannot have 10.77.0.0/16: on node b, this host has ",
            "eth0",
            "ip route show table all",
        ],
    );
    assert_refused(
        &b.plexus(["network", "create", "red", "--cidr", &own]),
        &["cannot be cut into subnets of /24"],
    );
    let _ = b.exec("ip", &["route", "add", "10.43.7.0/24", "dev", "eth0"]).ok();
    assert_refused(&create("red", "10.43.0.0/16", "8"), &["this host has a route to 10.43.7.0/24 on eth0"]);
    let _ = b.exec("ip", &["route", "del", "10.43.7.0/24"]).ok();
    assert!(create("red", "10.43.0.0/16", "8").ok().contains("VNI 8, for at most 1024 nodes"));
    wait_known(&cluster, &["blue", "red"]);
    assert_eq!(cluster.etcd().keys(&format!("{PREFIX}/networks")).len(), 2);
}

#[test]
fn of_creations_at_the_same_moment_that_collide_exactly_one_stays() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    for round in 0..5 {
        let cidr = format!("10.42.{round}.0/24");
        let [first, second] = std::thread::scope(|scope| {
            let race = [(a, "blue"), (b, "red")].map(|(node, name)| {
                let cidr = &cidr;
                scope.spawn(move || node.plexus(["network", "create", name, "--cidr", cidr]))
            });
            race.map(|one| one.join().expect("it ran"))
        });
        let made = usize::from(first.success()) + usize::from(second.success());
        assert_eq!(made, 1, "{first}\n{second}");
        assert_eq!(cluster.etcd().keys(&format!("{PREFIX}/networks")).len(), made);
        for refused in [&first, &second].into_iter().filter(|ran| !ran.success()) {
            assert_refused(refused, &[&format!("cannot have {cidr}")]);
        }
        for name in ["blue", "red"] {
            let _ = a.plexus(["network", "rm", name]).ok();
        }
        wait_known(&cluster, &[]);
    }
}

#[test]
fn networks_and_who_holds_them_outlive_the_store_and_come_back_to_one_that_lost_its_data() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _ = a.plexus(["network", "create", "blue", "--cidr", "10.42.0.0/16", "--vni", "7"]).ok();
    let text = cluster.etcd().ctl(&["get", "--print-value-only", &format!("{PREFIX}/networks/blue")]).ok();
    hold(&cluster, 7, "b");
    eventually!(SOON, subnets(b).len(), |held| *held == 1);
    // On disk a moment after the change.
    let remembered = || {
        let state = b.directory().join("state").to_string_lossy().into_owned();
        plexus_tests::run(&["grep", "-rqs", "02:ab:00:00:00:01", &state])
    };
    eventually!(2 * SOON, remembered().is_ok_and(|ran| ran.success()), |it_does| *it_does);
    cluster.etcd().stop();
    b.kill_agent();
    b.restart_agent();
    let shown = b.plexus(["network", "inspect", "blue"]).ok();
    assert!(shown.contains("STALE") && shown.contains("10.42.7.0/24"), "{shown}");
    cluster.etcd().wipe();
    cluster.etcd().start_again();
    let restored =
        || cluster.etcd().ctl(&["get", "--print-value-only", &format!("{PREFIX}/networks/blue")]).stdout;
    eventually!(3 * SOON, restored(), |restored| *restored == text);
    // Nobody holds the subnet under a session, so nobody writes it again: it is kept for the grace, and says so.
    eventually!(SOON, subnets(a), |held| held.len() == 1 && held[0]["unconfirmed"] == true);
    eventually!(Duration::from_secs(30), subnets(a).len(), |held| *held == 0);
}
