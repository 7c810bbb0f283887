//! What a failure prints: each actor's log, and what each machine sees, before it is all removed.

use std::fmt::Write as _;

use crate::node::{Node, Shared};
use crate::process::tail;
use crate::server::store::Store;

/// Prints the state of a cluster.
pub(crate) fn print(nodes: &[Shared], store: &Store) {
    let mut text = String::from("\n======== what the cluster looked like ========\n");
    for node in nodes {
        let _ = writeln!(text, "==== node {} ({})", node.name(), node.address());
        describe(&mut text, node);
    }
    let _ = write!(text, "{store}");
    eprintln!("{text}======== end of the cluster ========");
}

fn describe(text: &mut String, node: &Node) {
    let _ = writeln!(text, "{}", tail(node.log_file()));
    if !node.agent_has_ended() {
        let _ = writeln!(text, "{}", node.plexus(["status"]));
        for service in node.admin_json("/v1/plexus/services")["services"].as_array().into_iter().flatten() {
            let name = service["name"].as_str().unwrap_or_default();
            let _ = writeln!(text, "{}", node.plexus(["why", name]));
        }
    }
    for command in [&["ip", "-br", "address"][..], &["ss", "-Htlnp"][..]] {
        let _ = writeln!(text, "{}", node.exec(command[0], &command[1..]));
    }
}
