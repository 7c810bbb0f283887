//! Replacing the program drops nothing: no connection, no question, no registration.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

use plexus_tests::client::load::Load;
use plexus_tests::client::udp::Talk;
use plexus_tests::server::store::Make;
use plexus_tests::{Cluster, Node, ServiceFile, Signal, eventually, needs, plexus_program, throughout};

use crate::{INSTANCE, PUBLISHED};

const SOON: Duration = Duration::from_secs(10);
const KEYS: &str = "/plexus/v1/";
const NAME: &str = "web.mesh.internal";

/// A second process that speaks the protocol, as far as a test wants.
struct Stranger {
    stream: BufReader<UnixStream>,
}

impl Stranger {
    fn knock(node: &Node) -> Self {
        let stream =
            UnixStream::connect(node.directory().join("state/handover.sock")).expect("an agent that runs");
        stream.set_read_timeout(Some(SOON)).expect("a socket");
        Self { stream: BufReader::new(stream) }
    }

    fn say(&mut self, line: &str) {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).expect("the agent reads");
    }

    /// The kinds that are said, up to this one; reading leaves out the descriptors, which closes them.
    fn hear_until(&mut self, kind: &str) -> String {
        let mut heard = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.stream.read_line(&mut line).expect("an answer"), 0, "hung up after: {heard}");
            heard.push_str(&line);
            if line.contains(&format!("\"kind\":\"{kind}\"")) {
                return heard;
            }
        }
    }

    fn hello(&mut self, protocol: u32, node: &str, store: &str) {
        self.say(&format!(
            r#"{{"kind":"hello","body":{{"protocol":{protocol},"version":"0.0.1","pid":1,"node":"{node}","store":"{store}"}}}}"#
        ));
    }
}

fn store_of(cluster: &Cluster) -> String {
    format!("{} below /plexus/v1", cluster.etcd().url())
}

/// `plexus_handover_total` of the agent that answers.
fn handovers(node: &Node, result: &str) -> f64 {
    node.metric("plexus_handover_total", &format!("result=\"{result}\"")).unwrap_or_default()
}

fn lease(cluster: &Cluster) -> Option<u64> {
    cluster.etcd().lease_of("/plexus/v1/instances/web/web-a-9000")
}

#[test]
fn ten_agents_in_a_row_take_over_and_nobody_notices() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backends = [a.serve("web", INSTANCE), b.serve("web", INSTANCE)];
    cluster.wait_serving("web", &["web-a-9000", "web-b-9000"]);
    cluster.publish("web", PUBLISHED);
    let _ = a.plexus(["publish", "web", &format!("{PUBLISHED}/udp")]).ok();
    let talk = || Talk::open(b.namespace(), a.at(PUBLISHED)).expect("a socket");
    eventually!(SOON, talk().instance(Duration::from_millis(500)), Option::is_some);
    let (session, changes) = (lease(&cluster), cluster.etcd().watch(KEYS));
    let load = b.load(a.at(PUBLISHED));
    let names = b.names(a.address(), NAME);
    let datagrams = b.datagrams(a.at(PUBLISHED));
    load.wait_for(100);
    for _ in 0..10 {
        let mut kept = b.hold(a.at(PUBLISHED)).expect("a connection");
        let mut idle = b.hold(a.at(PUBLISHED)).expect("a connection");
        assert_eq!(kept.get("/").expect("an answer").status, 200);
        let mut before = a.take_over();
        load.wait_for(50);
        names.wait_for(10);
        datagrams.wait_for(50);
        // Connections that were open go on in the process before, also those that were silent.
        assert_eq!(kept.get("/").expect("an answer").status, 200);
        assert_eq!(idle.get("/").expect("an answer").status, 200);
        assert!(before.status().is_none(), "it stays for them");
        drop((kept, idle));
        assert!(before.wait(SOON).success());
    }
    names.stop().assert_unharmed();
    datagrams.stop().assert_unharmed();
    load.stop().assert_unharmed();
    let (written, deleted) = changes.so_far();
    assert_eq!((written, deleted), (vec![], vec![]), "whoever watches the store sees nothing at all");
    assert_eq!(lease(&cluster), session);
    assert!(handovers(a, "took_over") == 1.0 && a.plexus(["status"]).ok().contains("took over from pid"));
    assert_eq!(b.serving("web"), ["web-a-9000", "web-b-9000"]);
}

#[test]
fn the_session_and_the_checks_live_on_in_the_next_agent() {
    needs!("etcd", "etcdctl");
    the_next_agent_goes_on(Make::Etcd(1));
}

pub(crate) fn the_next_agent_goes_on(make: Make) {
    let cluster = Cluster::of(2).on(make).start();
    let [a, b] = cluster.nodes();
    let backend = a.serve("web", INSTANCE);
    let _ = a.plexus(["register", "api", "--port", "9000", "--id", "mine"]).ok();
    let _ = a.plexus(["drain", "mine"]).ok();
    eventually!(SOON, b.known("api"), |ids| *ids == ["mine"]);
    cluster.wait_serving("web", &["web-a-9000"]);
    assert!(a.take_over().wait(SOON).success());
    // For longer than the session lives without its agent.
    let over = cluster.settings().session_ttl + Duration::from_secs(2);
    throughout!(over, (b.serving("web"), b.known("api")), |(web, api)| *web == ["web-a-9000"]
        && *api == ["mine"]);
    assert_eq!(b.serving("api"), Vec::<String>::new(), "it is still drained");
    backend.fail();
    eventually!(SOON, b.serving("web"), Vec::is_empty);
    let _ = a.plexus(["undrain", "mine"]).ok();
    eventually!(SOON, b.serving("api"), |ids| *ids == ["mine"]);
    a.terminate_agent();
    assert!(a.wait_agent_end(SOON).success());
    assert_eq!(b.known("api"), Vec::<String>::new(), "whoever goes on may leave");
}

#[test]
fn a_second_agent_that_does_not_take_over_is_refused() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let mut second = a.start_beside(&[]);
    assert_eq!(second.wait(SOON).code(), Some(1));
    assert!(second.output().contains("--take-over"), "{}", second.output());
    a.wait_ready(SOON);
    assert_eq!(handovers(a, "failed") + handovers(a, "refused"), 0.0, "nothing was attempted");
}

#[test]
fn an_agent_that_may_not_take_over_leaves_the_other_as_it_was() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.publish("web", PUBLISHED);
    let load = b.load(a.at(PUBLISHED));
    load.wait_for(50);
    let text = std::fs::read_to_string(a.config_file()).expect("a configuration");
    std::fs::write(a.config_file(), text.replace("name = \"a\"", "name = \"other\"")).expect("written");
    let mut second = a.start_beside(&["--take-over"]);
    assert_eq!(second.wait(SOON).code(), Some(1));
    let said = second.output();
    assert!(
        said.contains("restart instead") && said.contains("goes on as if nothing had happened"),
        "{said}"
    );
    // An address that cannot be had, though everything else could.
    std::fs::write(a.config_file(), text.replace("127.0.0.1:7070", "192.0.2.1:7070")).expect("written");
    let mut third = a.start_beside(&["--take-over"]);
    assert_eq!(third.wait(SOON).code(), Some(1));
    std::fs::write(a.config_file(), &text).expect("written");
    eventually!(SOON, (handovers(a, "refused"), handovers(a, "failed")), |seen| *seen == (1.0, 1.0));
    goes_on(&cluster, load);
}

#[test]
fn a_change_of_process_that_breaks_off_at_any_point_is_taken_back() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.publish("web", PUBLISHED);
    let load = b.load(a.at(PUBLISHED));
    load.wait_for(50);
    let store = store_of(&cluster);
    let mut failed = 0.0;
    for point in ["said nothing of use", "hello", "offered", "prepared"] {
        let mut stranger = Stranger::knock(a);
        match point {
            "said nothing of use" => stranger.say("GET / HTTP/1.1"),
            _ => {
                stranger.hello(1, "a", &store);
                let _ = stranger.hear_until("hello");
                if point != "hello" {
                    let offered = stranger.hear_until("offered");
                    assert!(offered.contains("0:8080") || offered.contains("]:8080"), "{offered}");
                }
                if point == "prepared" {
                    stranger.say(r#"{"kind":"prepare"}"#);
                    let prepared = stranger.hear_until("prepared");
                    assert!(prepared.contains("registrar"), "{prepared}");
                    let refused = a.plexus(["register", "api", "--port", "1"]).refused();
                    assert!(refused.contains("being replaced"), "{refused}");
                }
            }
        }
        drop(stranger);
        failed += 1.0;
        eventually!(SOON, handovers(a, "failed"), |seen| *seen == failed);
    }
    goes_on(&cluster, load);
}

#[test]
fn an_agent_of_another_protocol_is_refused_in_either_place() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let mut stranger = Stranger::knock(a);
    stranger.hello(0, "a", &store_of(&cluster));
    let refused = stranger.hear_until("refused");
    assert!(refused.contains("protocol 0") && refused.contains("restart instead"), "{refused}");
    eventually!(SOON, handovers(a, "refused"), |seen| *seen == 1.0);
    a.terminate_agent();
    a.wait_agent_end(SOON);
    // The one that runs is the older now.
    let older = UnixListener::bind(a.directory().join("state/handover.sock")).expect("the path is free");
    let answers = std::thread::spawn(move || {
        let (mut stream, _) = older.accept().expect("it knocks");
        stream.read_exact(&mut [0; 1]).expect("it speaks");
        let hello = br#"{"kind":"hello","body":{"protocol":99,"version":"9.9","pid":1}}"#;
        stream.write_all(&[&hello[..], b"\n"].concat()).expect("it listens");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let mut next = a.start_beside(&["--take-over"]);
    assert_eq!(next.wait(SOON).code(), Some(1));
    assert!(next.output().contains("version 9.9 and speaks protocol 99"), "{}", next.output());
    answers.join().expect("an older agent");
}

/// The agent of `a` still does all that it did: it serves, it writes, it opens ports, and it can be taken over from.
fn goes_on(cluster: &Cluster, load: Load) {
    let [a, b] = cluster.nodes();
    let _ = a.plexus(["register", "late", "--port", "9000"]).ok();
    eventually!(SOON, b.serving("late"), |ids| *ids == ["late-a-9000"]);
    cluster.publish("late", PUBLISHED + 1);
    let over = cluster.settings().session_ttl + Duration::from_secs(2);
    throughout!(over, b.serving("web"), |ids| *ids == ["web-a-9000"]);
    assert!(a.take_over().wait(SOON).success());
    load.wait_for(50);
    load.stop().assert_unharmed();
}

#[test]
fn sigusr2_starts_the_program_anew_and_the_service_manager_follows() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(2).without_agents().start();
    let [a, b] = cluster.nodes();
    let manager = UnixDatagram::bind(a.directory().join("notify")).expect("a socket");
    manager.set_read_timeout(Some(SOON)).expect("a socket");
    let told = |what: &str| {
        let mut message = [0; 500];
        loop {
            let length =
                manager.recv(&mut message).unwrap_or_else(|error| panic!("not told {what}: {error}"));
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            assert!(!text.contains("STOPPING=1"), "{text}");
            if text.contains(what) {
                return text;
            }
        }
    };
    a.set_agent_variable("NOTIFY_SOCKET", &a.directory().join("notify").to_string_lossy());
    a.restart_agent();
    b.restart_agent();
    let _ = told("READY=1");
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.publish("web", PUBLISHED);
    let load = b.load(a.at(PUBLISHED));
    load.wait_for(50);
    let first = a.agent_id();
    a.signal_agent(Signal::USR2);
    let message = told("MAINPID=");
    let main: u32 =
        message.lines().find_map(|line| line.strip_prefix("MAINPID=")?.parse().ok()).expect("a process");
    assert!(main != first && message.contains("READY=1"), "{message}");
    eventually!(SOON, a.took_over_from(), |pid| *pid == Some(first));
    assert!(a.wait_agent_end(SOON).success());
    load.wait_for(50);
    load.stop().assert_unharmed();
}

#[test]
fn a_replacement_that_cannot_start_leaves_the_running_agent() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let text = std::fs::read_to_string(a.config_file()).expect("a configuration");
    std::fs::write(a.config_file(), "state_dir = 7").expect("written");
    a.signal_agent(Signal::USR2);
    eventually!(SOON, a.agent_log(), |log| log.contains("the program that was to take over has ended"));
    std::fs::write(a.config_file(), text).expect("written");
    a.wait_ready(SOON);
    let first = a.agent_id();
    a.signal_agent(Signal::USR2);
    eventually!(SOON, a.took_over_from(), |pid| *pid == Some(first));
}

#[test]
fn a_store_of_its_own_goes_over_whole() {
    needs!("etcd", "etcdctl");
    // Its path has to be known before its node is: one of this test alone.
    let file = std::env::temp_dir().join(format!("plexus-handover-{}.redb", std::process::id()));
    for store in ["embedded".to_owned(), format!("embedded:{}", file.display())] {
        let cluster = Cluster::of(1).store(&store).start();
        let [a] = cluster.nodes();
        let _backend = a.serve("web", INSTANCE);
        let _ = a.plexus(["register", "api", "--port", "9000"]).ok();
        cluster.wait_serving("web", &["web-a-9000"]);
        cluster.publish("web", PUBLISHED);
        let load = a.load(a.at(PUBLISHED));
        for _ in 0..3 {
            load.wait_for(50);
            assert!(a.take_over().wait(SOON).success());
            assert_eq!((a.serving("web"), a.known("api").len()), (vec!["web-a-9000".to_owned()], 1));
        }
        let over = cluster.settings().session_ttl + Duration::from_secs(2);
        throughout!(over, a.serving("web"), |ids| *ids == ["web-a-9000"]);
        cluster.publish("api", PUBLISHED + 1);
        load.stop().assert_unharmed();
        let mut stranger = Stranger::knock(a);
        stranger.hello(1, "a", &format!("{} below /plexus/v1", cluster.settings().store));
        let _ = stranger.hear_until("offered");
        stranger.say(r#"{"kind":"prepare"}"#);
        let _ = stranger.hear_until("prepared");
        drop(stranger);
        eventually!(SOON, handovers(a, "failed"), |seen| *seen == 1.0);
        let _ = a.plexus(["unpublish", "api", &(PUBLISHED + 1).to_string()]).ok();
    }
    std::fs::remove_file(file).expect("the store's file");
}

#[test]
fn sockets_of_the_service_manager_are_listened_on_from_the_first_connection() {
    needs!("etcd", "etcdctl", "systemd-socket-activate");
    let cluster = Cluster::of(2).without_agents().start();
    let [a, b] = cluster.nodes();
    b.restart_agent();
    let _backend = b.serve("web", INSTANCE);
    eventually!(SOON, b.serving("web"), |ids| *ids == ["web-b-9000"]);
    let _ = b.plexus(["publish", "web", &PUBLISHED.to_string()]).ok();
    // The published port, the admin interface, and one that nothing listens on.
    let listen = [format!("[::]:{PUBLISHED}"), "127.0.0.1:7070".to_owned(), "127.0.0.1:9999".to_owned()];
    let mut program: Vec<&OsStr> = vec![OsStr::new("systemd-socket-activate")];
    for address in &listen {
        program.extend([OsStr::new("--listen"), OsStr::new(address)]);
    }
    program.push(plexus_program().as_os_str());
    a.start_agent_by(&program);
    eventually!(SOON, a.can_connect(a.at(PUBLISHED)), |can| *can);
    // Whoever connected before there was an agent is answered as soon as there is one.
    assert_eq!(a.get(a.at(PUBLISHED), "/").expect("an answer").status, 200);
    a.wait_ready(SOON);
    let unwanted = "nothing here listens on so far";
    let log = eventually!(2 * SOON, a.agent_log(), |log| log.contains(unwanted));
    let told: Vec<&str> = log.lines().filter(|line| line.contains(unwanted)).collect();
    assert!(told.len() == 1 && told[0].contains("127.0.0.1:9999/tcp"), "{told:?}");
    let load = b.load(a.at(PUBLISHED));
    load.wait_for(50);
    assert!(a.take_over().wait(SOON).success());
    load.wait_for(50);
    load.stop().assert_unharmed();
}

#[test]
fn a_broken_service_file_is_no_reason_to_lose_the_others() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    a.define(&ServiceFile::new("api", INSTANCE));
    eventually!(SOON, b.serving("api"), |ids| *ids == ["api-a-9000"]);
    cluster.wait_serving("web", &["web-a-9000"]);
    a.write_service_file("broken.toml", "[[service]]\nname = 7\n");
    assert!(a.take_over().wait(SOON).success());
    assert_eq!(
        (b.serving("web"), b.serving("api")),
        (vec!["web-a-9000".to_owned()], vec!["api-a-9000".to_owned()])
    );
}
