//! What a balancer does once a second, on the control plane: what no connection is there to notice.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use nerve::model::Locality;

use super::shared::Shared;
use super::{Balancer, Closing, is_panic};

/// Samples of an endpoint that say something of its latency.
const SAMPLES: u32 = 10;
/// Endpoints that must have said something before one of them is called slow.
const ENDPOINTS: usize = 3;
/// What it must be slower by at least, in microseconds: of what is fast a multiple is fast as well.
const MARGIN: u64 = 10_000;

impl Balancer {
    /// Ends ejections and drains whose time is over, looks for endpoints that are slow, and follows the fleet. To be
    /// called about once a second.
    pub fn tick(&self) {
        let now = Shared::now();
        let snapshot = self.pool.load();
        if self.shared.census.ejected.load(Ordering::Relaxed) > 0 {
            snapshot.known.iter().for_each(|endpoint| endpoint.outlier.expire(now, &self.shared.census));
        }
        if snapshot.settings.outlier.latency_factor > 0 {
            self.eject_slow(now);
        }
        self.end_drains(now);
        let rank = if snapshot.settings.subset > 0 { self.place.rank() } else { 0 };
        let ejected = self.shared.census.ejected.load(Ordering::Relaxed);
        let rebuild = {
            let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
            let moved = snapshot.settings.subset > 0 && control.rank != rank;
            let ejections = snapshot.settings.locality != Locality::Any && control.ejected != ejected;
            control.rank = rank;
            control.ejected = ejected;
            moved || ejections
        };
        if rebuild {
            self.pool.rebuild(&self.shared, &self.place);
        }
        self.note_state();
    }

    /// Ejects whoever's mean latency is a multiple of the median's.
    fn eject_slow(&self, now: u64) {
        let snapshot = self.pool.load();
        let mut means: Vec<_> = snapshot
            .known
            .iter()
            .filter_map(|endpoint| endpoint.latency.take_mean(SAMPLES).map(|mean| (mean, endpoint)))
            .collect();
        if means.len() < ENDPOINTS {
            return;
        }
        means.sort_by_key(|(mean, _)| *mean);
        // The lower one of two in the middle: the slow are not to make themselves the measure.
        let median = means[(means.len() - 1) / 2].0;
        let most = (median * u64::from(snapshot.settings.outlier.latency_factor)).max(median + MARGIN);
        for (_, endpoint) in means.into_iter().filter(|(mean, _)| *mean > most) {
            endpoint.note_slow(now);
        }
    }

    /// Has the connections closed of endpoints that left longer ago than they may.
    fn end_drains(&self, now: u64) {
        let drain = self.pool.load().settings.drain;
        let over: Vec<_> = {
            let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
            control.leaving.retain(|(endpoint, _)| endpoint.in_flight() > 0);
            let Some(drain) = drain else { return };
            control.leaving.extract_if(.., |(_, since)| now.saturating_sub(*since) >= drain).collect()
        };
        for (endpoint, _) in over {
            tracing::info!(service = %self.service, instance = %endpoint.id(), connections = endpoint.in_flight(), "drain deadline has passed");
            (self.on_closing)(&endpoint, Closing::All);
        }
    }

    /// Tells when panic begins and ends, and how many are ejected.
    pub(super) fn note_state(&self) {
        let snapshot = self.pool.load();
        let ejected = self.shared.census.ejected.load(Ordering::Relaxed);
        let panics = is_panic(&snapshot, ejected);
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.metrics.note_ejected(&mut control.shown, ejected);
        if panics != control.panics {
            control.panics = panics;
            self.shared.metrics.panic(if panics { 1 } else { -1 });
            let (serving, total) = (snapshot.serving, snapshot.total);
            if panics {
                tracing::warn!(service = %self.service, serving, total, ejected, "too few endpoints are available: all are balanced over, the unwell too");
            } else {
                tracing::info!(service = %self.service, serving, total, ejected, "enough endpoints are available again");
            }
        }
    }
}
