//! What a changed configuration means for a running agent: which keys differ, and which of them it can apply.
//!
//! Pure. A change that needs a restart is named and not applied; the others of the same file are.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Config;

/// Keys, or whole tables of keys, that a running agent applies. Everything else is bound when it starts.
const LIVE: &[&str] = &[
    "service",
    "watch",
    "output",
    "ingress.localhost",
    "log.level",
    "drain",
    "admin.loopback_role",
    "admin.network_role",
    "admin.socket_role",
    "admin.token",
    "dns.query_log",
    "mtls.mode",
    "mtls.local_links",
];

/// The keys that differ, as they are written in the file (`dns.ttl`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reload {
    /// Applied while running.
    pub live: Vec<String>,
    /// Applied by a restart only.
    pub restart: Vec<String>,
}

impl Reload {
    /// Does nothing differ?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.restart.is_empty()
    }

    /// What to tell the user about keys that were not applied, if there are any.
    #[must_use]
    pub fn needs_restart(&self) -> Option<String> {
        (!self.restart.is_empty()).then(|| {
            format!(
                "{} changed in the file and is not applied: restart the agent for it (it drains first)",
                self.restart.join(", ")
            )
        })
    }
}

/// What differs between the configuration that runs and the one that was read.
#[must_use]
pub fn diff(running: &Config, read: &Config) -> Reload {
    let (before, after) = (keys(running), keys(read));
    let mut reload = Reload::default();
    let all: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for key in all {
        if before.get(key) == after.get(key) {
            continue;
        }
        let is_live = LIVE
            .iter()
            .any(|live| key.strip_prefix(live).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')));
        if is_live { reload.live.push(key.clone()) } else { reload.restart.push(key.clone()) }
    }
    // Printed as hidden, so that they look alike.
    let secret = |config: &Config| (config.store.password.clone(), config.store.password_file.clone());
    if secret(running) != secret(read) && !reload.restart.iter().any(|key| key.starts_with("store.password"))
    {
        reload.restart.push("store.password".to_owned());
    }
    reload
}

/// Every key with its value; a list is one value.
fn keys(config: &Config) -> BTreeMap<String, Value> {
    let mut keys = BTreeMap::new();
    // A configuration always has a JSON form: its keys are texts.
    flatten("", serde_json::to_value(config).unwrap_or_default(), &mut keys);
    keys
}

fn flatten(path: &str, value: Value, keys: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                flatten(&path, value, keys);
            }
        }
        value => drop(keys.insert(path.to_owned(), value)),
    }
}
