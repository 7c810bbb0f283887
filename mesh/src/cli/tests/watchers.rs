//! `plexus watchers`.

use super::World;
use crate::api::WatcherInfo;

/// That of the store, and one that is out of reach.
pub(super) fn two() -> Vec<WatcherInfo> {
    let store = WatcherInfo {
        name: "store".to_owned(),
        kind: "store".to_owned(),
        service: None,
        place: "embedded".to_owned(),
        connected: true,
        for_seconds: 3600,
        changed_seconds_ago: Some(61),
        entries: 7,
        instead: None,
        refused: Vec::new(),
        last_error: None,
    };
    let file = WatcherInfo {
        name: "web-file".to_owned(),
        kind: "file".to_owned(),
        service: Some("web".parse().unwrap()),
        place: "/etc/web.json".to_owned(),
        connected: false,
        for_seconds: 5,
        changed_seconds_ago: None,
        refused: vec!["web.json[0]: no host".to_owned(), "web.json[1]: no port".to_owned()],
        last_error: Some("no such file".to_owned()),
        ..store.clone()
    };
    vec![store, file]
}

#[tokio::test]
async fn watchers_tells_where_services_are_looked_for_and_how_that_goes() {
    let world = World::new().await;
    let expected = "\
NAME      KIND   SERVICE  PLACE          STATUS        SINCE  CHANGED    ENTRIES  PROBLEM
store     store  -        embedded       heard         1h     1m 1s ago  7        -
web-file  file   web      /etc/web.json  out of reach  5s     never      7        no such file; web.json[0]: no host, and 1 more
";
    assert_eq!(world.prints("watchers").await, expected);
}
