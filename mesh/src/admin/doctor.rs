//! What is wrong here, and what to do about it: what the agent knows to fail, and what is found by looking.

use axum::Json;
use axum::extract::State;
use synapse::catalog::Freshness;

use super::{Handles, Shared, read};
use crate::api::{Checkup, Finding};

pub(super) async fn examine(State(handles): Shared) -> Json<Checkup> {
    let mut findings = vec![agent(&handles), store(&handles)];
    findings.extend(
        read::problems(&handles)
            .into_iter()
            .map(|problem| finding(Finding::BAD, &problem.what, problem.message)),
    );
    findings.extend((handles.examiner)().await);
    Json(Checkup { node: handles.node.name.clone(), findings })
}

fn agent(handles: &Handles) -> Finding {
    let (phase, awaited) = (*handles.phase.borrow(), handles.readiness.awaited());
    if awaited.is_empty() {
        return finding(Finding::GOOD, "agent", format!("it is {phase}"));
    }
    finding(Finding::BAD, "agent", format!("it is {phase} and awaits {}", awaited.join(", ")))
}

fn store(handles: &Handles) -> Finding {
    let url = handles.store.url();
    match &*handles.catalog.freshness() {
        Freshness::Live => finding(Finding::GOOD, "store", format!("{url} answers")),
        // Why it does not is told by the problem that this is.
        Freshness::Stale { .. } => {
            finding(Finding::NOTE, "store", format!("{url} is not heard; what was known goes on"))
        }
        Freshness::Awaiting => Finding {
            advice: Some("is it reachable from this node, and is its address right?".to_owned()),
            ..finding(Finding::BAD, "store", format!("nothing was heard from {url} yet"))
        },
    }
}

fn finding(state: &str, subject: &str, message: String) -> Finding {
    Finding { subject: subject.to_owned(), state: state.to_owned(), message, advice: None }
}
