//! What the benchmarks share: a fleet's records, made up.

use std::sync::Arc;

use nerve::model::{Instance, ServiceName};

/// Instance `index` of service `service`, on one of a hundred nodes.
#[must_use]
pub fn instance(service: usize, index: usize, port: u16) -> Arc<Instance> {
    let node = (service * 7 + index) % 100;
    let record = serde_json::json!({
        "service": name(service),
        "id": format!("svc-{service}-node-{node}-{index}"),
        "node": format!("node-{node}"),
        "address": format!("10.0.{}.{}", node, index % 250 + 1),
        "port": port,
        "tags": ["v1"],
    });
    #[allow(clippy::expect_used, reason = "the record is a literal with valid names")]
    Arc::new(serde_json::from_value(record).expect("a valid record"))
}

/// The name of a made-up service.
#[must_use]
pub fn name(service: usize) -> String {
    format!("svc-{service}")
}

/// The same as [`name`], validated.
#[must_use]
#[allow(clippy::expect_used, reason = "the names are digits behind a letter")]
pub fn service_name(service: usize) -> ServiceName {
    ServiceName::new(&name(service)).expect("a valid name")
}
