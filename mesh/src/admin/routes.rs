//! Which path is answered by what, and what holds for all of them: limits, refusals, JSON errors, counting.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper::{StatusCode, header};
use hyper_util::service::TowerToHyperService;
use nerve::tasks::Tasks;

use super::access::{Caller, Origin, Role, Rules};
use super::consul::{Reads, catalog, health};
use super::refusal::Refusal;
use super::{
    Handles, Metrics, attachments, checks, consul, dns, doctor, guard, identity, local, mtls, names,
    networks, read, rules, settings, upstreams, watchers, write,
};
use crate::api::{self, path};
use crate::drain::DrainWatcher;

/// Where every request comes in, from wherever: refused if it is foreign or not let in, given up if it takes too long, counted.
#[derive(Clone)]
pub(super) struct Entrance {
    metrics: Metrics,
    rules: Rules,
    routes: TowerToHyperService<Router>,
}

fn routes(handles: Arc<Handles>, reads: Arc<Reads>) -> Router {
    Router::new()
        .route(path::HEALTHZ, get(read::healthz))
        .route(path::READYZ, get(read::readyz))
        .route(path::METRICS, get(read::metrics))
        .route(path::STATUS, get(read::status))
        .route(path::DOCTOR, get(doctor::examine))
        .route(path::SERVICES, get(read::services))
        .route(path::SERVICE, get(read::service))
        .route(path::NODES, get(read::nodes))
        .route(path::REVOCATION, put(identity::revoke))
        .route(path::IDENTITY, get(identity::info))
        .route(path::MTLS, get(mtls::info).put(mtls::set))
        .route(path::JOIN_TOKENS, post(identity::make_token))
        .route(path::ROTATION, get(identity::rotation))
        .route(path::ROTATION_ABORT, put(identity::abort_rotation))
        .route(path::WATCHERS, get(watchers::list))
        .route(path::DNS, get(dns::info))
        .route(path::UPSTREAMS, get(upstreams::list))
        .route(path::DNS_TOP, get(names::top))
        .route(path::WHY, get(read::why))
        .route(path::RULES, get(rules::list).post(rules::add).put(rules::set_default))
        .route(path::RULE, delete(rules::remove))
        .route(path::RESOLVE, get(read::resolve))
        .route(path::INSTANCES, get(local::instances).post(local::register))
        .route(path::INSTANCE, delete(local::deregister))
        .route(path::CHECK, put(checks::report))
        .route(path::CONSUL_CHECK, put(checks::consul))
        .merge(consul_routes())
        .merge(consul_reads(reads))
        .route(path::DRAIN, put(local::drain))
        .route(path::SETTINGS, get(settings::read).put(settings::write))
        .route(path::PORTS, put(write::publish))
        .route(path::PORT, delete(write::unpublish))
        .route(path::VIP, put(write::set_vip))
        .route(path::ATTACHMENTS, get(attachments::list).post(attachments::attach))
        .route(path::ATTACHMENT, delete(attachments::detach))
        .route(path::ATTACHMENT_CHECK, get(attachments::check))
        .route(path::ATTACHABLE, get(attachments::attachable))
        .route(path::NETWORKS, get(networks::list))
        .route(path::NETWORK, get(networks::inspect).put(networks::create).delete(networks::remove))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(handles)
}

/// Paths of Consul's, for its clients.
fn consul_routes() -> Router<Arc<Handles>> {
    Router::new()
        .route(path::CONSUL_CHECK_REGISTER, put(consul::register_check))
        .route(path::CONSUL_CHECK_DEREGISTER, put(consul::deregister_check))
        .route(path::CONSUL_CHECKS, get(consul::all_checks))
        .route(path::CONSUL_REGISTER, put(consul::register))
        .route(path::CONSUL_DEREGISTER, put(consul::deregister))
        .route(path::CONSUL_MAINTENANCE, put(consul::maintain_service))
        .route(path::CONSUL_SERVICE, get(consul::service))
        .route(path::CONSUL_SERVICES, get(consul::services))
        .route(path::CONSUL_NODE_MAINTENANCE, put(consul::maintain_node))
        .route(path::CONSUL_SELF, get(consul::this_agent))
        .route(path::CONSUL_MEMBERS, get(consul::members))
        .route(path::CONSUL_LEADER, get(consul::leader))
        .route(path::CONSUL_PEERS, get(consul::peers))
}

/// The same for what they ask of the whole fleet.
fn consul_reads(reads: Arc<Reads>) -> Router<Arc<Handles>> {
    Router::new()
        .route(path::CONSUL_DATACENTERS, get(catalog::datacenters))
        .route(path::CONSUL_CATALOG_NODES, get(catalog::nodes))
        .route(path::CONSUL_CATALOG_NODE, get(catalog::node))
        .route(path::CONSUL_CATALOG_NODE_SERVICES, get(catalog::node_services))
        .route(path::CONSUL_CATALOG_SERVICES, get(catalog::services))
        .route(path::CONSUL_CATALOG_SERVICE, get(catalog::service))
        .route(path::CONSUL_HEALTH_SERVICE, get(health::service))
        .route(path::CONSUL_HEALTH_CHECKS, get(health::checks))
        .route(path::CONSUL_HEALTH_NODE, get(health::node))
        .route(path::CONSUL_HEALTH_STATE, get(health::state))
        .with_state(reads)
}

impl Entrance {
    pub(super) fn new(handles: Handles, metrics: &Metrics, tasks: Tasks, drain: DrainWatcher) -> Self {
        let (rules, handles) = (handles.rules.clone(), Arc::new(handles));
        let reads = Reads::new(Arc::clone(&handles), metrics.clone(), tasks, drain);
        let routes = TowerToHyperService::new(routes(handles, Arc::new(reads)));
        Self { metrics: metrics.clone(), rules, routes }
    }

    /// Answers a request.
    pub(super) async fn pass(
        self,
        origin: Origin,
        request: hyper::Request<Incoming>,
    ) -> Result<Response, Infallible> {
        let response = match self.let_in(origin, &request) {
            Err(refusal) => refusal.into_response(),
            Ok(caller) => self.answer(caller, request).await?,
        };
        self.metrics.responses.with_label_values(&[response.status().as_str()]).inc();
        Ok(response)
    }

    fn let_in(&self, origin: Origin, request: &hyper::Request<Incoming>) -> Result<Caller, Refusal> {
        let (method, headers) = (request.method(), request.headers());
        guard::check(method, headers, origin).map_err(|foreign| {
            self.metrics.refused.with_label_values(&[foreign.as_str()]).inc();
            Refusal::new(StatusCode::FORBIDDEN, "the admin interface refuses requests of foreign web pages")
                .hint(foreign.hint())
        })?;
        let admitted = self.rules.admit((method, request.uri(), headers), origin);
        admitted
            .inspect_err(|denied| self.metrics.refused.with_label_values(&[denied.as_str()]).inc())
            .map_err(Refusal::from)
    }

    async fn answer(
        &self,
        caller: Caller,
        mut request: hyper::Request<Incoming>,
    ) -> Result<Response, Infallible> {
        let path = request.uri().path().to_owned();
        let within = api::within(&path);
        let is_operation = Role::needed(request.method(), &path) == Role::Operate;
        let (method, by) = (request.method().clone(), caller.clone());
        request.extensions_mut().insert(caller);
        let Ok(response) = tokio::time::timeout(within, self.routes.call(request)).await else {
            let late = format!("the request was not done within {within:?}");
            let late = Refusal::new(StatusCode::GATEWAY_TIMEOUT, late).hint("is the store reachable?");
            return Ok(late.into_response());
        };
        let response = response?;
        if is_operation && response.status().is_success() {
            let peer = by.peer();
            let (uid, pid) = (peer.map(|peer| peer.uid), peer.and_then(|peer| peer.pid));
            tracing::info!(by = by.name(), uid, pid, %method, path, "operated through the admin interface");
        }
        Ok(as_json(response))
    }
}

/// What the router itself refuses (a path that is not UTF-8) is plain text: every refusal of ours is JSON.
fn as_json(response: Response) -> Response {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if status.as_u16() < 400 || kind.is_some_and(|kind| kind.starts_with("application/json")) {
        return response;
    }
    let reason = status.canonical_reason().unwrap_or("refused");
    Refusal::new(status, format!("the request cannot be read: {reason}")).into_response()
}

async fn no_such_path(request: Request) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", request.uri().path()))
        .hint("docs/cli.md lists the paths")
}

async fn no_such_method(request: Request) -> Refusal {
    let error = format!("{} does not take {}", request.uri().path(), request.method());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, error)
}
