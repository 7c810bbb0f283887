//! `[source.…]`: where else than in this configuration instances are defined.

use std::path::{Path, PathBuf};

use nerve::document::{Reported, Section};
use nerve::source::SmartstackSource;
use serde::Serialize;

use super::Config;

/// The tables.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Sources {
    /// `[source.nerve]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nerve: Option<Nerve>,
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
        Ok(Self { nerve: nerve.transpose()? })
    }

    /// Is nothing defined elsewhere?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Config {
    /// How many instances the node's own files define; as an error what is wrong with those that are of another program.
    ///
    /// # Errors
    /// What is wrong, one line each.
    pub fn check_sources(&self) -> Result<usize, String> {
        let (mut instances, mut wrong) = (self.services.len(), Vec::new());
        if let Some(smartstack) = self.smartstack_source() {
            let (defined, problems) = SmartstackSource::check(smartstack, self.node.local());
            instances += defined;
            wrong.extend(problems.iter().map(|problem| format!("{}: {}", problem.place, problem.message)));
        }
        if wrong.is_empty() { Ok(instances) } else { Err(wrong.join("\n")) }
    }
}
