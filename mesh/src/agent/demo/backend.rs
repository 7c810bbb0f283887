//! A service to try things on: answers with service, instance and node, and to `/client` with who asks; turns unhealthy when told to.
//!
//! It runs as a process of its own, so that it can be killed, stopped and continued like any other. It ends when its
//! standard input closes, so that it never outlives whoever started it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nerve::model::{InstanceId, NodeName, ServiceName};
use nerve::tasks::Tasks;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

/// What one backend is.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The service that it is an instance of.
    pub service: ServiceName,
    /// Its id.
    pub instance: InstanceId,
    /// The node that it runs on.
    pub node: NodeName,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
}

#[derive(Debug)]
struct State {
    greeting: String,
    healthy: AtomicBool,
}

/// Serves until standard input closes. `listening` is told the address once it can be connected to.
pub fn run(backend: &Backend, listening: impl FnOnce(SocketAddr)) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(backend.listen)
            .await
            .with_context(|| format!("listen on {} for {}", backend.listen, backend.instance))?;
        listening(listener.local_addr()?);
        let state = Arc::new(State {
            greeting: format!("{} {} on node {}\n", backend.service, backend.instance, backend.node),
            healthy: AtomicBool::new(true),
        });
        let tasks = Tasks::new();
        let accepting = async {
            loop {
                // Out of descriptors, or the client is gone already: neither ends the backend.
                let Ok((stream, client)) = listener.accept().await else {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    continue;
                };
                let state = Arc::clone(&state);
                tasks.spawn("backend connection", async move {
                    let service = service_fn(move |request| {
                        let response = answer(&state, &request, client);
                        async move { Ok::<_, Infallible>(response) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                        tracing::debug!(%error, "connection ended");
                    }
                });
            }
        };
        tokio::select! {
            () = accepting => {}
            () = input_closed() => {}
        }
        Ok(())
    })
}

fn answer(state: &State, request: &Request<Incoming>, client: SocketAddr) -> Response<String> {
    let reply = |status, text: &str| {
        let mut response = Response::new(text.to_owned());
        *response.status_mut() = status;
        response
    };
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz") if state.healthy.load(Ordering::Relaxed) => {
            reply(StatusCode::OK, "well\n")
        }
        (&Method::GET, "/healthz") => reply(StatusCode::SERVICE_UNAVAILABLE, "told to fail\n"),
        (&Method::GET, "/client") => {
            reply(StatusCode::OK, &format!("{} is asked by {client}\n", state.greeting.trim_end()))
        }
        (&Method::POST, "/fail") => {
            state.healthy.store(false, Ordering::Relaxed);
            reply(StatusCode::OK, "failing its health check from now on\n")
        }
        (&Method::POST, "/heal") => {
            state.healthy.store(true, Ordering::Relaxed);
            reply(StatusCode::OK, "passing its health check from now on\n")
        }
        _ => reply(StatusCode::OK, &state.greeting),
    }
}

async fn input_closed() {
    let mut input = tokio::io::stdin();
    let mut ignored = [0; 64];
    while !matches!(input.read(&mut ignored).await, Ok(0) | Err(_)) {}
}
