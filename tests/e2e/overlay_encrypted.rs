//! Encrypted overlay networks, told where the kernel has what they take: in the guest of `guest`.

use std::time::Duration;

use plexus_tests::server::store::Make;
use plexus_tests::{Cluster, Node, Process, Signal, eventually, needs, throughout};

use crate::overlay::Container;

/// Under emulation.
const SOON: Duration = Duration::from_secs(60);
const NETWORK: &str = "safe";
/// Set in the guest of `guest`, whose kernel has what the stories take. Elsewhere they are not told, and that story says so.
pub(crate) const IN_GUEST: &str = "PLEXUS_TEST_IN_GUEST";
/// What no packet between nodes may have.
const SECRET: &str = "nobody-between-the-nodes-reads-this";

fn cluster(more: &str) -> Cluster {
    let configuration = format!("[overlay]\nenabled = true\nlease = \"1m\"\n{more}");
    Cluster::of(2).on(Make::Etcd(1)).settings(|settings| settings.more = configuration).start()
}

fn is_told_here() -> bool {
    std::env::var_os(IN_GUEST).is_some()
}

/// Under emulation, the store may take longer than a command waits for it.
fn insist<const N: usize>(node: &Node, arguments: [&str; N]) {
    let _ = eventually!(SOON, node.plexus(arguments), |ran| ran.success());
}

fn create(node: &Node) {
    insist(node, ["network", "create", NETWORK, "--cidr", "10.43.0.0/16", "--encrypted"]);
}

/// Two containers of an encrypted network, on a node each, that reach each other.
fn pair(nodes: [&Node; 2]) -> [Container; 2] {
    create(nodes[0]);
    let peers = |node: &Node| node.metric("plexus_overlay_peers", &format!("network=\"{NETWORK}\""));
    for node in nodes {
        let _ = eventually!(SOON, peers(node), |peers| *peers == Some(1.0));
        let _ =
            eventually!(SOON, node.metric("plexus_overlay_networks", ""), |networks| *networks == Some(1.0));
    }
    let containers = nodes.map(|node| Container::on(node, "one", NETWORK));
    let _ = eventually!(SOON, containers[0].reaches(containers[1].v4()), |reached| *reached);
    containers
}

/// Writes down all that passes between the nodes.
struct Wire(Process);

impl Wire {
    fn tap(cluster: &Cluster) -> Self {
        let mut command = cluster.switch().command("tcpdump");
        command.args(["-i", "any", "-U", "-l", "-n", "-A", "-s", "0", "not", "tcp"]);
        let tap = Process::start("tcpdump", &mut command, &cluster.world().log("tcpdump"));
        let _ = eventually!(SOON, tap.output(), |output| output.contains("listening on"));
        Self(tap)
    }

    /// What was seen until now.
    fn seen(&mut self) -> String {
        self.0.signal(Signal::INT);
        let _ = self.0.wait(SOON);
        self.0.output()
    }
}

/// Sends the secret from one container to the other's address, whether it arrives or not.
fn whisper(from: &Container, to: &Container) {
    let script = format!("echo {SECRET} | busybox nc -u -w 1 {} 9 || true", to.v4());
    let _ = from.namespace.exec("sh", &["-c", &script]);
}

fn traffic(between: &[Container; 2], cluster: &Cluster) -> Process {
    let to = between[1].v4().to_string();
    let mut command = between[0].namespace.command("ping");
    command.args(["-n", "-i", "0.05", "-W", "5", &to]);
    Process::start("ping", &mut command, &cluster.world().log("ping"))
}

/// How many packets a `ping` sent, and how many came back.
fn counted(mut ping: Process) -> (u32, u32) {
    ping.signal(Signal::INT);
    let _ = ping.wait(SOON);
    let output = ping.output();
    let numbers: Vec<u32> = output
        .lines()
        .find(|line| line.contains("packets transmitted"))
        .map(|line| line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect())
        .unwrap_or_else(|| panic!("{output}"));
    (numbers[0], numbers[1])
}

fn encrypted_by(node: &Node, cipher: &str) {
    let labels = format!("cipher=\"{cipher}\"");
    let _ = eventually!(SOON, node.metric("plexus_overlay_encrypted_peers", &labels), |count| *count
        == Some(1.0));
}

/// Everything that holds whatever encrypts.
fn nobody_reads_it(cipher: &str) {
    let cluster = cluster("");
    let [a, b] = cluster.nodes();
    let mut wire = Wire::tap(&cluster);
    let containers = pair([a, b]);
    [a, b].into_iter().for_each(|node| encrypted_by(node, cipher));
    whisper(&containers[0], &containers[1]);
    // The largest packet that passes in one piece, and what does not.
    for bytes in ["1342", "8000"] {
        assert!(containers[0].sends(containers[1].v4(), bytes), "{bytes} bytes");
    }
    let shown = a.plexus(["network", "inspect", NETWORK]).ok();
    assert!(shown.contains(cipher) && shown.contains("encrypted     between nodes"), "{shown}");
    // Whatever else leaves this machine for a container of the network is held: links that are gone lead nowhere.
    for link in ["plxw0", "plxx0"] {
        let _ = a.exec("ip", &["link", "set", link, "down"]);
    }
    (0..5).for_each(|_| whisper(&containers[0], &containers[1]));
    let _ = eventually!(SOON, containers[0].reaches(containers[1].v4()), |reached| *reached);
    for link in ["plxw0", "plxx0", "plxv"] {
        let script = format!("for l in $(ls /sys/class/net | grep ^{link}); do ip link del $l; done");
        let _ = a.exec("sh", &["-c", &script]);
        whisper(&containers[0], &containers[1]);
    }
    let _ = eventually!(SOON, containers[0].reaches(containers[1].v4()), |reached| *reached);
    // The packet filter goes with everything that it has.
    let _ = a.exec("nft", &["flush", "ruleset"]).ok();
    whisper(&containers[0], &containers[1]);
    // The peer goes, and the network.
    b.kill_agent();
    whisper(&containers[0], &containers[1]);
    b.start_agent();
    b.wait_ready(SOON);
    let _ = eventually!(SOON, containers[0].reaches(containers[1].v4()), |reached| *reached);
    insist(a, ["network", "rm", NETWORK, "--force"]);
    whisper(&containers[0], &containers[1]);
    let links = || a.exec("ip", &["-o", "link"]).ok();
    let _ = eventually!(SOON, links(), |links| !["plxw", "plxx", "plxv", "plxb"]
        .iter()
        .any(|ours| links.contains(ours)));
    let seen = wire.seen();
    assert!(!seen.contains(SECRET) && !seen.contains("10.43."), "seen in the clear:\n{seen}");
    let protocol = if cipher == "esp" { "ESP(" } else { ".51882" };
    assert!(seen.contains(protocol), "nothing was seen of {cipher}:\n{seen}");
}

/// Keys are made anew while packets pass, which go on.
fn keys_rotate(cipher: &str) {
    let cluster = cluster("key_lifetime = \"30s\"\n");
    let [a, b] = cluster.nodes();
    let containers = pair([a, b]);
    let ping = traffic(&containers, &cluster);
    let made = |node: &Node, change: &str| {
        node.metric("plexus_overlay_keys_total", &format!("change=\"{change}\",cipher=\"{cipher}\""))
            .unwrap_or(0.0)
    };
    for node in [a, b] {
        let _ = eventually!(Duration::from_secs(180), (made(node, "made"), made(node, "ended")), |(
            made,
            ended,
        )| {
            *made >= 2.0 && *ended >= 1.0
        });
    }
    // An agent's next life goes on where the one before ended.
    b.kill_agent();
    b.start_agent();
    b.wait_ready(SOON);
    let _ = eventually!(SOON, made(b, "made"), |made| *made >= 1.0);
    let _ = eventually!(SOON, containers[0].reaches(containers[1].v4()), |reached| *reached);
    // Under emulation agents may hear of a key later than the one before has ended: how many are lost says how slow the machine is.
    let (sent, came) = counted(ping);
    assert!(sent > 100 && came * 2 > sent, "of {sent} packets {came} came back");
}

#[test]
fn wireguard_nobody_between_nodes_reads_it() {
    if !is_told_here() {
        return;
    }
    needs!("etcd", "etcdctl", "nft", "ping", "tcpdump", "busybox");
    nobody_reads_it("wireguard");
}

#[test]
fn wireguard_keys_rotate_under_traffic() {
    if !is_told_here() {
        return;
    }
    needs!("etcd", "etcdctl", "nft", "ping");
    keys_rotate("wireguard");
}

#[test]
fn esp_nobody_between_nodes_reads_it() {
    if !is_told_here() {
        return;
    }
    needs!("etcd", "etcdctl", "nft", "ping", "tcpdump", "busybox");
    nobody_reads_it("esp");
}

#[test]
fn esp_keys_rotate_under_traffic() {
    if !is_told_here() {
        return;
    }
    needs!("etcd", "etcdctl", "nft", "ping");
    keys_rotate("esp");
}

#[test]
fn neither_is_refused_and_said() {
    if !is_told_here() {
        return;
    }
    needs!("etcd", "etcdctl", "nft", "ping");
    let cluster = cluster("");
    let [a, b] = cluster.nodes();
    let said = a.plexus(["network", "create", NETWORK, "--cidr", "10.43.0.0/16", "--encrypted"]).refused();
    assert!(said.contains("node a encrypts by neither WireGuard nor IPsec"), "{said}");
    // As another node made it, which can.
    let record = r#"{"vni":7,"encrypted_pools":[{"cidr":"10.43.0.0/16","subnet_length":24}]}"#;
    let _ = cluster.etcd().ctl(&["put", "/plexus/v1/networks/safe", record]);
    let status = || b.plexus(["status"]);
    let _ = eventually!(SOON, status(), |ran| ran
        .stdout
        .contains("takes no part in network safe, which is encrypted"));
    throughout!(Duration::from_secs(3), b.metric("plexus_overlay_networks", ""), |count| *count == Some(0.0));
}
