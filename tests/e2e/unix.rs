//! Unix sockets, as endpoint and as listener.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use plexus_tests::client::http;
use plexus_tests::{
    Cluster, Node, Process, Settings, Signal, backend_program, eventually, needs, plexus_program, throughout,
};

use crate::{INSTANCE, PUBLISHED};

const SOON: Duration = Duration::from_secs(10);
/// How soon what could not be opened is tried again, and a little.
const RETRIED: Duration = Duration::from_secs(8);

/// A backend on a unix socket of this name in the node's directory, of which nobody is told.
fn backend(node: &Node, service: &str, file: &str) -> Process {
    let socket = node.directory().join(file);
    let id = format!("{service}-{}-{file}", node.name());
    let mut command = node.namespace().command(backend_program());
    command.args([&format!("unix:{}", socket.display()), service, &id, node.name()]);
    let log = node.directory().join(format!("../logs/{id}.log"));
    let process = Process::start(&id, &mut command, &log);
    eventually!(SOON, ask(&socket).ok(), Option::is_some);
    process
}

/// Defines an instance that listens on a unix socket, beside what `more` says.
fn define(node: &Node, service: &str, file: &str, more: &str) {
    let socket = node.directory().join(file);
    let check = "{ http = \"/healthz\", interval = \"200ms\", timeout = \"200ms\", rise = 1, fall = 3 }";
    let text = format!(
        "[[service]]\nname = \"{service}\"\nsocket = \"{}\"\n{more}\ncheck = [{check}]\n",
        socket.display()
    );
    node.write_service_file(&format!("{service}-{file}.toml"), &text);
}

/// Has the node listen for `web` on a unix socket of this name in its directory.
fn listen(cluster: &Cluster, node: &Node, file: &str, more: &str) -> PathBuf {
    let socket = node.directory().join(file);
    let mut settings = cluster.settings().clone();
    settings.more =
        format!("[[ingress.localhost]]\nservice = \"web\"\nsocket = \"{}\"\n{more}", socket.display());
    node.configure(&settings);
    node.signal_agent(Signal::HUP);
    socket
}

/// Asks for `/` and returns which instance answered.
fn ask(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let instance = answer.split("\"instance\":\"").nth(1).and_then(|rest| rest.split('"').next());
    let malformed = || std::io::Error::other(format!("no answer of a backend: {answer:?}"));
    instance.map(str::to_owned).ok_or_else(malformed)
}

fn curl(node: &Node, socket: &Path) -> plexus_tests::Ran {
    let socket = socket.to_string_lossy();
    node.exec(
        "curl",
        &["--silent", "--show-error", "--max-time", "5", "--unix-socket", &socket, "http://web/"],
    )
}

#[test]
fn an_instance_on_a_unix_socket_is_reached_through_its_own_node_alone() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let _backend = backend(a, "web", "app.sock");
    define(a, "web", "app.sock", "");
    cluster.wait_serving("web", &["web-a-app.sock"]);
    cluster.publish("web", PUBLISHED);
    let asked = |of: &Node| b.get(of.at(PUBLISHED), "/").ok().and_then(|answer| answer.instance());
    eventually!(SOON, asked(a), |id| id.as_deref() == Some("web-a-app.sock"));
    assert_eq!(asked(b), None, "the socket is not b's");
    let why = b.plexus(["why", "web"]).ok();
    assert!(why.contains("no: unix_socket_only") && why.contains("0 of 1 endpoints"), "{why}");
    let why = a.plexus(["why", "web"]).ok();
    assert!(why.contains("unix:") && why.contains("app.sock") && why.contains("1 of 1 endpoints"), "{why}");
    assert!(b.plexus(["endpoints", "web"]).ok().contains("app.sock"));
    // Nobody is told an address at which nobody listens.
    let names = b.dig("tasks.web.mesh.internal", "A");
    assert!(names.data.is_empty(), "{names:?}");
    assert!(b.plexus(["resolve", "web.mesh.internal"]).ok().contains("unix_socket_only"));
    // Neither is an agent that knows nothing of sockets: for it, the record says that it gets nothing.
    let record =
        cluster.etcd().ctl(&["get", "--print-value-only", "/plexus/v1/instances/web/web-a-app.sock"]).ok();
    let record: serde_json::Value = serde_json::from_str(&record).expect("a record");
    assert_eq!((&record["draining"], &record["socket_only"]["draining"]), (&true.into(), &false.into()));
    // With an instance on a port beside it, each node gives traffic to those that it reaches.
    let _other = c.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-app.sock", "web-c-9000"]);
    let both = |of: &Node| {
        let ids: std::collections::BTreeSet<_> = (0..6).filter_map(|_| asked(of)).collect();
        ids.into_iter().collect::<Vec<_>>()
    };
    eventually!(SOON, both(a), |ids| *ids == ["web-a-app.sock", "web-c-9000"]);
    eventually!(SOON, both(b), |ids| *ids == ["web-c-9000"]);
    // A drain of it is a drain, there and here.
    let _ = a.plexus(["drain", "web-a-app.sock"]).ok();
    cluster.wait_serving("web", &["web-c-9000"]);
    assert_eq!(both(a), ["web-c-9000"]);
}

#[test]
fn an_instance_with_a_port_beside_its_socket_is_reached_by_what_is_nearer() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let (_near, far) = (backend(a, "web", "app.sock"), a.backend("web", INSTANCE));
    define(a, "web", "app.sock", "port = 9000");
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.publish("web", PUBLISHED);
    let asked = |of: &Node| b.get(of.at(PUBLISHED), "/").expect("an answer").instance();
    assert_eq!(asked(a).as_deref(), Some("web-a-app.sock"), "by its socket");
    assert_eq!(asked(b).as_deref(), Some(far.id()), "by its port");
    assert_eq!(b.dig("web.mesh.internal", "A").data, [a.address().to_string()]);
    // As the command line registers it.
    let socket = a.directory().join("app.sock").to_string_lossy().into_owned();
    let (token, more) = a.write_token("on-call", "operate", "operator-0123456789abcdef");
    a.configure(&Settings { more, ..cluster.settings().clone() });
    a.signal_agent(Signal::HUP);
    let register =
        ["register", "api", "--socket", &socket, "--check", "http=/healthz", "--token-file", &token];
    let said = eventually!(SOON, a.plexus(register), plexus_tests::Ran::success).ok();
    assert!(said.contains("api-a-app.sock") && said.contains(&format!("unix:{socket}")), "{said}");
    eventually!(SOON, a.serving("api"), |ids| *ids == ["api-a-app.sock"]);
    assert!(a.plexus(["status"]).ok().contains(&format!("unix:{socket}")));
}

#[test]
fn nobody_is_shown_an_address_by_way_of_a_unix_socket_and_that_is_said() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backend = backend(a, "web", "app.sock");
    define(a, "web", "app.sock", "");
    cluster.wait_serving("web", &["web-a-app.sock"]);
    cluster.publish("web", PUBLISHED);
    let _ = b.plexus(["set", "web", "client_address=transparent"]).ok();
    let said =
        "sees this node's address: this node reaches it by its unix socket, where nobody has an address";
    eventually!(SOON, a.plexus(["why", "web"]).ok(), |why| why.contains(said));
    assert_eq!(a.plexus_json(["why", "web"])["endpoints"][0]["plain_reason"], "unix_socket");
    let plain = || {
        let labels = "reason=\"unix_socket\",service=\"web\"";
        a.metric("plexus_connections_plain_total", labels).unwrap_or_default()
    };
    let asked = || b.get(a.at(PUBLISHED), "/client").ok().map(|answer| answer.body);
    eventually!(SOON, (asked(), plain()), |(seen, plain)| seen.as_deref() == Some("unix") && *plain > 0.0);
    // Nor is a client of a unix socket, who has none.
    let _other = a.serve("web", INSTANCE);
    a.remove_service_file("web-app.sock.toml");
    cluster.wait_serving("web", &["web-a-9000"]);
    let socket = listen(&cluster, a, "web.sock", "");
    let before = plain();
    eventually!(SOON, (ask(&socket).ok(), plain()), |(id, plain)| id.as_deref() == Some("web-a-9000")
        && *plain > before);
}

#[test]
fn a_backend_whose_socket_goes_and_comes_back_costs_nobody_a_connection() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let mut first = backend(a, "web", "app.sock");
    define(a, "web", "app.sock", "");
    let _other = b.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-app.sock", "web-b-9000"]);
    cluster.publish("web", PUBLISHED);
    let load = b.load(a.at(PUBLISHED));
    load.wait_for(100);
    // Its file stays, and nobody listens.
    first.kill();
    let killed = load.now();
    load.wait_for(100);
    std::fs::remove_file(a.directory().join("app.sock")).expect("it was left");
    load.wait_for(100);
    eventually!(SOON, a.serving("web"), |ids| *ids == ["web-b-9000"]);
    let why = a.plexus(["why", "web"]).ok();
    // Which of its failed probes counts depends on when the file went.
    let seen = ["Connection refused", "No such file"].into_iter().any(|error| why.contains(error));
    assert!(why.contains("connect to unix:") && seen, "{why}");
    let _second = backend(a, "web", "app.sock");
    cluster.wait_serving("web", &["web-a-app.sock", "web-b-9000"]);
    let served = |load: &plexus_tests::client::load::Load| {
        load.so_far().by_instance.get("web-a-app.sock").copied().unwrap_or_default()
    };
    let before = served(&load);
    eventually!(SOON, served(&load), |now| *now > before + 20);
    load.stop().assert_unharmed_after(killed);
}

#[test]
fn a_virtual_address_leads_to_the_socket_on_its_node_and_to_the_address_elsewhere() {
    needs!("etcd", "etcdctl");
    let with_range = |settings: &mut Settings| settings.more = "[vip]\nrange = [\"10.96.0.0/16\"]".to_owned();
    let cluster = Cluster::of(2).settings(with_range).start();
    let [a, b] = cluster.nodes();
    let (_near, far, named) =
        (backend(a, "web", "app.sock"), a.backend("web", INSTANCE), a.backend("web", 9100));
    define(a, "web", "app.sock", "port = 9000\nports = { metrics = 9100 }");
    let _only = backend(a, "api", "api.sock");
    define(a, "api", "api.sock", "");
    cluster.wait_serving("web", &["web-a-9000"]);
    cluster.wait_serving("api", &["api-a-api.sock"]);
    cluster.publish("api", PUBLISHED);
    let vip_of = |service: &str| {
        let seen = || cluster.all().map(|node| node.vips(service)).collect::<Vec<_>>();
        let agreed = |seen: &Vec<Vec<IpAddr>>| seen[0].len() == 1 && seen[0] == seen[1];
        eventually!(SOON, seen(), agreed)[0][0]
    };
    let (web, api) = (vip_of("web"), vip_of("api"));
    let asked = |of: &Node, address| {
        let answer = of.get(address, "/").ok().and_then(|answer| answer.instance());
        answer.unwrap_or_default()
    };
    let main = SocketAddr::new(web, INSTANCE);
    eventually!(SOON, asked(a, main), |id| id == "web-a-app.sock");
    eventually!(SOON, asked(b, main), |id| id == far.id());
    let container = a.namespace().container("box");
    for _ in 0..10 {
        assert_eq!((asked(a, main), asked(b, main)), ("web-a-app.sock".to_owned(), far.id().to_owned()));
        let from_box = container.enter(move || http::get(main, "/")).expect("an answer");
        assert_eq!(from_box.instance().as_deref(), Some("web-a-app.sock"));
    }
    // The socket is the main port's.
    for node in [a, b] {
        eventually!(SOON, asked(node, SocketAddr::new(web, 9100)), |id| id == named.id());
    }
    // Without a port of its own, a service has those that it publishes; and on other nodes nobody behind them.
    let published = SocketAddr::new(api, PUBLISHED);
    eventually!(SOON, asked(a, published), |id| id == "api-a-api.sock");
    eventually!(SOON, b.can_connect(published), |open| *open);
    assert_eq!(asked(b, published), "");
    assert!(!a.can_connect(SocketAddr::new(api, 9)), "what stands in for its port in the store");
}

#[test]
fn a_unix_listener_leads_to_the_fleet_and_its_file_goes_with_the_agent() {
    needs!("etcd", "etcdctl", "curl");
    let cluster = Cluster::new(3);
    let [a, b, c] = cluster.nodes();
    let backends = [a.serve("web", INSTANCE), c.serve("web", INSTANCE)];
    cluster.wait_serving("web", &["web-a-9000", "web-c-9000"]);
    let socket = listen(&cluster, b, "web.sock", "mode = \"0600\"\nowner = 0\ngroup = \"root\"");
    eventually!(SOON, curl(b, &socket), plexus_tests::Ran::success);
    let answers: String = (0..4).map(|_| curl(b, &socket).ok()).collect();
    assert!(backends.iter().all(|backend| answers.contains(backend.id())), "{answers}");
    // The file is another one when they change, so that for a moment there is none.
    let mode = || std::fs::metadata(&socket).ok().map(|file| file.permissions().mode() & 0o777);
    assert_eq!(mode(), Some(0o600));
    let why = b.plexus(["why", "web"]).ok();
    assert!(why.contains(&format!("unix:{}", socket.display())) && why.contains("listening"), "{why}");
    // Permissions are live.
    let _ = listen(&cluster, b, "web.sock", "mode = \"0666\"");
    eventually!(SOON, mode(), |mode| *mode == Some(0o666));
    eventually!(SOON, curl(b, &socket), plexus_tests::Ran::success);
    // Whoever sweeps /run takes it away for a moment only.
    std::fs::remove_file(&socket).expect("it is there");
    eventually!(RETRIED, curl(b, &socket), plexus_tests::Ran::success);
    b.terminate_agent();
    b.wait_agent_end(SOON);
    assert!(!socket.exists(), "an agent that leaves takes it along");
    b.restart_agent();
    eventually!(SOON, curl(b, &socket), plexus_tests::Ran::success);
    // One that is killed leaves it behind, and the next one replaces it.
    b.kill_agent();
    assert!(socket.exists() && ask(&socket).is_err());
    b.restart_agent();
    eventually!(SOON, curl(b, &socket), plexus_tests::Ran::success);
}

#[test]
fn a_proxy_on_a_unix_socket_speaks_for_its_clients_where_that_is_configured() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let socket = a.directory().join("web.sock");
    let mut settings = cluster.settings().clone();
    settings.more = format!(
        "[proxy]\ntrusted_proxies = [\"unix\"]\n[[ingress.localhost]]\nservice = \"web\"\nsocket = \"{}\"",
        socket.display()
    );
    a.configure(&settings);
    a.restart_agent();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let _ = a.plexus(["set", "web", "limits.client_connections=1"]).ok();
    // Connects for a client, and asks.
    let ask_for = |client: &str| -> std::io::Result<(UnixStream, bool)> {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(SOON))?;
        let header = format!("PROXY TCP4 {client} 203.0.113.9 4711 443\r\n");
        stream.write_all(format!("{header}GET / HTTP/1.1\r\nhost: web\r\n\r\n").as_bytes())?;
        let mut answer = [0; 12];
        let is_answered = stream.read_exact(&mut answer).is_ok() && answer == *b"HTTP/1.1 200";
        Ok((stream, is_answered))
    };
    let is_served = |client: &str| ask_for(client).is_ok_and(|(_, is_answered)| is_answered);
    eventually!(SOON, is_served("198.51.100.7"), |served| *served);
    // Each of its clients is a client of its own to the limit.
    let (held, _) =
        eventually!(SOON, ask_for("198.51.100.7"), |asked| matches!(asked, Ok((_, true)))).unwrap();
    let refused = || a.metric("plexus_balance_refused_total", "client_connections").unwrap_or_default();
    eventually!(SOON, (is_served("198.51.100.7"), refused()), |(served, refused)| !served && *refused > 0.0);
    eventually!(SOON, is_served("198.51.100.8"), |served| *served);
    drop(held);
    eventually!(SOON, is_served("198.51.100.7"), |served| *served);
    // Whoever speaks for nobody is not served.
    assert!(ask(&socket).is_err());
    let dropped = || a.metric("plexus_connections_dropped_total", "reason=\"proxy_header\"");
    eventually!(SOON, dropped(), |count| *count == Some(1.0));
}

#[test]
fn a_unix_listener_loses_no_connection_while_agents_take_over() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backend = b.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-b-9000"]);
    let socket = listen(&cluster, a, "web.sock", "");
    eventually!(SOON, ask(&socket).ok(), Option::is_some);
    let inode = || std::fs::metadata(&socket).map(|file| file.ino()).ok();
    let first = inode();
    let (stopped, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stopped, served, socket) = (Arc::clone(&stopped), Arc::clone(&served), socket.clone());
            std::thread::spawn(move || {
                while !stopped.load(Ordering::SeqCst) {
                    assert_eq!(ask(&socket).expect("nobody is refused"), "web-b-9000");
                    served.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let more = |count: u64| {
        let enough = served.load(Ordering::SeqCst) + count;
        eventually!(SOON, served.load(Ordering::SeqCst), |served| *served >= enough);
    };
    for _ in 0..5 {
        more(50);
        assert!(a.take_over().wait(SOON).success());
        more(50);
        assert_eq!(inode(), first, "the very same socket");
    }
    // Who cannot take over leaves it to the one that runs.
    let text = std::fs::read_to_string(a.config_file()).expect("a configuration");
    std::fs::write(a.config_file(), text.replace("127.0.0.1:7070", "192.0.2.1:7070")).expect("written");
    assert_eq!(a.start_beside(&["--take-over"]).wait(SOON).code(), Some(1));
    std::fs::write(a.config_file(), &text).expect("written");
    more(50);
    stopped.store(true, Ordering::SeqCst);
    clients.into_iter().for_each(|client| client.join().expect("a client that was always served"));
    a.terminate_agent();
    a.wait_agent_end(SOON);
    assert_eq!(inode(), None, "the last one takes it along");
}

#[test]
fn a_stale_socket_is_replaced_and_one_that_somebody_listens_on_is_left_alone() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    drop(UnixListener::bind(a.directory().join("stale.sock")).expect("a socket"));
    let stale = listen(&cluster, a, "stale.sock", "");
    eventually!(SOON, ask(&stale).ok(), |id| id.as_deref() == Some("web-a-9000"));
    let mut squatter = backend(a, "squatter", "taken.sock");
    let taken = listen(&cluster, a, "taken.sock", "");
    eventually!(SOON, stale.exists(), |exists| !*exists);
    let status = eventually!(SOON, a.plexus(["status"]).ok(), |status| status.contains("taken.sock"));
    assert!(
        status.contains(
            "another program listens there; stop it or take another path; now it is plexus-test-bac"
        ),
        "{status}"
    );
    throughout!(Duration::from_secs(6), ask(&taken).ok(), |id| id.as_deref()
        == Some("squatter-a-taken.sock"));
    squatter.kill();
    eventually!(RETRIED, ask(&taken).ok(), |id| id.as_deref() == Some("web-a-9000"));
    // A file that is no socket is nobody's to remove.
    let file = a.directory().join("file.sock");
    std::fs::write(&file, "precious").expect("written");
    let _ = listen(&cluster, a, "file.sock", "");
    eventually!(SOON, a.plexus(["status"]).ok(), |status| status.contains("a file that is no socket"));
    assert_eq!(std::fs::read_to_string(&file).expect("it is there"), "precious");
}

#[test]
fn a_unix_socket_of_the_service_manager_is_used_and_left_to_it() {
    needs!("etcd", "etcdctl", "systemd-socket-activate");
    let cluster = Cluster::of(2).without_agents().start();
    let [a, b] = cluster.nodes();
    b.restart_agent();
    let _backend = b.serve("web", INSTANCE);
    eventually!(SOON, b.serving("web"), |ids| *ids == ["web-b-9000"]);
    let socket = a.directory().join("web.sock");
    let mut settings = cluster.settings().clone();
    settings.more = format!("[[ingress.localhost]]\nservice = \"web\"\nsocket = \"{}\"", socket.display());
    a.configure(&settings);
    let program = ["systemd-socket-activate".as_ref(), "--listen".as_ref(), socket.as_os_str()];
    let program: Vec<&OsStr> = program.into_iter().chain([plexus_program().as_os_str()]).collect();
    a.start_agent_by(&program);
    // The first connection starts the agent. There is a file before anybody listens.
    eventually!(SOON, UnixStream::connect(&socket).is_ok(), |listens| *listens);
    let inode = std::fs::metadata(&socket).expect("a file").ino();
    a.wait_ready(SOON);
    eventually!(SOON, ask(&socket).ok(), |id| id.as_deref() == Some("web-b-9000"));
    assert!(a.take_over().wait(SOON).success());
    assert_eq!(ask(&socket).expect("an answer"), "web-b-9000");
    a.terminate_agent();
    a.wait_agent_end(SOON);
    assert_eq!(std::fs::metadata(&socket).expect("it stays").ino(), inode);
}
