//! The harness itself: what the other tests stand on is true.

use std::time::Duration;

use plexus_tests::client::http::{Step, can_connect};
use plexus_tests::client::load::{Load, Plan};
use plexus_tests::server::backend::Backend;
use plexus_tests::server::etcd::Etcd;
use plexus_tests::{Fabric, World, needs};

#[test]
fn two_worlds_with_the_same_addresses_do_not_see_each_other() {
    needs!();
    let (here, there) = (World::new(), World::new());
    let (fabric, other) = (Fabric::new(&here), Fabric::new(&there));
    let (a, b) = (fabric.machine("a"), fabric.machine("b"));
    let a_there = other.machine("a");
    assert_eq!(a.address(), a_there.address());
    let backend = Backend::start_on(&b, "web", 8080, &here.log("web"));
    let port = backend.address();
    assert!(a.enter(move || can_connect(port)));
    assert!(!a_there.enter(move || can_connect(port)));
}

#[test]
fn a_cut_cable_loses_packets_and_a_healed_one_carries_them() {
    needs!();
    let world = World::new();
    let fabric = Fabric::new(&world);
    let (a, b) = (fabric.machine("a"), fabric.machine("b"));
    let backend = Backend::start_on(&b, "web", 8080, &world.log("web"));
    let address = backend.address();
    let connected = || a.enter(move || can_connect(address));
    plexus_tests::eventually!(Duration::from_secs(5), connected(), |it_can| *it_can);
    fabric.cut("b");
    assert!(!a.enter(move || can_connect(address)));
    fabric.heal("b");
    plexus_tests::eventually!(Duration::from_secs(5), connected(), |it_can| *it_can);
}

#[test]
fn a_world_leaves_nothing_behind_also_after_a_panic() {
    needs!();
    let (name, directory) = std::thread::spawn(|| {
        let world = World::new();
        let fabric = Fabric::new(&world);
        let machine = fabric.machine("a");
        let mut command = machine.command("cat");
        command.stdin(std::process::Stdio::piped());
        let left_alone = command.spawn().expect("cat is installed");
        let parts = (world.name().to_owned(), world.directory().to_owned());
        let panicked = std::thread::spawn(move || {
            let _owned = (world, fabric, left_alone);
            panic!("as a failing test does");
        });
        assert!(panicked.join().is_err());
        parts
    })
    .join()
    .expect("the outer thread does not panic");
    assert!(!directory.exists());
    let left = plexus_tests::run(&["ip", "netns", "list"]).expect("iproute2").ok();
    assert!(!left.contains(&format!("{name}-")), "{left}");
}

#[test]
fn a_load_records_what_fails_when_its_backend_is_killed() {
    needs!();
    let world = World::new();
    let fabric = Fabric::new(&world);
    let (client, server) = (fabric.machine("client"), fabric.machine("server"));
    let backend = Backend::start_on(&server, "web", 8080, &world.log("web"));
    let load = Load::start(&client, Plan::steady(backend.address()));
    load.wait_for(50);
    load.so_far().assert_unharmed();
    backend.kill();
    plexus_tests::eventually!(Duration::from_secs(5), load.so_far().failed.len(), |failed| *failed > 10);
    let record = load.stop();
    assert!(record.failed.iter().any(|failed| failed.why.step == Step::Connect), "{record}");
    assert_eq!(record.by_instance.keys().collect::<Vec<_>>(), ["web"]);
}

#[test]
fn a_backend_remembers_its_first_failed_probe_and_its_newest_client() {
    needs!();
    let world = World::new();
    let server = Fabric::new(&world).machine("server");
    let backend = Backend::start_on(&server, "web", 8080, &world.log("web"));
    let address = backend.address();
    let get = move |path: &'static str| server.enter(move || plexus_tests::client::http::get(address, path));
    assert_eq!(backend.seen().connections, 0);
    assert_eq!(get("/").expect("an answer").instance().as_deref(), Some("web"));
    backend.fail();
    assert_eq!(backend.seen().first_failed_probe, None);
    assert_eq!(get("/healthz").expect("an answer").status, 503);
    let seen = backend.seen();
    assert_eq!(seen.connections, 1);
    assert!(seen.first_failed_probe > seen.last_connection, "{seen:?}");
}

#[test]
fn etcd_is_stopped_frozen_compacted_and_wiped() {
    needs!("etcd", "etcdctl");
    let world = World::new();
    let fabric = Fabric::new(&world);
    let etcd = Etcd::start(&world, &fabric, 3);
    let _ = etcd.ctl(&["put", "/plexus/x", "1"]).ok();
    assert_eq!(etcd.keys("/plexus"), ["/plexus/x"]);
    assert_eq!(etcd.lease_of("/plexus/x"), Some(0));
    let members = etcd.members();
    members[0].freeze();
    let _ = members[1].ctl(&["put", "/plexus/y", "1"]).ok();
    members[0].thaw();
    members[0].kill();
    let _ = members[2].ctl(&["put", "/plexus/z", "1"]).ok();
    members[0].start();
    etcd.wait_ready();
    let before = etcd.revision();
    etcd.compact();
    assert!(etcd.revision() > before);
    etcd.stop();
    etcd.start_again();
    assert_eq!(etcd.keys("/plexus").len(), 3);
    etcd.stop();
    etcd.wipe();
    etcd.start_again();
    assert!(etcd.keys("/plexus").is_empty());
}
