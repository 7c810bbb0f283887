//! What a pick costs, by policy and number of endpoints; and what the tables cost that a change of the service builds.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use criterion::{BenchmarkId, Criterion};
use mesh::balance::{Balancer, ClientKey, Metrics, Place, Surroundings, Tried};
use nerve::model::{Policy, ServiceName, ServiceSettings};
use plexus_benches::fleet;
use synapse::catalog::{Change, Service};

const ENDPOINTS: [usize; 3] = [10, 1000, 100_000];

fn surroundings() -> anyhow::Result<Surroundings> {
    Ok(Surroundings { place: Place::default(), metrics: Metrics::new()?, on_closing: Arc::new(|_, _| {}) })
}

/// A service of so many endpoints with this policy.
fn service(endpoints: usize, policy: Policy) -> anyhow::Result<Arc<Service>> {
    let (catalog, mut writer) = fleet::catalog(1, endpoints)?;
    let name = fleet::service_name(0)?;
    let mut settings = ServiceSettings::default();
    settings.balance.policy = Some(policy);
    writer.apply([Change::PutSettings(name.clone(), Arc::new(settings))]);
    catalog.service(name.as_str()).context("a service")
}

fn balancer(service: &Service) -> anyhow::Result<Balancer> {
    let balancer = Balancer::new(ServiceName::new(service.name.as_str())?, None, &surroundings()?);
    balancer.update(Some(service));
    Ok(balancer)
}

fn pick(criterion: &mut Criterion) -> anyhow::Result<()> {
    for policy in Policy::ALL {
        let mut group = criterion.benchmark_group(format!("pick/{policy}"));
        for endpoints in ENDPOINTS {
            let balancer = balancer(&*service(endpoints, *policy)?)?;
            let (now, tried) = (Instant::now(), Tried::none());
            let mut port = 0u16;
            group.bench_function(BenchmarkId::from_parameter(endpoints), |bencher| {
                bencher.iter(|| {
                    port = port.wrapping_add(1);
                    let [high, low] = port.to_be_bytes();
                    let client = ClientKey {
                        address: ([10, 0, high, low], port).into(),
                        waited: false,
                        datagrams: false,
                    };
                    // Dropped at once: a pick and the end of a connection.
                    black_box(balancer.pick(&client, &tried, now).is_ok())
                });
            });
        }
        group.finish();
    }
    Ok(())
}

fn update(criterion: &mut Criterion) -> anyhow::Result<()> {
    for policy in [Policy::RoundRobin, Policy::Maglev, Policy::Ring] {
        let mut group = criterion.benchmark_group(format!("balance_update/{policy}"));
        group.sample_size(10);
        for endpoints in ENDPOINTS {
            // Another weight of one endpoint: what a change of the service comes to at least.
            let (catalog, mut writer) = fleet::catalog(1, endpoints)?;
            let name = fleet::service_name(0)?;
            let mut settings = ServiceSettings::default();
            settings.balance.policy = Some(policy);
            writer.apply([Change::PutSettings(name.clone(), Arc::new(settings))]);
            let mut states = Vec::new();
            for weight in [101, 102] {
                let instance = fleet::instance(&name, endpoints / 2, weight)?;
                writer.apply([Change::PutInstance(Arc::new(instance))]);
                states.push(catalog.service(name.as_str()).context("a service")?);
            }
            let balancer = balancer(&states[0])?;
            let mut turn = 0;
            group.bench_function(BenchmarkId::from_parameter(endpoints), |bencher| {
                bencher.iter(|| {
                    turn += 1;
                    balancer.update(Some(&states[turn % 2]));
                });
            });
        }
        group.finish();
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    pick(&mut criterion).context("pick")?;
    update(&mut criterion).context("update")?;
    criterion.final_summary();
    Ok(())
}
