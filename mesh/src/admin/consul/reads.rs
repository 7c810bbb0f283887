//! What all reading answers have in common: waiting for a change, the headers that say how far the answer can be trusted, the
//! refusal of what nobody knows yet.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::response::{IntoResponse, Response};
use hyper::http::{HeaderName, HeaderValue, header};
use hyper::{HeaderMap, StatusCode};
use nerve::tasks::Tasks;
use serde::Serialize;
use synapse::catalog::Freshness;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::super::metrics::Open;
use super::super::refusal::Refusal;
use super::super::{Handles, Metrics};
use super::changes::{Changes, Topic};
use super::filter::{self, Filter};
use super::question::Question;
use super::shape::Shapes;
use crate::drain::DrainWatcher;

/// Requests that wait for a change at the same time. A Prometheus has one for each service.
pub(in super::super) const MAX_WAITING: usize = 4096;

/// After so many endpoints an answer about everything lets others have the thread: checks and the store's session wait for nobody's question.
const TURN: usize = 1000;

/// Counts the endpoints that were looked at for an answer.
#[derive(Debug, Default)]
pub(super) struct Turn(usize);

impl Turn {
    /// Before the next ones. What has changed meanwhile is newer than the answer's index, which the next wait tells.
    pub(super) async fn take(&mut self, endpoints: usize) {
        self.0 += endpoints;
        if self.0 >= TURN {
            self.0 = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// What reading answers are made of.
pub(in super::super) struct Reads {
    pub(super) handles: Arc<Handles>,
    /// Kept from the first request on: most agents are never asked.
    changes: OnceLock<Arc<Changes>>,
    /// Where indexes begin: the time, so that those of an agent's next life are greater.
    first: u64,
    places: Places,
    tasks: Tasks,
    drain: DrainWatcher,
}

/// Room for those that wait.
struct Places {
    most: usize,
    free: Semaphore,
    metrics: Metrics,
}

impl Places {
    fn new(most: usize, metrics: Metrics) -> Self {
        Self { most, free: Semaphore::new(most), metrics }
    }

    /// One of them, for as long as it is held.
    fn take(&self) -> Result<(SemaphorePermit<'_>, Open), Refusal> {
        let Ok(place) = self.free.try_acquire() else {
            self.metrics.refused.with_label_values(&["too_many_waiting"]).inc();
            let many = format!("{} requests wait for a change already", self.most);
            return Err(
                Refusal::new(StatusCode::TOO_MANY_REQUESTS, many).hint("ask again later, or without `index`")
            );
        };
        Ok((place, Open::new(self.metrics.waiting.clone())))
    }
}

impl Reads {
    pub(in super::super) fn new(
        handles: Arc<Handles>,
        metrics: Metrics,
        tasks: Tasks,
        drain: DrainWatcher,
    ) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let first = u64::try_from(now.as_micros()).unwrap_or_default();
        let places = Places::new(MAX_WAITING, metrics);
        Self { handles, changes: OnceLock::new(), first, places, tasks, drain }
    }

    fn changes(&self) -> &Arc<Changes> {
        self.changes.get_or_init(|| {
            let changes = Arc::new(Changes::new(self.handles.catalog.clone(), self.first));
            let followed = Arc::clone(&changes);
            self.tasks.spawn_until_stopped("consul changes", move || Arc::clone(&followed).follow());
            changes
        })
    }

    /// For an answer of this moment.
    pub(super) fn shapes(&self) -> Shapes<'_> {
        Shapes { handles: &self.handles, changes: self.changes() }
    }

    /// The index of what is asked: at once, or once it is another than the asker knows, at the latest when it has waited as long as it wants to.
    pub(super) async fn index(&self, topic: &Topic, question: &Question) -> Result<u64, Refusal> {
        let changes = self.changes();
        if let Some(known) = question.index.filter(|known| changes.index(topic) == *known) {
            let _place = self.places.take()?;
            let mut drain = self.drain.clone();
            tokio::select! {
                () = changes.differs(topic, known, question.spread_wait()) => {}
                // An agent that leaves answers as things are.
                () = drain.signaled() => {}
            }
        }
        Ok(changes.index(topic))
    }

    /// An answer with Consul's headers. `is_nothing`: it tells of nothing, which counts only if there was somebody to ask.
    pub(super) fn answer(
        &self,
        question: &Question,
        index: u64,
        is_nothing: bool,
        body: &impl Serialize,
    ) -> Result<Response, Refusal> {
        let freshness = self.handles.catalog.freshness();
        let last_contact = match &*freshness {
            Freshness::Live => Duration::ZERO,
            Freshness::Awaiting if is_nothing => {
                return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "No cluster leader")
                    .hint("nothing was heard from the store yet; `plexus status` says more"));
            }
            Freshness::Awaiting => self.handles.started.elapsed(),
            Freshness::Stale { since, .. } => SystemTime::now().duration_since(*since).unwrap_or_default(),
        };
        let text = if question.pretty { serde_json::to_vec_pretty(body) } else { serde_json::to_vec(body) };
        let text = text.map_err(|error| {
            let what = format!("the answer cannot be written: {error}");
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, what)
        })?;
        let live = if matches!(*freshness, Freshness::Live) { "true" } else { "false" };
        let contact = u64::try_from(last_contact.as_millis()).unwrap_or(u64::MAX);
        let headers: HeaderMap = [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (HeaderName::from_static("x-consul-index"), index.into()),
            (HeaderName::from_static("x-consul-knownleader"), HeaderValue::from_static(live)),
            (HeaderName::from_static("x-consul-lastcontact"), contact.into()),
            // What an agent knows, it answers without asking anybody.
            (HeaderName::from_static("x-consul-effective-consistency"), HeaderValue::from_static("stale")),
        ]
        .into_iter()
        .collect();
        Ok((headers, text).into_response())
    }

    /// The same for a list, of which the filter may leave something out.
    pub(super) fn list<T: Serialize>(
        &self,
        question: &Question,
        index: u64,
        filter: Option<&Filter>,
        rows: impl IntoIterator<Item = T>,
    ) -> Result<Response, Refusal> {
        let rows = filter::kept(filter, rows);
        self.answer(question, index, rows.is_empty(), &rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_wait_than_there_is_room_for_and_those_that_are_refused_are_counted() {
        let metrics = Metrics::default();
        let places = Places::new(2, metrics.clone());
        let refused = || metrics.refused.with_label_values(&["too_many_waiting"]).get();
        let held = [places.take().unwrap(), places.take().unwrap()];
        let refusal = places.take().map(|_| ()).unwrap_err();
        assert!(format!("{refusal:?}").contains("2 requests wait"), "{refusal:?}");
        assert_eq!((metrics.waiting.get(), refused()), (2, 1));
        drop(held);
        assert_eq!((metrics.waiting.get(), places.take().is_ok(), refused()), (0, true, 1));
    }
}
