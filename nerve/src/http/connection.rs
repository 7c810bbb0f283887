//! A connection that requests are sent over, one at a time: HTTP/1.1, or HTTP/2 where that was agreed on.
//!
//! Nothing is spawned: what drives the connection is polled together with the request, and lies still between requests. So
//! whoever drops a request drops everything that it began.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use super::{Duplex, MAX_READ};

/// How long what is left of an earlier answer may take: it has had the time since then to arrive.
const TIDYING: Duration = Duration::from_millis(10);

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection. Between requests nobody reads from it.
pub(crate) struct Connection {
    sender: Sender,
    /// `None`: it has ended.
    driver: Option<Task>,
    /// The body of the last answer, as far as it was not needed (HTTP/1.1 alone).
    rest: Option<Incoming>,
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// What hyper wants to run beside a connection of HTTP/2: run by whoever polls the connection.
#[derive(Clone, Default)]
struct Beside(Arc<Mutex<Vec<Task>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Beside {
    fn execute(&self, task: F) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(task));
    }
}

impl Connection {
    /// Speaks HTTP/1.1 over it.
    pub(crate) async fn one(stream: impl Duplex + 'static) -> Result<Self, String> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_READ)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| chain(&error))?;
        let driver: Task = Box::pin(async {
            // Its error is the request's as well.
            let _ = connection.await;
        });
        Ok(Self { sender: Sender::One(sender), driver: Some(driver), rest: None })
    }

    /// Speaks HTTP/2 over it.
    pub(crate) async fn two(stream: impl Duplex + 'static) -> Result<Self, String> {
        let beside = Beside::default();
        let (sender, connection) = http2::Builder::new(beside.clone())
            .initial_stream_window_size(u32::try_from(MAX_READ).unwrap_or(u32::MAX))
            .max_header_list_size(u32::try_from(MAX_READ).unwrap_or(u32::MAX))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| chain(&error))?;
        let mut connection = Some(Box::pin(connection));
        let mut tasks = FuturesUnordered::<Task>::new();
        let driver = poll_fn(move |cx| {
            if connection.as_mut().is_some_and(|connection| connection.as_mut().poll(cx).is_ready()) {
                connection = None;
            }
            loop {
                tasks.extend(std::mem::take(&mut *beside.0.lock().unwrap_or_else(PoisonError::into_inner)));
                match tasks.poll_next_unpin(cx) {
                    Poll::Ready(Some(())) => {}
                    Poll::Ready(None) if connection.is_none() => return Poll::Ready(()),
                    Poll::Ready(None) | Poll::Pending => return Poll::Pending,
                }
            }
        });
        Ok(Self { sender: Sender::Two(sender), driver: Some(Box::pin(driver)), rest: None })
    }

    /// Is it HTTP/2?
    pub(crate) fn is_two(&self) -> bool {
        matches!(self.sender, Sender::Two(_))
    }

    /// Makes it ready for another request. `false`: it is of no more use.
    pub(crate) async fn tidy(&mut self) -> bool {
        let Self { sender, driver, rest } = self;
        let rest = rest.take();
        let tidied = drive(driver, async {
            if let Some(mut rest) = rest {
                let mut read = 0;
                while let Some(Ok(frame)) = rest.frame().await {
                    read += frame.data_ref().map_or(0, Bytes::len);
                    if read > MAX_READ {
                        return false;
                    }
                }
            }
            match sender {
                Sender::One(sender) => sender.ready().await.is_ok(),
                Sender::Two(sender) => sender.ready().await.is_ok(),
            }
        });
        tokio::time::timeout(TIDYING, tidied).await.unwrap_or(false) && self.driver.is_some()
    }

    /// Sends a request and waits for the head of the answer.
    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        let Self { sender, driver, .. } = self;
        let answer = drive(driver, async {
            match sender {
                Sender::One(sender) => sender.send_request(request).await,
                Sender::Two(sender) => sender.send_request(request).await,
            }
        });
        answer.await.map_err(|error| chain(&error))
    }

    /// Does something with a body of it.
    pub(crate) async fn run<T>(&mut self, work: impl Future<Output = T>) -> T {
        drive(&mut self.driver, work).await
    }

    /// Leaves a body unread, for [`Connection::tidy`]. A stream of HTTP/2 is given up by itself.
    pub(crate) fn leave(&mut self, body: Incoming) {
        if !self.is_two() {
            self.rest = Some(body);
        }
    }
}

/// Polls the connection while `work` waits for it.
async fn drive<T>(driver: &mut Option<Task>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(done);
        }
        if driver.as_mut().is_some_and(|driver| driver.as_mut().poll(cx).is_ready()) {
            // What it delivered before it ended is still there for the work, which is not waited for by anybody else now.
            *driver = None;
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await
}

/// An error with its causes: hyper's own texts end where it gets interesting.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
