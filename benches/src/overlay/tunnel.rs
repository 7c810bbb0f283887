//! Two containers on two nodes: through Plexus' network, through the same tunnel made by hand, and through one with lightweight-tunnel
//! routes; in turn, so that what else the machine does falls on all of them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use plexus_tests::{Cluster, Namespace, Node, eventually};
use serde_json::Value;

use super::{cluster, quantile};

const ROUNDS: usize = 15;
const SECONDS: &str = "2";
const EXCHANGES: usize = 3000;
const PORT: u16 = 5201;
const MTU: &str = "1450";

/// Two containers, the second of which is asked at this address.
struct Way {
    name: &'static str,
    client: Namespace,
    server: Namespace,
    address: IpAddr,
}

#[derive(Default)]
struct Figures {
    gigabits: Vec<f64>,
    /// Processor seconds of the whole machine for each gigabyte.
    cost: Vec<f64>,
    datagrams: Vec<f64>,
    lost: Vec<f64>,
    median: Vec<f64>,
    tail: Vec<f64>,
}

pub(super) fn run() -> anyhow::Result<()> {
    let cluster = cluster(2, "\"10.42.0.0/16\"");
    let ways = [plexus(&cluster)?, by_hand(&cluster, false), by_hand(&cluster, true)];
    let mut figures = [(); 3].map(|()| Figures::default());
    // What is compared is measured close together, and each of them as often after one of the others as after the other.
    for measure in [stream, datagrams, exchange] {
        for round in 0..ROUNDS {
            for turn in 0..ways.len() {
                let turn = if round % 2 == 0 { turn } else { ways.len() - 1 - turn };
                let at = (round / 2 + turn) % ways.len();
                measure(&ways[at], &mut figures[at]).with_context(|| format!("the way {}", ways[at].name))?;
            }
        }
    }
    print(&ways, figures);
    Ok(())
}

fn print(ways: &[Way; 3], mut figures: [Figures; 3]) {
    println!(
        "| between containers of two nodes | {} | {} | {} | {} / {} |",
        ways[0].name, ways[1].name, ways[2].name, ways[0].name, ways[1].name
    );
    println!("| --- | ---: | ---: | ---: | ---: |");
    let mut row = |name: &str, of: fn(&mut Figures) -> &mut Vec<f64>, share: f64| {
        let [a, b, c] = figures.each_mut().map(|figures| quantile(of(figures), share));
        println!("| {name} | {a:.3} | {b:.3} | {c:.3} | {:.3} |", a / b);
    };
    row("TCP, one stream, Gbit/s", |f| &mut f.gigabits, 0.5);
    row("… processor seconds a gigabyte", |f| &mut f.cost, 0.5);
    row("UDP, 1,400 bytes each, Gbit/s received", |f| &mut f.datagrams, 0.5);
    row("… lost, percent", |f| &mut f.lost, 0.5);
    row("exchange of one byte, median of medians, µs", |f| &mut f.median, 0.5);
    row("… median of 99th percentiles, µs", |f| &mut f.tail, 0.5);
}

fn plexus(cluster: &Cluster) -> anyhow::Result<Way> {
    let [a, b] = cluster.nodes();
    let attach = |node: &Node| {
        let container = Namespace::add(format!("{}-own", node.namespace().name()), node.address());
        let attached = node.plexus_json(["attach", container.name(), "--network", "default"]);
        let address = attached["addresses"][0].as_str().and_then(|text| text.parse::<IpAddr>().ok());
        Ok::<_, anyhow::Error>((container, address.context("it has no address")?))
    };
    let ((client, _), (server, address)) = (attach(a)?, attach(b)?);
    let reached = || client.exec("ping", &["-c", "1", "-W", "1", &address.to_string()]).success();
    let _ = eventually!(Duration::from_secs(10), reached(), |reached| *reached);
    for node in [a, b] {
        let short = || node.metric("plexus_overlay_fast_path_containers", "");
        let _ = eventually!(Duration::from_secs(10), short(), |short| *short == Some(1.0));
    }
    Ok(Way { name: "Plexus", client, server, address })
}

/// The same with `ip`: a bridge, a VXLAN device, a peer's entries, a pair of links a container.
fn by_hand(cluster: &Cluster, lightweight: bool) -> Way {
    let (name, mark, vni) =
        if lightweight { ("lightweight routes", "l", "78") } else { ("by hand", "h", "77") };
    let hosts = [1, 2].map(|n| cluster.machine(&format!("{mark}{n}")));
    let containers = [0, 1].map(|n: usize| {
        let (own, other) = (&hosts[n], &hosts[1 - n]);
        let container = Namespace::add(format!("{}-own", own.name()), own.address());
        let (net, peer) = (format!("10.99.{n}"), format!("10.99.{}", 1 - n));
        let (own_address, other_address) = (own.address().to_string(), other.address().to_string());
        let (mac, other_mac) = (format!("02:00:00:00:00:0{n}"), format!("02:00:00:00:00:0{}", 1 - n));
        let ip = |line: &str| drop(own.exec("ip", &line.split(' ').collect::<Vec<_>>()).ok());
        let _ = own.exec("sysctl", &["-qw", "net.ipv4.ip_forward=1"]).ok();
        ip(&format!("link add br0 mtu {MTU} type bridge"));
        ip(&format!("address add {net}.1/24 dev br0"));
        ip("link set br0 up");
        if lightweight {
            ip(&format!("link add vx0 mtu {MTU} address {mac} type vxlan external dstport 4789 nolearning"));
            ip("link set vx0 up");
            ip(&format!("neigh add {peer}.1 dev vx0 lladdr {other_mac} nud permanent"));
            ip(&format!(
                "route add {peer}.0/24 encap ip id {vni} src {own_address} dst {other_address} via {peer}.1 dev vx0 onlink"
            ));
        } else {
            ip(&format!("link add vx0 mtu {MTU} address {mac} type vxlan id {vni} dstport 4789 local {own_address} nolearning"));
            ip("link set vx0 up");
            let _ = own.exec("bridge", &["fdb", "add", &other_mac, "dev", "vx0", "dst", &other_address, "self"]).ok();
            ip(&format!("neigh add {peer}.1 dev vx0 lladdr {other_mac} nud permanent"));
            ip(&format!("route add {peer}.0/24 via {peer}.1 dev vx0 onlink"));
        }
        ip(&format!("link add plug mtu {MTU} master br0 up type veth peer name eth0 mtu {MTU} netns {}", container.name()));
        let _ = container.exec("ip", &["address", "add", &format!("{net}.2/24"), "dev", "eth0"]).ok();
        let _ = container.exec("ip", &["link", "set", "eth0", "up"]).ok();
        let _ = container.exec("ip", &["route", "add", "default", "via", &format!("{net}.1")]).ok();
        container
    });
    let [client, server] = containers;
    let address = IpAddr::from([10, 99, 1, 2]);
    let reached = || client.exec("ping", &["-c", "1", "-W", "1", &address.to_string()]).success();
    let _ = eventually!(Duration::from_secs(10), reached(), |reached| *reached);
    Way { name, client, server, address }
}

fn stream(way: &Way, figures: &mut Figures) -> anyhow::Result<()> {
    let before = busy()?;
    let tcp = iperf(way, &[])?;
    let spent = busy()? - before;
    let sum = &tcp["end"]["sum_received"];
    figures.gigabits.push(number(&sum["bits_per_second"])? / 1e9);
    figures.cost.push(spent / (number(&sum["bytes"])? / 1e9));
    Ok(())
}

fn datagrams(way: &Way, figures: &mut Figures) -> anyhow::Result<()> {
    let udp = iperf(way, &["-u", "-b", "0", "-l", "1400"])?;
    let sum = &udp["end"]["sum"];
    let lost = number(&sum["lost_percent"])?;
    figures.datagrams.push(number(&sum["bits_per_second"])? / 1e9 * (1.0 - lost / 100.0));
    figures.lost.push(lost);
    Ok(())
}

fn exchange(way: &Way, figures: &mut Figures) -> anyhow::Result<()> {
    let mut times = exchanges(way)?;
    figures.median.push(quantile(&mut times, 0.5));
    figures.tail.push(quantile(&mut times, 0.99));
    Ok(())
}

fn iperf(way: &Way, more: &[&str]) -> anyhow::Result<Value> {
    let port = PORT.to_string();
    let mut server = way.server.command("iperf3");
    let mut server = server.args(["-s", "-1", "-p", &port]).stdout(std::process::Stdio::null()).spawn()?;
    let listens = || way.server.exec("ss", &["-Hltn", &format!("sport = :{port}")]).stdout.contains(&port);
    let _ = eventually!(Duration::from_secs(5), listens(), |listens| *listens);
    let address = way.address.to_string();
    let arguments = [&["-c", &address, "-p", &port, "-t", SECONDS, "-J"], more].concat();
    let ran = way.client.exec("iperf3", &arguments);
    // It ends by itself after the one client that it was started for.
    let _ = server.wait();
    ensure!(ran.success(), "iperf3 failed: {}", ran.stdout);
    Ok(serde_json::from_str(&ran.stdout)?)
}

/// Microseconds that one byte takes there and back, each.
fn exchanges(way: &Way) -> anyhow::Result<Vec<f64>> {
    let address = SocketAddr::new(way.address, PORT + 1);
    let listener = way.server.enter(move || TcpListener::bind(address))?;
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 {
            stream.write_all(&byte)?;
        }
        std::io::Result::Ok(())
    });
    let times = way.client.enter(move || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut times = Vec::with_capacity(EXCHANGES);
        for _ in 0..EXCHANGES {
            let begun = Instant::now();
            stream.write_all(&[1])?;
            stream.read_exact(&mut [0])?;
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        std::io::Result::Ok(times)
    })?;
    echo.join().map_err(|_| anyhow::anyhow!("the echo panicked"))??;
    Ok(times)
}

/// Seconds that the machine's processors have worked.
fn busy() -> anyhow::Result<f64> {
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|text| text.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq
    let worked = [0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).sum::<f64>();
    Ok(worked / TICKS)
}

fn number(value: &Value) -> anyhow::Result<f64> {
    value.as_f64().with_context(|| format!("iperf3 says {value}"))
}
