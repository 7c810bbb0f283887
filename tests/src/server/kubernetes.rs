//! Kubernetes' API, as far as endpoint slices go: lists by label and by pages, watches from a version on, and versions that it forgets.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use serde_json::{Value, json};

use super::api::{Answer, Asked, Speaks, lock};

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";

/// What stands in the cluster's namespace `shop`.
#[derive(Debug)]
pub struct Kubernetes(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    token: String,
    version: u64,
    /// Watches that begin at an older version are refused.
    oldest: u64,
    slices: BTreeMap<String, Value>,
    /// All that happened, with the version after it.
    events: Vec<(u64, String)>,
    watchers: Vec<Sender<String>>,
}

impl Kubernetes {
    /// A cluster without slices, for whoever has this token.
    #[must_use]
    pub fn new(token: &str) -> Self {
        Self(Mutex::new(State { token: token.to_owned(), version: 10, ..State::default() }))
    }

    /// Another token counts from now on; watches end.
    pub fn exchange_token(&self, token: &str) {
        let mut state = lock(&self.0);
        token.clone_into(&mut state.token);
        state.watchers.clear();
    }

    /// Writes a slice of a service: endpoints by the name of their pod, address and readiness.
    pub fn apply(&self, name: &str, service: &str, port: u16, endpoints: &[(&str, &str, bool)]) {
        let endpoint = |(pod, address, ready): &(&str, &str, bool)| {
            json!({
                "addresses": [address], "conditions": {"ready": ready, "serving": ready, "terminating": false},
                "nodeName": "k8s-1", "zone": "eu-1a", "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod},
            })
        };
        let mut state = lock(&self.0);
        state.version += 1;
        let slice = json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "shop", "resourceVersion": state.version.to_string(), "labels": {"kubernetes.io/service-name": service}},
            "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        });
        let before = state.slices.insert(name.to_owned(), slice.clone());
        state.happened(if before.is_some() { "MODIFIED" } else { "ADDED" }, &slice);
    }

    /// Deletes a slice.
    ///
    /// # Panics
    /// There is none.
    pub fn delete(&self, name: &str) {
        let mut state = lock(&self.0);
        state.version += 1;
        let mut slice = state.slices.remove(name).expect("a slice of that name");
        slice["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.happened("DELETED", &slice);
    }

    /// Forgets what has happened: who would go on from an older version has to list again.
    pub fn compact(&self) {
        let mut state = lock(&self.0);
        state.oldest = state.version;
        state.events.clear();
    }
}

impl State {
    fn happened(&mut self, kind: &str, slice: &Value) {
        let line = format!("{}\n", json!({"type": kind, "object": slice}));
        self.watchers.retain(|watcher| watcher.send(line.clone()).is_ok());
        self.events.push((self.version, line));
    }

    fn list(&self, service: &str, asked: &Asked) -> Answer {
        let of_service =
            |slice: &&Value| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service;
        let all: Vec<&Value> = self.slices.values().filter(of_service).collect();
        // Pages of one, whatever is asked for: fewer than the limit are allowed.
        let from: usize = asked
            .parameter("continue")
            .and_then(|token| token.strip_prefix("from/")?.parse().ok())
            .unwrap_or(0);
        let next = if from + 1 < all.len() { format!("from/{}", from + 1) } else { String::new() };
        let items: Vec<&&Value> = all.iter().skip(from).take(1).collect();
        let metadata = json!({"resourceVersion": self.version.to_string(), "continue": next});
        let list = json!({"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata, "items": items});
        Answer::Whole(200, list.to_string())
    }

    fn watch(&mut self, service: &str, asked: &Asked) -> Answer {
        let from: u64 =
            asked.parameter("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        let (tell, said) = channel();
        if from < self.oldest {
            let gone = json!({"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old resource version"});
            let _ = tell.send(format!("{}\n", json!({"type": "ERROR", "object": gone})));
            return Answer::Stream(said);
        }
        assert_eq!(service, "web", "one service is watched here");
        let missed = self.events.iter().filter(|(version, line)| *version > from && line.contains("\"web\""));
        missed.for_each(|(_, line)| drop(tell.send(line.clone())));
        self.watchers.push(tell);
        Answer::Stream(said)
    }
}

impl Speaks for Kubernetes {
    fn answer(&self, asked: &Asked) -> Answer {
        let mut state = lock(&self.0);
        let status = |code: u16| {
            Answer::Whole(code, json!({"kind": "Status", "status": "Failure", "code": code}).to_string())
        };
        if asked.header("authorization") != format!("Bearer {}", state.token) {
            return status(401);
        }
        let selector = asked.parameter("labelSelector").unwrap_or_default();
        let service = selector.strip_prefix("kubernetes.io/service-name=");
        match (asked.method.as_str(), asked.path.as_str(), service) {
            ("GET", SLICES, Some(service)) if asked.parameter("watch").is_some() => {
                state.watch(service, asked)
            }
            ("GET", SLICES, Some(service)) => state.list(service, asked),
            _ => status(404),
        }
    }
}
