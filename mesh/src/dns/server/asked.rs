//! A message of a connection's client, and its answer: where it is encrypted, padded for those who pad.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::Service;
use crate::dns::message::Reply;
use crate::dns::metrics::{Dropped, Transport};
use crate::dns::padding;
use crate::dns::telling::Answer;

/// No query that we answer is longer.
pub(super) const LONGEST_QUERY: usize = 4096;

/// What is to be done with a message.
pub(super) enum Asked {
    /// Send this.
    Now(Vec<u8>),
    /// Wait for this, then send it.
    Later(BoxFuture<'static, Vec<u8>>),
    /// Nothing is to be sent.
    Drop(Dropped),
}

impl Service {
    pub(super) fn ask(&self, query: &[u8], client: SocketAddr, transport: Transport) -> Asked {
        let came = Instant::now();
        let handled = catch_unwind(AssertUnwindSafe(|| self.handler.handle(query, client, transport)));
        let reply = handled.unwrap_or_else(|_| {
            tracing::error!(%client, "handling a DNS query panicked; it is not answered");
            Reply::Drop(Dropped::Panic)
        });
        let is_encrypted = matches!(transport, Transport::Tls | Transport::Https);
        let pads = is_encrypted && padding::is_wanted(query);
        let teller = Arc::clone(&self.teller);
        let finished = move |mut answer: Vec<u8>, road| {
            teller.tell(transport, road, came, std::iter::once((Answer::read(&answer), client)));
            if pads {
                padding::pad(&mut answer);
            }
            answer
        };
        match reply {
            Reply::Now(answer) => Asked::Now(finished(answer, None)),
            Reply::Later(later) => {
                Asked::Later(later.wait().map(move |answer| finished(answer, Some("upstream"))).boxed())
            }
            Reply::Drop(reason) => Asked::Drop(reason),
        }
    }
}
