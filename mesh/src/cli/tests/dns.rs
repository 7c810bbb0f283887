//! `plexus dns`.

use crate::api::{DnsInfo, DnsListener, DnsOthers};

/// One that answers at two addresses, and has another one that it does not get.
pub(super) fn a_name_server() -> DnsInfo {
    let listener = |address: &str, problem: Option<&str>| DnsListener {
        address: address.parse().unwrap(),
        problem: problem.map(str::to_owned),
    };
    DnsInfo {
        probe: ("a.node.mesh.internal".to_owned(), "192.0.2.1".parse().unwrap()),
        domains: vec!["mesh.internal".to_owned()],
        ranges: Vec::new(),
        listeners: vec![
            listener("127.0.0.1:5353", None),
            listener("192.0.2.1:53", Some("another program has it")),
        ],
        others: DnsOthers::ResolvConf,
    }
}
