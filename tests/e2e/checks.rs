//! Each kind of check against the program that it is for: well, hanging, gone, back again, and well but not as expected.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plexus_tests::server::real::Server;
use plexus_tests::{Cluster, Node, Ran, ServiceFile, eventually, needs, run, skipped};

/// What a password is in these tests: nowhere but where it was written may it be found.
const SECRET: &str = "s3cret-word";
/// How often, and how soon: two intervals and a timeout until it is known that nobody answers.
const TIMING: &str = "interval = \"300ms\", timeout = \"300ms\", rise = 1, fall = 2";
/// For servers that take their time with a login, on a busy machine.
const PATIENT: &str = "interval = \"1500ms\", timeout = \"1500ms\", rise = 1, fall = 2";
const SOON: Duration = Duration::from_secs(15);
/// A Java or Erlang machine starts.
const LATER: Duration = Duration::from_secs(60);

/// An instance of `db` on this port, with this check.
fn define(node: &Node, port: u16, check: &str) {
    define_as(node, "db", port, check);
}

fn define_as(node: &Node, service: &str, port: u16, check: &str) {
    node.define(&ServiceFile::new(service, port).check(check));
}

/// Why an instance of `service` gets no traffic: what its check said; nothing while the service is not known.
fn why(node: &Node, service: &str) -> String {
    node.plexus(["why", service]).stdout
}

#[track_caller]
fn wait_well(node: &Node, service: &str) {
    eventually!(LATER, (node.serving(service), why(node, service)), |(serving, _)| serving.len() == 1);
}

#[track_caller]
fn wait_why(node: &Node, service: &str, text: &str) {
    eventually!(SOON, (node.serving(service), why(node, service)), |(serving, why)| serving.is_empty()
        && why.contains(text));
}

/// What holds for each kind, whose server runs and whose instance is defined.
#[track_caller]
fn is_told_of(server: &Server, node: &Node) {
    are_told_of(server, node, &["db"]);
}

#[track_caller]
fn are_told_of(server: &Server, node: &Node, services: &[&str]) {
    let well = || services.iter().for_each(|service| wait_well(node, service));
    let because = |text: &str| services.iter().for_each(|service| wait_why(node, service, text));
    well();
    server.freeze();
    because("no answer within");
    server.thaw();
    well();
    server.stop();
    because("onnection refused");
    server.start();
    well();
}

/// A check that is not well with a server that is.
#[track_caller]
fn is_refused(node: &Node, port: u16, check: &str, text: &str) {
    define_as(node, "wrong", port, check);
    wait_why(node, "wrong", text);
    node.remove_service_file(&format!("wrong-{port}.toml"));
    eventually!(SOON, node.plexus(["why", "wrong"]), |ran: &Ran| !ran.success()
        || !ran.stdout.contains(text));
}

/// The password is not in what the agent says, shows, or writes where others read.
#[track_caller]
fn keeps_its_secret(cluster: &Cluster, node: &Node, kind: &str) {
    let config = node.config_file();
    let config = config.to_str().expect("UTF-8");
    for (shown, told) in [
        node.agent_log(),
        why(node, "db"),
        node.plexus(["why", "db", "--json"]).ok(),
        node.plexus(["status", "--json"]).ok(),
        node.plexus(["config", "check", config]).stdout,
        cluster.etcd().ctl(&["get", "--prefix", ""]).ok(),
    ]
    .into_iter()
    .zip(["log", "why", "why --json", "status", "config check", "store"])
    {
        assert!(!shown.contains(SECRET), "{kind}: the {told} shows the password: {shown}");
    }
    // In the configuration file itself, the check is printed with everything but the password.
    let text = fs::read_to_string(config).expect("the configuration");
    let service = format!(
        "{text}\n[[service]]\nname = \"printed\"\nport = 1\ncheck = [{{ {kind} = true, username = \"u\", password = \"{SECRET}\" }}]\n"
    );
    let file = node.directory().join("printed.toml");
    fs::write(&file, service).expect("a file");
    let printed = node.plexus(["config", "check", file.to_str().expect("UTF-8")]).ok();
    assert!(printed.contains("(hidden)") && !printed.contains(SECRET), "{printed}");
}

#[test]
fn a_redis_server_is_pinged_by_who_may() {
    needs!("etcd", "etcdctl", "redis-server", "nft");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let server = Server::new(cluster.world(), a.namespace(), "redis");
    let server = server
        .command(&["redis-server", "--bind", "0.0.0.0", "--requirepass", SECRET, "--save", ""])
        .started();
    define(a, 6379, &format!("{{ redis = true, password = \"{SECRET}\", key = \"any\", {TIMING} }}"));
    is_told_of(&server, a);
    is_connected_to(&server, a, 6379);
    is_refused(a, 6379, &format!("{{ redis = true, {TIMING} }}"), "PING: NOAUTH");
    is_refused(a, 6379, &format!("{{ redis = true, password = \"other\", {TIMING} }}"), "AUTH: WRONGPASS");
    keeps_its_secret(&cluster, a, "redis");
}

/// By a `tcp` check, which the kernel answers for a server that hangs: what is on the way hangs here.
#[track_caller]
fn is_connected_to(server: &Server, node: &Node, port: u16) {
    define_as(node, "port", port, &format!("{{ tcp = true, {TIMING} }}"));
    wait_well(node, "port");
    let drops = format!(
        "add table ip cut\nadd chain ip cut in {{ type filter hook input priority 0; }}
        add rule ip cut in tcp dport {port} tcp flags syn / syn,ack drop\n"
    );
    let file = server.file("cut.nft", drops);
    let _ = node.exec("nft", &["-f", &file]).ok();
    wait_why(node, "port", "no answer within");
    let _ = node.exec("nft", &["delete", "table", "ip", "cut"]).ok();
    wait_well(node, "port");
    server.stop();
    wait_why(node, "port", "onnection refused");
    server.start();
    wait_well(node, "port");
}

#[test]
fn memcached_is_asked_for_its_version_over_tcp_and_anything_over_udp() {
    needs!("etcd", "etcdctl", "memcached");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let server = Server::new(cluster.world(), a.namespace(), "memcached");
    let server =
        server.command(&["memcached", "-u", "root", "-l", "0.0.0.0", "-p", "11211", "-U", "11211"]).started();
    define(a, 11211, &format!("{{ memcached = true, {TIMING} }}"));
    is_told_of(&server, a);
    // A datagram to memcached begins with eight bytes of its own: a number, and that it is the only one.
    let asked = "send_hex = \"0001 0000 0001 0000 76657273696f6e0d0a\"";
    define(a, 11211, &format!("{{ udp = true, {asked}, expect = \"VERSION\", {TIMING} }}"));
    is_told_of(&server, a);
    is_refused(
        a,
        11211,
        &format!("{{ udp = true, {asked}, expect = \"ERROR\", {TIMING} }}"),
        "not as expected",
    );
    is_refused(a, 11212, &format!("{{ udp = true, {TIMING} }}"), "onnection refused");
    define_as(a, "silent", 11211, &format!("{{ udp = true, {TIMING} }}"));
    wait_well(a, "silent");
}

#[test]
fn a_mail_server_greets_and_answers_ehlo() {
    needs!("etcd", "etcdctl", "aiosmtpd");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let server = Server::new(cluster.world(), a.namespace(), "smtp");
    let server = server.command(&["aiosmtpd", "-n", "-l", "0.0.0.0:2525"]).started();
    define(a, 2525, &format!("{{ smtp = true, ehlo = \"monitor.test\", {PATIENT} }}"));
    is_told_of(&server, a);
    let redis = Server::new(cluster.world(), a.namespace(), "redis-for-smtp");
    if plexus_tests::missing_programs(&["redis-server"]).is_empty() {
        let _redis = redis
            .command(&["redis-server", "--bind", "0.0.0.0", "--save", "", "--protected-mode", "no"])
            .started();
        // It waits to be asked, which a mail server does not.
        is_refused(a, 6379, &format!("{{ smtp = true, {TIMING} }}"), "no answer within");
    }
}

#[test]
fn a_zookeeper_server_is_asked_whether_it_serves_and_as_what() {
    needs!("etcd", "etcdctl", "java");
    if !Path::new("/usr/share/java/zookeeper.jar").exists() {
        skipped("there is no /usr/share/java/zookeeper.jar; `tests/run` as root installs it");
        return;
    }
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let server = Server::new(cluster.world(), a.namespace(), "zookeeper");
    let data = server.directory().join("data");
    let config = server.file(
        "zoo.cfg",
        format!(
            "tickTime=500\ndataDir={}\nclientPort=2181\nadmin.enableServer=false\n4lw.commands.whitelist=srvr,ruok\n",
            data.display()
        ),
    );
    let main = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
    let path = "/etc/zookeeper/conf:/usr/share/java/*";
    let server = server.command(&["java", "-cp", path, "-Dzookeeper.log.dir=.", main, &config]).started();
    define(a, 2181, &format!("{{ zookeeper = true, role = [\"standalone\", \"leader\"], {TIMING} }}"));
    is_told_of(&server, a);
    define_as(a, "simple", 2181, &format!("{{ zookeeper = true, {TIMING} }}"));
    wait_well(a, "simple");
    let leads = format!("{{ zookeeper = true, role = \"leader\", {TIMING} }}");
    is_refused(a, 2181, &leads, "role standalone, which is not leader");
}

/// PostgreSQL's programs are in a directory that has its version in it.
fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    versions.flatten().map(|version| version.path().join("bin")).find(|bin| bin.join("initdb").exists())
}

#[test]
fn a_postgresql_server_answers_a_query_of_who_may() {
    needs!("etcd", "etcdctl", "setpriv");
    let Some(bin) = postgres_programs() else {
        skipped("there is no /usr/lib/postgresql/*/bin/initdb; `tests/run` as root installs it");
        return;
    };
    let program = |name: &str| bin.join(name).to_string_lossy().into_owned();
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let server = Server::new(cluster.world(), a.namespace(), "postgres");
    let password = server.file("password", format!("{SECRET}\n"));
    let data = server.directory().join("data").to_string_lossy().into_owned();
    let server = server.as_nobody();
    let nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"];
    let file = format!("--pwfile={password}");
    let init = program("initdb");
    let made =
        [&nobody[..], &[&init, "-D", &data, "-U", "checker", &file, "-A", "scram-sha-256", "--no-sync"]]
            .concat();
    let _ = run(&made).expect("setpriv").ok();
    let allowed = "host all old all md5\nhost all all all scram-sha-256\nlocal all all trust\n";
    fs::write(Path::new(&data).join("pg_hba.conf"), allowed).expect("a file");
    let socket = server.directory().to_string_lossy().into_owned();
    let server = server.command(&[
        &program("postgres"),
        "-D",
        &data,
        "-h",
        "0.0.0.0",
        "-k",
        &socket,
        "-c",
        "fsync=off",
    ]);
    server.start();
    let login = format!("username = \"checker\", database = \"postgres\", password_file = \"{password}\"");
    define(a, 5432, &format!("{{ postgres = true, {login}, {PATIENT} }}"));
    is_told_of(&server, a);
    define_as(a, "knock", 5432, &format!("{{ postgres = true, {PATIENT} }}"));
    wait_well(a, "knock");
    let wrong = format!("{{ postgres = true, username = \"checker\", password = \"other\", {PATIENT} }}");
    is_refused(a, 5432, &wrong, "password authentication failed");
    // A user whose password is hashed the old way.
    let user = format!("set password_encryption = 'md5'; create role old login password '{SECRET}'");
    let client = program("psql");
    let psql = [&nobody[..], &[&client, "-h", &socket, "-U", "checker", "-c", &user, "postgres"]].concat();
    let _ = run(&psql).expect("setpriv").ok();
    let old = format!("username = \"old\", database = \"postgres\", password = \"{SECRET}\"");
    define_as(a, "old", 5432, &format!("{{ postgres = true, {old}, {PATIENT} }}"));
    wait_well(a, "old");
    keeps_its_secret(&cluster, a, "postgres");
}

#[test]
fn a_mariadb_server_answers_a_query_of_who_may() {
    needs!("etcd", "etcdctl", "mariadbd", "mariadb-install-db", "mariadb");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let server = Server::new(cluster.world(), a.namespace(), "mariadb");
    let data = server.directory().join("data").to_string_lossy().into_owned();
    let socket = server.directory().join("sock").to_string_lossy().into_owned();
    let datadir = format!("--datadir={data}");
    let install = ["mariadb-install-db", "--no-defaults", "--user=root", "--skip-test-db", &datadir];
    let _ = run(&install).expect("mariadb-install-db").ok();
    let server = server
        .command(&[
            "mariadbd",
            "--no-defaults",
            "--user=root",
            "--port=3306",
            "--bind-address=0.0.0.0",
            "--skip-name-resolve",
            &datadir,
        ])
        .command(&[&format!("--socket={socket}"), "--innodb-flush-log-at-trx-commit=0"])
        .started();
    // It greets nobody from a host that no user may come from.
    let user = format!("create or replace user checker identified by '{SECRET}'");
    let socket = format!("--socket={socket}");
    let create = || run(&["mariadb", "--no-defaults", &socket, "-e", &user]).expect("mariadb");
    let _ = eventually!(LATER, create(), Ran::success);
    define_as(a, "greeting", 3306, &format!("{{ mysql = true, {PATIENT} }}"));
    wait_well(a, "greeting");
    let login = format!("username = \"checker\", password = \"{SECRET}\", database = \"information_schema\"");
    define(a, 3306, &format!("{{ mysql = true, {login}, {PATIENT} }}"));
    is_told_of(&server, a);
    let wrong = format!("{{ mysql = true, username = \"checker\", password = \"other\", {PATIENT} }}");
    is_refused(a, 3306, &wrong, "Access denied for user");
    let nowhere = format!(
        "{{ mysql = true, username = \"checker\", password = \"{SECRET}\", database = \"no\", {PATIENT} }}"
    );
    is_refused(a, 3306, &nowhere, "login: ");
    keeps_its_secret(&cluster, a, "mysql");
}

#[test]
fn a_message_passes_through_rabbitmq() {
    needs!("etcd", "etcdctl", "erl", "setpriv");
    let program = "/usr/lib/rabbitmq/bin/rabbitmq-server";
    if !Path::new(program).exists() {
        skipped("there is no rabbitmq-server; `tests/run` as root installs it");
        return;
    }
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let server = Server::new(cluster.world(), a.namespace(), "rabbitmq");
    let here = server.directory().to_string_lossy().into_owned();
    let config = server.file("rabbitmq.conf", "loopback_users = none\n");
    let server = server
        .as_nobody()
        .command(&[program])
        .variable("RABBITMQ_NODENAME", "rabbit@localhost")
        .variable("RABBITMQ_CONFIG_FILE", &config)
        .variable("RABBITMQ_MNESIA_BASE", &here)
        .variable("RABBITMQ_LOG_BASE", &here)
        .variable("RABBITMQ_ENABLED_PLUGINS_FILE", &format!("{here}/plugins"))
        .variable("RABBITMQ_LOGS", "-")
        .started();
    define(a, 5672, &format!("{{ rabbitmq = true, {PATIENT} }}"));
    is_told_of(&server, a);
    let wrong = format!("{{ rabbitmq = true, username = \"guest\", password = \"{SECRET}\", {PATIENT} }}");
    is_refused(a, 5672, &wrong, "ACCESS_REFUSED");
    is_refused(
        a,
        5672,
        &format!("{{ rabbitmq = true, vhost = \"none\", {PATIENT} }}"),
        "vhost none not found",
    );
    keeps_its_secret(&cluster, a, "rabbitmq");
}

#[test]
fn a_grpc_server_says_by_the_health_protocol_that_it_serves() {
    needs!("etcd", "etcdctl", "openssl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    // etcd is a gRPC server, and has the health service.
    let server = Server::new(cluster.world(), a.namespace(), "grpc");
    let certificates = Certificates::make(server.directory());
    let server = server
        .command(&["etcd", "--listen-client-urls", "http://0.0.0.0:3379,https://0.0.0.0:3380"])
        .command(&[
            "--advertise-client-urls",
            "http://127.0.0.1:3379",
            "--listen-peer-urls",
            "http://127.0.0.1:3381",
        ])
        .command(&[
            "--cert-file",
            &certificates.at("server.pem"),
            "--key-file",
            &certificates.at("server.key"),
        ])
        .command(&["--trusted-ca-file", &certificates.at("ca.pem"), "--client-cert-auth"])
        .started();
    define(a, 3379, &format!("{{ grpc = true, {TIMING} }}"));
    is_told_of(&server, a);
    is_refused(
        a,
        3379,
        &format!("{{ grpc = true, service = \"no.Such\", {TIMING} }}"),
        "does not know the service",
    );
    let tls = format!(
        "grpc = true, tls = true, server_name = \"web.test\", ca_file = \"{}\"",
        certificates.at("ca.pem")
    );
    let client = format!(
        "cert_file = \"{}\", key_file = \"{}\"",
        certificates.at("client.pem"),
        certificates.at("client.key")
    );
    define_as(a, "secured", 3380, &format!("{{ {tls}, {client}, {TIMING} }}"));
    wait_well(a, "secured");
    is_refused(a, 3380, &format!("{{ {tls}, {TIMING} }}"), "ertificate");
    is_refused(
        a,
        3380,
        &format!("{{ grpc = true, tls = true, {client}, {TIMING} }}"),
        "TLS: invalid peer certificate",
    );
}

/// A gRPC server of another make, whose service is well until it is told otherwise.
const PYTHON_SERVER: &str = "
import signal, grpc
from concurrent import futures
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
Status = health_pb2.HealthCheckResponse
server = grpc.server(futures.ThreadPoolExecutor(2))
servicer = health.HealthServicer()
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
servicer.set('shop.Orders', Status.SERVING)
signal.signal(signal.SIGUSR1, lambda *_: servicer.set('shop.Orders', Status.NOT_SERVING))
signal.signal(signal.SIGUSR2, lambda *_: servicer.set('shop.Orders', Status.SERVING))
server.add_insecure_port('0.0.0.0:50051')
server.start()
while True:
    signal.pause()
";

#[test]
fn a_grpc_service_of_python_says_when_it_is_not_serving() {
    needs!("etcd", "etcdctl");
    // Not Debian's, but PyPI's, which need not be within reach: so it is no failure where it is not there.
    let python = plexus_tests::repository().join("target/test-python/bin/python");
    if !python.exists() {
        eprintln!(
            "SKIPPED: there is no {}; `tests/run` makes it where PyPI can be reached",
            python.display()
        );
        return;
    }
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let server = Server::new(cluster.world(), a.namespace(), "grpc-python");
    let server = server.command(&[&python.to_string_lossy(), "-c", PYTHON_SERVER]).started();
    define(a, 50051, &format!("{{ grpc = true, service = \"shop.Orders\", {TIMING} }}"));
    wait_well(a, "db");
    server.signal("-USR1");
    wait_why(a, "db", "grpc shop.Orders: NOT_SERVING");
    server.signal("-USR2");
    wait_well(a, "db");
    is_refused(
        a,
        50051,
        &format!("{{ grpc = true, service = \"shop.None\", {TIMING} }}"),
        "does not know the service",
    );
}

/// An authority, and certificates of it for a server and for a client.
struct Certificates(PathBuf);

impl Certificates {
    fn make(directory: &Path) -> Self {
        let script = "set -e; cd \"$1\"
            key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
            openssl req -x509 $key -days 2 -subj /CN=ca -keyout ca.key -out ca.pem
            for who in server client; do
                openssl req $key -subj /CN=$who -keyout $who.key -out $who.csr
                printf 'subjectAltName=DNS:web.test\\nextendedKeyUsage=serverAuth,clientAuth\\n' > $who.ext
                openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $who.ext -out $who.pem
            done";
        let _ = run(&["sh", "-c", script, "sh", &directory.to_string_lossy()]).expect("sh").ok();
        Self(directory.to_owned())
    }

    fn at(&self, file: &str) -> String {
        self.0.join(file).to_string_lossy().into_owned()
    }
}

#[test]
fn nginx_answers_over_kept_connections_of_http_1_and_of_http_2_to_who_shows_a_certificate() {
    needs!("etcd", "etcdctl", "nginx", "openssl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let server = Server::new(cluster.world(), a.namespace(), "nginx");
    let certificates = Certificates::make(server.directory());
    fs::create_dir(server.directory().join("www")).expect("a directory");
    let page = server.file("www/healthz", "state: ready\n");
    server.file("www/big", vec![b'x'; 10 * 1024 * 1024]);
    let (pem, key, ca) =
        (certificates.at("server.pem"), certificates.at("server.key"), certificates.at("ca.pem"));
    let config = server.file(
        "nginx.conf",
        format!(
            "user root; worker_processes 1; daemon off; pid nginx.pid; error_log stderr;
            events {{ worker_connections 64; }}
            http {{
                log_format kept '$server_protocol $connection $connection_requests $request_method $request_uri $status $host';
                access_log {here}/access.log kept; root {here}/www;
                server {{ listen 8080; location /moved {{ return 302 /healthz; }} location /none {{ return 444; }} }}
                server {{ listen 8443 ssl http2; ssl_certificate {pem}; ssl_certificate_key {key};
                    ssl_client_certificate {ca}; ssl_verify_client on; }}
                server {{ listen 8444 ssl; ssl_certificate {pem}; ssl_certificate_key {key}; }}
            }}",
            here = server.directory().display()
        ),
    );
    let prefix = server.directory().to_string_lossy().into_owned();
    let server = server.command(&["nginx", "-p", &prefix, "-c", &config]).started();
    define(
        a,
        8080,
        &format!("{{ http = \"/healthz\", contains = \"ready\", host = \"web.test\", {TIMING} }}"),
    );
    let access = || fs::read_to_string(server.directory().join("access.log")).unwrap_or_default();
    eventually!(SOON, access(), |log| kept(log, "HTTP/1.1 ", "GET /healthz 200 web.test"));
    is_http(a);

    let trust = format!("ca_file = \"{ca}\", server_name = \"web.test\"");
    let client = format!(
        "cert_file = \"{}\", key_file = \"{}\"",
        certificates.at("client.pem"),
        certificates.at("client.key")
    );
    let matches = "matches = '(?m)^state: (ok|ready)$'";
    define_as(
        a,
        "secure",
        8443,
        &format!("{{ https = \"/healthz\", {matches}, {trust}, {client}, {TIMING} }}"),
    );
    are_told_of(&server, a, &["db", "secure"]);
    eventually!(SOON, access(), |log| kept(log, "HTTP/2.0 ", "GET /healthz 200"));
    is_refused(a, 8443, &format!("{{ https = \"/healthz\", {trust}, {TIMING} }}"), "status 400");
    is_refused(
        a,
        8444,
        &format!("{{ https = \"/healthz\", {TIMING} }}"),
        "TLS: invalid peer certificate: UnknownIssuer",
    );
    let other = format!("{{ https = \"/healthz\", ca_file = \"{ca}\", host = \"other.test\", {TIMING} }}");
    is_refused(a, 8444, &other, "TLS: invalid peer certificate");
    define_as(a, "blind", 8444, &format!("{{ https = \"/healthz\", insecure = true, {TIMING} }}"));
    wait_well(a, "blind");

    fs::write(&page, "state: broken\n").expect("a file");
    wait_why(a, "db", "the body lacks \"ready\"");
    wait_why(a, "secure", "the body lacks a match of");
    fs::write(&page, "state: ready\n").expect("a file");
    wait_well(a, "db");
    wait_well(a, "secure");
}

/// What nginx answers over HTTP that is not as expected, or not much of an answer.
fn is_http(a: &Node) {
    is_refused(
        a,
        8080,
        &format!("{{ http = \"/none\", {TIMING} }}"),
        "connection closed before message completed",
    );
    is_refused(a, 8080, &format!("{{ http = \"/moved\", {TIMING} }}"), "status 302");
    is_refused(a, 8080, &format!("{{ http = \"/healthz\", method = \"DELETE\", {TIMING} }}"), "status 405");
    is_refused(
        a,
        8080,
        &format!("{{ http = \"/big\", contains = \"y\", {TIMING} }}"),
        "the first 65536 bytes of the body lack",
    );
    define_as(a, "moved", 8080, &format!("{{ http = \"/moved\", status = \"300-399\", {TIMING} }}"));
    wait_well(a, "moved");
    define_as(a, "big", 8080, &format!("{{ http = \"/big\", contains = \"xxx\", {TIMING} }}"));
    wait_well(a, "big");
}

/// Is there a connection of this protocol that had this answer more than once?
fn kept(log: &str, protocol: &str, answer: &str) -> bool {
    log.lines().any(|line| {
        let Some(rest) = line.strip_prefix(protocol) else { return false };
        let requests = rest.split(' ').nth(1).and_then(|count| count.parse::<u32>().ok());
        requests > Some(2) && line.contains(answer)
    })
}
