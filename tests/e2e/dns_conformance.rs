//! What the name server makes of every flag, option and version of a question, of such as cannot be, and of those who ask too much.
//! Octet by octet, over UDP and TCP; the names in the table are those of ISC's tester of EDNS compliance.

use std::time::Duration;

use plexus_tests::client::octets::{Answer, ID, Line, Query, flag, over_tcp};
use plexus_tests::{Cluster, Node, ServiceFile, eventually, needs};

const SOON: Duration = Duration::from_secs(20);

const ZONE: &str = "mesh.internal";
const WEB: &str = "web.mesh.internal";
const MANY: &str = "tasks.many.mesh.internal";
const NONE: &str = "nothing.mesh.internal";

const A: u16 = 1;
const SOA: u16 = 6;
const HINFO: u16 = 13;
const TXT: u16 = 16;
const ANY: u16 = 255;
const CHAOS: u16 = 3;

const NSID: u16 = 3;
const SUBNET: u16 = 8;
const EXPIRE: u16 = 9;
const COOKIE: u16 = 10;
const KEEPALIVE: u16 = 11;
const PADDING: u16 = 12;
/// Of nobody.
const UNKNOWN: u16 = 100;
const CLIENT_COOKIE: &[u8] = b"CLIENTCO";

const DO: u16 = 0x8000;

const NOERROR: u16 = 0;
const FORMERR: u16 = 1;
const NXDOMAIN: u16 = 3;
const NOTIMP: u16 = 4;
const REFUSED: u16 = 5;
const BADVERS: u16 = 16;

/// Runs its agent with these keys of `[dns]`, one instance of `web` and sixty of `many`.
fn start(node: &Node, cluster: &Cluster, keys: &str) {
    let mut settings = cluster.settings().clone();
    settings.store = "embedded".to_owned();
    node.configure(&settings);
    let text = std::fs::read_to_string(node.config_file()).expect("a configuration");
    let keys = format!("[dns]\nrecursion = \"off\"\n{keys}\n");
    std::fs::write(node.config_file(), text.replace("[dns]\n", &keys)).expect("written");
    for n in 0..=60 {
        let (name, id) = if n == 0 { ("web", "web-0".to_owned()) } else { ("many", format!("many-{n}")) };
        let service = ServiceFile::new(name, 9000).check("").id(&id);
        node.write_service_file(
            &format!("{id}.toml"),
            &service.key("address", &format!("\"10.99.0.{n}\"")).text(),
        );
    }
    node.start_agent();
    node.wait_ready(SOON);
    eventually!(SOON, node.serving("many").len(), |count| *count == 60);
    eventually!(SOON, node.serving("web").len(), |count| *count == 1);
}

fn line(node: &Node) -> Line {
    Line::open(node.namespace(), node.at(53), Query::new(WEB, A))
}

fn ask_over_tcp(node: &Node, query: &Query) -> Answer {
    let answers = over_tcp(node.namespace(), node.at(53), &[query.octets()]);
    let answer = answers.first().and_then(|octets| Answer::read(octets));
    answer.unwrap_or_else(|| panic!("to {query:?}: {answers:x?}"))
}

fn option(answer: &Answer, code: u16) -> Option<&[u8]> {
    answer.opt.as_ref()?.option(code)
}

fn has_soa(records: &[plexus_tests::client::octets::Record]) -> bool {
    records.len() == 1 && records[0].kind == SOA
}

/// What holds of an answer over either transport.
type Holds = fn(&Answer) -> bool;

/// A server that is up to date with RFC 6891.
fn edns() -> Vec<(&'static str, Query, Holds)> {
    let soa = || Query::new(ZONE, SOA);
    let edns = || soa().edns(4096);
    vec![
        ("dns", soa(), |a| a.rcode == NOERROR && has_soa(&a.answers) && a.has(flag::AA) && a.opt.is_none()),
        ("flags", Query { flags: flag::AA | flag::RA | flag::Z | flag::AD, ..soa() }, |a| {
            a.rcode == NOERROR && has_soa(&a.answers) && a.flags == flag::QR | flag::AA
        }),
        ("rd", soa(), |a| a.has(flag::RD) && !a.has(flag::RA)),
        ("type666", Query::new(ZONE, 666), |a| {
            a.rcode == NOERROR && a.answers.is_empty() && has_soa(&a.authority)
        }),
        ("edns", edns(), |a| {
            let opt = a.opt.as_ref().expect("EDNS");
            a.rcode == NOERROR && has_soa(&a.answers) && opt.version == 0 && opt.payload == 1232
        }),
        ("edns1", edns().opt(|opt| opt.version = 1), |a| {
            let opt = a.opt.as_ref().expect("EDNS");
            a.rcode == BADVERS && a.answers.is_empty() && opt.version == 0 && !a.question.is_empty()
        }),
        ("ednsopt", edns().option(UNKNOWN, b"?"), |a| {
            a.rcode == NOERROR && has_soa(&a.answers) && option(a, UNKNOWN).is_none() && a.opt.is_some()
        }),
        ("edns1opt", edns().option(UNKNOWN, b"?").opt(|opt| opt.version = 1), |a| {
            a.rcode == BADVERS && a.answers.is_empty() && option(a, UNKNOWN).is_none() && a.opt.is_some()
        }),
        ("do", edns().opt(|opt| opt.flags = DO), |a| {
            a.rcode == NOERROR && a.opt.as_ref().is_some_and(|opt| opt.flags == DO)
        }),
        ("ednsflags", edns().opt(|opt| opt.flags = 0x7fff), |a| {
            a.rcode == NOERROR && a.opt.as_ref().is_some_and(|opt| opt.flags == 0)
        }),
        ("docookie", edns().option(COOKIE, CLIENT_COOKIE).opt(|opt| opt.flags = DO), |a| {
            let opt = a.opt.as_ref().expect("EDNS");
            let cookie = opt.option(COOKIE).expect("a cookie");
            a.rcode == NOERROR && opt.flags == DO && cookie.len() == 24 && cookie.starts_with(CLIENT_COOKIE)
        }),
        ("nsid", edns().option(NSID, b""), |a| {
            a.rcode == NOERROR && option(a, NSID).is_none() && a.opt.is_some()
        }),
        (
            "optlist",
            edns()
                .option(NSID, b"")
                .option(SUBNET, &[0, 1, 0, 0])
                .option(EXPIRE, b"")
                .option(COOKIE, CLIENT_COOKIE)
                .option(PADDING, &[0; 16]),
            |a| {
                let others = [SUBNET, EXPIRE, PADDING].iter().any(|code| option(a, *code).is_some());
                a.rcode == NOERROR && has_soa(&a.answers) && option(a, COOKIE).is_some() && !others
            },
        ),
        ("opcode15", Query { flags: 15 << 11, ..soa() }, |a| a.rcode == NOTIMP && a.answers.is_empty()),
        ("opcodeflg", Query { flags: 15 << 11 | flag::TC | flag::RD, ..soa() }, |a| {
            a.rcode == NOTIMP && a.flags == flag::QR | 15 << 11 | flag::RD
        }),
    ]
}

/// RFC 2308, 8020 and 8482, and what is refused.
fn answers() -> Vec<(&'static str, Query, Holds)> {
    vec![
        ("no such name (RFC 2308)", Query::new(NONE, A), |a| {
            let soa = a.authority.first().expect("SOA");
            let least = soa.data.last_chunk::<4>().map(|octets| u32::from_be_bytes(*octets));
            a.rcode == NXDOMAIN && has_soa(&a.authority) && Some(soa.ttl) == least
        }),
        ("no such type (RFC 2308)", Query::new(WEB, TXT), |a| {
            a.rcode == NOERROR && a.answers.is_empty() && has_soa(&a.authority)
        }),
        ("nothing under nothing (RFC 8020)", Query::new("a.b.nothing.mesh.internal", A), |a| {
            a.rcode == NXDOMAIN
        }),
        ("names above names (RFC 8020)", Query::new("node.mesh.internal", A), |a| {
            a.rcode == NOERROR && a.answers.is_empty()
        }),
        ("ANY (RFC 8482)", Query::new(WEB, ANY), |a| {
            a.rcode == NOERROR && a.answers.len() == 1 && a.answers[0].kind == HINFO
        }),
        ("spelling", Query::new("WeB.mesh.INTERNAL", A), |a| {
            a.question == Query::new("WeB.mesh.INTERNAL", A).question() && a.answers.len() == 1
        }),
        ("AXFR", Query::new(ZONE, 252), |a| a.rcode == REFUSED),
        ("outside", Query::new("example.com", A), |a| a.rcode == REFUSED && !a.has(flag::RA)),
        ("version.bind", Query { class: CHAOS, ..Query::new("version.bind", TXT) }, |a| a.rcode == REFUSED),
        ("id.server", Query { class: CHAOS, ..Query::new("id.server", TXT) }, |a| a.rcode == REFUSED),
        ("Hesiod", Query { class: 4, ..Query::new(WEB, A) }, |a| a.rcode == REFUSED),
        ("odd cookie (RFC 7873)", Query::new(WEB, A).edns(1232).option(COOKIE, b"1234567"), |a| {
            a.rcode == FORMERR && a.opt.is_some()
        }),
    ]
}

#[test]
fn each_question_of_the_compliance_tests_is_answered_as_it_is_to_be() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    start(a, &cluster, "");
    let line = line(a);
    for (name, query, holds) in edns().into_iter().chain(answers()) {
        for (transport, answer) in [("UDP", line.ask(&query)), ("TCP", ask_over_tcp(a, &query))] {
            assert!(holds(&answer), "{name} over {transport}: {answer:?}");
        }
    }
    // What fits, where and how much: edns@512, edns512tcp, and what has no EDNS.
    for (query, most) in [
        (Query::new(MANY, A), 512),
        (Query::new(MANY, A).edns(512), 512),
        (Query::new(MANY, A).edns(0), 512),
        (Query::new(MANY, A).edns(800), 800),
        (Query::new(MANY, A).edns(u16::MAX), 1232),
    ] {
        let answer = line.ask(&query);
        // As many as there is room for: who cannot ask over TCP has those.
        let is_cut = answer.has(flag::TC) && answer.answers.len() < 60 && answer.length + 64 > most;
        assert!(is_cut || (answer.answers.len() == 60 && most == 1232), "{answer:?}");
        assert!(answer.length <= most && answer.opt.is_some() == query.opt.is_some(), "{answer:?}");
        let whole = ask_over_tcp(a, &query);
        assert!(!whole.has(flag::TC) && whole.answers.len() == 60, "{whole:?}");
    }
    // RFC 7828: a connection's time is told where there is a connection.
    let keepalive = Query::new(WEB, A).edns(1232).option(KEEPALIVE, b"");
    assert_eq!(option(&ask_over_tcp(a, &keepalive), KEEPALIVE), Some(&[0, 100][..]));
    assert_eq!(option(&line.ask(&keepalive), KEEPALIVE), None);
    // RFC 7766: as many questions on a connection as there are, each answered once.
    let many: Vec<Vec<u8>> =
        (0..50).map(|id| Query::new(if id % 2 == 0 { WEB } else { MANY }, A).with_id(id)).collect();
    let mut ids: Vec<u16> = over_tcp(a.namespace(), a.at(53), &many)
        .iter()
        .map(|answer| u16::from_be_bytes([answer[0], answer[1]]))
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..50).collect::<Vec<_>>());
}

#[test]
fn a_client_gets_a_cookie_and_is_known_by_it() {
    needs!("etcd", "etcdctl", "dig");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    start(a, &cluster, "identity = \"node a\"\nversion = \"seven\"");
    let line = line(a);
    let query = |data: &[u8]| Query::new(WEB, A).edns(1232).option(COOKIE, data);
    let worth =
        |kind: &str| a.metric("plexus_dns_cookies_total", &format!("cookie=\"{kind}\"")).unwrap_or(0.0);
    let first = line.ask(&query(CLIENT_COOKIE));
    let cookie = option(&first, COOKIE).expect("a cookie").to_vec();
    assert_eq!([worth("new"), worth("valid")], [1.0, 0.0]);
    let again = line.ask(&query(&cookie));
    assert_eq!(option(&again, COOKIE), Some(&cookie[..]));
    assert_eq!([worth("new"), worth("valid")], [1.0, 1.0]);
    let mut forged = cookie;
    forged[20] ^= 1;
    assert_eq!(line.ask(&query(&forged)).answers.len(), 1, "answered as whoever has none");
    assert_eq!(worth("invalid"), 1.0);
    for length in 0..50 {
        let is_one = length == 8 || (16..=40).contains(&length);
        let answer = line.ask(&query(&vec![7; length]));
        assert_eq!(answer.rcode, if is_one { NOERROR } else { FORMERR }, "{length} octets");
    }
    assert_eq!(worth("malformed"), 24.0);
    let dig = |arguments: &[&str]| {
        let server = format!("@{}", a.address());
        a.exec("dig", &[&[server.as_str(), "+time=5", "+tries=1"], arguments].concat()).stdout
    };
    let told = dig(&[WEB]);
    assert!(told.contains("COOKIE: ") && told.contains("(good)"), "{told}");
    // Who it is, since it was told to say so.
    assert!(dig(&["+nsid", WEB]).contains("(\"node a\")"), "{}", dig(&["+nsid", WEB]));
    for (name, text) in [
        ("id.server", "\"node a\""),
        ("HOSTNAME.bind", "\"node a\""),
        ("version.bind", "\"seven\""),
        ("version.server", "\"seven\""),
    ] {
        assert_eq!(dig(&["+short", "CH", "TXT", name]).trim(), text, "{name}");
    }
    assert!(dig(&["CH", "TXT", "authors.bind"]).contains("status: REFUSED"));
}

/// What no client sends that means well, each under its name.
fn broken() -> Vec<(String, Vec<u8>)> {
    let plain = Query::new(WEB, A).octets();
    let edns = Query::new(WEB, A).edns(1232).option(COOKIE, CLIENT_COOKIE).octets();
    let opt = Query::new(WEB, A).edns(1232).opt.expect("EDNS").octets();
    let with = |at: usize, octets: &[u8]| {
        let mut packet = plain.clone();
        packet.splice(at..at + octets.len(), octets.iter().copied());
        packet
    };
    let header =
        |counts: [u8; 4]| [&ID.to_be_bytes(), &[1, 0][..], &counts.map(|c| [0, c]).concat()].concat();
    let question = |name: &[u8]| [&header([1, 0, 0, 0]), name, &[0, 1, 0, 1]].concat();
    let body = &plain[12..];
    let mut all = Vec::new();
    for (name, packet) in [("a plain question", &plain), ("one with EDNS", &edns)] {
        all.extend((0..packet.len()).map(|end| (format!("{name}, cut after {end}"), packet[..end].to_vec())));
    }
    let mut add = |name: &str, packet: Vec<u8>| all.push((name.to_owned(), packet));
    add("a response", with(2, &[0x81, 0]));
    add("a response that is too short", with(2, &[0x81])[..8].to_vec());
    for opcode in 1..16 {
        add("another opcode", with(2, &[opcode << 3]));
    }
    for (name, counts) in [
        ("no question", [0, 0, 0, 0]),
        ("two questions claimed", [2, 0, 0, 0]),
        ("an answer claimed", [1, 1, 0, 0]),
        ("an authority claimed", [1, 0, 1, 0]),
        ("a record claimed", [1, 0, 0, 1]),
        ("more records than anybody needs", [1, 0, 0, 255]),
    ] {
        add(name, [&header(counts), body].concat());
    }
    add("everything claimed", with(4, &[255; 8]));
    add("two questions", [&header([2, 0, 0, 0]), body, body].concat());
    add("OPT as an answer", [&header([1, 1, 0, 0]), body, &opt].concat());
    add("OPT as an authority", [&header([1, 0, 1, 0]), body, &opt].concat());
    add("two OPTs", [&header([1, 0, 0, 2]), body, &opt, &opt].concat());
    add("OPT of a name", [&header([1, 0, 0, 1]), body, b"\x01a", &opt].concat());
    add("OPT of a pointer", [&header([1, 0, 0, 1]), body, &[0xc0, 12], &opt[1..]].concat());
    add("octets behind the question", [plain.as_slice(), b"x"].concat());
    add("octets behind OPT", [edns.as_slice(), b"x"].concat());
    add("an option longer than OPT", {
        let mut packet = edns.clone();
        let at = packet.len() - CLIENT_COOKIE.len() - 1;
        packet[at] += 1;
        packet
    });
    add("a name that points to itself", question(&[0xc0, 12]));
    add("a name that points ahead", question(&[0xc0, 40]));
    add("a name that points into the header", question(&[0xc0, 0]));
    add("a name that points back into itself", question(&[1, b'a', 0xc0, 12]));
    add("names that point to each other", question(&[0xc0, 14, 0xc0, 12]));
    add("a label of 64", question(&[&[64][..], &[b'a'; 64], &[0]].concat()));
    add("a label of an unknown kind", question(&[0x80, b'a', 0]));
    add("a name of 256", question(&[[&[63][..], &[b'a'; 63]].concat().repeat(4), vec![0]].concat()));
    add("a name without an end", question(&[1, b'a'].repeat(2000)));
    add("nothing", Vec::new());
    add("zeros", vec![0; 12]);
    add("ones", vec![0xff; 600]);
    add("a long datagram", [plain.as_slice(), &[0; 60_000]].concat());
    all
}

#[test]
fn broken_packets_are_counted_and_whatever_comes_behind_is_answered() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    start(a, &cluster, "");
    let counted = || {
        let outcomes =
            ["formerr", "not_implemented"].map(|outcome| ("queries", format!("outcome=\"{outcome}\"")));
        let reasons = ["too_short", "not_a_query"].map(|reason| ("dropped", format!("reason=\"{reason}\"")));
        let all = outcomes.into_iter().chain(reasons);
        all.map(|(what, label)| a.metric(&format!("plexus_dns_{what}_total"), &label).unwrap_or(0.0))
            .sum::<f64>()
    };
    let (line, before, all) = (line(a), counted(), broken());
    for (name, packet) in &all {
        // Behind each of them a question is asked that has to be answered.
        if let Some(answer) = line.send(packet) {
            let rcode = u16::from(answer[3] & 0xf);
            assert!([FORMERR, NOTIMP].contains(&rcode), "{name}: {answer:x?}");
            assert!(answer.len() <= packet.len().max(12) + 11, "{name}: a broken packet is not amplified");
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "some hundreds")]
    let count = all.len() as f64;
    assert_eq!(counted() - before, count, "each once");
    assert_eq!(a.metric("plexus_dns_dropped_total", "reason=\"panic\""), Some(0.0));
    // From a port that cannot be answered to (no client's stack sends so): tested beside the code. Over TCP the same, one by one.
    for (name, packet) in all.iter().filter(|(_, packet)| packet.len() <= 4096) {
        for answer in over_tcp(a.namespace(), a.at(53), std::slice::from_ref(packet)) {
            assert!([FORMERR, NOTIMP].contains(&u16::from(answer[3] & 0xf)), "{name} over TCP: {answer:x?}");
        }
    }
    assert_eq!(line.ask(&Query::new(WEB, A)).answers.len(), 1);
}

#[test]
fn a_network_that_asks_too_much_gets_little_over_udp_and_all_of_it_over_tcp_or_with_a_cookie() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    start(a, &cluster, "rate_limit = 20\nrate_limit_exempt = []");
    let with_cookie = |data: &[u8]| Query::new(WEB, A).edns(1232).option(COOKIE, data);
    let told = ask_over_tcp(a, &with_cookie(CLIENT_COOKIE));
    // What asks behind each question shows a cookie, so it is always answered.
    let canary = with_cookie(option(&told, COOKIE).expect("a cookie"));
    let line = Line::open(a.namespace(), a.at(53), canary.clone());
    let query = Query::new(WEB, A);
    let (mut whole, mut cut, mut gone) = (0, 0, 0);
    for _ in 0..400 {
        match line.send(&query.octets()).map(|octets| Answer::read(&octets).expect("an answer")) {
            None => gone += 1,
            Some(answer) if answer.has(flag::TC) => {
                assert!(answer.answers.is_empty() && answer.question == query.question(), "{answer:?}");
                cut += 1;
            }
            Some(_) => whole += 1,
        }
    }
    let seen = format!("{whole} whole, {cut} cut short, {gone} not sent");
    assert!(whole >= 20 && cut > 0 && gone > 0, "{seen}");
    let count = |name: &str, label: &str| a.metric(name, label).unwrap_or_default();
    assert_eq!(count("plexus_dns_rate_limited_total", "answer=\"records\""), f64::from(cut + gone), "{seen}");
    assert_eq!(count("plexus_dns_dropped_total", "reason=\"rate_limited\""), f64::from(gone), "{seen}");
    assert_eq!(ask_over_tcp(a, &query).answers.len(), 1);
    // Another kind of answer has its own measure; more than little is for those who have shown who they are.
    assert_eq!(line.ask(&Query::new(NONE, A)).rcode, NXDOMAIN);
    // Its time may not be over yet.
    let many = Query::new(MANY, A).edns(1232).octets();
    let small = eventually!(SOON, line.send(&many), Option::is_some).unwrap_or_default();
    assert!(small.len() <= 512, "{small:x?}");
    let known = option(&told, COOKIE).expect("a cookie");
    let large = line.ask(&Query::new(MANY, A).edns(1232).option(COOKIE, known));
    assert!(large.answers.len() == 60 || large.has(flag::TC), "{large:?}");
    let log = || a.agent_log();
    assert_eq!(log().matches("DNS answers over UDP are limited").count(), 1, "{}", log());
    let _ = eventually!(SOON, log(), |log| log.contains("DNS answers are no longer limited"));
}
