//! Programs of other makes find services by the resolvers that a host has, told of the agent by `plexus dns install`; and
//! see a change within the time to live.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plexus_tests::client::dig;
use plexus_tests::server::real::Server;
use plexus_tests::{
    Cluster, Host, Node, Process, Ran, ServiceFile, eventually, needs, plexus_program, repository, run,
    skipped,
};

use crate::INSTANCE;

const SOON: Duration = Duration::from_secs(10);
/// The answers' time to live, 1 s, which nginx counts in whole seconds of its clock; and what a busy machine takes.
const WITHIN_TTL: Duration = Duration::from_millis(2500);
const NAME: &str = "web.mesh.internal";

/// Prints the addresses that the C library finds for a name.
const LOOK_UP: &str = r#"
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
int main(int count, char **words) {
    struct addrinfo wish, *found;
    char text[64];
    memset(&wish, 0, sizeof wish);
    wish.ai_socktype = SOCK_STREAM;
    int error = count == 2 ? getaddrinfo(words[1], 0, &wish, &found) : EAI_NONAME;
    if (error) { puts(gai_strerror(error)); return 1; }
    for (; found; found = found->ai_next)
        if (!getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST)) puts(text);
    return 0;
}
"#;

/// A node whose programs have `/etc` and `/run` of their own, and another that is its upstream: a name server for another domain.
struct Site {
    cluster: Cluster,
    host: Host,
}

impl Site {
    /// `resolv_conf` of the first node, given the upstream's address; and the keys of its `[dns]`.
    fn new(resolv_conf: impl Fn(&str) -> String, keys: impl Fn(&str) -> String) -> Self {
        let cluster = Cluster::of(2).without_agents().start();
        let [a, b] = cluster.nodes();
        let upstream = b.address().to_string();
        let host = Host::new(cluster.world(), a.namespace(), &resolv_conf(&upstream));
        for (node, keys) in
            [(a, keys(&upstream)), (b, "domain = \"corp.example\"\nrecursion = \"off\"".to_owned())]
        {
            node.configure(cluster.settings());
            let text = std::fs::read_to_string(node.config_file()).expect("a configuration");
            std::fs::write(node.config_file(), text.replace("[dns]\n", &format!("[dns]\n{keys}\n")))
                .expect("written");
        }
        b.restart_agent();
        let site = Self { cluster, host };
        site.start_agent();
        site
    }

    fn start_agent(&self) {
        let (a, _) = self.nodes();
        let mut program = self.host.entering();
        program.push(plexus_program().into());
        let program: Vec<&OsStr> = program.iter().map(AsRef::as_ref).collect();
        a.start_agent_by(&program);
        a.wait_ready(SOON);
    }

    fn nodes(&self) -> (&Node, &Node) {
        let [a, b] = self.cluster.nodes();
        (a, b)
    }

    /// `web` is on the first node or on the second; the first one's agent knows when this returns.
    fn web_is_on(&self, node: &Node) -> [String; 1] {
        let (a, _) = self.nodes();
        let address = node.address().to_string();
        let service =
            ServiceFile::new("web", INSTANCE).id("web").check("").key("address", &format!("\"{address}\""));
        a.write_service_file("web.toml", &service.text());
        eventually!(SOON, a.dig(NAME, "A").data, |data| *data == [address.clone()]);
        [address]
    }

    fn plexus(&self, arguments: &[&str]) -> Ran {
        self.host.exec(plexus_program(), arguments)
    }

    /// glibc's `getaddrinfo`.
    fn getent(&self, name: &str) -> Vec<String> {
        getent(&self.host, name)
    }

    /// A client sees where `web` is now, and soon enough where it is next.
    fn changes_are_seen_by(&self, client: &str, seen: impl Fn() -> Vec<String>, within: Duration) {
        let (a, b) = self.nodes();
        for node in [a, b, a] {
            let address = self.web_is_on(node);
            eventually!(within, (client, seen()), |(_, addresses)| *addresses == address);
        }
    }
}

fn getent(host: &Host, name: &str) -> Vec<String> {
    let lines = host.exec("getent", &["ahosts", name]).stdout;
    let streams = lines.lines().filter(|line| line.contains("STREAM"));
    streams.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// musl's `getaddrinfo`.
fn musl(site: &Site) -> impl Fn(&Host, &str) -> Vec<String> + use<> {
    let directory = site.cluster.world().directory();
    let (source, program) = (directory.join("lookup.c"), directory.join("lookup"));
    std::fs::write(&source, LOOK_UP).expect("a file");
    let words = ["musl-gcc", "-static", "-o"].into_iter().map(str::to_owned);
    let words: Vec<String> =
        words.chain([&program, &source].map(|path| path.to_string_lossy().into_owned())).collect();
    let _ = run(&words.iter().map(String::as_str).collect::<Vec<_>>()).expect("musl-gcc").ok();
    move |host, name| host.exec(&program, &[name]).stdout.lines().map(str::to_owned).collect()
}

#[test]
fn resolv_conf_leads_programs_of_both_c_libraries_here_and_is_given_back_to_the_last_octet() {
    needs!("etcd", "etcdctl", "dig", "getent", "musl-gcc", "unshare");
    let resolv_conf =
        |upstream: &str| format!("# mine\nsearch corp.example\nnameserver {upstream}\noptions timeout:1\n");
    let site = Site::new(resolv_conf, |upstream| format!("upstreams = [\"{upstream}\"]"));
    let (a, b) = site.nodes();
    let (web, musl) = (site.web_is_on(a), musl(&site));
    let before = site.host.files();
    assert_eq!(site.getent(NAME), Vec::<String>::new());

    let shown = site.plexus(&["dns", "install", "--search", "--dry-run"]).ok();
    assert!(shown.contains("+nameserver 127.0.0.1\n") && shown.contains("would ask 127.0.0.1:53"), "{shown}");
    assert_eq!(site.host.files(), before);
    let said = site.plexus(&["dns", "install", "--search"]).ok();
    assert!(said.contains("this host finds a.node.mesh.internal") && said.contains("musl"), "{said}");
    assert!(site.plexus(&["dns", "install", "--search"]).ok().contains("nothing is to be changed"));
    for name in [NAME, "web", "tasks.web.mesh.internal"] {
        assert_eq!(site.getent(name), web, "{name}");
    }
    site.changes_are_seen_by("glibc", || site.getent("web"), WITHIN_TTL);
    let _ = site.plexus(&["dns", "uninstall"]).ok();
    assert_eq!(site.host.files(), before);

    // Alone, for those who believe whoever answers first. Other names go on to the upstream.
    let _ = site.plexus(&["dns", "install", "--search", "--only"]).ok();
    let text = std::fs::read_to_string(site.host.etc("resolv.conf")).expect("a file");
    assert_eq!(text.matches("nameserver").count(), 1, "{text}");
    for look in [musl(&site.host, NAME), musl(&site.host, "web"), site.getent("web")] {
        assert_eq!(look, web);
    }
    let node = [b.address().to_string()];
    assert_eq!(
        (musl(&site.host, "b.node.corp.example"), site.getent("b.node.corp.example")),
        (node.to_vec(), node.to_vec())
    );
    site.changes_are_seen_by("musl", || musl(&site.host, "web"), WITHIN_TTL);
    // What somebody else has written since is theirs.
    site.host.write("resolv.conf", "nameserver 192.0.2.1\n");
    let refused = site.plexus(&["dns", "uninstall"]).refused();
    assert!(refused.contains("was changed by somebody else"), "{refused}");
    site.host.write("resolv.conf", &text);
    // No agent is needed for it.
    a.kill_agent();
    let _ = site.plexus(&["dns", "uninstall"]).ok();
    assert_eq!(site.host.files(), before);
    assert!(site.plexus(&["dns", "uninstall"]).ok().contains("nothing of `plexus dns install` is here"));
}

#[test]
fn a_resolv_conf_that_another_program_writes_is_left_alone_unless_that_is_said() {
    needs!("etcd", "etcdctl", "dig", "unshare");
    let site = Site::new(|upstream| format!("nameserver {upstream}\n"), |_| String::new());
    std::fs::create_dir(site.host.run_file("resolvconf")).expect("a directory");
    std::fs::copy(site.host.etc("resolv.conf"), site.host.run_file("resolvconf/resolv.conf"))
        .expect("a copy");
    std::fs::remove_file(site.host.etc("resolv.conf")).expect("removed");
    std::os::unix::fs::symlink("../run/resolvconf/resolv.conf", site.host.etc("resolv.conf"))
        .expect("a link");
    let before = site.host.files();
    let refused = site.plexus(&["dns", "install"]).refused();
    assert!(
        refused.contains("a link to ../run/resolvconf/resolv.conf") && refused.contains("--method"),
        "{refused}"
    );
    assert_eq!(site.host.files(), before);
    let _ = site.plexus(&["dns", "install", "--method", "resolv.conf"]).ok();
    assert!(!site.host.etc("resolv.conf").is_symlink());
    let _ = site.plexus(&["dns", "uninstall"]).ok();
    assert_eq!(site.host.files(), before, "the link is back");
    // An agent that nobody could ask by it is not installed.
    let (a, _) = site.nodes();
    a.kill_agent();
    let text = std::fs::read_to_string(a.config_file()).expect("a configuration");
    let other = format!("listen = [\"127.0.0.1:8600\"]\n#{}", "listen = [\"127.0.0.1:53\"");
    std::fs::write(a.config_file(), text.replacen("listen = [\"127.0.0.1:53\"", &other, 1)).expect("written");
    site.start_agent();
    let refused = site.plexus(&["dns", "install", "--method", "resolv.conf"]).refused();
    assert!(refused.contains("it listens on: 127.0.0.1:8600"), "{refused}");
    assert_eq!(site.host.files(), before);
}

#[test]
fn a_container_with_the_link_local_address_finds_services_by_their_bare_names() {
    needs!("etcd", "etcdctl", "dig", "getent", "musl-gcc", "kdig", "unshare");
    let site = Site::new(
        |upstream| format!("nameserver {upstream}\n"),
        |_| "link_local = \"169.254.53.53\"".to_owned(),
    );
    let (a, _) = site.nodes();
    let (web, musl) = (site.web_is_on(a), musl(&site));
    let container = a.namespace().container("box");
    let resolv_conf = "nameserver 169.254.53.53\nsearch mesh.internal\n";
    let container = Host::new(site.cluster.world(), &container, resolv_conf);
    for name in ["web", NAME, "tasks.web.mesh.internal."] {
        assert_eq!(
            (getent(&container, name), musl(&container, name)),
            (web.to_vec(), web.to_vec()),
            "{name}"
        );
    }
    // As Docker writes it for its own networks. musl takes that for: never look in domains.
    container.write("resolv.conf", &format!("{resolv_conf}options ndots:0\n"));
    assert_eq!((getent(&container, "web"), musl(&container, NAME)), (web.to_vec(), web.to_vec()));
    let kdig = container.exec("kdig", &["@169.254.53.53", "+short", "+tcp", NAME, "A"]).ok();
    assert_eq!(kdig.trim(), web[0]);
    site.changes_are_seen_by("glibc in a container", || getent(&container, "web"), WITHIN_TTL);
    // The host's own programs are given that address too, since it is the same everywhere.
    let done = site.plexus(&["dns", "install", "--json"]).ok();
    assert!(done.contains("\"server\": \"169.254.53.53:53\""), "{done}");
    assert_eq!(site.getent(NAME), getent(&container, NAME));
}

#[test]
fn dnsmasq_asks_the_agent_for_the_domain_and_nobody_else() {
    needs!("etcd", "etcdctl", "dig", "dnsmasq", "getent", "unshare");
    let site = Site::new(
        |_| "nameserver 127.0.0.2\n".to_owned(),
        |upstream| format!("upstreams = [\"{upstream}\"]"),
    );
    let (a, b) = site.nodes();
    let web = site.web_is_on(a);
    site.host.write("dnsmasq.d/upstream.conf", &format!("no-resolv\nserver={}\n", b.address()));
    let before = site.host.files();
    let dnsmasq = || {
        let arguments = ["--no-daemon", "--conf-file=/dev/null", "--conf-dir=/etc/dnsmasq.d/,*.conf"];
        let rest = ["--listen-address=127.0.0.2", "--bind-interfaces", "--stop-dns-rebind", "--pid-file="];
        let mut command = site.host.command("dnsmasq");
        let log = site.cluster.world().log("dnsmasq");
        let process = Process::start("dnsmasq", command.args(arguments).args(rest), &log);
        let ask = || {
            dig::ask(a.namespace(), "127.0.0.2".parse().expect("an address"), "b.node.corp.example", "A", &[])
        };
        let _ = eventually!(SOON, ask().status, |status| status == "NOERROR" || status == "SERVFAIL");
        process
    };
    let mut first = dnsmasq();
    assert_eq!(site.getent(NAME), Vec::<String>::new());
    // Where the service does not come up with it, nothing was done.
    std::fs::create_dir_all(site.host.run_file("systemd/system")).expect("a directory");
    let tools = site.host.run_file("tools");
    std::fs::create_dir(&tools).expect("a directory");
    let _ = run(&[
        "sh",
        "-ec",
        "printf '#!/bin/sh\\necho no good >&2\\nexit 1\\n' > $0/systemctl && chmod +x $0/systemctl",
        &text_of(&tools),
    ])
    .expect("sh")
    .ok();
    let path = format!("PATH=/run/tools:{}", std::env::var("PATH").expect("a path"));
    let refused = site.host.exec("env", &[&path, &text_of(plexus_program()), "dns", "install"]).refused();
    assert!(refused.contains("systemctl try-restart dnsmasq.service: no good"), "{refused}");
    assert_eq!(site.host.files(), before);
    std::fs::remove_dir(site.host.run_file("systemd/system")).expect("removed");
    let said = site.plexus(&["dns", "install"]).ok();
    assert!(said.contains("restart dnsmasq yourself"), "{said}");
    first.kill();
    let mut second = dnsmasq();
    assert_eq!(site.getent(NAME), web);
    site.changes_are_seen_by("dnsmasq", || site.getent(NAME), WITHIN_TTL);
    // With the agent away, other names are found all the same.
    assert!(site.plexus(&["dns", "uninstall"]).ok().contains("removing /etc/dnsmasq.d/plexus.conf"));
    assert_eq!(site.host.files(), before);
    second.kill();
}

/// systemd-resolved, of the system or unpacked by `tests/run`; and what its library is found by.
fn resolved() -> Option<(PathBuf, PathBuf)> {
    let unpacked = repository().join("target/test-resolved");
    let places = [PathBuf::from("/"), unpacked.clone()];
    places
        .iter()
        .map(|root| root.join("lib/systemd/systemd-resolved"))
        .find(|program| program.is_file())
        .map(|program| (program, unpacked))
}

/// What systemd-networkd says of a link with a name server of its own (sd-network(3) reads it).
fn tell_link(host: &Host, node: &Node, server: &str) {
    let shown = node.exec("ip", &["-o", "link", "show", "eth0"]).ok();
    let index = shown.split(':').next().expect("a number").to_owned();
    let links = host.run_file("systemd/netif/links");
    std::fs::create_dir_all(&links).expect("a directory");
    let text = format!(
        "ADMIN_STATE=configured\nOPER_STATE=routable\nLLMNR=no\nMDNS=no\nDNSSEC=no\nDNS={server}\nDNS_DEFAULT_ROUTE=yes\n"
    );
    std::fs::write(links.join(index), text).expect("a file");
}

#[test]
fn systemd_resolved_asks_the_agent_for_the_domain_and_the_agent_whom_resolved_asks() {
    needs!("etcd", "etcdctl", "dig", "getent", "unshare");
    let Some((program, library)) = resolved() else {
        assert!(skipped("systemd-resolved is not here: `tests/run` as root unpacks it"));
        return;
    };
    // As its package has it: systemd-resolved writes the file, with the domains to look in.
    // What comes from loopback it does not keep, so it asks another address.
    let site = Site::new(|_| String::new(), |_| "link_local = \"169.254.53.53\"".to_owned());
    std::fs::remove_file(site.host.etc("resolv.conf")).expect("removed");
    let stub = "../run/systemd/resolve/stub-resolv.conf";
    std::os::unix::fs::symlink(stub, site.host.etc("resolv.conf")).expect("a link");
    let (a, b) = site.nodes();
    let web = site.web_is_on(a);
    // It wants to be another user, who is root here: a user namespace has no other.
    for (file, line) in
        [("passwd", "systemd-resolve:x:0:0::/:/bin/sh\n"), ("group", "systemd-resolve:x:0:\n")]
    {
        let text = std::fs::read_to_string(site.host.etc(file)).expect("a file");
        site.host.write(file, &format!("{text}{line}"));
    }
    site.host.write("systemd/resolved.conf", "[Resolve]\nLLMNR=no\nMulticastDNS=no\nFallbackDNS=\n");
    tell_link(&site.host, a, &b.address().to_string());
    let before = site.host.files();
    let start = || {
        let mut command = site.host.command(&program);
        command
            .env("LD_LIBRARY_PATH", &library)
            .env("SYSTEMD_LOG_TARGET", "console")
            .env("SYSTEMD_LOG_LEVEL", "debug");
        let process = Process::start("systemd-resolved", &mut command, &site.cluster.world().log("resolved"));
        let node = [b.address().to_string()];
        eventually!(SOON, site.getent("b.node.corp.example"), |found| *found == node);
        process
    };
    let mut first = start();
    assert_eq!(site.getent(NAME), Vec::<String>::new());
    let said = site.plexus(&["dns", "install", "--search"]).ok();
    assert!(said.contains("systemd-resolved asks 169.254.53.53:53 for names of mesh.internal"), "{said}");
    assert!(said.contains("restart systemd-resolved yourself"), "{said}");
    first.kill();
    let mut second = start();
    for name in [NAME, "web"] {
        assert_eq!(eventually!(SOON, site.getent(name), |found| !found.is_empty()), web, "{name}");
    }
    site.changes_are_seen_by("systemd-resolved", || site.getent(NAME), WITHIN_TTL);
    // No loop: the agent asks for other names whom systemd-resolved asks, although resolv.conf names systemd-resolved.
    let upstream = format!("{}:53", b.address());
    let upstreams = || a.plexus_json(["upstreams"])["upstreams"].to_string();
    let _ = eventually!(SOON, upstreams(), |all| all.contains(&upstream) && !all.contains("127.0.0."));
    assert_eq!(a.dig("b.node.corp.example", "A").data, [b.address().to_string()]);
    let _ = site.plexus(&["dns", "uninstall"]).ok();
    assert_eq!(site.host.files(), before);
    second.kill();
}

/// A file of a server that is asked over HTTP: which node answers.
fn answered_by(node: &Node, port: u16) -> Vec<String> {
    let answer = node.get(SocketAddr::from(([127, 0, 0, 1], port)), "/");
    let body =
        answer.ok().filter(|answer| answer.status == 200).map(|answer| answer.body).unwrap_or_default();
    serde_json::from_str::<serde_json::Value>(&body)
        .ok()
        .and_then(|json| json["node"].as_str().map(str::to_owned))
        .into_iter()
        .collect()
}

fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[test]
fn haproxy_by_srv_and_nginx_by_name_follow_a_service_that_moves() {
    needs!("etcd", "etcdctl", "dig", "haproxy", "nginx", "unshare");
    let site = Site::new(|upstream| format!("nameserver {upstream}\n"), |_| String::new());
    let (a, b) = site.nodes();
    let _backends = [a.backend("web", INSTANCE), b.backend("web", INSTANCE)];
    site.web_is_on(a);
    let world = site.cluster.world();
    let haproxy = Server::new(world, a.namespace(), "haproxy");
    let config = haproxy.file(
        "haproxy.cfg",
        "defaults\n  mode http\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n\
         resolvers plexus\n  nameserver plexus 127.0.0.1:53\n  accepted_payload_size 1232\n  hold valid 1s\n\
         listen web\n  bind 127.0.0.1:8085\n  \
         server-template web 4 _web._tcp.mesh.internal resolvers plexus init-addr none\n",
    );
    let _haproxy = haproxy.command(&["haproxy", "-db", "-f", &config]).started();
    let nginx = Server::new(world, a.namespace(), "nginx");
    let config = nginx.file(
        "nginx.conf",
        format!(
            "user root; worker_processes 1; daemon off; pid nginx.pid; error_log stderr;
            events {{ worker_connections 64; }}
            http {{
                access_log off; resolver 127.0.0.1 ipv6=off;
                server {{ listen 127.0.0.1:8086; location / {{ set $web http://{NAME}:{INSTANCE}; proxy_pass $web; }} }}
            }}"
        ),
    );
    let prefix = text_of(nginx.directory());
    let _nginx = nginx.command(&["nginx", "-p", &prefix, "-c", &config]).started();
    // HAProxy asks each second, whatever the time to live, and takes a round more to let go of what is not there any more.
    for (client, port, within) in [("nginx", 8086, WITHIN_TTL), ("haproxy", 8085, 2 * WITHIN_TTL)] {
        eventually!(SOON, (client, answered_by(a, port)), |(_, by)| *by == ["a"]);
        for node in [b, a] {
            site.web_is_on(node);
            eventually!(within, (client, answered_by(a, port)), |(_, by)| *by == [node.name()]);
        }
    }
}
