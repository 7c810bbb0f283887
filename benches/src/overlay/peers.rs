//! A node with a thousand peers: how long they take from the store and into the kernel, and what one changed peer costs, in messages
//! to the kernel.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt};
use nerve::model::{Mac, NodeName, Slot, Subnet};
use nerve::store::{Key, Store};
use plexus_tests::{Cluster, Namespace, Node, eventually};

use super::{cluster, default_network, quantile, vni};
use crate::etcd;

const SIZES: [u32; 2] = [10, 1000];
const ROUNDS: usize = 5;
const LONGEST: Duration = Duration::from_secs(30);

pub(super) fn run() -> anyhow::Result<()> {
    println!("| peers, both families | {} | {} |\n| --- | ---: | ---: |", SIZES[0], SIZES[1]);
    let columns: Vec<[String; 5]> = SIZES.into_iter().map(column).collect::<anyhow::Result<_>>()?;
    let names = [
        "all records put into etcd → all in the kernel",
        "the VXLAN device was deleted → all is back",
        "one record changed → its entry in the kernel",
        "… messages that change the kernel",
        "… messages that ask it",
    ];
    for (row, name) in names.into_iter().enumerate() {
        println!("| {name} | {} | {} |", columns[0][row], columns[1][row]);
    }
    batches()
}

fn column(peers: u32) -> anyhow::Result<[String; 5]> {
    // 1,024 subnets of each family.
    let cluster = cluster(1, "\"10.40.0.0/14\", \"fd00:42::/54\"");
    let [node] = cluster.nodes();
    let own = eventually!(LONGEST, own_slot(node), Option::is_some).context("it has no subnet")?;
    let link = format!("plxv{}", vni(node, "default")?);
    let others: Vec<u32> = (0..).filter(|slot| *slot != own).take(peers as usize).collect();
    let begun = Instant::now();
    put(&cluster, others.iter().map(|slot| (*slot, 1)).collect())?;
    wait_routes(node, &link, peers);
    let from_store = begun.elapsed();
    let (mut back, mut changed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let _ = node.exec("ip", &["link", "del", &link]).ok();
        wait_routes(node, &link, peers);
        back.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    for slot in &others[..ROUNDS] {
        changed.push(change(&cluster, &link, *slot, 2)?.as_secs_f64() * 1e3);
    }
    let (sets, asks) = traced(&cluster, &link, others[ROUNDS])?;
    Ok([
        format!("{:.0} ms", from_store.as_secs_f64() * 1e3),
        format!("{:.0} ms", quantile(&mut back, 0.5)),
        format!("{:.1} ms", quantile(&mut changed, 0.5)),
        sets.to_string(),
        asks.to_string(),
    ])
}

fn own_slot(node: &Node) -> Option<u32> {
    let inspected = node.plexus(["network", "inspect", "default", "--json"]);
    let inspected: serde_json::Value = serde_json::from_str(&inspected.stdout).ok()?;
    u32::try_from(inspected["subnets"][0]["slot"].as_u64()?).ok()
}

fn record(slot: u32, host: u8) -> anyhow::Result<Subnet> {
    let [_, a, b, c] = slot.to_be_bytes();
    let address = IpAddr::V4(Ipv4Addr::new(198, 18 + a, b.wrapping_add(host), c));
    Ok(Subnet::new(NodeName::new(&format!("peer-{slot}"))?, address, Mac([2, 0x50, 0x4c, a, b, c])))
}

/// Writes records as the peers would, from a machine on the switch.
fn put(cluster: &Cluster, records: Vec<(u32, u8)>) -> anyhow::Result<()> {
    let [node] = cluster.nodes();
    let putting = etcd::inside(node.namespace(), &cluster.settings().store, async move |store| {
        let puts = records.into_iter().map(|(slot, host)| put_one(Arc::clone(&store), slot, host));
        futures_util::stream::iter(puts).buffer_unordered(128).try_collect::<()>().await?;
        store.shutdown().await;
        Ok(())
    })?;
    putting.join().map_err(|_| anyhow::anyhow!("writing the records panicked"))?
}

async fn put_one(store: Arc<dyn Store>, slot: u32, host: u8) -> anyhow::Result<()> {
    let path = Key::Subnet(default_network()?, Slot(slot)).path();
    store.put(&path, serde_json::to_vec(&record(slot, host)?)?, None).await?;
    Ok(())
}

fn wait_routes(node: &Node, link: &str, peers: u32) {
    // Routes come last of a peer's entries.
    let count = |family: &str| {
        let routes = node.exec("ip", &[family, "route", "show", "proto", "82", "dev", link]).stdout;
        routes.lines().count()
    };
    let _ = eventually!(LONGEST, (count("-4"), count("-6")), |counts| *counts
        == (peers as usize, peers as usize));
}

fn change(cluster: &Cluster, link: &str, slot: u32, host: u8) -> anyhow::Result<Duration> {
    let [node] = cluster.nodes();
    let changed = record(slot, host)?;
    let is_there = || {
        let entries = node.exec("bridge", &["fdb", "show", "dev", link]).stdout;
        entries.lines().any(|line| {
            line.starts_with(&changed.mac.to_string()) && line.contains(&format!("dst {} ", changed.address))
        })
    };
    let begun = Instant::now();
    put(cluster, vec![(slot, host)])?;
    let _ = eventually!(LONGEST, is_there(), |there| *there);
    Ok(begun.elapsed())
}

/// Messages to the kernel's routing while one peer changes: those that change something, and those that ask.
fn traced(cluster: &Cluster, link: &str, slot: u32) -> anyhow::Result<(usize, usize)> {
    let [node] = cluster.nodes();
    let file = tempfile::NamedTempFile::new()?;
    let agent = node.agent_pid().to_string();
    // Inside: it asks the kernel there what kind of socket it sees.
    let mut tracer = node.namespace().command("strace");
    tracer
        .args(["-f", "-qq", "-s", "4096", "-e", "trace=sendto,sendmsg", "-p", &agent, "-o"])
        .arg(file.path());
    let mut tracer =
        tracer.stderr(Stdio::null()).spawn().context("start strace; on Debian: apt install strace")?;
    let status = || std::fs::read_to_string(format!("/proc/{agent}/status")).unwrap_or_default();
    let _ = eventually!(LONGEST, status(), |status| !status.contains("TracerPid:\t0\n"));
    change(cluster, link, slot, 3)?;
    let id = rustix::process::Pid::from_child(&tracer);
    rustix::process::kill_process(id, rustix::process::Signal::INT)?;
    let _ = tracer.wait();
    let text = std::fs::read_to_string(file.path())?;
    let count =
        |what: &[&str]| text.lines().filter(|line| what.iter().any(|what| line.contains(what))).count();
    Ok((count(&["RTM_NEW", "RTM_DEL"]), count(&["RTM_GET"])))
}

/// What the kernel itself takes for each of the two ways to lead to a thousand peers.
fn batches() -> anyhow::Result<()> {
    let peers = SIZES[1];
    let machine = Namespace::add(format!("plexus-bench-{}", std::process::id()), Ipv4Addr::LOCALHOST);
    let done = (|| {
        let ip = |line: &str| drop(machine.exec("ip", &line.split(' ').collect::<Vec<_>>()).ok());
        let place = |slot: u32| (slot / 256, slot % 256);
        let lines = |line: &dyn Fn(u32, u32) -> String| {
            (0..peers).map(place).map(|(high, low)| line(high, low) + "\n").collect::<String>()
        };
        let timed = |program: &str, lines: String| -> anyhow::Result<f64> {
            let file = tempfile::NamedTempFile::new()?;
            std::fs::write(file.path(), lines)?;
            let begun = Instant::now();
            let _ = machine.exec(program, &["-batch", file.path().to_str().context("a strange path")?]).ok();
            Ok(begun.elapsed().as_secs_f64() * 1e3)
        };
        let neighbour_lines = || {
            lines(&|a, b| {
                let gateway = format!("10.{}.{b}.1", 40 + a);
                format!("neigh add {gateway} dev vx0 lladdr 02:50:4c:00:{a:02x}:{b:02x} nud permanent")
            })
        };
        let (mut each, mut light) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ip(
                "link add vx0 address 02:50:4c:ff:ff:ff type vxlan id 7 dstport 4789 local 127.0.0.1 nolearning",
            );
            ip("link set vx0 up");
            let fdb = timed(
                "bridge",
                lines(&|a, b| format!("fdb add 02:50:4c:00:{a:02x}:{b:02x} dev vx0 dst 198.18.{a}.{b} self")),
            )?;
            let neighbours = timed("ip", neighbour_lines())?;
            let routes = timed(
                "ip",
                lines(&|a, b| format!("route add 10.{0}.{b}.0/24 via 10.{0}.{b}.1 dev vx0 onlink", 40 + a)),
            )?;
            each.push(fdb + neighbours + routes);
            ip("link del vx0");
            ip("link add vx0 address 02:50:4c:ff:ff:ff type vxlan external dstport 4789 nolearning");
            ip("link set vx0 up");
            let neighbours = timed("ip", neighbour_lines())?;
            let routes = timed(
                "ip",
                lines(&|a, b| {
                    let to = format!("10.{0}.{b}.0/24", 40 + a);
                    let gateway = format!("10.{0}.{b}.1", 40 + a);
                    format!("route add {to} encap ip id 7 dst 198.18.{a}.{b} via {gateway} dev vx0 onlink")
                }),
            )?;
            light.push(neighbours + routes);
            ip("link del vx0");
        }
        println!("\n| {peers} peers of one family by `ip -batch` | messages | ms |\n| --- | ---: | ---: |");
        println!(
            "| an entry, a neighbour and a route each | {} | {:.1} |",
            3 * peers,
            quantile(&mut each, 0.5)
        );
        println!(
            "| a neighbour and a lightweight-tunnel route each | {} | {:.1} |",
            2 * peers,
            quantile(&mut light, 0.5)
        );
        anyhow::Ok(())
    })();
    let _ = plexus_tests::run(&["ip", "netns", "del", machine.name()]);
    done
}
