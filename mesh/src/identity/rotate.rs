//! What a node that signs does for a rotation of the authority to go on: it begins one where its directory has another authority, and
//! leads from one phase to the next once nobody is waited for. Several do it, and the store has one of them be first.

use std::sync::Arc;
use std::time::Duration;

use nerve::enrolment;
use nerve::enrolment::rotation::{self, Member, Phase, Rotation};
use nerve::model::NodeName;
use nerve::store::Store;
use tokio::sync::watch;
use tokio::time::Instant;

use super::course::Memory;
use super::directory::Authorities;

/// How often the nodes are looked at while a rotation is under way: a part of what certificates hold, and between these.
const PACE: (u32, Duration, Duration) = (40, Duration::from_millis(500), Duration::from_secs(30));
/// How long a phase lasts at least, so that nodes that sign hear of it: the same.
const DWELL: (u32, Duration, Duration) = (20, Duration::from_millis(500), Duration::from_secs(300));
/// How often the store is compared while none is.
const IDLE: Duration = Duration::from_secs(60);

fn part(of: Duration, (part, shortest, longest): (u32, Duration, Duration)) -> Duration {
    (of / part).clamp(shortest, longest)
}

/// Leads on. Does not end.
pub(super) struct Driver {
    pub(super) node: NodeName,
    pub(super) store: Arc<dyn Store>,
    /// What the operator's directory has.
    pub(super) authorities: watch::Receiver<Arc<Authorities>>,
    /// How long certificates hold.
    pub(super) life: Duration,
    pub(super) course: watch::Sender<Memory>,
}

impl Driver {
    pub(super) async fn run(&self) {
        let (mut course, mut authorities) = (self.course.subscribe(), self.authorities.clone());
        let (mut since, mut last) = (Instant::now(), None);
        loop {
            let known = course.borrow_and_update().clone();
            authorities.mark_unchanged();
            if last != known.rotation() {
                (since, last) = (Instant::now(), known.rotation());
            }
            let has_lasted = since.elapsed() >= part(self.life, DWELL);
            match self.step(&known, has_lasted).await {
                // The store had lost it: nodes have to say anew how they stand.
                Ok(true) => since = Instant::now(),
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "the rotation of the authority does not go on"),
            }
            let is_under_way = known.rotation().is_some_and(|rotation| !rotation.is_over());
            let pause = if is_under_way { part(self.life, PACE) } else { IDLE };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Their other ends are held by this.
                _ = course.changed() => {}
                _ = authorities.changed() => {}
            }
        }
    }

    /// Tells whether the store was told what it had lost.
    async fn step(&self, known: &Memory, has_lasted: bool) -> Result<bool, enrolment::Error> {
        let stands = rotation::rotation(&*self.store).await?;
        if let Some(rotation) = &known.rotation()
            && stands.as_ref() != Some(rotation)
        {
            let is_lost = stands.is_none_or(|stands| !known.may_take(&stands));
            return Ok(is_lost && rotation::rotate(&*self.store, stands.as_ref(), rotation).await?);
        }
        if stands != known.rotation() {
            // It is about to be heard.
            return Ok(false);
        }
        match self.wanted(known) {
            Some(next) => {
                tracing::info!(from = %next.from, to = %next.to, "begins to rotate the authority");
                rotation::rotate(&*self.store, stands.as_ref(), &next).await?;
            }
            None if has_lasted => self.go_on(known).await?,
            None => {}
        }
        Ok(false)
    }

    /// A rotation that the directory asks for.
    fn wanted(&self, known: &Memory) -> Option<Rotation> {
        let (from, to) = self.authorities.borrow().fingerprints();
        let rotation = Rotation { from, to: to?, phase: Phase::Trust };
        let follows = known.rotation().is_none_or(|known| known.is_over() && known.issuer() == from);
        (follows && known.may_take(&rotation)).then_some(rotation)
    }

    async fn go_on(&self, known: &Memory) -> Result<(), enrolment::Error> {
        let Some((rotation, phase)) =
            known.rotation().and_then(|rotation| Some((rotation, rotation.next()?)))
        else {
            return Ok(());
        };
        let next = Rotation { phase, ..rotation };
        // Who could not sign then leaves it to those who can.
        if self.authorities.borrow().plan(Some(&next)).is_err() {
            return Ok(());
        }
        let members = rotation::members(&*self.store).await?;
        // A store that has lost what nodes said of themselves has lost what this one said, too.
        let is_told = |member: &Member| member.node == self.node && member.report.is_some();
        if members.iter().any(is_told)
            && members.iter().all(|member| rotation.lacks(member).is_none())
            && rotation::rotate(&*self.store, Some(&rotation), &next).await?
        {
            tracing::info!(%phase, nodes = members.len(), "the rotation of the authority goes on");
        }
        Ok(())
    }
}
