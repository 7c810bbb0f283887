//! The socket: one call a connection, so many at once, each of them bounded in size and time.
//!
//! A connection that Docker kept open would lead to an agent that another one has replaced.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nerve::model::UnixPath;
use nerve::tasks::Tasks;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::Handle;
use super::calls::call;
use super::driver::{Driver, Refused};
use super::file::{self, FileError, SocketFile};
use crate::drain::DrainWatcher;

/// Calls at the same time; further ones wait in the socket's queue.
const MOST_CALLS: usize = 64;
/// The largest request: a container with thousands of published ports.
const MOST_BYTES: usize = 1024 * 1024;
/// How long Docker may take to send one.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long a call may take: longer than a network that was just made is waited for.
const CALL_WITHIN: Duration = Duration::from_secs(20);
/// How often it is looked whether the file is there, and how soon what failed is tried again.
const TICK: Duration = Duration::from_secs(5);
/// A pause after a failed `accept`: no file descriptor is left, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What Docker's `pkg/plugins` sends and expects.
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.docker.plugins.v1.1+json");

/// Listens, and listens again when somebody has removed the file.
pub(super) struct Server {
    path: UnixPath,
    driver: Driver,
    handle: Handle,
    tasks: Tasks,
    drain: DrainWatcher,
    free: Arc<Semaphore>,
}

/// Why nobody is listened to any more.
enum Ended {
    Drained,
    FileLost,
}

impl Server {
    pub(super) fn new(
        path: UnixPath,
        driver: Driver,
        handle: Handle,
        tasks: Tasks,
        drain: DrainWatcher,
    ) -> Self {
        Self { path, driver, handle, tasks, drain, free: Arc::new(Semaphore::new(MOST_CALLS)) }
    }

    /// Serves until the drain. `replaces`: whoever listens at first is an agent that this one has replaced.
    pub(super) async fn run(mut self, mut replaces: bool) {
        loop {
            match self.listen(std::mem::take(&mut replaces)) {
                Ok((listener, file)) => {
                    self.handle.note(None);
                    tracing::info!(socket = %self.path, "Docker is served");
                    match self.serve(&listener, &file).await {
                        Ended::Drained => return file.remove(),
                        Ended::FileLost => {
                            tracing::warn!(socket = %self.path, "somebody removed the socket; it is made again");
                            continue;
                        }
                    }
                }
                Err(error) => self.handle.note(Some(error.to_string())),
            }
            tokio::select! {
                () = self.drain.signaled() => return,
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    fn listen(&self, replaces: bool) -> Result<(UnixListener, SocketFile), FileError> {
        let (listener, file) = file::listen(&self.path, replaces)?;
        let failed = |source: io::Error| FileError::Failed { path: self.path.clone(), source };
        Ok((UnixListener::from_std(listener).map_err(failed)?, file))
    }

    async fn serve(&mut self, listener: &UnixListener, file: &SocketFile) -> Ended {
        let mut tick = tokio::time::interval(TICK);
        loop {
            let accept = async {
                // The semaphore is never closed.
                let permit = Arc::clone(&self.free).acquire_owned().await.ok();
                (listener.accept().await, permit)
            };
            let (accepted, permit) = tokio::select! {
                () = self.drain.signaled() => return Ended::Drained,
                _ = tick.tick() => if file.is_there() { continue } else { return Ended::FileLost },
                accepted = accept => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (driver, drain) = (self.driver.clone(), self.drain.clone());
                    self.tasks.spawn("docker call", async move {
                        serve_one(stream, driver).await;
                        drop((permit, drain));
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a call of Docker cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve_one(stream: UnixStream, driver: Driver) {
    let service = service_fn(move |request| {
        let driver = driver.clone();
        async move { Ok::<_, Infallible>(respond(&driver, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a call of Docker broke off");
    }
}

async fn respond(driver: &Driver, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let name = request.uri().path().trim_start_matches('/').to_owned();
    let read = tokio::time::timeout(HEAD_WITHIN, Limited::new(request.into_body(), MOST_BYTES).collect());
    let body = match read.await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => {
            return refusal(StatusCode::BAD_REQUEST, &format!("the request cannot be read: {error}"));
        }
        Err(_) => return refusal(StatusCode::REQUEST_TIMEOUT, "the request did not come whole"),
    };
    match tokio::time::timeout(CALL_WITHIN, call(driver, &name, &body)).await {
        Ok(Ok(answer)) => response(StatusCode::OK, &answer),
        Ok(Err(error)) => refusal(status(&error), &error.to_string()),
        Err(_) => refusal(
            StatusCode::GATEWAY_TIMEOUT,
            &format!("{name} was not done within {CALL_WITHIN:?}; try again"),
        ),
    }
}

/// In an answer with the status 200, the driver for networks would look for `Err` and the one for addresses for `Error`
/// (libnetwork's `api.Response`); in all others, both look for `Err`.
fn status(error: &Refused) -> StatusCode {
    match error {
        Refused::NoCall(_) => StatusCode::NOT_FOUND,
        Refused::Empty | Refused::Unreadable(_) | Refused::Wrong(_) => StatusCode::BAD_REQUEST,
        Refused::Overlay(_) | Refused::Kept { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn refusal(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    response(status, &json!({"Err": why}))
}

fn response(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, MEDIA_TYPE);
    response
}
