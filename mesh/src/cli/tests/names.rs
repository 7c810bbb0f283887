//! What DNS says, and `plexus dns top`.

use super::{Busy, World, upstreams};
use crate::admin::Resolver;
use crate::api::{Resolution, TopEntry, TopList, UpstreamInfo};

impl Resolver for Busy {
    fn explain(&self, name: &str, record_type: &str) -> Result<Resolution, String> {
        Ok(Resolution {
            name: format!("{name}.mesh.internal."),
            record_type: record_type.to_owned(),
            code: "NOERROR".to_owned(),
            answers: vec![format!("{name}.mesh.internal. 5 IN {record_type} 192.0.2.1")],
            why: vec!["1 of 2 endpoints serves".to_owned()],
        })
    }

    fn upstreams(&self) -> Vec<UpstreamInfo> {
        upstreams::two()
    }

    fn top(&self) -> TopList {
        two()
    }
}

/// Two names and a client.
fn two() -> TopList {
    let entry =
        |what: &str, queries, over, per_second| TopEntry { what: what.to_owned(), queries, over, per_second };
    TopList {
        window_seconds: 80.4,
        queries: 8123,
        names: vec![entry("web.mesh.internal.", 8040, 0, 100.0), entry("a\\032b.", 12, 7, 0.149)],
        clients: vec![entry("192.0.2.9", 8123, 0, 101.03)],
    }
}

#[tokio::test]
async fn top_tells_what_is_asked_most_and_by_whom() {
    let world = World::new().await;
    let expected = "\
8123 queries in 80 s

NAME                QUERIES  OVER  PER SECOND
web.mesh.internal.  8040     0     100.0
a\\032b.             12       7     0.1

CLIENT     QUERIES  OVER  PER SECOND
192.0.2.9  8123     0     101.0
";
    assert_eq!(world.prints("dns top").await, expected);
    assert!(!world.prints("dns top --lines 1").await.contains("032b"));
}
