//! What a change of one endpoint costs the catalog, by the size of the fleet and of the service.
//!
//! Each iteration changes another service and publishes it. A hundred services in turn, whatever the fleet, compare the
//! catalog's work; all of ten thousand show what it costs that they do not fit the processor's caches.

use std::hint::black_box;
use std::sync::Arc;

use anyhow::Context;
use criterion::{BenchmarkId, Criterion};
use plexus_benches::fleet;
use synapse::catalog::Change;

/// Services, endpoints of each, services that change in turn.
const FLEETS: [(usize, usize, usize); 5] =
    [(100, 10, 100), (10_000, 10, 100), (10_000, 10, 10_000), (1, 1000, 1), (1, 100_000, 1)];
/// A step that visits all services of a fleet in turn: it shares no factor with their numbers.
const STEP: usize = 7919;

fn one_endpoint(criterion: &mut Criterion) -> anyhow::Result<()> {
    let mut group = criterion.benchmark_group("catalog_apply/one_endpoint");
    for (services, endpoints, changing) in FLEETS {
        let (catalog, mut writer) = fleet::catalog(services, endpoints)?;
        // A reader, as the agent has several.
        let _subscription = catalog.subscribe();
        let mut changes = Vec::new();
        for weight in [101, 102] {
            for number in 0..changing {
                let service = fleet::service_name(number * (services / changing))?;
                let instance = fleet::instance(&service, endpoints / 2, weight)?;
                changes.push(Change::PutInstance(Arc::new(instance)));
            }
        }
        let mut at = 0;
        group.bench_function(
            BenchmarkId::from_parameter(format!("{services}x{endpoints}, {changing} in turn")),
            |bencher| {
                bencher.iter(|| {
                    at = (at + STEP) % changes.len();
                    black_box(writer.apply([changes[at].clone()]))
                });
            },
        );
    }
    group.finish();
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    one_endpoint(&mut criterion).context("make a fleet")?;
    criterion.final_summary();
    Ok(())
}
