//! Services that stay on a HAProxy: its configuration is written as Synapse does, by what Synapse's says of it.

use std::collections::BTreeSet;

use nerve::smartstack::Wrong;
use serde::Serialize;

use super::Service;
use super::again::read_again;
use crate::output::haproxy::{Config, ProxyName, Service as Proxied, ServiceConfig};

/// All of them.
const ALL: &str = "*";

/// Which services stay on a HAProxy, by their names in Synapse's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Kept(BTreeSet<String>);

impl FromIterator<String> for Kept {
    /// Of names; `*` is all of them.
    fn from_iter<T: IntoIterator<Item = String>>(names: T) -> Self {
        Self(names.into_iter().collect())
    }
}

impl Kept {
    /// None of them?
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn is_all(&self) -> bool {
        self.0.contains(ALL)
    }

    pub(super) fn keeps(&self, name: &str) -> bool {
        self.is_all() || self.0.contains(name)
    }

    /// What HAProxy is told of those that stay, and what is wrong with that. `globals` is the section `haproxy` of the main file.
    pub(super) fn told(
        &self,
        file: &str,
        globals: &serde_json::Value,
        services: &[Service],
    ) -> (Option<Config>, Vec<Wrong>) {
        if self.is_nothing() {
            return (None, Vec::new());
        }
        let mut config = match read_again(file, "haproxy.", globals, Config::read).map(|(config, _)| config) {
            Ok(config) => config,
            Err(wrong) => return (None, wrong),
        };
        let mut wrong = Vec::new();
        for service in services.iter().filter(|service| self.keeps(&service.synapse_name)) {
            let name = ProxyName::sanitised(&service.synapse_name);
            if config.services.iter().any(|other| other.name == name) {
                let message = format!(
                    "services.{}.haproxy: another one is called {name} there, too",
                    service.synapse_name
                );
                wrong.push(Wrong { place: service.file.clone(), message });
                continue;
            }
            match read_again(&service.file, "haproxy.", &service.haproxy, ServiceConfig::read) {
                Ok((read, _)) => {
                    config.services.push(Proxied { service: service.name.clone(), name, config: read })
                }
                Err(errors) => wrong.extend(errors.into_iter().map(|error| Wrong {
                    message: format!("services.{}.{}", service.synapse_name, error.message),
                    ..error
                })),
            }
        }
        (Some(config), wrong)
    }
}
