//! `[source.…]`: where else than in this configuration instances are defined.

use std::path::{Path, PathBuf};

use nerve::document::{Reported, Section};
use nerve::source::SmartstackSource;
use serde::Serialize;
use synapse::smartstack::{Configuration, Kept};

use super::Config;

/// The tables.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Sources {
    /// `[source.nerve]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nerve: Option<Nerve>,
    /// `[source.synapse]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synapse: Option<Synapse>,
}

/// A configuration of SmartStack's Synapse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Synapse {
    /// Its main file.
    pub file: PathBuf,
    /// Those of its services that stay on a HAProxy.
    #[serde(skip_serializing_if = "Kept::is_nothing")]
    pub haproxy: Kept,
}

/// A configuration of SmartStack's Nerve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nerve {
    /// Its main file.
    pub file: PathBuf,
    /// Instead of the file's `instance_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
}

impl Sources {
    pub(super) fn read(section: &mut Section<'_>, base: &Path) -> Result<Self, Reported> {
        let nerve = section.section("nerve", |section| {
            let file = section.required::<PathBuf>("file");
            let instance_id = section.optional::<String>("instance_id");
            Ok(Nerve { file: base.join(file?), instance_id })
        });
        let synapse = section.section("synapse", |section| {
            let file = section.required::<PathBuf>("file");
            let haproxy = section.or("haproxy", Vec::<String>::new());
            Ok(Synapse { file: base.join(file?), haproxy: haproxy.into_iter().collect() })
        });
        Ok(Self { nerve: nerve.transpose()?, synapse: synapse.transpose()? })
    }

    /// Is nothing defined elsewhere?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What the files of other programs say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checked {
    /// How many instances are defined, by our own files too.
    pub instances: usize,
    /// How many services of Synapse's are taken; `None`: none of its files is read.
    pub services: Option<usize>,
    /// What those ask for and is not done.
    pub lacks: Vec<String>,
}

impl Config {
    /// What the node's own files define; as an error what is wrong with those that are of another program.
    ///
    /// # Errors
    /// What is wrong, one line each.
    pub fn check_sources(&self) -> Result<Checked, String> {
        let mut checked = Checked { instances: self.services.len(), ..Checked::default() };
        let mut wrong = Vec::new();
        if let Some(smartstack) = self.smartstack_source() {
            let (defined, problems) = SmartstackSource::check(smartstack, self.node.local());
            checked.instances += defined;
            wrong.extend(problems.into_iter().map(|problem| (problem.place, problem.message)));
        }
        if let Some(Synapse { file, haproxy }) = self.sources.synapse.clone() {
            let in_force = Configuration::of(file, haproxy).load();
            checked.services = Some(in_force.services.len());
            checked.lacks = in_force.lacks;
            wrong.extend(in_force.wrong.into_iter().map(|wrong| (wrong.place, wrong.message)));
        }
        let wrong: Vec<String> =
            wrong.into_iter().map(|(place, message)| format!("{place}: {message}")).collect();
        if wrong.is_empty() { Ok(checked) } else { Err(wrong.join("\n")) }
    }
}
