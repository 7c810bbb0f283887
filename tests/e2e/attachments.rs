//! Attachments survive everything: hundreds at once, agents that are killed at any moment, and agents that are replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use plexus_tests::client::http::{Answer, Failure, Held};
use plexus_tests::{Cluster, Node, eventually, needs, pause, run};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);
/// Of a request, when hundreds of others wait as well.
const PATIENCE: Duration = Duration::from_secs(60);
/// Large enough for hundreds of containers a node.
const NETWORK: [&str; 5] = ["create", "blue", "--cidr", "10.43.0.0/16", "--subnet-len=22"];
const PATH: &str = "/v1/plexus/attachments";

/// Two nodes with a large network, of which both know that the other one takes part.
fn cluster() -> Cluster {
    let more = "[overlay]\nenabled = true\nlease = \"1m\"\n";
    let cluster = Cluster::of(2).settings(|settings| settings.more = more.to_owned()).start();
    let [a, b] = cluster.nodes();
    let [create, name, cidr, range, length] = NETWORK;
    let _ = a.plexus(["network", create, name, cidr, range, length]).ok();
    for node in [a, b] {
        let peers = || node.metric("plexus_overlay_peers", "network=\"blue\"");
        let _ = eventually!(SOON, peers(), |peers| *peers == Some(1.0));
    }
    cluster
}

/// Network namespaces `<node>-<n>`, made at once. They go with the world.
fn namespaces(node: &Node, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|n| format!("{}-{n}", node.namespace().name())).collect();
    let batch: String = names.iter().map(|name| format!("netns add {name}\n")).collect();
    let file = node.directory().join("namespaces");
    std::fs::write(&file, batch).expect("the node's directory is writable");
    let _ = run(&["ip", "-batch", &file.to_string_lossy()]).expect("ip is installed").ok();
    names
}

/// A request of a thread that stands on the node.
fn ask(method: &str, path: &str, json: &str) -> Result<Answer, Failure> {
    let admin: SocketAddr = "127.0.0.1:7070".parse().expect("an address");
    Held::open_patiently(admin, PATIENCE)?.change(method, path, json)
}

fn attach(name: &str) -> Result<Answer, Failure> {
    let namespace = PathBuf::from("/run/netns").join(name);
    let request = json!({"id": name, "network": "blue", "namespace": namespace, "interface": "eth0"});
    ask("POST", PATH, &request.to_string())
}

fn detach(name: &str) -> Result<Answer, Failure> {
    ask("DELETE", &format!("{PATH}/{name}"), "null")
}

/// Does something for each of these at the same moment, on the node; what came of it and how long each took.
fn at_once<T: Send + 'static>(
    node: &Node,
    names: &[String],
    work: impl Fn(&str) -> T + Send + Sync + Clone + 'static,
) -> Vec<(String, T, Duration)> {
    let names = names.to_vec();
    node.namespace().enter(move || {
        let start = Barrier::new(names.len());
        thread::scope(|scope| {
            let threads: Vec<_> = names
                .iter()
                .map(|name| {
                    let (start, work) = (&start, work.clone());
                    let small = thread::Builder::new().stack_size(256 * 1024);
                    let thread = small.spawn_scoped(scope, move || {
                        start.wait();
                        let begun = Instant::now();
                        let done = work(name);
                        (name.clone(), done, begun.elapsed())
                    });
                    thread.expect("a thread")
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        })
    })
}

fn addresses(answer: &Answer) -> Vec<String> {
    let body: Value = serde_json::from_str(&answer.body).expect("JSON");
    let addresses = body["addresses"].as_array().expect("addresses").iter();
    addresses.map(|address| address.as_str().expect("text").to_owned()).collect()
}

/// What is attached, by name.
fn attached(node: &Node) -> BTreeMap<String, Vec<String>> {
    let listed = node.admin_json(PATH);
    let listed = listed["attachments"].as_array().cloned().unwrap_or_default();
    let name = |one: &Value| one["id"].as_str().expect("an id").to_owned();
    let own = |one: &Value| {
        one["addresses"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|address| address.as_str().unwrap().to_owned())
            .collect()
    };
    listed.iter().map(|one| (name(one), own(one))).collect()
}

/// What of these is attached and not as it should be.
fn broken(node: &Node, names: &[String]) -> Vec<String> {
    let there = attached(node);
    let checked = names.iter().filter(|name| there.contains_key(*name)).map(|name| {
        let checked = node.admin_json(&format!("{PATH}/{name}/check"));
        (name, checked["problems"].to_string())
    });
    checked
        .filter(|(_, problems)| problems != "[]")
        .map(|(name, problems)| format!("{name}: {problems}"))
        .collect()
}

/// All that attachments could leave behind, on the node and in the store.
fn remains(cluster: &Cluster, node: &Node) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = BTreeSet::new();
    let listed = [
        ("ip", vec!["-br", "link"]),
        ("ip", vec!["-br", "address"]),
        ("ip", vec!["rule"]),
        ("ip", vec!["route"]),
        ("ip", vec!["-6", "route"]),
        ("nft", vec!["list", "ruleset"]),
    ];
    for (program, arguments) in listed {
        let text = node.exec(program, &arguments).ok();
        // Of links, the name: whether the bridge has a carrier and which MAC follows from what was on it last.
        let is_links = arguments.contains(&"-br");
        let first = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
        all.extend(
            text.lines().map(|line| if is_links { first(line) } else { line.replace(" linkdown", "") }),
        );
    }
    // The kernel's own, of a bridge that has had something on it.
    all.retain(|line| !line.starts_with("fe80::/64 dev plxb"));
    let forwarding = node.exec("bridge", &["fdb"]).ok();
    all.extend(forwarding.lines().filter(|line| line.contains(" dst ")).map(str::to_owned));
    let kept = std::fs::read_dir(node.directory().join("state/attachments")).expect("the state directory");
    all.extend(kept.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()));
    all.insert(cluster.etcd().ctl(&["get", "--prefix", "/plexus/v1/subnets"]).ok());
    all
}

/// The same, once every node has said of itself what there is to say.
fn settled(cluster: &Cluster, node: &Node) -> BTreeSet<String> {
    let said = || cluster.etcd().ctl(&["get", "--prefix", "/plexus/v1/subnets"]).ok();
    let records = |text: &String| text.matches("\"mac\"").count();
    let _ = eventually!(SOON, said(), |text| text.matches("\"returns\":true").count() == records(text));
    remains(cluster, node)
}

/// What is there now and was not, and what was and is not.
fn differences(before: &BTreeSet<String>, now: &BTreeSet<String>) -> Vec<String> {
    let new = now.difference(before).map(|line| format!("+ {line}"));
    new.chain(before.difference(now).map(|line| format!("- {line}"))).collect()
}

/// The MAC of the network's bridge, which containers know as their gateway's.
fn gateway(node: &Node) -> String {
    let links = node.exec("ip", &["-br", "link"]).ok();
    let bridge = links.lines().find(|line| line.starts_with("plxb")).expect("a bridge");
    bridge.split_whitespace().nth(2).expect("a MAC").to_owned()
}

fn median_and_most(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

#[test]
fn five_hundred_containers_come_and_go_at_once_and_leave_nothing() {
    needs!("etcd", "etcdctl", "nft", "ping");
    const MANY: usize = 500;
    let cluster = cluster();
    let [a, b] = cluster.nodes();
    let (before, gateway_before) = (settled(&cluster, a), gateway(a));
    let names = namespaces(a, MANY);
    let alone: Vec<Duration> = names[..10]
        .iter()
        .flat_map(|name| at_once(a, std::slice::from_ref(name), |name| attach(name).map(|_| ())))
        .map(|(_, _, took)| took)
        .collect();
    println!("attached alone: {:?} (median, longest)", median_and_most(alone));
    let _ = at_once(a, &names[..10], detach);
    for round in 0..2 {
        let begun = Instant::now();
        let came = at_once(a, &names, attach);
        let whole = begun.elapsed();
        let (median, most) = median_and_most(came.iter().map(|(_, _, took)| *took).collect());
        println!(
            "round {round}: {MANY} attached in {whole:?}; each in {median:?} (median), {most:?} (longest)"
        );
        let mut given = BTreeSet::new();
        for (name, answer, _) in &came {
            let answer = answer.as_ref().unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(answer.status, 200, "{name}: {}", answer.body);
            for address in addresses(answer) {
                assert!(given.insert(address.clone()), "{address} was given twice");
            }
        }
        assert_eq!((given.len(), attached(a).len()), (MANY, MANY));
        assert_eq!(gateway(a), gateway_before);
        // The other node reaches the first and the last of them.
        for address in [given.first(), given.last()].map(|address| address.expect("there are many")) {
            let reached = || b.exec("ping", &["-n", "-q", "-c", "1", "-W", "1", address]).code == Some(0);
            let _ = eventually!(SOON, reached(), |reached| *reached);
        }
        let begun = Instant::now();
        let went = at_once(a, &names, detach);
        println!("round {round}: {MANY} detached in {:?}", begun.elapsed());
        for (name, answer, _) in went {
            let answer = answer.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(
                answer.status == 200 && answer.body.contains("\"changed\":true"),
                "{name}: {}",
                answer.body
            );
        }
        let _ = eventually!(SOON, differences(&before, &remains(&cluster, a)), Vec::is_empty);
    }
}

#[test]
fn an_agent_that_is_killed_at_any_point_of_attach_and_detach_recovers_to_the_same() {
    needs!("etcd", "etcdctl", "nft");
    const KILLS: u32 = 100;
    let cluster = cluster();
    let [a, _] = cluster.nodes();
    let before = settled(&cluster, a);
    let names = namespaces(a, 12);
    let (stay, change) = names.split_at(4);
    // These were told to be attached, and are whatever happens.
    let kept: BTreeMap<String, Vec<String>> = at_once(a, stay, attach)
        .into_iter()
        .map(|(name, answer, _)| (name, addresses(&answer.expect("an answer"))))
        .collect();
    // How long all of it takes where nobody is killed.
    let begun = Instant::now();
    let _ = at_once(a, change, attach);
    let whole = begun.elapsed();
    let _ = at_once(a, change, detach);
    let (mut asked, mut answered) = (0, 0);
    for kill in 0..KILLS {
        // So that the agent is at work when it is killed, and not still starting.
        let offer = || a.admin_json("/v1/plexus/networks/blue/attachable");
        let _ = eventually!(SOON, offer(), |offer| offer["mtu"].is_u64());
        let agent = a.agent_id();
        // Step by step over all of it, half of the times while they come and half of the times while they go.
        let after = whole * (kill / 2) / (KILLS / 2);
        let is_coming = kill % 2 == 0;
        if !is_coming {
            let came = at_once(a, change, attach);
            assert!(
                came.iter().all(|(_, answer, _)| answer.as_ref().is_ok_and(|answer| answer.status == 200)),
                "{came:?}"
            );
        }
        let (worked, ()) = thread::scope(|scope| {
            let working = scope.spawn(|| at_once(a, change, if is_coming { attach } else { detach }));
            let killing = scope.spawn(move || {
                pause(after);
                let _ = run(&["kill", "-KILL", &agent.to_string()]);
            });
            (working.join().expect("no panic"), killing.join().expect("no panic"))
        });
        let _ = a.wait_agent_end(SOON);
        a.start_agent();
        let told_now: BTreeMap<&String, bool> = worked
            .iter()
            .map(|(name, answer, _)| (name, answer.as_ref().is_ok_and(|answer| answer.status == 200)))
            .collect();
        asked += told_now.len();
        answered += told_now.values().filter(|told| **told).count();
        // Everything is attached that was told to be, nothing twice, and nothing that was told to be detached.
        let is_right = |all: &BTreeMap<String, Vec<String>>| {
            let flat: Vec<&String> = all.values().flatten().collect();
            let distinct: BTreeSet<&String> = flat.iter().copied().collect();
            let kept_is_there = kept.iter().all(|(name, addresses)| all.get(name) == Some(addresses));
            let told_is_true =
                told_now.iter().all(|(name, told)| !told || all.contains_key(*name) == is_coming);
            kept_is_there && told_is_true && distinct.len() == flat.len()
        };
        let _ = eventually!(SOON, attached(a), is_right);
        // What was attached and nobody was told of is whole, or it is not there.
        let _ = eventually!(SOON, broken(a, change), Vec::is_empty);
        let gone = at_once(a, change, detach);
        assert!(
            gone.iter().all(|(_, answer, _)| answer.as_ref().is_ok_and(|answer| answer.status == 200)),
            "{gone:?}"
        );
    }
    println!("{KILLS} kills within {whole:?}: {answered} of {asked} requests were answered before");
    assert!((1..asked).contains(&answered), "every kill was too early, or too late");
    assert_eq!(attached(a), kept);
    for name in stay {
        let has = a.exec("ip", &["-n", name, "-br", "address", "show", "eth0"]).ok();
        assert!(kept[name].iter().all(|address| has.contains(address.as_str())), "{name}: {has}");
    }
    for name in change {
        assert!(!a.exec("ip", &["-n", name, "link"]).ok().contains("eth0"), "{name}");
    }
    let _ = at_once(a, stay, detach);
    let _ = eventually!(SOON, differences(&before, &remains(&cluster, a)), Vec::is_empty);
}

#[test]
fn agents_that_replace_each_other_lose_no_attachment_and_give_no_address_twice() {
    needs!("etcd", "etcdctl", "nft");
    let cluster = cluster();
    let [a, _] = cluster.nodes();
    let before = settled(&cluster, a);
    let names = namespaces(a, 40);
    let mut attached_so_far: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut former = Vec::new();
    for some in names.chunks(10) {
        // Asked for while one agent follows another; what is refused in that moment is asked for again, as it says.
        let patiently = |name: &str| {
            let begun = Instant::now();
            loop {
                match attach(name) {
                    Ok(answer) if answer.status == 200 => return addresses(&answer),
                    other => assert!(begun.elapsed() < SOON, "{name}: {other:?}"),
                }
                pause(Duration::from_millis(20));
            }
        };
        let worked = thread::scope(|scope| {
            let working =
                scope.spawn(|| some.chunks(2).flat_map(|few| at_once(a, few, patiently)).collect::<Vec<_>>());
            former.push(a.take_over());
            working.join().expect("no panic")
        });
        attached_so_far.extend(worked.into_iter().map(|(name, addresses, _)| (name, addresses)));
        let _ = eventually!(SOON, attached(a), |all| *all == attached_so_far);
    }
    let distinct: BTreeSet<&String> = attached_so_far.values().flatten().collect();
    assert_eq!(distinct.len(), names.len());
    for (name, addresses) in &attached_so_far {
        let has = a.exec("ip", &["-n", name, "-br", "address", "show", "eth0"]).ok();
        assert!(addresses.iter().all(|address| has.contains(address.as_str())), "{name}: {has}");
    }
    let gone = at_once(a, &names, detach);
    assert!(
        gone.iter().all(|(_, answer, _)| answer.as_ref().is_ok_and(|answer| answer.status == 200)),
        "{gone:?}"
    );
    let _ = eventually!(SOON, differences(&before, &remains(&cluster, a)), Vec::is_empty);
}
