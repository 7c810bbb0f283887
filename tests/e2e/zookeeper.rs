//! Stories that the store has a part in, on ZooKeeper. What happens in them stands where they run on etcd.

use std::time::Duration;

use plexus_tests::needs;
use plexus_tests::server::store::Make;

use crate::outage::{is_frozen, is_stopped, is_wiped, survives};
use crate::{discover, faults, handover, overlay_nodes};

/// Several times as long as a session lives here.
const LONG: Duration = Duration::from_secs(10);

#[test]
fn a_service_file_makes_an_instance_known_on_every_node() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar");
    discover::is_known_everywhere(Make::ZooKeeper);
}

#[test]
fn a_service_file_that_changes_or_goes_is_followed() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar");
    discover::is_followed(Make::ZooKeeper);
}

#[test]
fn a_node_that_is_killed_is_gone_within_its_session() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar");
    faults::a_killed_node_is_gone(Make::ZooKeeper);
}

#[test]
fn an_agent_that_is_killed_and_started_again_takes_its_instances_back() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar");
    faults::a_killed_agent_is_started_again(Make::ZooKeeper);
}

#[test]
fn registrations_live_on_under_the_session_of_the_next_agent() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar");
    handover::the_next_agent_goes_on(Make::ZooKeeper);
}

#[test]
fn an_ensemble_that_was_stopped_is_missed_by_nobody() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar", "dig");
    survives(Make::ZooKeeper, LONG, is_stopped);
}

#[test]
fn an_ensemble_that_stood_still_is_missed_by_nobody() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar", "dig");
    survives(Make::ZooKeeper, LONG, is_frozen);
}

#[test]
fn an_ensemble_that_lost_its_data_is_missed_by_nobody() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar", "dig");
    survives(Make::ZooKeeper, LONG, is_wiped);
}

#[test]
fn containers_of_a_node_that_leaves_and_returns_are_reached_all_the_while() {
    needs!("java", "bash", "/usr/share/java/zookeeper.jar", "nft", "ping");
    overlay_nodes::a_node_leaves_and_returns(Make::ZooKeeper);
}
