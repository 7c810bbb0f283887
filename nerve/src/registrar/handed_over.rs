//! Tests: one registrar goes on where another one stopped; and one that leaves is believed at once.

use std::time::Duration;

use tokio::net::TcpListener;

use super::tests::{ADDRESS, Agent, Faulty, agent, agent_after, eventually, located, registered, tcp};
use super::*;
use crate::model::{Health, Instance, Node};
use crate::source::{ApiError, Draft, Trust};
use crate::store::{Change, Path, Watch, WatchEvent};

const SOON: Duration = Duration::from_secs(5);

/// Every change that a watch has seen, until nothing comes any more.
async fn seen(watch: &mut Watch) -> Vec<Change> {
    let mut seen = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(300), watch.next()).await {
        if let WatchEvent::Changes(changes) = event {
            seen.extend(changes);
        }
    }
    seen
}

async fn ends(agent: Agent) {
    agent.tasks.shutdown().await;
}

#[tokio::test]
async fn the_next_process_goes_on_with_session_records_and_checks_and_nobody_sees_a_change() {
    let store = Faulty::new();
    let server = TcpListener::bind((ADDRESS, 0)).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let first = agent(&store, vec![located(port, tcp(50)), located(1, Vec::new())]);
    registered(&store, &[Health::Passing; 2]).await;
    eventually("told", async || first.metrics.registered.get() == 2).await;
    let mut watch = store.inner.watch(&Path::root());
    let carried = first.handle.hand_over(SOON).await.unwrap();
    assert_eq!((carried.records.len(), carried.instances.len()), (3, 2));
    let text = serde_json::to_string(&carried).unwrap();
    assert_eq!(serde_json::from_str::<Carried>(&text).unwrap(), carried, "it survives the way");

    // What nobody probes any more is passing all the same: the verdict is carried over.
    drop(server);
    let session = carried.session.unwrap().id;
    let second =
        agent_after(&store, vec![located(port, tcp(60_000)), located(1, Vec::new())], |_| (), Some(carried));
    ends(first).await;
    eventually("taken over", async || second.metrics.registered.get() == 2).await;
    assert_eq!(second.handle.instances()[1].report.health, Health::Passing);
    assert!(second.handle.instances()[1].report.checks[0].last.is_some());
    assert_eq!(seen(&mut watch).await, [], "nothing is written, nothing is deleted");
    let third = second.handle.hand_over(SOON).await.unwrap();
    assert_eq!(third.session.unwrap().id, session);
    ends(second).await;
}

#[tokio::test]
async fn results_in_a_row_count_over_the_change_of_process() {
    let store = Faulty::new();
    let server = TcpListener::bind((ADDRESS, 0)).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let first = agent(&store, vec![located(port, tcp(50))]);
    registered(&store, &[Health::Passing]).await;
    let mut carried = first.handle.hand_over(SOON).await.unwrap();
    ends(first).await;
    drop(server);
    let check = &mut carried.instances[0].checks.checks[0];
    (check.progress.streak, check.progress.last_healthy) = (2, false);
    let registry = prometheus::Registry::new();
    let second = agent_after(&store, vec![located(port, tcp(1000))], |_| (), Some(carried));
    second.metrics.checks.register(&registry).unwrap();
    registered(&store, &[Health::Critical]).await;
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    let one = "plexus_check_probes_total{kind=\"tcp\",result=\"fail\"} 1\n";
    assert!(text.contains(one), "the third failure in a row, and one probe:\n{text}");
    ends(second).await;
}

#[tokio::test]
async fn what_is_no_longer_defined_is_taken_back_by_the_next_process() {
    let store = Faulty::new();
    let first = agent(&store, vec![located(1, Vec::new()), located(2, Vec::new())]);
    registered(&store, &[Health::Passing; 2]).await;
    let carried = first.handle.hand_over(SOON).await.unwrap();
    ends(first).await;
    let second = agent_after(&store, vec![located(2, Vec::new())], |_| (), Some(carried));
    registered(&store, &[Health::Passing]).await;
    ends(second).await;
}

#[tokio::test]
async fn a_session_that_cannot_be_taken_over_is_replaced_without_a_gap() {
    let store = Faulty::new();
    let first = agent(&store, vec![located(1, Vec::new())]);
    registered(&store, &[Health::Passing]).await;
    let mut watch = store.inner.watch(&Path::root());
    let mut carried = first.handle.hand_over(SOON).await.unwrap();
    let real = carried.session.unwrap().id;
    carried.session.as_mut().unwrap().id = 4711;
    let second = agent_after(&store, vec![located(1, Vec::new())], |_| (), Some(carried));
    eventually("registered anew", async || second.metrics.registered.get() == 1).await;
    ends(first).await;
    let changes = seen(&mut watch).await;
    assert!(
        !changes.is_empty() && changes.iter().all(|change| matches!(change, Change::Put(_))),
        "{changes:?}"
    );
    let third = second.handle.hand_over(SOON).await.unwrap();
    assert_ne!(third.session.unwrap().id, real);
    ends(second).await;
}

#[tokio::test]
async fn a_registrar_that_takes_back_goes_on_and_one_that_hangs_is_not_handed_over() {
    let store = Faulty::new();
    let agent = agent(&store, vec![located(1, Vec::new())]);
    registered(&store, &[Health::Passing]).await;
    agent.handle.hand_over(SOON).await.unwrap();
    let draft = || Draft::new("web".parse().unwrap(), 9.try_into().unwrap());
    assert!(matches!(agent.handle.register(draft(), Trust::Anyone).await, Err(ApiError::HandedOver)));
    agent.handle.take_back().await;
    agent.handle.register(draft(), Trust::Anyone).await.unwrap();
    registered(&store, &[Health::Passing; 2]).await;
    store.hangs.send_replace(true);
    agent.handle.set_node_drain(true).await.unwrap();
    eventually("a write hangs", async || agent.metrics.pending.get() > 0).await;
    agent.handle.hand_over(Duration::from_millis(100)).await.unwrap_err();
    store.hangs.send_replace(false);
    eventually("it goes on", async || store.records::<Node>("nodes").await[0].draining).await;
    ends(agent).await;
}

#[tokio::test]
async fn who_leaves_is_seen_to_drain_before_its_records_end() {
    let store = Faulty::new();
    let agent = agent(&store, vec![located(1, Vec::new()), located(2, Vec::new())]);
    registered(&store, &[Health::Passing; 2]).await;
    let mut watch = store.inner.watch(&Path::root());
    agent.handle.deregister_all(SOON).await.unwrap();
    let (mut drained, mut deleted) = (0, 0);
    for change in seen(&mut watch).await {
        match change {
            Change::Put(entry) => {
                assert_eq!(deleted, 0);
                let text = String::from_utf8(entry.value).unwrap();
                let draining = serde_json::from_str::<Instance>(&text).map(|i| i.draining);
                assert!(
                    draining.or_else(|_| serde_json::from_str::<Node>(&text).map(|n| n.draining)).unwrap()
                );
                drained += 1;
            }
            Change::Delete(_) => deleted += 1,
        }
    }
    assert_eq!((drained, deleted), (3, 3));
    ends(agent).await;
}
