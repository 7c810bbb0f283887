//! `plexus upstreams`.

use super::World;
use crate::api::UpstreamInfo;

/// One that answers, and one of a route that does not.
pub(super) fn two() -> Vec<UpstreamInfo> {
    let first = UpstreamInfo {
        upstream: "192.0.2.53:53".to_owned(),
        domain: None,
        time_us: Some(1500),
        answered: 7,
        failed: 1,
        unanswered: 0,
        failures_in_a_row: 0,
        passed_over_for_ms: None,
        problem: None,
        keeps_case: false,
    };
    let second = UpstreamInfo {
        upstream: "tls://192.0.2.54:853#dns.example.com".to_owned(),
        domain: Some("corp.example".to_owned()),
        time_us: None,
        answered: 0,
        failed: 0,
        unanswered: 3,
        failures_in_a_row: 3,
        passed_over_for_ms: Some(900),
        problem: Some("it is silent".to_owned()),
        keeps_case: true,
    };
    vec![first, second]
}

#[tokio::test]
async fn upstreams_tells_who_is_asked_and_how_they_do() {
    let world = World::new().await;
    let expected = "\
UPSTREAM                              NAMES           STATUS       TIME       ANSWERED  FAILED  UNANSWERED  PROBLEM
192.0.2.53:53                         all             answers      1ms 500us  7         1       0           gives back other letters: no 0x20
tls://192.0.2.54:853#dns.example.com  *.corp.example  passed over  -          0         0       3           it is silent
";
    assert_eq!(world.prints("upstreams").await, expected);
}
