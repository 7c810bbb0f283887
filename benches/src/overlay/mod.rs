//! Overlay networks: the way between containers beside the same way made by hand, a thousand peers, and how soon a node that joins is
//! reached.
//!
//! Runs as root, in network namespaces with real agents and a real etcd, as the end-to-end tests do. Prints the tables of
//! `benches/README.md`.
#![allow(clippy::print_stdout, reason = "a program whose result is a table")]

mod joins;
mod peers;
mod tunnel;

use anyhow::{Context, bail};
use nerve::model::NetworkName;
use plexus_tests::{Cluster, Node};
use serde_json::Value;

/// Runs the parts that are named; without names, all of them.
///
/// # Errors
/// A part has no such name, or something that it needs is not there.
pub fn run(parts: &[String]) -> anyhow::Result<()> {
    let all = ["tunnel", "peers", "joins"].map(str::to_owned);
    for part in if parts.is_empty() { &all[..] } else { parts } {
        match part.as_str() {
            "tunnel" => tunnel::run()?,
            "peers" => peers::run()?,
            "joins" => joins::run()?,
            other => bail!("there is no part {other:?}; there are tunnel, peers and joins"),
        }
    }
    Ok(())
}

/// Nodes with overlay networks, and a network `default` of these ranges.
fn cluster(nodes: usize, ranges: &str) -> Cluster {
    let more = format!("[overlay]\nenabled = true\ndefault = [{ranges}]\n[log]\nlevel = \"warn\"\n");
    Cluster::of(nodes).settings(|settings| settings.more = more).start()
}

fn default_network() -> anyhow::Result<NetworkName> {
    Ok(NetworkName::new("default")?)
}

fn vni(node: &Node, network: &str) -> anyhow::Result<u64> {
    let inspected: Value = node.plexus_json(["network", "inspect", network]);
    inspected["network"]["vni"].as_u64().context("the network has no VNI")
}

/// In the middle of the sorted values; the share says where else.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a few thousand values"
    )]
    let at = (last as f64 * share).round() as usize;
    values.get(at).copied().unwrap_or(f64::NAN)
}
