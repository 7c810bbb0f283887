//! One endpoint's change, at several sizes of the catalog: it must cost the same at all of them.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use plexus_benches::instance;
use synapse::catalog::{Catalog, Change};

const ENDPOINTS: usize = 10;

fn one_change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("catalog: one endpoint changes, of services");
    for services in [10, 100, 1_000, 10_000] {
        let (_catalog, mut writer) = Catalog::new();
        writer.apply(
            (0..services)
                .flat_map(|s| (0..ENDPOINTS).map(move |e| Change::PutInstance(instance(s, e, 8000)))),
        );
        let versions = [instance(services / 2, 3, 9000), instance(services / 2, 3, 9001)];
        let mut turn = 0;
        group.bench_function(BenchmarkId::from_parameter(services), |bencher| {
            bencher.iter(|| {
                turn += 1;
                black_box(writer.apply([Change::PutInstance(versions[turn % 2].clone())]))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, one_change);
criterion_main!(benches);
