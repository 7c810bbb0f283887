//! `[output.…]`: which other programs of this node are told of services.

use std::path::Path;

use nerve::document::{Reported, Section};
use serde::Serialize;
use synapse::output::haproxy;

/// The tables.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Output {
    /// `[output.haproxy]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub haproxy: Option<haproxy::Config>,
}

impl Output {
    pub(super) fn read(section: &mut Section<'_>, base: &Path) -> Result<Self, Reported> {
        let haproxy = section.section("haproxy", haproxy::Config::read).transpose();
        Ok(Self { haproxy: haproxy?.map(|config| config.with_paths_from(base)) })
    }

    /// Is nobody told?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
