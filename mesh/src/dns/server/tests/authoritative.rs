//! Names of the domain, as clients see them.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, RData};

use super::*;
use crate::dns::metrics::{Dropped, Refusal, Transport, Verdict};

#[tokio::test]
async fn dig_reads_every_kind_of_answer_over_udp_and_tcp() {
    let world = start(config());
    for transport in ["+notcp", "+tcp"] {
        let Some(short) = dig(world.address, &[transport, "+short", "web.mesh.internal"]).await else {
            return;
        };
        let mut lines: Vec<_> = short.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["192.0.2.1", "192.0.2.2"], "{transport}");
        let srv = dig(world.address, &[transport, "_web._tcp.mesh.internal", "SRV"]).await.unwrap();
        assert!(srv.contains("IN\tSRV\t0 100 8080 ip-192-0-2-1.addr.mesh.internal."), "{srv}");
        assert!(srv.contains("ADDITIONAL: 3"), "two addresses and OPT: {srv}");
        let none = dig(world.address, &[transport, "nope.mesh.internal"]).await.unwrap();
        assert!(
            none.contains("status: NXDOMAIN") && none.contains("IN\tSOA\tns.addr.mesh.internal."),
            "{none}"
        );
        let soa = dig(world.address, &[transport, "+short", "mesh.internal", "SOA"]).await.unwrap();
        assert!(soa.starts_with("ns.addr.mesh.internal. hostmaster.mesh.internal. "), "{soa}");
    }
    assert_eq!(world.metrics.queries(Transport::Tcp, Verdict::Answered), 3);
    assert_eq!(world.metrics.queries(Transport::Udp, Verdict::NxDomain), 1);
}

#[tokio::test]
async fn dig_shows_why_a_known_service_has_no_address() {
    let mut world = start(config());
    world.writer.apply([
        instance("web", "1", "192.0.2.1", "critical"),
        instance("web", "2", "192.0.2.2", "starting"),
        instance("new", "1", "192.0.2.3", "starting"),
    ]);
    let Some(answer) = dig(world.address, &["new.mesh.internal"]).await else { return };
    assert!(answer.contains("status: NOERROR") && answer.contains("ANSWER: 0"), "{answer}");
    assert!(answer.contains("no instance of service new serves: 1 starting"), "{answer}");
    let Some(answer) = dig(world.address, &["web.mesh.internal"]).await else { return };
    assert!(
        answer.contains("status: NOERROR") && answer.contains("ANSWER: 2"),
        "all that fail are named: {answer}"
    );
    assert!(answer.contains("no instance of service web serves: 1 starting, 2 critical"), "{answer}");
}

#[tokio::test]
async fn the_clients_spelling_comes_back_and_the_flags_are_an_authoritys() {
    let world = start(config());
    let answer = udp(world.address, &query("wEB.mEsh.InterNal.", RecordType::A)).await;
    let flags = answer.metadata;
    assert!(
        flags.authoritative && flags.recursion_desired && !flags.recursion_available && !flags.truncation
    );
    assert_eq!(answer.queries[0].name().to_ascii(), "wEB.mEsh.InterNal.");
    assert!(answer.answers.iter().all(|r| r.name.to_ascii() == "wEB.mEsh.InterNal."));
    assert!(answer.edns.is_none(), "EDNS only for those who speak it");
    let edns =
        udp(world.address, &with_edns(query("web.mesh.internal.", RecordType::A), 4096)).await.edns.unwrap();
    assert_eq!((edns.max_payload(), edns.version()), (1232, 0));
}

#[tokio::test]
async fn a_catalog_that_has_heard_nothing_is_a_server_failure() {
    let mut world = start(config());
    world.writer.set_freshness(Freshness::Awaiting);
    let answer = udp(world.address, &query("web.mesh.internal.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(world.metrics.queries(Transport::Udp, Verdict::NotReady), 1);
    world.writer.set_freshness(Freshness::Live);
    assert_eq!(udp(world.address, &query("web.mesh.internal.", RecordType::A)).await.answers.len(), 2);
}

#[tokio::test]
async fn what_is_no_ordinary_query_is_refused_by_its_rule() {
    let world = start(config());
    let code = async |message: &Message| udp(world.address, message).await.metadata.response_code;
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos).await, ResponseCode::Refused);
    assert_eq!(code(&query("mesh.internal.", RecordType::AXFR)).await, ResponseCode::Refused);
    let mut update = query("mesh.internal.", RecordType::SOA);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(code(&update).await, ResponseCode::NotImp);
    let mut two = query("web.mesh.internal.", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&two).await, ResponseCode::FormErr);
    let mut newer = with_edns(query("web.mesh.internal.", RecordType::A), 1232);
    newer.edns.as_mut().unwrap().set_version(1);
    // BADSIG has the same number, and hickory reads that.
    assert_eq!(u16::from(code(&newer).await), u16::from(ResponseCode::BADVERS));
    assert_eq!(code(&query("example.com.", RecordType::A)).await, ResponseCode::Refused);
    let refused =
        [Refusal::Class, Refusal::MetaType, Refusal::NoUpstream].map(|r| world.metrics.refused.get(r));
    assert_eq!(refused, [1, 1, 1]);
}

#[tokio::test]
async fn responses_and_scraps_are_dropped_and_counted() {
    let world = start(config());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut response = query("web.mesh.internal.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    socket.send_to(&response.to_vec().unwrap(), world.address).await.unwrap();
    socket.send_to(b"scrap", world.address).await.unwrap();
    // A header that promises 65535 records and a body that has none.
    let promises = [0, 7, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let answer = octets_over_udp(world.address, &promises).await.unwrap();
    assert_eq!((answer.len(), answer[1], answer[3] & 0xf), (12, 7, 1));
    assert_eq!([Dropped::NotAQuery, Dropped::TooShort].map(|r| world.metrics.dropped.get(r)), [1, 1]);
    assert!(socket.try_recv(&mut [0; 64]).is_err(), "neither is answered");
}

#[tokio::test]
async fn an_answer_too_long_for_udp_is_cut_short_and_whole_over_tcp() {
    let mut config = config();
    config.limits.answers_udp = 60;
    let mut world = start(config);
    world
        .writer
        .apply((0..60).map(|n| instance("many", &n.to_string(), &format!("198.51.100.{n}"), "passing")));
    let plain = query("many.mesh.internal.", RecordType::A);
    let cut = udp(world.address, &plain).await;
    // What there is room for, each record with a pointer to its name.
    assert_eq!((cut.metadata.truncation, cut.answers.len()), (true, (512 - 12 - 24) / 16));
    let with_opt = udp(world.address, &with_edns(query("many.mesh.internal.", RecordType::A), 512)).await;
    assert_eq!(
        (with_opt.metadata.truncation, with_opt.edns.is_some(), with_opt.answers.len()),
        (true, true, 28)
    );
    assert_eq!(tcp(world.address, &plain).await.answers.len(), 60);
    assert_eq!(world.metrics.truncated.get(), 2);
    let Some(all) = dig(world.address, &["+noedns", "+short", "many.mesh.internal"]).await else { return };
    assert_eq!(all.lines().count(), 60, "dig went on to TCP by itself: {all}");
}

#[tokio::test]
async fn addresses_of_srv_targets_are_left_out_before_anything_is_cut() {
    let mut world = start(config());
    world
        .writer
        .apply((0..8).map(|n| instance("many", &n.to_string(), &format!("198.51.100.{n}"), "passing")));
    let small = udp(world.address, &query("_many._tcp.mesh.internal.", RecordType::SRV)).await;
    assert!(!small.metadata.truncation && small.additionals.is_empty());
    assert_eq!(small.answers.len(), 8);
    let large =
        udp(world.address, &with_edns(query("_many._tcp.mesh.internal.", RecordType::SRV), 1232)).await;
    assert_eq!((large.answers.len(), large.additionals.len()), (8, 8));
    let RData::SRV(srv) = &large.answers[0].data else { panic!() };
    assert!(large.additionals.iter().any(|r| r.name == srv.target));
}
