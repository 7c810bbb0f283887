//! One question, asked of whoever may know: the best first, another when that one takes its time.
//!
//! A client gives up after a few seconds, so they are not asked one after the other until each has used up its time: the next
//! is asked after twice what this one usually takes. The first that knows decides; what the others do is still heard, so that
//! one that is silent is found out.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use nerve::tasks::Tasks;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use super::answer::Relayed;
use super::servers::Group;
use super::upstream::{Failure, Upstream};
use super::{Key, Told};
use crate::dns::metrics::{Forwarded, Metrics};

/// So many are asked for one question: the client waits.
const MOST_ASKED: usize = 3;

/// Asks. One for all questions.
#[derive(Debug)]
pub(super) struct Asker {
    /// So many questions are heard to the end that are answered already.
    rest: Arc<Semaphore>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
}

type Asked = FuturesUnordered<BoxFuture<'static, Result<Relayed, Failure>>>;

impl Asker {
    pub(super) fn new(rest: usize, tasks: Tasks, metrics: Arc<Metrics>) -> Self {
        Self { rest: Arc::new(Semaphore::new(rest)), tasks, metrics }
    }

    /// The answer of the first in `group` that knows; of those that do not, what they said.
    pub(super) async fn ask(&self, group: &Group, key: &Key) -> Told {
        let mut next = in_order(&group.upstreams, Instant::now()).into_iter();
        let mut asked = Asked::new();
        let mut last = Err(Failure::NoUpstream);
        // When the next is asked, as long as there is one.
        let mut turn = Some(Instant::now());
        loop {
            if asked.is_empty() || turn.is_some_and(|turn| Instant::now() >= turn) {
                match next.next() {
                    Some(upstream) => {
                        if !asked.is_empty() {
                            self.metrics.forwarded.inc(Forwarded::Hedged);
                        }
                        let now = Instant::now();
                        turn = Some(now + upstream.health().patience(now));
                        asked.push(one(upstream, key));
                    }
                    None if asked.is_empty() => break,
                    None => turn = None,
                }
            }
            tokio::select! {
                () = sleep_until(turn.unwrap_or_else(Instant::now)), if turn.is_some() => {}
                Some(came) = asked.next() => match came {
                    Ok(answer) if answer.is_conclusive() => {
                        self.hear_out(asked);
                        self.metrics.forwarded.inc(Forwarded::Answered);
                        return Ok(Arc::new(answer));
                    }
                    Ok(answer) => (last, turn) = (Ok(Arc::new(answer)), Some(Instant::now())),
                    // A server's own failure tells more than another's silence.
                    Err(_) if last.is_ok() => turn = Some(Instant::now()),
                    Err(failure) => (last, turn) = (Err(failure), Some(Instant::now())),
                },
            }
        }
        self.metrics.forwarded.inc(match &last {
            Ok(_) => Forwarded::UpstreamFailed,
            Err(Failure::Timeout { .. }) => Forwarded::Timeout,
            Err(Failure::Unreachable { .. } | Failure::NoUpstream) => Forwarded::Unreachable,
        });
        last
    }

    /// What comes too late still says how upstreams do.
    fn hear_out(&self, mut asked: Asked) {
        if asked.is_empty() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.rest).try_acquire_owned() else { return };
        self.tasks.spawn_while_wanted("dns forward rest", async move {
            while asked.next().await.is_some() {}
            drop(permit);
        });
    }
}

fn one(upstream: Arc<Upstream>, key: &Key) -> BoxFuture<'static, Result<Relayed, Failure>> {
    let (question, flags, dnssec_ok) = (key.question.clone(), key.flags, key.dnssec_ok);
    Box::pin(async move { upstream.ask(&question, flags, dnssec_ok).await })
}

/// Whom to ask for one question, the best first. One alone that is spoken with over UDP is asked twice, since a datagram may be lost.
fn in_order(all: &[Arc<Upstream>], now: Instant) -> Vec<Arc<Upstream>> {
    let mut order: Vec<_> = all.iter().map(|upstream| (upstream.health().rank(now), upstream)).collect();
    order.sort_by_key(|(rank, _)| *rank);
    let mut order: Vec<_> = order.into_iter().map(|(_, upstream)| Arc::clone(upstream)).collect();
    order.truncate(MOST_ASKED);
    if let [only] = order.as_slice()
        && only.may_lose()
    {
        order.push(Arc::clone(only));
    }
    if let Some(first) = order.first() {
        first.health().probe(now);
    }
    order
}
