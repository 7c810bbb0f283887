//! The task that claims addresses for services and frees those that nobody needs.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use nerve::model::{Prefix, ServiceName};
use nerve::store::{self, Store};
use nerve::tasks::Tasks;
use nerve::vips::{self, Claimed, Released};
use synapse::catalog::{Catalog, Freshness};
use tokio::time::Instant;

use super::choice::choose;
use super::claims::{Ledger, Why};
use super::{Config, Handle, Metrics, Problems};

/// So many claims are under way at a time.
const AT_ONCE: usize = 32;
/// So many services are claimed for in a row, before changes are looked at again.
const BATCH: usize = 1024;
/// How long the watch may take to tell of what was claimed; then it is claimed again.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause after the store failed, or the catalog was not live.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest time between two looks for addresses that nobody needs.
const LONGEST_TICK: Duration = Duration::from_secs(10);

/// Starts it.
pub(super) fn start(
    config: Config,
    catalog: Catalog,
    store: Arc<dyn Store>,
    handle: Handle,
    metrics: Metrics,
    tasks: &Tasks,
) {
    tasks.spawn_until_stopped("virtual addresses", move || {
        let keeper = Keeper {
            ledger: Ledger::new(config.node.clone(), config.release_after),
            tick: (config.release_after / 4).clamp(Duration::from_millis(100), LONGEST_TICK),
            catalog: catalog.clone(),
            store: Arc::clone(&store),
            handle: handle.clone(),
            metrics: metrics.clone(),
        };
        keeper.run()
    });
}

struct Keeper {
    ledger: Ledger,
    tick: Duration,
    catalog: Catalog,
    store: Arc<dyn Store>,
    handle: Handle,
    metrics: Metrics,
}

/// A claim to make.
type Job = (IpAddr, ServiceName);

impl Keeper {
    async fn run(mut self) {
        let mut changes = self.catalog.subscribe();
        let mut usable = self.handle.usable();
        usable.mark_changed();
        let mut tick = tokio::time::interval(self.tick);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                names = changes.changed() => names.iter().for_each(|name| self.look_at(name)),
                Ok(()) = usable.changed() => {
                    self.ledger.set_ranges(&usable.borrow_and_update());
                    self.catalog.services().iter().for_each(|service| self.look_at(&service.name));
                }
                _ = tick.tick() => self.free_unneeded().await,
                () = sleep_until(self.ledger.next_due()) => self.claim_due().await,
            }
            self.metrics.lacking.set(i64::try_from(self.ledger.lacking()).unwrap_or(i64::MAX));
            if self.ledger.lacking() == 0 {
                Problems::set(&self.handle.problems.claims, Vec::new());
            }
        }
    }

    fn look_at(&mut self, name: &ServiceName) {
        let service = self.catalog.service(name.as_str());
        self.ledger.look_at(name, service.as_deref(), Instant::now());
    }

    fn is_live(&self) -> bool {
        *self.catalog.freshness() == Freshness::Live
    }

    async fn claim_due(&mut self) {
        let now = Instant::now();
        let due = self.ledger.due(now, BATCH, PATIENCE);
        // What an old catalog lacks, others may have claimed long ago.
        if !self.is_live() {
            return due.iter().for_each(|name| self.ledger.again(name, now + PAUSE));
        }
        let mut problems = Vec::new();
        match self.claim(&due, &mut problems).await {
            Ok(contended) => contended.iter().for_each(|name| self.ledger.again(name, now)),
            Err(error) => {
                due.iter().for_each(|name| self.ledger.again(name, now + PAUSE));
                if !error.is_retryable() {
                    problems.push(format!("virtual addresses cannot be claimed: {error}"));
                }
            }
        }
        Problems::set(&self.handle.problems.claims, problems);
    }

    /// Claims for each of these services; returns those that another was faster for. The store is asked for every claim
    /// first: the watch may not have told of the newest, and a service is to have one address, not two.
    async fn claim(
        &self,
        due: &[ServiceName],
        problems: &mut Vec<String>,
    ) -> store::Result<Vec<ServiceName>> {
        let mut taken = vips::list(&*self.store).await?;
        let mut held = Held::new(&taken);
        let mut jobs: Vec<Job> = Vec::new();
        for name in due {
            let lacks: Vec<&[Prefix]> = self.ledger.lacks(|range| held.has(name, range)).collect();
            for ranges in lacks {
                let Some(address) = choose(name, ranges, |address| taken.contains_key(&address)) else {
                    problems.push(full(ranges, name));
                    continue;
                };
                taken.insert(address, Some(name.clone()));
                held.add(name, address);
                jobs.push((address, name.clone()));
            }
        }
        let claims =
            futures_util::stream::iter(jobs).map(|job| self.claim_one(job)).buffer_unordered(AT_ONCE);
        let outcomes: Vec<store::Result<Option<ServiceName>>> = claims.collect().await;
        Ok(outcomes.into_iter().collect::<store::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Returns the service if another was faster.
    async fn claim_one(&self, (address, service): Job) -> store::Result<Option<ServiceName>> {
        let count = |word: &str| self.metrics.claims.with_label_values(&[word]).inc();
        match vips::claim(&*self.store, address, &service).await {
            Ok(Claimed::Done) => {
                count("done");
                tracing::info!(%service, %address, "claimed a virtual address");
                Ok(None)
            }
            Ok(Claimed::Taken(holder)) => {
                count("taken");
                Ok((holder.as_ref() != Some(&service)).then_some(service))
            }
            Err(error) => {
                count("failed");
                Err(error)
            }
        }
    }

    async fn free_unneeded(&mut self) {
        let claims = self.is_live().then(|| self.catalog.vips());
        let unneeded =
            self.ledger.unneeded(claims, |name| self.catalog.service(name.as_str()), Instant::now());
        for (address, service, why) in unneeded {
            match vips::release(&*self.store, address, &service, why != Why::Surplus).await {
                Ok(Released::Done) => {
                    self.metrics.released.with_label_values(&[why.as_str()]).inc();
                    tracing::info!(%service, %address, why = why.as_str(), "freed a virtual address");
                }
                Ok(Released::Kept) => {}
                // The next tick tries again.
                Err(error) => return tracing::debug!(%error, "a virtual address is not freed yet"),
            }
        }
    }
}

/// Which service has which addresses, as the store said a moment ago.
struct Held(std::collections::HashMap<ServiceName, Vec<IpAddr>>);

impl Held {
    fn new(taken: &std::collections::BTreeMap<IpAddr, Option<ServiceName>>) -> Self {
        let mut held = Self(std::collections::HashMap::new());
        for (address, service) in taken {
            if let Some(service) = service {
                held.add(service, *address);
            }
        }
        held
    }

    fn add(&mut self, service: &ServiceName, address: IpAddr) {
        self.0.entry(service.clone()).or_default().push(address);
    }

    fn has(&self, service: &ServiceName, range: &Prefix) -> bool {
        self.0.get(service).is_some_and(|addresses| addresses.iter().any(|address| range.contains(*address)))
    }
}

fn full(ranges: &[Prefix], service: &ServiceName) -> String {
    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    format!(
        "service {service} gets no virtual address: every one of {} is taken; add a range to [vip] on every node",
        ranges.join(", ")
    )
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
