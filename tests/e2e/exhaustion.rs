//! Things that run out, and peers that take without giving: each costs itself and nobody else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use plexus_tests::client::http::Held;
use plexus_tests::{Cluster, Node, ServiceFile, Settings, eventually, needs};

use crate::{INSTANCE, PUBLISHED};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn out_of_descriptors_it_waits_and_goes_on_when_there_are_some() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    // With a check: that this host lacks descriptors is not the instance's fault.
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.publish("web", PUBLISHED);
    let mut held = a.hold(a.at(PUBLISHED)).expect("a connection");
    assert_eq!(held.get("/").expect("an answer").status, 200);

    let pid = a.agent_pid().to_string();
    let limit = |descriptors: &str| {
        let _ =
            plexus_tests::run(&["prlimit", "--pid", &pid, &format!("--nofile={descriptors}")]).unwrap().ok();
    };
    // All that it has now stay open, and not one more.
    limit("4:20000");
    let refused: Vec<_> = (0..20).filter_map(|_| connect(a, a.at(PUBLISHED)).ok()).collect();
    // Out of descriptors the admin interface accepts nobody either: the log tells.
    let _ = eventually!(PATIENCE, a.agent_log(), |log| log.contains("cannot accept"));
    assert_eq!(held.get("/").expect("what is open goes on").status, 200);
    // Its check goes on over the connection that it has, for ten seconds at most.
    let _ =
        eventually!(2 * PATIENCE, a.agent_log(), |log| log.contains("this host lacks something for a check"));
    let before = cpu(&pid);
    let watched = Instant::now();
    let _ = eventually!(PATIENCE, watched.elapsed(), |passed| *passed > Duration::from_secs(1));
    let share = (cpu(&pid) - before).as_secs_f64() / watched.elapsed().as_secs_f64();
    assert!(share < 0.3, "it spins: {share:.2} of a core while it may not accept");

    limit("20000:20000");
    let _ =
        eventually!(PATIENCE, a.get(a.at(PUBLISHED), "/").ok().map(|answer| answer.status), |status| *status
            == Some(200));
    assert_eq!(held.get("/").expect("what is open goes on").status, 200);
    let faults = a.metric("plexus_check_host_faults_total", "lacks=\"descriptors\"");
    assert!(faults.is_some_and(|faults| faults > 3.0), "{faults:?}");
    assert!(!a.agent_log().contains("to=critical"), "it was withdrawn");
    drop(refused);
}

#[test]
fn out_of_ports_towards_an_endpoint_it_connects_from_its_other_addresses() {
    needs!("etcd", "etcdctl");
    let further = |settings: &mut Settings| {
        settings.more = "[proxy]\nsource_addresses = [\"10.77.9.1\", \"10.77.9.2\"]\n".to_owned();
    };
    let cluster = Cluster::of(2).settings(further).start();
    let [a, b] = cluster.nodes();
    let _backend = b.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-b-9000"]);
    cluster.publish("web", PUBLISHED);
    let _ = a.exec("sysctl", &["-qw", "net.ipv4.ip_local_port_range=40000 40031"]).ok();
    let hold = |count: usize| -> Vec<_> {
        (0..count).map(|_| b.hold(a.at(PUBLISHED)).and_then(|mut held| held.get("/").map(|_| held))).collect()
    };

    // 32 ports, some of which are the agent's own.
    let first = hold(40);
    let served = first.iter().filter(|held| held.is_ok()).count();
    assert!((20..=32).contains(&served), "{served} of 40 with 32 ports");
    let _ =
        eventually!(PATIENCE, a.metric("plexus_connections_dropped_total", "out_of_ports"), |count| *count
            >= Some(8.0));
    // Nobody blames the endpoint.
    assert_eq!(a.serving("web"), ["web-b-9000"]);

    for address in ["10.77.9.1/32", "10.77.9.2/32"] {
        let _ = a.exec("ip", &["address", "add", address, "dev", "lo"]).ok();
    }
    let _ = b.exec("ip", &["route", "add", "10.77.9.0/24", "via", &a.address().to_string()]).ok();
    let second = hold(50);
    let failed: Vec<_> = second.iter().filter_map(|held| held.as_ref().err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn one_endpoint_takes_more_connections_than_one_address_has_ports() {
    needs!("etcd", "etcdctl");
    let further = |settings: &mut Settings| {
        settings.more = "[proxy]\nsource_addresses = [\"10.77.9.1\", \"10.77.9.2\"]\n".to_owned();
    };
    let cluster = Cluster::of(3).settings(further).start();
    let [a, b, c] = cluster.nodes();
    let _backend = b.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-b-9000"]);
    cluster.publish("web", PUBLISHED);
    for address in ["10.77.9.1/32", "10.77.9.2/32"] {
        let _ = a.exec("ip", &["address", "add", address, "dev", "lo"]).ok();
    }
    let _ = b.exec("ip", &["route", "add", "10.77.9.0/24", "via", &a.address().to_string()]).ok();
    // As 28,000 ports and more connections, at a scale that the files of this machine allow.
    let _ = a.exec("sysctl", &["-qw", "net.ipv4.ip_local_port_range=40000 40999"]).ok();
    let to = a.at(PUBLISHED);
    let mut held = c.namespace().enter(move || {
        let open = |_| Held::open(to).and_then(|mut held| held.get("/").map(|_| held));
        (0..2500).map(open).collect::<Vec<_>>()
    });
    let failed: Vec<_> = held.iter().filter_map(|held| held.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of 2500 with 1000 ports: {:?}", failed.len(), failed[0]);
    assert_eq!(a.metric("plexus_connections_active", "web"), Some(2500.0));
    for held in held.iter_mut().flatten() {
        assert_eq!(held.get("/").expect("all of them at the same time").status, 200);
    }
    assert_eq!(a.metric("plexus_connections_dropped_total", "out_of_ports"), Some(0.0));
}

#[test]
fn an_endpoint_that_never_reads_costs_one_buffer_a_connection() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    let deaf_at = SocketAddr::from((a.address(), 9500));
    let heard_of = Arc::new(Mutex::new(Vec::new()));
    let held = Arc::clone(&heard_of);
    let _deaf = a.namespace().spawn("deaf endpoint", move || {
        let listener = TcpListener::bind(deaf_at).expect("a free port");
        listener.incoming().flatten().for_each(|stream| held.lock().expect("no panic").push(stream));
    });
    a.define(&ServiceFile::new("deaf", 9500).check(""));
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.wait_serving("deaf", &["deaf-a-9500"]);
    cluster.publish("web", PUBLISHED);
    cluster.publish("deaf", 8081);
    let before = resident_kib(a);
    let port = a.at(8081);
    let stuck = a.namespace().enter(move || {
        let streams = (0..40).map(|_| TcpStream::connect(port).expect("a connection"));
        streams.map(|stream| (fill(&stream), stream)).collect::<Vec<_>>()
    });
    assert!(stuck.iter().all(|(sent, _)| *sent > 64 * 1024), "the sockets' buffers at least");
    let grown = resident_kib(a).saturating_sub(before);
    assert!(grown < 40 * 1024 + 8 * 1024, "{grown} KiB more for 40 connections that stand still");
    let load = a.load(a.at(PUBLISHED));
    load.wait_for(200);
    load.stop().assert_unharmed();
    // It breaks off what it never read, and everything of it ends.
    heard_of.lock().expect("no panic").clear();
    let _ = eventually!(PATIENCE, a.metric("plexus_connections_active", "deaf"), |open| *open == Some(0.0));
}

/// Writes until nothing more is taken; how much that was.
fn fill(mut stream: &TcpStream) -> usize {
    stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    let chunk = vec![0; 256 * 1024];
    let mut sent = 0;
    while let Ok(count @ 1..) = stream.write(&chunk) {
        sent += count;
    }
    sent
}

#[test]
fn clients_that_trickle_delay_nobody_and_leave_nothing_behind() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.publish("web", PUBLISHED);
    let port = a.at(PUBLISHED);
    let descriptors = descriptors(a);
    let load = a.load(port);
    let trickled = a.namespace().enter(move || {
        let mut clients: Vec<_> = (0..300).map(|_| TcpStream::connect(port).expect("a connection")).collect();
        for byte in b"GET / HTTP/1.1\r\nhost: x\r\n" {
            clients.iter_mut().for_each(|client| client.write_all(&[*byte]).expect("a byte is taken"));
        }
        clients.iter_mut().for_each(|client| client.write_all(b"\r\n").expect("the end is taken"));
        clients.iter_mut().filter_map(|client| client.read_exact(&mut [0; 16]).ok()).count()
    });
    assert_eq!(trickled, 300);
    load.wait_for(100);
    load.stop().assert_unharmed();
    let _ = eventually!(PATIENCE, self::descriptors(a), |now| *now <= descriptors + 4);
}

fn connect(node: &Node, address: SocketAddr) -> std::io::Result<TcpStream> {
    node.namespace().enter(move || TcpStream::connect_timeout(&address, Duration::from_secs(1)))
}

fn descriptors(node: &Node) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", node.agent_pid())).expect("the agent runs").count()
}

fn resident_kib(node: &Node) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", node.agent_pid())).expect("the agent runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has memory");
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number")
}

/// Processor time that a process has used.
fn cpu(pid: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: u64 = fields[11..13].iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
