//! `plexus doctor`: what is wrong with overlay networks on this node, and what to do about it.
//!
//! `host` looks at what this machine needs, `forward` at packet filters that belong to others, `peers` judges what probes to
//! the other nodes have told. Changes nothing. What the agent knows to fail anyway is not repeated here: the admin interface
//! puts it in front.

mod forward;
mod host;
mod peers;

use std::time::Duration;

use crate::overlay;

/// How long probes of peers may take: with the rest it is less than a request to the admin interface may.
const WITHIN: Duration = Duration::from_secs(7);

/// How something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As it is to be.
    Good,
    /// It works, and there is something to know about it.
    Note,
    /// It does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub subject: String,
    /// How it stands.
    pub state: State,
    /// What was seen.
    pub message: String,
    /// What to do.
    pub advice: Option<String>,
}

impl Finding {
    fn new(state: State, subject: &str, message: impl Into<String>) -> Self {
        Self { subject: subject.to_owned(), state, message: message.into(), advice: None }
    }

    fn good(subject: &str, message: impl Into<String>) -> Self {
        Self::new(State::Good, subject, message)
    }

    fn note(subject: &str, message: impl Into<String>) -> Self {
        Self::new(State::Note, subject, message)
    }

    fn bad(subject: &str, message: impl Into<String>) -> Self {
        Self::new(State::Bad, subject, message)
    }

    fn advice(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

/// Looks at everything.
pub async fn examine(overlay: &overlay::Handle) -> Vec<Finding> {
    let Some(prober) = overlay.prober() else {
        let off = Finding::note("overlay", "this node takes part in no overlay network");
        return vec![off.advice("[overlay] enabled = true in its configuration changes that")];
    };
    let ranges = prober.ranges();
    let (host, forward, (probed, left)) =
        tokio::join!(host::examine(&ranges), forward::examine(&ranges), prober.probe(WITHIN));
    let mut findings = host;
    findings.extend(forward);
    findings.extend(peers::judge(&probed, prober.port()));
    if left > 0 {
        let late = format!("there was no time to probe {left} of {} nodes", left + probed.len());
        findings
            .push(Finding::note("peers", late).advice("run it again when fewer of them are out of reach"));
    }
    if ranges.is_empty() {
        let none = Finding::note("networks", "this node has a part of no network yet");
        findings
            .push(none.advice("`plexus network ls` shows which there are, `plexus status` why it has none"));
    } else if probed.is_empty() && left == 0 {
        findings.push(Finding::good("peers", "no other node takes part in a network of this one"));
    }
    findings
}
