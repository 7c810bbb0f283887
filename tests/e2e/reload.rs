//! What changes while the agent runs, and how it leaves.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use plexus_tests::{Cluster, ServiceFile, Settings, Signal, eventually, needs, throughout};

use crate::{INSTANCE, PUBLISHED};

const SOON: Duration = Duration::from_secs(3);

#[test]
fn sighup_applies_a_changed_configuration() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backend = a.backend("web", INSTANCE);
    let more = ServiceFile::new("web", INSTANCE).id("configured").text();
    let local = "\n[[ingress.localhost]]\nservice = \"web\"\nport = 3219\n";
    a.configure(&Settings { more: more + local, ..cluster.settings().clone() });
    throughout!(Duration::from_millis(500), b.known("web"), Vec::is_empty);
    a.signal_agent(Signal::HUP);
    eventually!(SOON, b.serving("web"), |ids| *ids == ["configured"]);
    let local = "127.0.0.1:3219".parse().expect("an address");
    eventually!(SOON, a.get(local, "/").ok().map(|answer| answer.status), |status| *status == Some(200));
    a.configure(cluster.settings());
    a.signal_agent(Signal::HUP);
    eventually!(SOON, b.known("web"), Vec::is_empty);
    eventually!(SOON, a.can_connect(local), |open| !*open);
}

#[test]
fn sighup_with_a_mistake_changes_nothing_and_says_where_it_is() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let text = fs::read_to_string(a.config_file()).expect("a configuration");
    let mistake = format!("{text}[dns2]\nenabled = true\n");
    let line = mistake.lines().position(|line| line == "[dns2]").expect("the mistake") + 1;
    fs::write(a.config_file(), mistake).expect("written");
    a.signal_agent(Signal::HUP);
    let place = format!("plexus.toml:{line}:");
    eventually!(SOON, a.agent_log(), |log| log.contains(&place) && log.contains("dns2"));
    assert_eq!(a.serving("web"), ["web-a-9000"]);
}

#[test]
fn a_second_sigterm_leaves_at_once() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(1).settings(|settings| settings.notice = Duration::from_secs(30)).start();
    let [a] = cluster.nodes();
    a.terminate_agent();
    throughout!(Duration::from_millis(500), a.agent_has_ended(), |ended| !*ended);
    // Its notice would be six times as long.
    a.terminate_agent();
    a.wait_agent_end(Duration::from_secs(5));
}

#[test]
fn the_service_manager_is_told_when_the_agent_is_ready_and_when_it_leaves() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let path = a.directory().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let told = || {
        let mut buffer = [0; 500];
        let length = manager.recv(&mut buffer).expect("a notification");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    a.set_agent_variable("NOTIFY_SOCKET", &path.to_string_lossy());
    cluster.etcd().stop();
    a.start_agent();
    // Not before it is ready, for which it needs the store once.
    eventually!(SOON, a.admin("/healthz").is_ok(), |up| *up);
    manager.set_nonblocking(true).expect("set");
    assert!(manager.recv(&mut [0; 500]).is_err(), "told although it is not ready");
    manager.set_nonblocking(false).expect("set");
    cluster.etcd().start_again();
    assert!(told().lines().any(|line| line == "READY=1"));
    a.signal_agent(Signal::HUP);
    assert!(told().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert!(told().lines().any(|line| line == "READY=1"));
    a.terminate_agent();
    assert!(told().lines().any(|line| line == "STOPPING=1"));
}

#[test]
fn an_agent_that_leaves_under_load_is_gone_elsewhere_before_it_stops_accepting() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let _backends = [a, b, c].map(|node| node.serve("web", INSTANCE));
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000", "web-c-9000"]);
    cluster.publish("web", PUBLISHED);
    let elsewhere = [b, c].map(|node| node.load(node.at(PUBLISHED)));
    let here = a.load(a.at(PUBLISHED));
    elsewhere.iter().chain([&here]).for_each(|load| load.wait_for(100));
    // A request under way through the leaving node, longer than the notice.
    let slow = {
        let (namespace, address) = (b.namespace().clone(), a.at(PUBLISHED));
        std::thread::spawn(move || {
            namespace.enter(move || plexus_tests::client::http::get(address, "/slow/2000"))
        })
    };
    a.terminate_agent();
    let knows = |node: &plexus_tests::Node| node.known("web").contains(&"web-a-9000".to_owned());
    let (mut gone, mut last_accepted) = (None, here.now());
    let deadline = plexus_tests::Deadline::after(Duration::from_secs(10));
    loop {
        let looked = here.now();
        if !b.can_connect(a.at(PUBLISHED)) {
            break;
        }
        last_accepted = looked;
        if gone.is_none() && !knows(b) && !knows(c) {
            gone = Some(here.now());
        }
        assert!(!deadline.passed(), "it goes on accepting");
    }
    let gone = gone.expect("its instances are gone elsewhere before it stops accepting");
    assert!(gone <= last_accepted, "{gone:?} {last_accepted:?}");
    assert_eq!(slow.join().expect("no panic").expect("a request under way is finished").status, 200);
    let ended = a.wait_agent_end(Duration::from_secs(10));
    assert_eq!(ended.code(), Some(0));
    elsewhere.iter().for_each(|load| load.wait_for(100));
    elsewhere.into_iter().for_each(|load| load.stop().assert_unharmed());
    let record = here.stop();
    // What came while the threads close their sockets, one after the other, may be reset by the kernel.
    let early: Vec<_> =
        record.failed.iter().filter(|failed| failed.began + failed.took < last_accepted).collect();
    assert!(early.is_empty(), "failed while it accepted (until {last_accepted:?}): {early:?}");
}
