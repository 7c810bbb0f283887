//! Services that are names outside the mesh. The upstream is a second server of ours.

use hickory_proto::op::ResponseCode;

use super::forwarding::upstream;
use super::*;

/// The service is that name from now on.
fn external(world: &mut World, service: &str, target: &str) {
    let settings = serde_json::from_value(serde_json::json!({ "external": target })).unwrap();
    world.writer.apply([Change::PutSettings(service.parse().unwrap(), Arc::new(settings))]);
}

/// Code, and the answers in their order: owner, type, data.
fn said(message: &Message) -> (ResponseCode, Vec<String>) {
    let answers = message.answers.iter();
    let line = |record: &hickory_proto::rr::Record| {
        format!("{} {} {}", record.name, record.record_type(), record.data)
    };
    (message.metadata.response_code, answers.map(line).collect())
}

#[tokio::test]
async fn the_name_it_leads_to_is_asked_for_and_answered_behind_the_alias() {
    let far = upstream();
    let mut world =
        start(Config { alt_domains: vec!["consul".parse().unwrap()], ..forwarding_to(&[far.address]) });
    external(&mut world, "db", "web.far.example:5432");
    external(&mut world, "gone", "none.far.example");
    external(&mut world, "next", "db.consul");
    let to_web = "CNAME web.far.example.";
    let both = ["web.far.example. A 192.0.2.1", "web.far.example. A 192.0.2.2"];
    for (name, before) in [
        ("Db.mesh.internal.", vec![format!("Db.mesh.internal. {to_web}")]),
        ("db.service.dc1.consul.", vec![format!("db.service.dc1.consul. {to_web}")]),
        (
            "next.mesh.internal.",
            vec!["next.mesh.internal. CNAME db.consul.".to_owned(), format!("db.consul. {to_web}")],
        ),
    ] {
        let answer = udp(world.address, &with_edns(query(name, RecordType::A), 1232)).await;
        let (code, lines) = said(&answer);
        let (first, rest) = lines.split_at(before.len());
        assert_eq!((code, first), (ResponseCode::NoError, &before[..]));
        let rest: std::collections::BTreeSet<_> = rest.iter().map(String::as_str).collect();
        assert_eq!(rest, both.into(), "{name}");
        assert!(
            answer.metadata.authoritative && answer.metadata.recursion_available && answer.edns.is_some()
        );
        assert_eq!(answer.queries[0].name().to_ascii(), name, "in the client's spelling");
    }
    let gone = udp(world.address, &query("gone.mesh.internal.", RecordType::A)).await;
    let alias = "gone.mesh.internal. CNAME none.far.example.".to_owned();
    assert_eq!(said(&gone), (ResponseCode::NXDomain, vec![alias]));
    assert_eq!(gone.authorities[0].name.to_ascii(), "far.example.", "how long that may be kept");
    // What is kept gets older, and what is ours does not.
    far.drain.drain(PATIENCE).await;
    let web = udp(world.address, &query("db.consul.", RecordType::A)).await;
    assert_eq!((said(&web).1.len(), web.answers[0].ttl), (3, 5));
    let unknown = udp(world.address, &query("db.consul.", RecordType::AAAA)).await;
    assert_eq!(said(&unknown), (ResponseCode::ServFail, Vec::new()));
}

#[tokio::test]
async fn the_alias_alone_is_for_those_who_ask_for_it_and_those_who_may_not_have_more() {
    let mut world = start(config());
    external(&mut world, "db", "db.far.example:5432");
    external(&mut world, "bare", "db.far.example");
    world.writer.apply([instance("db", "1", "192.0.2.9", "passing")]);
    let alias = || vec!["db.mesh.internal. CNAME db.far.example.".to_owned()];
    for kind in [RecordType::A, RecordType::SRV, RecordType::CNAME, RecordType::ANY, RecordType::TXT] {
        let answer = udp(world.address, &query("db.mesh.internal.", kind)).await;
        assert_eq!(said(&answer), (ResponseCode::NoError, alias()), "{kind}: nobody is there to be asked");
    }
    for (name, kind, expected) in [
        ("_db._tcp.mesh.internal.", RecordType::SRV, Some("SRV 0 0 5432 db.far.example.")),
        ("_db._tcp.service.mesh.internal.", RecordType::SRV, Some("SRV 0 0 5432 db.far.example.")),
        ("_bare._tcp.mesh.internal.", RecordType::SRV, None),
        ("_db._tcp.mesh.internal.", RecordType::A, None),
        ("tasks.db.mesh.internal.", RecordType::A, Some("A 192.0.2.9")),
        ("tasks.bare.mesh.internal.", RecordType::A, None),
    ] {
        let answer = udp(world.address, &query(name, kind)).await;
        let lines = expected.map(|data| format!("{name} {data}")).into_iter().collect();
        assert_eq!(said(&answer), (ResponseCode::NoError, lines), "{name} {kind}");
    }
    let why = world.handle.explain("db.mesh.internal");
    assert_eq!((why.rule, why.outcome, why.records.len()), (Rule::External, Outcome::Answer, 1));
}

#[tokio::test]
async fn names_that_lead_to_each_other_are_a_failure_and_those_in_a_row_are_not() {
    let mut world = start(config());
    external(&mut world, "one", "two.mesh.internal");
    external(&mut world, "two", "one.mesh.internal");
    for number in 1..9 {
        external(&mut world, &format!("n{number}"), &format!("n{}.mesh.internal", number - 1));
    }
    external(&mut world, "n0", "web.mesh.internal");
    for (name, expected) in [
        ("one", (ResponseCode::ServFail, 0)),
        ("n6", (ResponseCode::NoError, 9)),
        ("n8", (ResponseCode::ServFail, 0)),
        ("n7", (ResponseCode::ServFail, 0)),
    ] {
        let answer = udp(world.address, &query(&format!("{name}.mesh.internal."), RecordType::A)).await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), expected, "{name}");
    }
    assert_eq!(world.handle.explain("one.mesh.internal").outcome, Outcome::AliasLoop);
    external(&mut world, "lost", "nobody.mesh.internal");
    let lost = udp(world.address, &query("lost.mesh.internal.", RecordType::A)).await;
    assert_eq!((lost.metadata.response_code, lost.answers.len()), (ResponseCode::NXDomain, 1));
    assert_eq!(lost.authorities[0].name.to_ascii(), "mesh.internal.");
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_cut_and_whole_over_tcp() {
    let mut far = upstream();
    let many = (1..60).map(|n| instance("many", &n.to_string(), &format!("198.51.100.{n}"), "passing"));
    far.writer.apply(many);
    let mut world = start(forwarding_to(&[far.address]));
    external(&mut world, "all", "tasks.many.far.example");
    let asked = query("all.mesh.internal.", RecordType::A);
    let cut = udp(world.address, &asked).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty(), "{cut:?}");
    assert_eq!(tcp(world.address, &asked).await.answers.len(), 60);
}
