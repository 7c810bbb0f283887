//! Names outside the domain. The upstream is a second server of ours, or a socket that misbehaves as told.

use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};

use super::*;
use crate::dns::metrics::{Dropped, Forwarded, Refusal};
use crate::dns::ttls::Ttls;

/// A server of `far.example`, one second of life an answer.
pub(super) fn upstream() -> World {
    let ttls = Ttls::all("1s".parse().unwrap(), "2s".parse().unwrap());
    let mut config = Config { domain: "far.example".parse().unwrap(), ttls, ..config() };
    config.limits.answers_udp = 200;
    start(config)
}

/// An upstream that sends what `reply` makes of each query, and how many queries it got.
pub(super) async fn scripted(
    reply: impl Fn(&Message) -> Vec<Message> + Send + 'static,
) -> (SocketAddr, Arc<AtomicUsize>, Tasks) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (address, count, tasks) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)), Tasks::new());
    let (counted, stop) = (Arc::clone(&count), tasks.stop_token());
    tasks.spawn("scripted upstream", async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, client) = tokio::select! {
                () = stop.cancelled() => return,
                received = socket.recv_from(&mut buffer) => received.unwrap(),
            };
            counted.fetch_add(1, Ordering::SeqCst);
            for answer in reply(&Message::from_vec(&buffer[..length]).unwrap()) {
                socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
            }
        }
    });
    (address, count, tasks)
}

pub(super) fn answer_to(query: &Message, address: [u8; 4]) -> Message {
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.add_query(query.queries[0].clone());
    answer.add_answer(Record::from_rdata(query.queries[0].name().clone(), 60, RData::A(A(address.into()))));
    answer
}

#[tokio::test]
async fn a_foreign_name_is_relayed_and_kept_for_its_ttl_and_not_longer() {
    let far = upstream();
    let config = Config { serve_stale: Duration::ZERO, ..forwarding_to(&[far.address]) };
    let world = start(config);
    let asked = query("Web.far.example.", RecordType::A);
    let answer = udp(world.address, &asked).await;
    assert_eq!(addresses(&answer), ["192.0.2.1", "192.0.2.2"]);
    assert!(answer.metadata.recursion_available && !answer.metadata.authoritative);
    assert_eq!(answer.queries[0].name().to_ascii(), "Web.far.example.");
    assert_eq!(far.drain.drain(PATIENCE).await, Drained::Completely);
    let kept = udp(world.address, &query("wEB.far.example.", RecordType::A)).await;
    assert_eq!(addresses(&kept), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(
        kept.queries[0].name().to_ascii(),
        "wEB.far.example.",
        "one entry, each client's own spelling"
    );
    assert_eq!(world.metrics.forwarded.get(Forwarded::CacheHit), 1);
    let gone = timeout(PATIENCE, async {
        while udp(world.address, &asked).await.metadata.response_code != ResponseCode::ServFail {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(gone.await.is_ok(), "it was kept for ever");
    assert_eq!(world.metrics.forwarded.get(Forwarded::Unreachable), 1);
}

#[tokio::test]
async fn negative_answers_are_relayed_with_their_soa() {
    let far = upstream();
    let world = start(forwarding_to(&[far.address]));
    let missing = udp(world.address, &query("nope.far.example.", RecordType::A)).await;
    assert_eq!((missing.metadata.response_code, missing.authorities.len()), (ResponseCode::NXDomain, 1));
    let no_data = udp(world.address, &query("web.far.example.", RecordType::MX)).await;
    assert_eq!((no_data.metadata.response_code, no_data.authorities.len()), (ResponseCode::NoError, 1));
    udp(world.address, &query("nope.far.example.", RecordType::A)).await;
    assert_eq!(world.metrics.forwarded.get(Forwarded::CacheHit), 1);
}

#[tokio::test]
async fn a_long_answer_comes_over_tcp_and_a_small_client_is_sent_there() {
    let mut far = upstream();
    far.writer
        .apply((0..150).map(|n| instance("many", &n.to_string(), &format!("198.51.100.{n}"), "passing")));
    let world = start(forwarding_to(&[far.address]));
    let asked = query("many.far.example.", RecordType::A);
    let cut = udp(world.address, &asked).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert_eq!(tcp(world.address, &asked).await.answers.len(), 150);
    assert_eq!(world.metrics.forwarded.get(Forwarded::CacheHit), 1);
    let Some(all) = dig(world.address, &["+short", "many.far.example"]).await else { return };
    assert_eq!(all.lines().count(), 150, "{all}");
}

#[tokio::test]
async fn an_upstream_that_is_down_silent_or_failing_gives_way_to_the_next() {
    let far = upstream();
    let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (silent, _, _tasks) = scripted(|_| Vec::new()).await;
    let (failing, _, _more_tasks) = scripted(|query| {
        let mut answer = answer_to(query, [0; 4]);
        answer.answers.clear();
        answer.metadata.response_code = ResponseCode::ServFail;
        vec![answer]
    })
    .await;
    for bad in [closed, silent, failing] {
        let mut config = forwarding_to(&[bad, far.address]);
        config.limits.upstream_timeout = Duration::from_millis(100);
        let world = start(config);
        assert_eq!(
            udp(world.address, &query("web.far.example.", RecordType::A)).await.answers.len(),
            2,
            "{bad}"
        );
    }
    let world = start(forwarding_to(&[failing]));
    let answer = udp(world.address, &query("web.far.example.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(world.metrics.forwarded.get(Forwarded::UpstreamFailed), 1);
}

#[tokio::test]
async fn with_no_upstream_answering_the_client_is_told_why() {
    let (silent, count, _tasks) = scripted(|_| Vec::new()).await;
    let mut config = forwarding_to(&[silent]);
    config.limits.upstream_timeout = Duration::from_millis(50);
    let world = start(config);
    let octets = octets_over_udp(
        world.address,
        &with_edns(query("example.com.", RecordType::A), 1232).to_vec().unwrap(),
    )
    .await
    .unwrap();
    let text = String::from_utf8_lossy(&octets).into_owned();
    assert!(text.contains(&format!("upstream {silent} did not answer within 50ms")), "{text}");
    assert_eq!(count.load(Ordering::SeqCst), 2, "a datagram may be lost: a single upstream is asked twice");
    assert_eq!(world.metrics.forwarded.get(Forwarded::Timeout), 1);
}

#[tokio::test]
async fn forged_answers_are_passed_over_and_counted() {
    let (forging, _, _tasks) = scripted(|query| {
        let (mut other_id, mut other_name) = (answer_to(query, [6, 6, 6, 6]), answer_to(query, [6, 6, 6, 6]));
        other_id.metadata.id ^= 1;
        other_name.queries[0].set_name(Name::from_ascii("evil.example.").unwrap());
        let mut a_query = answer_to(query, [6, 6, 6, 6]);
        a_query.metadata.message_type = MessageType::Query;
        vec![other_id, other_name, a_query, answer_to(query, [192, 0, 2, 9])]
    })
    .await;
    let world = start(forwarding_to(&[forging]));
    let answer = udp(world.address, &query("example.com.", RecordType::A)).await;
    assert_eq!(addresses(&answer), ["192.0.2.9"]);
    assert_eq!(world.metrics.dropped.get(Dropped::UpstreamMismatch), 3);
}

#[tokio::test]
async fn one_question_is_on_its_way_once_however_many_ask_it() {
    let (far, count, _tasks) = scripted(|query| vec![answer_to(query, [192, 0, 2, 9])]).await;
    let world = start(forwarding_to(&[far]));
    let asked: Vec<_> = (0..20).map(|_| query("example.com.", RecordType::A)).collect();
    let all = futures_util::future::join_all(asked.iter().map(|q| udp(world.address, q))).await;
    assert!(all.iter().all(|answer| addresses(answer) == ["192.0.2.9"]));
    assert_eq!(count.load(Ordering::SeqCst), 1);
    let counted =
        [Forwarded::Answered, Forwarded::Joined, Forwarded::CacheHit].map(|r| world.metrics.forwarded.get(r));
    assert_eq!((counted[0], counted[1] + counted[2]), (1, 19));
}

#[tokio::test]
async fn what_waits_is_bounded_and_the_domain_is_answered_meanwhile() {
    let (silent, _, _tasks) = scripted(|_| Vec::new()).await;
    let mut config = forwarding_to(&[silent]);
    config.limits.forwards_in_flight = 1;
    let world = start(config);
    let waiting = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    waiting.send_to(&query("a.example.", RecordType::A).to_vec().unwrap(), world.address).await.unwrap();
    eventually("the first query waits", || world.metrics.forwards_in_flight.get() == 1).await;
    let beyond = udp(world.address, &query("b.example.", RecordType::A)).await;
    assert_eq!(beyond.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(world.metrics.refused.get(Refusal::TooManyForwards), 1);
    assert_eq!(udp(world.address, &query("web.mesh.internal.", RecordType::A)).await.answers.len(), 2);
}

#[tokio::test]
async fn names_of_the_domain_never_leave_and_neither_does_a_query_without_recursion() {
    let (far, count, _tasks) = scripted(|query| vec![answer_to(query, [6, 6, 6, 6])]).await;
    let mut world = start(forwarding_to(&[far]));
    for name in ["nope.mesh.internal.", "a.b.c.d.MESH.internal.", "mesh.internal."] {
        assert!(udp(world.address, &query(name, RecordType::A)).await.answers.is_empty());
    }
    world.writer.set_freshness(Freshness::Awaiting);
    udp(world.address, &query("nope.mesh.internal.", RecordType::A)).await;
    let mut iterative = query("example.com.", RecordType::A);
    iterative.metadata.recursion_desired = false;
    assert_eq!(udp(world.address, &iterative).await.metadata.response_code, ResponseCode::Refused);
    assert_eq!(world.metrics.refused.get(Refusal::RecursionNotDesired), 1);
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn resolv_conf_is_read_again_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    std::fs::write(&path, "nameserver 192.0.2.53\n").unwrap();
    let world = start(Config { upstreams: Upstreams::ResolvConf(path.clone()), ..config() });
    let upstreams =
        |world: &World| world.handle.upstreams().into_iter().map(|up| up.upstream).collect::<Vec<_>>();
    assert_eq!(upstreams(&world), ["192.0.2.53:53"]);
    assert!(world.handle.explain("example.com").why.contains("forwarded to 192.0.2.53:53"));
    std::fs::write(&path, "nameserver 192.0.2.54\n").unwrap();
    eventually("the new server is known", || upstreams(&world) == ["192.0.2.54:53"]).await;
    std::fs::remove_file(&path).unwrap();
    let write_anew = std::fs::write(dir.path().join("new"), "nameserver 192.0.2.55\n");
    write_anew.and_then(|()| std::fs::rename(dir.path().join("new"), &path)).unwrap();
    eventually("the file is read anew", || {
        assert!(!upstreams(&world).is_empty(), "what cannot be read changes nothing");
        upstreams(&world) == ["192.0.2.55:53"]
    })
    .await;
}
