//! Whom names outside the domain are asked of: routes, connections that are kept, silence, letters, and what is given meanwhile.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hickory_proto::op::ResponseCode;
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::forwarding::{answer_to, scripted, upstream};
use super::*;
use crate::dns::config::Route;
use crate::dns::metrics::{Dropped, Forwarded, Label, Refusal, Transport, Verdict};

const ADDRESS: [u8; 4] = [192, 0, 2, 9];

fn route(domain: &str, upstreams: &[SocketAddr]) -> Route {
    let upstreams = upstreams.iter().copied().map(UpstreamAddress::udp).collect();
    Route { domain: domain.parse().unwrap(), upstreams }
}

fn with_ttl(mut answer: Message, ttl: u32) -> Message {
    answer.answers.iter_mut().for_each(|record| record.ttl = ttl);
    answer
}

fn code(answer: &Message) -> ResponseCode {
    answer.metadata.response_code
}

/// The code of the extended error that an answer carries (RFC 8914), by its octets.
fn carries(octets: &[u8], text: &str) -> bool {
    octets.windows(text.len()).any(|window| window == text.as_bytes())
}

async fn ask(world: &World, name: &str) -> Message {
    udp(world.address, &query(name, RecordType::A)).await
}

/// A silent upstream, and a switch that lets it answer.
async fn switched(ttl: u32) -> (SocketAddr, Arc<AtomicBool>, Arc<AtomicUsize>, Tasks) {
    let on = Arc::new(AtomicBool::new(true));
    let is_on = Arc::clone(&on);
    let (address, count, tasks) = scripted(move |query| match is_on.load(Ordering::SeqCst) {
        true => vec![with_ttl(answer_to(query, ADDRESS), ttl)],
        false => Vec::new(),
    })
    .await;
    (address, on, count, tasks)
}

#[tokio::test]
async fn a_route_has_its_names_asked_of_its_upstreams_and_of_nobody_else() {
    let (corp, corp_count, _corp_tasks) = scripted(|query| vec![answer_to(query, [10, 0, 0, 1])]).await;
    let (other, other_count, _other_tasks) = scripted(|query| vec![answer_to(query, ADDRESS)]).await;
    let routes = vec![route("corp.example", &[corp]), route("secret.corp.example", &[])];
    let world = start(Config { routes, ..forwarding_to(&[other]) });
    assert_eq!(addresses(&ask(&world, "a.Corp.example.").await), ["10.0.0.1"]);
    assert_eq!(addresses(&ask(&world, "a.example.").await), ["192.0.2.9"]);
    let asked = with_edns(query("a.secret.corp.example.", RecordType::A), 1232);
    let octets = octets_over_udp(world.address, &asked.to_vec().unwrap()).await.unwrap();
    assert!(carries(&octets, "a route of this node's configuration"), "{octets:?}");
    let blocked = Message::from_vec(&octets).unwrap();
    assert_eq!((code(&blocked), blocked.authorities.len()), (ResponseCode::NXDomain, 1));
    assert_eq!([corp_count, other_count].map(|count| count.load(Ordering::SeqCst)), [1, 1]);
    assert!(
        world.handle.explain("x.corp.example").why.contains(&format!("forwarded to {corp} by the route"))
    );
}

#[tokio::test]
async fn names_that_mean_nothing_elsewhere_stay_here() {
    let (far, count, _tasks) = scripted(|query| vec![answer_to(query, ADDRESS)]).await;
    let world = start(Config { routes: vec![route("cluster.local", &[far])], ..forwarding_to(&[far]) });
    assert_eq!(addresses(&ask(&world, "a.localhost.").await), ["127.0.0.1"]);
    for name in ["printer.local.", "x.onion.", "4.3.2.10.in-addr.arpa.", "nowhere.invalid."] {
        assert_eq!(code(&ask(&world, name).await), ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(world.metrics.forwarded.get(Forwarded::Local), 5);
    assert_eq!(count.load(Ordering::SeqCst), 0);
    assert_eq!(addresses(&ask(&world, "web.cluster.local.").await), ["192.0.2.9"]);
    let world = start(Config { forward_special_names: true, ..forwarding_to(&[far]) });
    assert_eq!(addresses(&ask(&world, "printer.local.").await), ["192.0.2.9"]);
}

#[tokio::test]
async fn off_is_off_for_routes_and_special_names_too() {
    let (far, count, _tasks) = scripted(|query| vec![answer_to(query, ADDRESS)]).await;
    let world = start(Config { routes: vec![route("corp.example", &[far])], ..config() });
    for name in ["a.corp.example.", "localhost.", "example.com."] {
        assert_eq!(code(&ask(&world, name).await), ResponseCode::Refused, "{name}");
    }
    assert_eq!(world.metrics.refused.get(Refusal::NoUpstream), 3);
    assert!(world.handle.upstreams().is_empty() && count.load(Ordering::SeqCst) == 0);
}

#[tokio::test]
async fn another_is_asked_long_before_a_silent_one_has_used_up_its_time() {
    let (silent, silent_count, _tasks) = scripted(|_| Vec::new()).await;
    let (good, _, _more_tasks) = scripted(|query| vec![answer_to(query, ADDRESS)]).await;
    let mut config = forwarding_to(&[silent, good]);
    config.limits.upstream_timeout = Duration::from_millis(600);
    let world = start(config);
    let begun = Instant::now();
    assert_eq!(addresses(&ask(&world, "a.example.").await), ["192.0.2.9"]);
    assert!(begun.elapsed() < Duration::from_millis(600), "{:?}", begun.elapsed());
    assert_eq!(world.metrics.forwarded.get(Forwarded::Hedged), 1);
    // What it did not answer is counted once its time is over, though nobody waited for it, and then it is passed over.
    eventually("it is found out", || world.handle.upstreams()[0].passed_over_for.is_some()).await;
    let before = silent_count.load(Ordering::SeqCst);
    let begun = Instant::now();
    assert_eq!(addresses(&ask(&world, "b.example.").await), ["192.0.2.9"]);
    assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
    assert_eq!(silent_count.load(Ordering::SeqCst), before);
    let [first, second] = &world.handle.upstreams()[..] else { panic!("two upstreams") };
    assert_eq!((first.unanswered, first.failures_in_a_row, second.answered), (1, 1, 2));
    assert!(first.problem.as_ref().unwrap().contains("did not answer within 600ms"));
}

#[tokio::test]
async fn with_all_of_them_down_all_are_tried() {
    let (one, on, _, _tasks) = switched(0).await;
    let (two, also_on, _, _more_tasks) = switched(0).await;
    let mut config = forwarding_to(&[one, two]);
    config.limits.upstream_timeout = Duration::from_millis(100);
    let world = start(config);
    [&on, &also_on].into_iter().for_each(|switch| switch.store(false, Ordering::SeqCst));
    assert_eq!(code(&ask(&world, "a.example.").await), ResponseCode::ServFail);
    assert!(world.handle.upstreams().iter().all(|upstream| upstream.passed_over_for.is_some()));
    also_on.store(true, Ordering::SeqCst);
    assert_eq!(addresses(&ask(&world, "b.example.").await), ["192.0.2.9"]);
}

#[tokio::test]
async fn an_answer_past_its_time_is_given_while_nobody_answers_and_replaced_when_somebody_does() {
    let (far, on, count, _tasks) = switched(1).await;
    let mut config = forwarding_to(&[far]);
    config.limits.upstream_timeout = Duration::from_millis(800);
    config.limits.client_patience = Duration::from_millis(100);
    config.prefetch = false;
    let world = start(config);
    assert_eq!(ask(&world, "a.example.").await.answers[0].ttl, 1);
    on.store(false, Ordering::SeqCst);
    let asked = with_edns(query("a.example.", RecordType::A), 1232).to_vec().unwrap();
    let mut stale = Vec::new();
    let given = timeout(PATIENCE, async {
        while !carries(&stale, "its time is over") {
            tokio::time::sleep(Duration::from_millis(50)).await;
            stale = octets_over_udp(world.address, &asked).await.unwrap();
        }
    });
    assert!(given.await.is_ok(), "nothing was given");
    let answer = Message::from_vec(&stale).unwrap();
    assert_eq!((addresses(&answer), answer.answers[0].ttl), (vec!["192.0.2.9".to_owned()], 1));
    // It goes on in the background, once for all, and then nobody is bothered for a while.
    eventually("the failure is known", || world.metrics.forwarded.get(Forwarded::Timeout) == 1).await;
    let before = count.load(Ordering::SeqCst);
    let begun = Instant::now();
    assert_eq!(ask(&world, "a.example.").await.answers.len(), 1);
    assert!(begun.elapsed() < Duration::from_millis(90), "{:?}", begun.elapsed());
    assert_eq!(count.load(Ordering::SeqCst), before);
    on.store(true, Ordering::SeqCst);
    let fresh = timeout(PATIENCE, async {
        while carries(&octets_over_udp(world.address, &asked).await.unwrap(), "its time is over") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(fresh.await.is_ok(), "it was never asked again");
}

#[tokio::test]
async fn what_is_asked_for_shortly_before_its_end_is_asked_anew_meanwhile() {
    let (far, _, count, _tasks) = switched(2).await;
    let world = start(forwarding_to(&[far]));
    let mut waited = 0;
    let all = timeout(PATIENCE, async {
        while world.metrics.forwarded.get(Forwarded::Prefetched) < 2 {
            assert_eq!(ask(&world, "a.example.").await.answers.len(), 1);
            waited += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(all.await.is_ok(), "{waited}");
    // Nobody waited but the first.
    assert_eq!(world.metrics.forwarded.get(Forwarded::CacheHit), waited - 1);
    eventually("both are answered", || world.metrics.forwarded.get(Forwarded::Answered) == 3).await;
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_failure_is_not_asked_for_again_at_once() {
    let (failing, count, _tasks) = scripted(|query| {
        let mut answer = answer_to(query, ADDRESS);
        answer.answers.clear();
        answer.metadata.response_code = ResponseCode::ServFail;
        vec![answer]
    })
    .await;
    let world = start(forwarding_to(&[failing]));
    assert_eq!(code(&ask(&world, "a.example.").await), ResponseCode::ServFail);
    let before = count.load(Ordering::SeqCst);
    for _ in 0..5 {
        assert_eq!(code(&ask(&world, "a.example.").await), ResponseCode::ServFail);
    }
    assert_eq!(count.load(Ordering::SeqCst), before);
    assert_eq!(world.metrics.forwarded.get(Forwarded::FailedBefore), 5);
}

#[tokio::test]
async fn questions_go_in_mixed_letters_and_one_that_gives_back_others_is_noticed() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let (good, _, _tasks) = scripted(move |query| {
        noted.lock().unwrap().push(query.queries[0].name().to_ascii());
        vec![answer_to(query, ADDRESS)]
    })
    .await;
    let name = "a-name-of-very-many-letters.example.";
    let answer = ask(&start(forwarding_to(&[good])), name).await;
    assert_eq!(answer.queries[0].name().to_ascii(), name, "the client's letters are its own");
    let sent = seen.lock().unwrap()[0].clone();
    assert!(sent.eq_ignore_ascii_case(name) && sent != name, "{sent}");
    // One that lowers them, and has no TCP to settle it.
    let (lowering, count, _more_tasks) = scripted(|query| {
        let mut answer = answer_to(query, ADDRESS);
        let lower = answer.queries[0].name().to_lowercase();
        answer.queries[0].set_name(lower);
        vec![answer]
    })
    .await;
    let world = start(forwarding_to(&[lowering]));
    for n in 0..5 {
        let name = format!("a-name-of-very-many-letters-{n}.example.");
        assert_eq!(addresses(&ask(&world, &name).await), ["192.0.2.9"], "{n}");
    }
    assert_eq!(world.metrics.dropped.get(Dropped::UpstreamCase), 3, "then it is not tried any more");
    assert_eq!(count.load(Ordering::SeqCst), 3 * 2 + 2);
    assert!(!world.handle.upstreams()[0].keeps_case);
}

/// A server over TCP that answers each pair of questions in the wrong order, and says how many connections it had.
async fn over_tcp() -> (SocketAddr, Arc<AtomicUsize>, Tasks) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count, tasks) =
        (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)), Tasks::new());
    let (counted, owner) = (Arc::clone(&count), tasks.clone());
    tasks.spawn_while_wanted("scripted upstream", async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            owner.spawn_while_wanted("its connection", async move {
                let mut kept: Option<Message> = None;
                while let Ok(length) = stream.read_u16().await {
                    let mut octets = vec![0; length.into()];
                    stream.read_exact(&mut octets).await.unwrap();
                    let query = Message::from_vec(&octets).unwrap();
                    let name = query.queries[0].name().to_ascii();
                    if name.starts_with("close") {
                        return;
                    }
                    match kept.take() {
                        None if name.starts_with("pair") => kept = Some(query),
                        first => {
                            write_framed(&mut stream, &answer_to(&query, ADDRESS)).await;
                            if let Some(first) = first {
                                write_framed(&mut stream, &answer_to(&first, ADDRESS)).await;
                            }
                        }
                    }
                }
            });
        }
    });
    (address, count, tasks)
}

fn over_tcp_to(server: SocketAddr) -> Config {
    let upstream = format!("tcp://{server}").parse().unwrap();
    Config { upstreams: Upstreams::List(vec![upstream]), ..config() }
}

#[tokio::test]
async fn a_connection_is_kept_and_shared_and_answers_come_in_any_order() {
    let (server, connections, _tasks) = over_tcp().await;
    let world = start(over_tcp_to(server));
    let pair = [query("pair-1.example.", RecordType::A), query("pair-2.example.", RecordType::A)];
    let [one, two] = &pair;
    let (one, two) = tokio::join!(udp(world.address, one), udp(world.address, two));
    assert_eq!([addresses(&one), addresses(&two)], [["192.0.2.9"], ["192.0.2.9"]]);
    for n in 0..5 {
        assert_eq!(addresses(&ask(&world, &format!("one-{n}.example.")).await), ["192.0.2.9"]);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    assert_eq!(world.metrics.dropped.get(Dropped::UpstreamMismatch), 0);
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_costs_no_answer() {
    let (server, connections, _tasks) = over_tcp().await;
    let world = start(over_tcp_to(server));
    assert_eq!(ask(&world, "one.example.").await.answers.len(), 1);
    assert_eq!(code(&ask(&world, "close.example.").await), ResponseCode::ServFail);
    let before = connections.load(Ordering::SeqCst);
    assert_eq!(ask(&world, "two.example.").await.answers.len(), 1);
    assert!(connections.load(Ordering::SeqCst) > before);
}

#[tokio::test]
async fn a_connection_without_a_word_is_closed() {
    let (server, connections, _tasks) = over_tcp().await;
    let mut config = over_tcp_to(server);
    config.limits.upstream_idle = Duration::from_millis(50);
    let world = start(config);
    let mut names = (0..).map(|n| format!("one-{n}.example."));
    let all = timeout(PATIENCE, async {
        while connections.load(Ordering::SeqCst) < 2 {
            assert_eq!(ask(&world, &names.next().unwrap()).await.answers.len(), 1);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert!(all.await.is_ok(), "it was kept for ever");
}

#[tokio::test]
async fn two_that_forward_to_each_other_end_it() {
    let first = bind_of(&[]);
    let mut config = forwarding_to(&[first.addresses()[0]]);
    config.limits.upstream_timeout = Duration::from_millis(200);
    let second = start(config);
    let (first, metrics) = (first, Arc::clone(&second.metrics));
    let mut to_second = forwarding_to(&[second.address]);
    (to_second.listen, to_second.limits.upstream_timeout) = (first.addresses(), Duration::from_millis(200));
    drop(first);
    let world = start(to_second);
    assert_eq!(code(&ask(&world, "a.example.").await), ResponseCode::ServFail);
    let questions = [&world.metrics, &metrics].map(|metrics| {
        Transport::ALL.iter().map(|way| metrics.queries(*way, Verdict::Forwarded)).sum::<u64>()
    });
    assert!(questions.iter().sum::<u64>() <= 12, "{questions:?}");
}

/// A server that is bound and does not run, for its address.
fn bind_of(servers: &[SocketAddr]) -> Bound {
    let (catalog, _writer) = Catalog::new();
    bind(forwarding_to(servers), catalog, Inherited::default(), Arc::new(Metrics::default()))
}

#[tokio::test]
async fn our_own_address_is_left_out_and_a_problem_where_there_is_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    std::fs::write(&path, "nameserver 127.0.0.1\n").unwrap();
    let mut config = Config { upstreams: Upstreams::ResolvConf(path.clone()), ..config() };
    config.listen = vec!["127.0.0.1:53".parse().unwrap()];
    let world = start(config);
    assert!(world.handle.upstreams().is_empty());
    let problems = world.handle.problems();
    assert!(problems.len() == 1 && problems[0].contains("this agent itself (127.0.0.1:53)"), "{problems:?}");
    std::fs::write(&path, "nameserver 127.0.0.1\nnameserver 192.0.2.53\n").unwrap();
    eventually("another is known", || world.handle.problems().is_empty()).await;
    std::fs::remove_file(&path).unwrap();
    eventually("it cannot be read", || !world.handle.problems().is_empty()).await;
    assert_eq!(world.handle.upstreams().len(), 1, "what was known stays");
}

#[tokio::test]
async fn an_upstream_of_ours_answers_over_tcp_as_over_udp() {
    let far = upstream();
    let world = start(over_tcp_to(far.address));
    assert_eq!(addresses(&ask(&world, "web.far.example.").await), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(far.metrics.queries(Transport::Tcp, Verdict::Answered), 1);
}
