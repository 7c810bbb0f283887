//! `[docker]`: containers of Docker on overlay networks.

use nerve::document::{Reported, Section};
use nerve::model::UnixPath;
use serde::Serialize;

/// Where Docker looks for plugins; the file's name is the driver's.
const PLUGIN: &str = "/run/docker/plugins/plexus.sock";

/// The table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Docker {
    /// Is Docker served?
    pub enabled: bool,
    /// The unix socket that it finds the driver by.
    pub plugin: UnixPath,
}

impl Docker {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let enabled = section.or("enabled", false);
        let plugin = section.optional::<UnixPath>("plugin");
        let plugin = plugin.map_or_else(|| UnixPath::new(PLUGIN), Ok);
        let plugin = plugin.map_err(|error| section.invalid("plugin", error, "the path of a unix socket"))?;
        if !plugin.as_str().ends_with(".sock") {
            return Err(section.invalid(
                "plugin",
                format!("{plugin} does not end in .sock, and Docker finds no others"),
                format!("a path such as {PLUGIN:?}"),
            ));
        }
        Ok(Self { enabled, plugin })
    }
}
