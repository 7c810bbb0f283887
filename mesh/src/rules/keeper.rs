//! Keeps what connections ask in step with the rules, the services, and what runs here.
//!
//! New rules are put in order beside those that hold, over all services, and then take their place whole. Services are followed
//! only while a rule asks for labels, and then a change costs the services it names.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use nerve::source::Snapshot;
use nerve::tasks::Tasks;
use synapse::catalog::{Freshness, RuleChanges, ServiceChanges, Subscription};
use tokio::sync::watch;

use super::clients::Clients;
use super::compiled::Compiled;
use super::{Means, Shared};

/// So many services are looked at in a stretch; then others of the control plane get their turn.
const STRETCH: usize = 512;
/// The addresses of the host are looked at so often, whatever happened.
const TICK: Duration = Duration::from_secs(30);

struct Keeper {
    shared: Arc<Shared>,
    means: Means,
    rules: Subscription<RuleChanges>,
    /// While a rule asks for labels.
    services: Option<Subscription>,
    compiled: Option<Arc<Compiled>>,
}

/// Looks at the rules if they are known, and follows them.
pub(super) async fn start(shared: Arc<Shared>, means: Means, tasks: &Tasks) {
    let mut first = Keeper::new(&shared, &means);
    if first.are_known() {
        first.compile().await;
    }
    tasks.spawn_until_stopped("rules", move || Keeper::new(&shared, &means).run());
}

impl Keeper {
    fn new(shared: &Arc<Shared>, means: &Means) -> Self {
        Self {
            shared: Arc::clone(shared),
            means: means.clone(),
            rules: shared.catalog.subscribe_rules(),
            services: None,
            compiled: None,
        }
    }

    /// Has anybody said which rules there are, or that there are none?
    fn are_known(&self) -> bool {
        let catalog = &self.shared.catalog;
        *catalog.freshness() != Freshness::Awaiting || catalog.forbids_anything()
    }

    async fn run(mut self) {
        let watcher = self.means.watcher.clone();
        let mut sources = self.means.sources.clone();
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                _ = self.rules.changed() => if self.compiled.is_some() || self.are_known() {
                    self.compile().await;
                },
                () = watcher.filled(), if self.compiled.is_none() => self.compile().await,
                names = changed_services(&mut self.services) => self.note_services(names).await,
                () = changed_sources(&mut sources) => self.note_clients(),
                _ = tick.tick() => self.note_clients(),
            }
        }
    }

    /// Puts the rules in order, and has them asked from then on.
    async fn compile(&mut self) {
        // What was said until now is looked at here.
        let _ = self.rules.take();
        let set = self.shared.catalog.rules();
        let compiled = Arc::new(Compiled::new(&set));
        // Its first report is all of them.
        self.services = compiled.index.asks_for_labels().then(|| self.shared.catalog.subscribe());
        self.compiled = Some(Arc::clone(&compiled));
        if let Some(services) = &mut self.services {
            let names = services.take();
            self.note_services(names).await;
        }
        self.note_clients();
        self.shared.compiled.store(Some(compiled));
        self.shared.told.forget();
        self.shared.metrics.note_rules(&set);
        if !set.is_empty() {
            tracing::info!(rules = set.rules.len(), default = %set.default, "rules about who may talk to whom are in force");
        }
    }

    async fn note_services(&self, names: ServiceChanges) {
        let Some(compiled) = &self.compiled else { return };
        for (at, name) in names.into_iter().enumerate() {
            compiled.note_service(&name, self.shared.catalog.service(name.as_str()).as_deref());
            if at % STRETCH == STRETCH - 1 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Finds out who the clients of this node are, while that matters.
    fn note_clients(&self) {
        let Some(compiled) = &self.compiled else { return };
        if !self.shared.catalog.forbids_anything() {
            return;
        }
        match (self.means.host_addresses)() {
            Ok(host) => {
                let snapshots: Vec<Arc<Snapshot>> =
                    self.means.sources.iter().map(|source| Arc::clone(&source.borrow())).collect();
                compiled.note_clients(Clients::new(&compiled.index, &snapshots, &host));
            }
            Err(error) => {
                tracing::warn!(%error, "the addresses of this host cannot be read: who its clients are stays as it was last known");
            }
        }
    }
}

/// Services that have changed. Never, while nobody follows them.
async fn changed_services(services: &mut Option<Subscription>) -> ServiceChanges {
    match services {
        Some(services) => services.changed().await,
        None => std::future::pending().await,
    }
}

/// Waits until one of them says something else.
async fn changed_sources(sources: &mut Vec<watch::Receiver<Arc<Snapshot>>>) {
    while !sources.is_empty() {
        let changes = sources.iter_mut().map(|source| Box::pin(source.changed()));
        let (changed, at, _) = select_all(changes).await;
        match changed {
            Ok(()) => return,
            // It says nothing more; what it has said stays.
            Err(_) => drop(sources.swap_remove(at)),
        }
    }
    std::future::pending().await
}
