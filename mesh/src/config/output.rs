//! `[output.…]`: which other programs of this node are told of services.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nerve::document::{Reported, Section};
use nerve::model::ServiceName;
use serde::Serialize;
use synapse::output::{Target, haproxy};

/// The tables.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Output {
    /// `[output.haproxy]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub haproxy: Option<haproxy::Config>,
    /// `[output.files]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<OutputFiles>,
}

/// A file for each service, as Synapse writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutputFiles {
    /// Where they are.
    pub directory: PathBuf,
    /// Which services; none: all of them.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub services: BTreeSet<ServiceName>,
}

impl Output {
    pub(super) fn read(section: &mut Section<'_>, base: &Path) -> Result<Self, Reported> {
        let files = section.section("files", |section| {
            let directory = section.required::<PathBuf>("directory");
            let services = section.or("services", BTreeSet::new());
            Ok(OutputFiles { directory: base.join(directory?), services })
        });
        let haproxy = section.section("haproxy", haproxy::Config::read).transpose();
        Ok(Self { haproxy: haproxy?.map(|config| config.with_paths_from(base)), files: files.transpose()? })
    }

    /// Is nobody told anything?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl OutputFiles {
    /// What is written.
    #[must_use]
    pub fn target(&self) -> Target {
        let named = |service: &ServiceName| (service.clone(), service.to_string());
        let services = (!self.services.is_empty()).then(|| self.services.iter().map(named).collect());
        Target { directory: self.directory.clone(), services }
    }
}
