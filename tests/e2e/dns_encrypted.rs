//! Names are asked over TLS and HTTPS, by clients of other makes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use plexus_tests::server::real::Server;
use plexus_tests::{Cluster, Node, Signal, eventually, needs};

use crate::INSTANCE;
use crate::dns_forward::certificate;

const SOON: Duration = Duration::from_secs(20);
const NAME: &str = "dns.example.com";
const WEB: &str = "web.mesh.internal";
/// A query for A of `web.mesh.internal`, without an id.
const QUERY: &str = "AAABAAABAAAAAAAAA3dlYgRtZXNoCGludGVybmFsAAABAAE";

/// A certificate as those have it who replace it: `current` leads to the directory that counts.
struct Renewed<'a> {
    node: &'a Node,
    authorities: Vec<(PathBuf, String)>,
    directory: PathBuf,
}

impl<'a> Renewed<'a> {
    /// Makes two certificates, each of an authority of its own.
    fn new(cluster: &Cluster, node: &'a Node) -> Self {
        let made = ["first", "second"].map(|name| {
            let server = Server::new(cluster.world(), node.namespace(), name);
            let [_, _, authority] = certificate(&server, NAME);
            (server.directory().to_owned(), authority)
        });
        Self { node, authorities: made.into(), directory: node.directory().join("certificate") }
    }

    /// The keys of `[dns]`.
    fn keys(&self) -> String {
        let directory = self.directory.join("current");
        format!(
            "tls_listen = [\"127.0.0.1:853\"]\nhttps_listen = [\"127.0.0.1:443\"]\n\
             tls_cert_file = \"{directory}/server.pem\"\ntls_key_file = \"{directory}/server.key\"\n",
            directory = directory.display()
        )
    }

    /// From now on this one counts.
    fn show(&self, which: usize) {
        fs::create_dir_all(&self.directory).expect("a directory");
        let (new, current) = (self.directory.join("new"), self.directory.join("current"));
        symlink(&self.authorities[which].0, &new).expect("a link");
        fs::rename(new, current).expect("renamed");
    }

    /// What `kdig` says who believes this one's authority: with these options, over this.
    fn kdig(&self, which: usize, over: &str, options: &[&str]) -> String {
        let (authority, name) =
            (format!("+tls-ca={}", self.authorities[which].1), format!("+tls-hostname={NAME}"));
        let arguments = ["@127.0.0.1", over, &authority, &name, "+time=5", "+retry=0"];
        self.node.exec("kdig", &[&arguments, options].concat()).stdout
    }

    /// The same of curl: the version of HTTP, the status and the type of the answer.
    fn curl(&self, arguments: &[&str]) -> String {
        let at = format!("{NAME}:443:127.0.0.1");
        let told = "%{http_version} %{http_code} %{content_type}";
        let options =
            ["-sS", "--cacert", &self.authorities[0].1, "--resolve", &at, "-o", "/dev/null", "-w", told];
        self.node.exec("curl", &[&options, arguments].concat()).stdout
    }
}

/// Runs its agent with these keys of `[dns]`.
fn start(cluster: &Cluster, node: &Node, keys: &str) {
    node.configure(cluster.settings());
    let text = fs::read_to_string(node.config_file()).expect("a configuration");
    fs::write(node.config_file(), text.replace("[dns]\n", &format!("[dns]\n{keys}\n"))).expect("written");
    node.start_agent();
    node.wait_ready(SOON);
}

#[test]
fn names_are_asked_over_tls_and_https_by_clients_of_other_makes() {
    needs!("etcd", "etcdctl", "dig", "kdig", "curl", "openssl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let files = Renewed::new(&cluster, a);
    files.show(0);
    start(&cluster, a, &files.keys());
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    for (over, transport) in [("+tls", "tls"), ("+https", "https"), ("+https-get", "https")] {
        let queries = || {
            let labels = format!("outcome=\"answered\",transport=\"{transport}\"");
            a.metric("plexus_dns_queries_total", &labels).unwrap_or_default()
        };
        let before = queries();
        let said = files.kdig(0, over, &[WEB, "+short"]);
        assert_eq!(said.trim(), a.address().to_string(), "{over}");
        assert_eq!(queries(), before + 1.0);
        let stranger = files.kdig(1, over, &[WEB]);
        assert!(!stranger.contains("NOERROR"), "another authority: {stranger}");
    }
    // Whoever pads gets an answer that is as long as others.
    for name in [WEB, "nothing.mesh.internal"] {
        let padded = files.kdig(0, "+tls", &[name, "+padding=128"]);
        assert!(padded.contains("PADDING") && padded.contains("Received 468 B"), "{padded}");
    }
    // Over one connection.
    let many: Vec<&str> = ["+keepopen", "+short"].into_iter().chain([WEB; 20]).collect();
    assert_eq!(files.kdig(0, "+tls", &many).lines().count(), 20);
    let url = |query: &str| format!("https://{NAME}/dns-query?dns={query}");
    for (version, told) in [("--http2", "2"), ("--http1.1", "1.1")] {
        assert_eq!(files.curl(&[version, &url(QUERY)]), format!("{told} 200 application/dns-message"));
        assert!(files.curl(&[version, &url("!")]).starts_with(&format!("{told} 400 ")));
        assert!(files.curl(&[version, "-X", "DELETE", &url(QUERY)]).starts_with(&format!("{told} 405 ")));
        let said = files.curl(&[version, "-d", "x", &url("")]);
        assert!(said.starts_with(&format!("{told} 415 ")), "{said}");
    }
    // A client who comes back is known, with the older TLS too.
    let session = a.directory().join("session");
    let session = session.display();
    let client = |how: &str| {
        let command =
            format!("openssl s_client -connect 127.0.0.1:853 -alpn dot -tls1_2 {how} {session} </dev/null");
        a.exec("sh", &["-c", &command]).stdout
    };
    let first = client("-sess_out");
    assert!(first.contains("ALPN protocol: dot") && first.contains("New, TLSv1.2"), "{first}");
    let again = client("-sess_in");
    assert!(again.contains("Reused, TLSv1.2"), "{again}");
    let plain = a.exec("curl", &["-sS", "http://127.0.0.1:443/dns-query"]);
    assert!(!plain.stdout.contains("dns"), "nothing is answered in the clear: {plain:?}");
}

#[test]
fn a_certificate_that_is_renewed_is_shown_and_a_wrong_one_is_told() {
    needs!("etcd", "etcdctl", "kdig", "openssl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let files = Renewed::new(&cluster, a);
    // Wrong from the beginning: all else is served, and it is said what is wrong.
    start(&cluster, a, &files.keys());
    let problems = || a.plexus_json(["status"])["problems"].to_string();
    let _ = eventually!(SOON, problems(), |told| told.contains("clients of TLS and HTTPS are turned away"));
    assert!(!files.kdig(0, "+tls", &["a.node.mesh.internal"]).contains("NOERROR"));
    let plain = || a.dig("a.node.mesh.internal", "A").data;
    let _ = eventually!(SOON, plain(), |data| *data == [a.address().to_string()]);
    files.show(0);
    let asked = |which| files.kdig(which, "+tls", &["a.node.mesh.internal", "+short"]).trim().to_owned();
    let own = a.address().to_string();
    let _ = eventually!(SOON, asked(0), |told| *told == own);
    let _ = eventually!(SOON, problems(), |told| !told.contains("turned away"));
    assert!(a.metric("plexus_dns_certificate_not_after_seconds", "") > Some(0.0));
    // The next one, as Kubernetes does it.
    files.show(1);
    let _ = eventually!(SOON, asked(1), |told| *told == own);
    assert_ne!(asked(0), own, "the one before is shown no more");
    // A key that is not its own changes nothing but what is told.
    fs::copy(files.authorities[0].0.join("server.key"), files.authorities[1].0.join("server.key"))
        .expect("copied");
    let _ =
        eventually!(SOON, problems(), |told| told.contains("clients are shown the certificate of before"));
    assert_eq!(asked(1), own);
    assert!(a.agent_log().contains("both have to be exchanged"), "{}", a.agent_log());
}

#[test]
fn the_next_agent_answers_over_tls_and_https_without_a_gap() {
    needs!("etcd", "etcdctl", "kdig", "openssl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let files = Renewed::new(&cluster, a);
    files.show(0);
    start(&cluster, a, &files.keys());
    let own = a.address().to_string();
    let asked = |over| files.kdig(0, over, &["a.node.mesh.internal", "+short"]).trim().to_owned();
    let _ = eventually!(SOON, asked("+tls"), |told| *told == own);
    std::thread::scope(|scope| {
        let taken = scope.spawn(|| {
            let mut before = a.take_over();
            assert!(before.wait(SOON).success());
        });
        let (mut during, mut after) = (0, 0);
        while after < 5 {
            let is_before = !taken.is_finished();
            assert_eq!([asked("+tls"), asked("+https")], [own.as_str(), own.as_str()], "after {during}");
            if is_before { during += 1 } else { after += 1 }
        }
        taken.join().expect("it is taken over");
        assert!(during > 0, "nothing was asked meanwhile");
    });
    assert!(a.plexus(["status"]).ok().contains("took over from pid"));
}

#[test]
fn what_is_asked_is_counted_sampled_and_logged() {
    needs!("etcd", "etcdctl", "dig", "kdig", "openssl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let files = Renewed::new(&cluster, a);
    files.show(0);
    start(&cluster, a, &format!("{}query_log = \"all\"", files.keys()));
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let answers = |kind: &str, code: &str, transport: &str| {
        let labels = format!("code=\"{code}\",transport=\"{transport}\",type=\"{kind}\"");
        a.metric("plexus_dns_answers_total", &labels).unwrap_or_default()
    };
    for _ in 0..5 {
        let _ = a.dig(WEB, "A");
    }
    let _ = a.dig("nothing.mesh.internal", "SRV");
    let _ = files.kdig(0, "+tls", &["WEB.mesh.internal", "AAAA"]);
    let _ = files.kdig(0, "+https", &["printer.local"]);
    assert_eq!(answers("A", "NOERROR", "udp"), 5.0);
    assert_eq!(answers("SRV", "NXDOMAIN", "udp"), 1.0);
    assert_eq!(answers("AAAA", "NOERROR", "tls"), 1.0);
    assert_eq!(answers("A", "NXDOMAIN", "https"), 1.0);
    let top = a.plexus_json(["dns", "top"]);
    assert_eq!((&top["queries"], &top["names"][0]["what"]), (&8.into(), &format!("{WEB}.").into()), "{top}");
    assert_eq!((&top["names"][0]["queries"], &top["names"][0]["over"]), (&6.into(), &0.into()), "{top}");
    let said = a.plexus(["dns", "top"]).ok();
    assert!(said.contains("nothing.mesh.internal.") && said.contains("CLIENT"), "{said}");
    let log = a.agent_log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("mesh::dns::query")).collect();
    assert_eq!(lines.len(), 8, "{log}");
    let has = |parts: &[&str]| lines.iter().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(has(&["web.mesh.internal.", "AAAA", "NOERROR", "tls", "zone"]), "{lines:?}");
    assert!(has(&["printer.local.", "NXDOMAIN", "https", "cache"]), "{lines:?}");
    // With more than the log has lines for, the rest is counted.
    let names = a.names("127.0.0.1".parse().expect("an address"), WEB);
    let suppressed = || a.metric("plexus_dns_query_log_suppressed_total", "").unwrap_or_default();
    let _ = eventually!(SOON, suppressed(), |count| *count > 0.0);
    names.stop().assert_unharmed();
    // It ends, and begins, while the agent runs.
    let text = fs::read_to_string(a.config_file()).expect("a configuration");
    fs::write(a.config_file(), text.replace("query_log = \"all\"", "query_log = \"off\"")).expect("written");
    a.signal_agent(Signal::HUP);
    eventually!(SOON, a.agent_log(), |log| log.contains("applied=\"dns.query_log\""));
    let logged = || a.agent_log().lines().filter(|line| line.contains("mesh::dns::query")).count();
    let before = logged();
    let _ = a.dig(WEB, "A");
    assert_eq!(logged(), before);
}
