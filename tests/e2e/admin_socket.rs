//! The admin interface on a unix socket: who may open its file may operate, and its file is the running agent's.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use plexus_tests::{
    Cluster, Node, Ran, Settings, Signal, eventually, needs, plexus_program, skipped, throughout,
};

use crate::INSTANCE;

const SOON: Duration = Duration::from_secs(10);
/// How soon what could not be opened is tried again, and a little.
const RETRIED: Duration = Duration::from_secs(8);
/// As somebody who owns nothing here.
const NOBODY: [&str; 4] = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"];
const STATUS: &str = "/v1/plexus/status";

/// Has the agent read a configuration with these keys of `[admin]` and what else is said, from its next start or reload on.
fn configure(cluster: &Cluster, node: &Node, keys: &str, more: &str) {
    node.configure(&Settings { more: more.to_owned(), ..cluster.settings().clone() });
    let text = fs::read_to_string(node.config_file()).expect("a configuration");
    let text = text.replace("[admin]\n", &format!("[admin]\n{keys}\n"));
    fs::write(node.config_file(), text).expect("written");
}

/// Says that there is nobody else where there is not.
fn has_other_users() -> bool {
    let all = fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295"));
    all || !skipped("a user namespace has one user: run it as root of the machine")
}

/// The socket, where it is unless told otherwise.
fn usual(node: &Node) -> PathBuf {
    node.directory().join("state/admin.sock")
}

/// curl over the socket, as root or, with `by`, as somebody else; the status, or curl's words.
fn curl(node: &Node, by: &[&str], socket: &Path, arguments: &[&str], path: &str) -> String {
    let (socket, url) = (socket.to_string_lossy(), format!("http://localhost{path}"));
    let curl =
        ["curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", &socket, &url];
    let all: Vec<&str> = by.iter().chain(&curl).chain(arguments).copied().collect();
    let ran = node.exec(all[0], &all[1..]);
    if ran.success() { ran.stdout } else { ran.stderr }
}

/// Asks by the socket on a connection of its own; the first line of the answer.
fn ask(socket: &Path, path: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

fn answers(socket: &Path) -> bool {
    ask(socket, STATUS).is_ok_and(|line| line == "HTTP/1.1 200 OK")
}

/// `plexus` as one types it who has said nowhere where the agent is, on a machine where this directory is the usual one.
fn typed(node: &Node, state: Option<&Path>, by: &[&str], command: &str) -> Ran {
    let bind = state.map(|state| format!("mount --bind {} /var/lib/plexus && ", state.display()));
    let script = format!(
        "unset PLEXUS_ADMIN XDG_STATE_HOME; mount -t tmpfs none /var/lib && mkdir /var/lib/plexus && {}exec {} {} {command}",
        bind.unwrap_or_default(),
        by.join(" "),
        plexus_program().display()
    );
    node.exec("unshare", &["--mount", "sh", "-c", &script])
}

#[test]
fn who_may_open_the_socket_operates_and_the_kernel_refuses_the_rest() {
    needs!("etcd", "etcdctl", "curl", "setpriv");
    if !has_other_users() {
        return;
    }
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    configure(&cluster, a, "loopback_role = \"none\"", "");
    a.restart_agent();
    let socket = usual(a);
    assert_eq!(fs::metadata(&socket).expect("a socket").permissions().mode() & 0o777, 0o600);
    let admin = a.admin_socket();

    // Root needs no token, where others need one.
    assert!(a.plexus(["publish", "web", "8080"]).refused().contains("this needs the role \"operate\""));
    let _ = a.plexus(["publish", "web", "8080", "--admin", &admin]).ok();
    let log = a.agent_log();
    let operated = log.lines().find(|line| line.contains("operated through the admin interface"));
    let operated = operated.expect("a line");
    for said in ["by=\"the socket\"", "uid=0", "pid=", "method=PUT", "/v1/plexus/services/web/ports"] {
        assert!(operated.contains(said), "{operated}");
    }
    // It could speak with a unix socket by itself.
    let (run, id) = (a.directory().join("app.sock"), "app-1");
    let run = run.to_str().expect("a text");
    let _ = a.plexus(["register", "app", "--socket", run, "--id", id, "--admin", &admin]).ok();
    // No page of another site speaks with a socket, so that what keeps them out is not in the way.
    let foreign = [
        "-H",
        "host: any.example",
        "-H",
        "origin: http://any.example",
        "-X",
        "PUT",
        "-d",
        "",
        "-H",
        "content-type:",
    ];
    assert_eq!(curl(a, &[], &socket, &foreign, "/v1/agent/maintenance?enable=false"), "200");
    // A token that there is not is nobody's here as well.
    assert_eq!(curl(a, &[], &socket, &["-H", "x-consul-token: guess"], STATUS), "403");

    let refused = curl(a, &NOBODY, &socket, &[], STATUS);
    assert!(refused.contains("connect"), "{refused}");
    assert!(curl(a, &NOBODY, &socket, &[], "/healthz").contains("connect"), "not even that");

    // As the configuration says, from the next start on: a group, and less than everything.
    a.terminate_agent();
    a.wait_agent_end(SOON);
    assert!(!socket.exists(), "it goes with the agent");
    let elsewhere = a.directory().join("run/admin.sock");
    let keys = |role: &str| {
        format!(
            "socket = {elsewhere:?}\nsocket_mode = \"0660\"\nsocket_group = \"nogroup\"\nsocket_role = \"{role}\"\n\
             loopback_role = \"none\""
        )
    };
    configure(&cluster, a, &keys("read"), "");
    a.restart_agent();
    assert!(!socket.exists());
    let file = fs::metadata(&elsewhere).expect("a socket");
    assert_eq!(file.permissions().mode() & 0o777, 0o660);
    assert_eq!(curl(a, &NOBODY, &elsewhere, &[], STATUS), "200");
    let maintenance = ["-X", "PUT"];
    let put = |by: &[&str]| curl(a, by, &elsewhere, &maintenance, "/v1/agent/maintenance?enable=false");
    assert_eq!((put(&NOBODY), put(&[])), ("403".to_owned(), "403".to_owned()));
    // What they may is read again.
    configure(&cluster, a, &keys("operate"), "");
    a.signal_agent(Signal::HUP);
    eventually!(SOON, put(&NOBODY), |status| status == "200");
    // Who is neither root nor the agent's user operates, and has it speak with no socket for all that.
    let instance = format!(r#"{{"name": "root", "socket": "{run}"}}"#);
    let json = ["-H", "content-type: application/json", "-d", &instance];
    assert_eq!(curl(a, &NOBODY, &elsewhere, &json, "/v1/plexus/instances"), "400");
    assert_eq!(curl(a, &[], &elsewhere, &json, "/v1/plexus/instances"), "200");
}

#[test]
fn the_command_line_finds_the_socket_by_itself_and_says_why_not() {
    needs!("etcd", "etcdctl", "setpriv", "unshare");
    if !has_other_users() {
        return;
    }
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    configure(&cluster, a, "loopback_role = \"none\"", "");
    a.restart_agent();
    let state = a.directory().join("state");
    let said = typed(a, Some(&state), &[], "publish web 8080").ok();
    assert!(said.contains("8080"), "{said}");
    // Where there is none that this user may open, the port is asked, and both are told.
    let said = typed(a, None, &[], "status").refused();
    let role = "this needs the role \"read\"";
    let none =
        "it was asked at http://127.0.0.1:7070, and not at unix:/var/lib/plexus/admin.sock: No such file";
    assert!(said.contains(role) && said.contains(none), "{said}");
    let said = typed(a, Some(&state), &NOBODY, "status").refused();
    let denied = "unix:/var/lib/plexus/admin.sock: Permission denied";
    assert!(said.contains(role) && said.contains(denied), "{said}");
    // A stale one is nobody.
    a.kill_agent();
    let said = typed(a, Some(&state), &[], "status").refused();
    let stale = "no agent answers at unix:/var/lib/plexus/admin.sock: Connection refused";
    assert!(said.contains(stale) && said.contains(", nor at http://127.0.0.1:7070: "), "{said}");
    let long = format!("unix:/{}", "x".repeat(107));
    assert!(a.plexus(["status", "--admin", &long]).refused().contains("at most 107 bytes"));
}

#[test]
fn the_socket_loses_no_request_while_agents_take_over() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let socket = usual(a);
    let inode = || fs::metadata(&socket).map(|file| file.ino()).ok();
    let first = inode();
    let (stopped, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stopped, served, socket) = (Arc::clone(&stopped), Arc::clone(&served), socket.clone());
            std::thread::spawn(move || {
                while !stopped.load(Ordering::SeqCst) {
                    let line = ask(&socket, "/v1/plexus/services/web").expect("nobody is refused");
                    assert_eq!(line, "HTTP/1.1 200 OK");
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
    let text = fs::read_to_string(a.config_file()).expect("a configuration");
    fs::write(a.config_file(), text.replace("127.0.0.1:7070", "192.0.2.1:7070")).expect("written");
    assert_eq!(a.start_beside(&["--take-over"]).wait(SOON).code(), Some(1));
    fs::write(a.config_file(), &text).expect("written");
    more(50);
    stopped.store(true, Ordering::SeqCst);
    clients.into_iter().for_each(|client| client.join().expect("a client that was always served"));
    a.terminate_agent();
    a.wait_agent_end(SOON);
    assert_eq!(inode(), None, "the last one takes it along");
}

#[test]
fn a_stale_socket_is_replaced_and_one_that_lives_is_never_taken() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(2).without_agents().start();
    let [a, b] = cluster.nodes();
    let socket = cluster.world().directory().join("admin.sock");
    for node in [a, b] {
        configure(&cluster, node, &format!("socket = {socket:?}"), "");
    }
    drop(UnixListener::bind(&socket).expect("a socket"));
    a.restart_agent();
    assert!(answers(&socket));
    a.kill_agent();
    assert!(socket.exists() && !answers(&socket));
    a.restart_agent();
    assert!(answers(&socket));
    // Whoever sweeps the directory takes it away for a moment only.
    fs::remove_file(&socket).expect("it is there");
    eventually!(RETRIED, answers(&socket), |answers| *answers);

    // The second agent with the path runs without, and says so.
    b.restart_agent();
    let status = b.plexus(["status"]).ok();
    let problem = format!("cannot listen on unix:{}: another program listens there", socket.display());
    assert!(status.contains("the interface has no unix socket") && status.contains(&problem), "{status}");
    let whose = || {
        let socket = socket.to_string_lossy();
        let asked = b.exec("curl", &["-sS", "--unix-socket", &socket, &format!("http://localhost{STATUS}")]);
        let status = serde_json::from_str::<serde_json::Value>(&asked.stdout).unwrap_or_default();
        status["node"].as_str().unwrap_or_default().to_owned()
    };
    throughout!(Duration::from_secs(6), whose(), |node| node == "a");
    // When the first one leaves, it is there for the second.
    a.terminate_agent();
    a.wait_agent_end(SOON);
    eventually!(RETRIED, whose(), |node| node == "b");
    eventually!(SOON, b.plexus(["status"]).ok(), |status| !status.contains("no unix socket"));
    // What is no socket is nobody's to remove.
    b.terminate_agent();
    b.wait_agent_end(SOON);
    fs::write(&socket, "precious").expect("written");
    b.restart_agent();
    assert!(b.plexus(["status"]).ok().contains("there is a file that is no socket"));
    assert_eq!(fs::read_to_string(&socket).expect("it is there"), "precious");
}
