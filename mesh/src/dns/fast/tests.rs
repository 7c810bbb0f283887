//! The short road against the long one: whatever the short one answers, the long one answers the same.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Asked};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nerve::tasks::Tasks;
use proptest::prelude::*;
use synapse::catalog::{Catalog, Change, Writer};

use super::*;
use crate::dns::clients::Clients;
use crate::dns::config::RateLimit;
use crate::dns::forward::{Forwarder, Means, Servers, Source};
use crate::dns::message::{Handler, Reply};
use crate::dns::metrics::{Dropped, Metrics, Transport};
use crate::dns::ttls::Ttls;

/// Both roads over one catalog.
struct Roads {
    fast: Fast,
    desk: RefCell<Desk>,
    handler: Handler,
    guard: Arc<Guard>,
    servers: Arc<Servers>,
    writer: Writer,
}

/// One of a kind, and another of one service.
fn ttls() -> Ttls {
    let ttl = |seconds: u32| format!("{seconds}s").parse::<Ttl>().unwrap();
    Ttls {
        services: ttl(3),
        virtual_addresses: ttl(4),
        nodes: ttl(6),
        of_services: [("d*".parse().unwrap(), ttl(0))].into_iter().collect(),
        ..Ttls::all(ttl(9), ttl(1))
    }
}

fn roads() -> Roads {
    let ranges = tokio::sync::watch::channel(Arc::from(["10.96.0.0/16".parse().unwrap()])).1;
    roads_of(&Config {
        virtual_ranges: ranges.into(),
        ttls: ttls(),
        alt_domains: vec!["consul".parse().unwrap(), "b.example".parse().unwrap()],
        ..Config::default()
    })
}

fn roads_of(config: &Config) -> Roads {
    let (catalog, mut writer) = Catalog::new();
    writer.set_freshness(Freshness::Live);
    let metrics = Arc::new(Metrics::default());
    let zone = Arc::new(Zone::new(config, catalog, 7));
    let means = Means::new(config, Tasks::new(), Arc::clone(&metrics));
    let servers = Arc::new(Servers::new(means, true));
    let forwarder = Forwarder::new(config, Arc::clone(&servers), Tasks::new(), Arc::clone(&metrics));
    let guard = Arc::new(Guard::new(config, Arc::clone(&metrics)));
    let handler = Handler::new(config, Arc::clone(&zone), forwarder, Arc::clone(&guard), metrics);
    let external = serde_json::from_value(serde_json::json!({ "external": "web.mesh.internal:80" })).unwrap();
    writer.apply([Change::PutSettings("ext".parse().unwrap(), Arc::new(external))]);
    let fast = Fast::new(config, zone, Arc::clone(&guard));
    let desk = RefCell::new(fast.desk());
    Roads { fast, desk, handler, guard, servers, writer }
}

fn record(json: serde_json::Value) -> Change {
    Change::PutInstance(Arc::new(serde_json::from_value(json).unwrap()))
}

/// What a client has for a cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Has {
    Nothing,
    ItsOwn,
    Ours,
    Another,
}

/// The option's data.
fn cookie(roads: &Roads, has: Has, client: IpAddr) -> Option<Vec<u8>> {
    let own = b"CLIENTCO".to_vec();
    match has {
        Has::Nothing => None,
        Has::ItsOwn => Some(own),
        Has::Ours => {
            let asked = guard::Asked { cookie: Sent::read(&own), ..guard::Asked::plain(1232, false) };
            let met = roads.guard.meet(Some(&asked), client, Transport::Udp, &roads.guard.moment());
            met.said.and_then(|said| said.cookie).map(Vec::from)
        }
        Has::Another => Some([own, vec![1; 16]].concat()),
    }
}

fn query(
    name: &str,
    kind: RecordType,
    edns: Option<(u16, bool)>,
    cookie: Option<Vec<u8>>,
    flags: u16,
) -> Vec<u8> {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.add_query(Asked::query(Name::from_ascii(name).unwrap(), kind));
    message.edns = edns.map(|(payload, dnssec_ok)| {
        let mut edns = Edns::new();
        edns.set_max_payload(payload).set_dnssec_ok(dnssec_ok);
        if let Some(cookie) = cookie {
            edns.options_mut().insert(EdnsOption::Unknown(guard::COOKIE, cookie));
        }
        edns
    });
    let mut octets = message.to_vec().unwrap();
    wire::put_u16(&mut octets, 2, flags);
    octets
}

/// The two answers; `None` where the short road leaves it to the other.
fn both(roads: &Roads, query: &[u8], client: IpAddr) -> (Option<(Vec<u8>, Verdict)>, Vec<u8>) {
    let mut out = b"before".to_vec();
    let moment = roads.fast.moment(&mut roads.desk.borrow_mut()).unwrap();
    let made = roads.fast.answer(query, client, &moment, &mut roads.desk.borrow_mut(), &mut out);
    assert_eq!(&out[..6], b"before");
    assert!(made.is_some() || out.len() == 6);
    let Reply::Now(slow) = roads.handler.handle(query, (client, 4000).into(), Transport::Udp) else {
        panic!("of the domain");
    };
    (made.map(|made| (out.split_off(6), made.verdict)), slow)
}

fn set(records: &[Record]) -> BTreeSet<String> {
    records.iter().map(Record::to_string).collect()
}

/// Without what a cookie says of the time, which goes on between two answers.
fn edns_of(message: &Message) -> Option<(u16, bool, Vec<Vec<u8>>)> {
    let edns = message.edns.as_ref()?;
    let options = edns.options().as_ref().iter().map(|(code, option)| {
        let (code, mut data) = (u16::from(*code), Vec::<u8>::try_from(option).unwrap());
        if code == guard::COOKIE {
            assert_eq!(data.len(), 24);
            data.truncate(12);
        }
        [code.to_be_bytes().to_vec(), data].concat()
    });
    Some((edns.max_payload(), edns.flags().dnssec_ok, options.collect()))
}

/// Is one as good as the other? Where there is more than an answer holds, each has its own choice.
fn assert_same(fast: &[u8], slow: &[u8], is_choice: bool, most: usize) {
    let [one, other] = [fast, slow].map(|octets| Message::from_vec(octets).unwrap());
    if other.metadata.truncation && !one.metadata.truncation {
        assert!(is_choice, "{} of {most}", fast.len());
        return;
    }
    assert_eq!(one.metadata, other.metadata);
    assert_eq!(&fast[..wire::HEADER][..6], &slow[..wire::HEADER][..6]);
    assert_eq!(
        one.queries[0].name().to_ascii(),
        other.queries[0].name().to_ascii(),
        "in the client's spelling"
    );
    assert_eq!((&one.queries, edns_of(&one)), (&other.queries, edns_of(&other)));
    // The short road has the domain in the client's spelling there.
    let owners = |message: &Message| {
        set(&message.authorities).iter().map(|text| text.to_lowercase()).collect::<Vec<_>>()
    };
    assert_eq!(owners(&one), owners(&other));
    assert_eq!(one.answers.len(), other.answers.len());
    for message in [&one, &other] {
        assert_eq!(set(&message.answers).len(), message.answers.len(), "each once");
        let hosts: BTreeSet<_> = (message.answers.iter())
            .filter_map(
                |record| if let RData::SRV(srv) = &record.data { Some(srv.target.to_string()) } else { None },
            )
            .collect();
        let named: BTreeSet<_> = message.additionals.iter().map(|record| record.name.to_string()).collect();
        assert!(named.is_empty() || named == hosts, "{hosts:?} {named:?}");
    }
    if !is_choice {
        assert_eq!(set(&one.answers), set(&other.answers));
        // Written closer, more of them fit.
        assert!(other.additionals.is_empty() || set(&one.additionals) == set(&other.additionals));
    }
}

fn instances() -> impl Strategy<Value = Vec<Change>> {
    let address = prop_oneof![
        (1..20u8).prop_map(|last| IpAddr::from([192, 0, 2, last])),
        (1..4u16).prop_map(|last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last])),
        Just(IpAddr::from(Ipv4Addr::new(198, 51, 100, 1).to_ipv6_mapped())),
    ];
    let health = prop_oneof![4 => Just("passing"), 1 => Just("critical"), 1 => Just("warning")];
    let one = ("web|db", 0..40u8, address, 80..83u16, health, any::<bool>());
    let one = one.prop_map(|(service, id, address, port, health, backup)| {
        // Of two at one address and port an answer has one or the other: they are alike.
        let (node, weight) = (if address.is_ipv4() { "a" } else { "b" }, port - 79);
        record(serde_json::json!({
            "service": service, "id": id.to_string(), "node": node, "address": address, "port": port,
            "health": health, "backup": backup, "weight": weight, "tags": ["v1"], "zone": "east", "labels": {"role": "x"},
        }))
    });
    proptest::collection::vec(one, 0..24)
}

fn nodes(a: u8) -> [Change; 2] {
    [("a", format!("192.0.2.{a}")), ("b", "2001:db8::1".to_owned())].map(|(name, address)| {
        let node = serde_json::json!({"name": name, "address": address, "version": "0", "zone": "east"});
        Change::PutNode(Arc::new(serde_json::from_value(node).unwrap()))
    })
}

fn has() -> impl Strategy<Value = Has> {
    proptest::sample::select(vec![Has::Nothing, Has::ItsOwn, Has::Ours, Has::Another])
}

const NAMES: &str = "(web|db|ext|ext\\.service|_ext\\._tcp|east|service|dc1|web\\.service|WEB\\.Service|web\\.service\\.dc1|v1\\.web\\.service|web\\.zone\\.east|zone\\.east|0\\.web|WeB|nothing|node|addr|_web|[a-z]{1,63}|x\\.y|_web\\._tcp|_db\\._UDP|_x\\._tcp|tasks\\.web|a\\.node|B\\.NODE|c\\.node|\
    ip-192-0-2-1\\.addr|ns\\.addr|_http\\._tcp\\.web|_tcp)\\.((mesh|MeSh)\\.internal|[cC]onsul|b\\.example)\\.|mesh\\.internal\\.|consul\\.";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn both_roads_give_the_same_answer(
        (before, more, a, vips) in (instances(), instances(), 1..5u8, 0..4u8),
        queries in proptest::collection::vec(
            (NAMES, 0..6usize, proptest::option::of((0..4096u16, any::<bool>(), has())), any::<bool>(), any::<bool>()), 1..24),
    ) {
        let mut roads = roads();
        let vips = ["10.96.0.1", "10.96.0.2", "10.97.0.1", "fd00::1"].into_iter().take(vips.into());
        let claims = vips.map(|vip| Change::PutVip(vip.parse().unwrap(), "db".parse().unwrap()));
        roads.writer.apply(before.into_iter().chain(nodes(1)).chain(claims));
        let changes = [Vec::new(), more, nodes(a).into()];
        for (step, change) in changes.into_iter().enumerate() {
            roads.writer.apply(change);
            for (name, kind, edns, desired, private) in &queries {
                let kinds = [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::TXT, RecordType::ANY, RecordType::SOA];
                let flags = if *desired { flag::RECURSION_DESIRED | flag::CHECKING_DISABLED } else { flag::AUTHENTIC_DATA };
                let client = if *private { [127, 0, 0, 1] } else { [8, 8, 8, 8] };
                let (has, plain) = (edns.map_or(Has::Nothing, |edns| edns.2), edns.map(|(most, signed, _)| (most, signed)));
                let query = query(name, kinds[*kind], plain, cookie(&roads, has, client.into()), flags);
                let (fast, slow) = both(&roads, &query, client.into());
                prop_assert!(*private || has == Has::Ours || slow.len() <= 512, "more is no stranger's");
                if let Some((fast, verdict)) = fast {
                    let service = roads.fast.zone.catalog().service(name.trim_start_matches('_').split('.').next().unwrap().to_lowercase().as_str());
                    let is_choice = service.is_some_and(|service| service.serving().count() > 8);
                    // Who shows nothing gets little.
                    let most = if *private || has == Has::Ours { 1232 } else { 512 };
                    let most = usize::from(plain.map_or(512, |(payload, _)| payload.clamp(512, most)));
                    assert_same(&fast, &slow, is_choice, most);
                    let code = Message::from_vec(&slow).unwrap().metadata.response_code;
                    prop_assert_eq!(verdict == Verdict::NxDomain, code == hickory_proto::op::ResponseCode::NXDomain, "step {}", step);
                    prop_assert!(fast.len() <= most);
                }
            }
        }
    }

    #[test]
    fn no_octets_make_it_panic_or_leave_anything(octets in proptest::collection::vec(any::<u8>(), 0..120), plain: bool) {
        let mut octets = octets;
        if plain && octets.len() > 12 {
            octets[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        let roads = roads();
        let (moment, mut out) = (roads.fast.moment(&mut roads.desk.borrow_mut()).unwrap(), Vec::new());
        let client = IpAddr::from([127, 0, 0, 1]);
        let verdict = roads.fast.answer(&octets, client, &moment, &mut roads.desk.borrow_mut(), &mut out);
        prop_assert!(verdict.is_some() || out.is_empty());
    }
}

#[test]
fn a_stranger_gets_so_many_answers_a_second_by_both_roads_together() {
    let roads = roads();
    let stranger = IpAddr::from([8, 8, 8, 8]);
    let ask = |has, kind| {
        let cookie = cookie(&roads, has, stranger);
        query("nothing.mesh.internal.", kind, Some((1232, false)), cookie, flag::RECURSION_DESIRED)
    };
    let is_cut = |octets: &[u8]| {
        let message = Message::from_vec(octets).unwrap();
        assert!(message.edns.is_some() && message.queries.len() == 1);
        message.metadata.truncation && message.authorities.is_empty()
    };
    let (mut whole, mut cut, mut gone) = (0, 0, 0);
    let mut count = |octets: &[u8]| match octets {
        [] => gone += 1,
        octets if is_cut(octets) => cut += 1,
        _ => whole += 1,
    };
    let moment = roads.fast.moment(&mut roads.desk.borrow_mut()).unwrap();
    for _ in 0..300 {
        let mut out = Vec::new();
        let octets = ask(Has::ItsOwn, RecordType::A);
        assert!(
            roads.fast.answer(&octets, stranger, &moment, &mut roads.desk.borrow_mut(), &mut out).is_some()
        );
        count(&out);
        match roads.handler.handle(
            &ask(Has::Another, RecordType::TXT),
            (stranger, 4000).into(),
            Transport::Udp,
        ) {
            Reply::Now(octets) => count(&octets),
            Reply::Drop(Dropped::RateLimited) => count(&[]),
            _ => panic!("of the domain"),
        }
    }
    assert!((200..300).contains(&whole), "{whole} whole, {cut} cut short, {gone} not sent");
    assert!(cut > 100 && gone > 100, "{whole} whole, {cut} cut short, {gone} not sent");
    let Reply::Now(proven) =
        roads.handler.handle(&ask(Has::Ours, RecordType::TXT), (stranger, 4000).into(), Transport::Udp)
    else {
        panic!("a cookie is a proof")
    };
    assert!(!is_cut(&proven));
    let over = |transport| {
        roads.handler.handle(&ask(Has::Nothing, RecordType::TXT), (stranger, 4000).into(), transport)
    };
    assert!(matches!(over(Transport::Tcp), Reply::Now(octets) if !is_cut(&octets)));
}

/// Of a resolver that is open to all, whose upstream is never there.
#[tokio::test]
async fn what_is_asked_of_others_counts_when_it_is_answered() {
    let limit = RateLimit { per_second: NonZeroU32::MIN, slip: 0, exempt: Clients::private() };
    let config = Config {
        recursion: RecursionFor::Everyone,
        upstreams: Upstreams::List(vec!["127.0.0.1:1".parse().unwrap()]),
        rate_limit: Some(limit),
        ..Config::default()
    };
    let roads = roads_of(&config);
    assert!(roads.servers.replace(Source { config: &config, listen: &[] }.read().unwrap()));
    let ask = |name: &str, client: [u8; 4]| {
        let query = query(name, RecordType::A, None, None, flag::RECURSION_DESIRED);
        match roads.handler.handle(&query, (IpAddr::from(client), 4000).into(), Transport::Udp) {
            Reply::Later(later) => later,
            _ => panic!("nobody knows it yet"),
        }
    };
    let stranger = [8, 8, 8, 8];
    let (one, two, private) =
        (ask("a.example.", stranger), ask("b.example.", stranger), ask("c.example.", [10, 0, 0, 1]));
    let sent = [one.wait_over_udp().await, two.wait_over_udp().await, private.wait_over_udp().await];
    assert_eq!(sent.map(|octets| octets.is_some()), [true, false, true]);
}

#[test]
fn what_most_ask_takes_the_short_road() {
    let mut roads = roads();
    roads.writer.apply(nodes(1));
    for (id, address) in [("1", "192.0.2.1"), ("2", "192.0.2.2")] {
        roads.writer.apply([record(
            serde_json::json!({"service": "web", "id": id, "node": "a", "address": address, "port": 80}),
        )]);
    }
    let client = IpAddr::from([127, 0, 0, 1]);
    let verdict = |name: &str, kind, (edns, has)| {
        let query = query(name, kind, edns, cookie(&roads, has, client), flag::RECURSION_DESIRED);
        both(&roads, &query, client).0.map(|(_, verdict)| verdict)
    };
    let edns = Some((1232, false));
    for edns in [
        (None, Has::Nothing),
        (edns, Has::Nothing),
        (edns, Has::ItsOwn),
        (edns, Has::Ours),
        (edns, Has::Another),
    ] {
        for (name, kind, expected) in [
            ("web.mesh.internal.", RecordType::A, Some(Verdict::Answered)),
            ("web.mesh.internal.", RecordType::AAAA, Some(Verdict::NoData)),
            ("web.mesh.internal.", RecordType::SRV, Some(Verdict::Answered)),
            ("_web._tcp.mesh.internal.", RecordType::SRV, Some(Verdict::Answered)),
            ("a.node.mesh.internal.", RecordType::A, Some(Verdict::Answered)),
            ("nothing.mesh.internal.", RecordType::A, Some(Verdict::NxDomain)),
            ("web.consul.", RecordType::SRV, Some(Verdict::Answered)),
            ("nothing.b.example.", RecordType::A, Some(Verdict::NxDomain)),
            ("web.mesh.internal.", RecordType::TXT, None),
            ("ext.mesh.internal.", RecordType::A, None),
            ("ext.service.mesh.internal.", RecordType::SRV, None),
            ("_ext._tcp.mesh.internal.", RecordType::SRV, None),
            ("mesh.internal.", RecordType::SOA, None),
            ("example.com.", RecordType::A, None),
        ] {
            if name != "example.com." {
                assert_eq!(verdict(name, kind, edns), expected, "{name} {kind} {edns:?}");
            }
        }
    }
    roads
        .writer
        .set_freshness(Freshness::Stale { since: std::time::SystemTime::now(), reason: "gone".to_owned() });
    assert!(roads.fast.moment(&mut roads.desk.borrow_mut()).is_none(), "what is stale is told");
}
