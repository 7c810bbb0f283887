//! `[docker]`: this node's Docker, its containers as instances and on overlay networks.

use nerve::document::{Reported, Section};
use nerve::model::UnixPath;
use nerve::source::DockerAddress;
use serde::Serialize;

/// Where Docker looks for plugins; the file's name is the driver's.
const PLUGIN: &str = "/run/docker/plugins/plexus.sock";
/// Where Docker's API is.
const API: &str = "/run/docker.sock";
/// The ending of the names that Docker takes for plugins'.
const ENDING: &str = ".sock";

/// A path that may be left out.
fn path(section: &mut Section<'_>, key: &'static str, default: &str) -> Result<UnixPath, Reported> {
    match section.given(key)? {
        Some(path) => Ok(path),
        None => {
            UnixPath::new(default).map_err(|error| section.invalid(key, error, "the path of a unix socket"))
        }
    }
}

/// The table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Docker {
    /// Is Docker served?
    pub enabled: bool,
    /// The unix socket that it finds the driver by.
    pub plugin: UnixPath,
    /// Are its containers registered as instances?
    pub instances: bool,
    /// The unix socket of its API, which is asked for them.
    pub api: UnixPath,
    /// Which address of them is registered; `None`: the one on overlay networks where those are enabled, else the published one.
    pub address: Option<DockerAddress>,
    /// Do Registrator's conventions hold?
    pub registrator: bool,
}

impl Docker {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let enabled = section.or("enabled", false);
        let plugin = path(section, "plugin", PLUGIN);
        let instances = section.or("instances", true);
        let api = path(section, "api", API);
        let address = section.optional("address");
        let registrator = section.or("registrator", true);
        let plugin = plugin?;
        if plugin.file_name().strip_suffix(ENDING).is_none_or(str::is_empty) {
            return Err(section.invalid(
                "plugin",
                format!("{plugin} does not end in .sock, and Docker finds no others"),
                format!("a path such as {PLUGIN:?}"),
            ));
        }
        Ok(Self { enabled, plugin, instances, api: api?, address, registrator })
    }

    /// What `docker network create --driver` names: Docker calls a plugin as its file.
    pub(super) fn driver(&self) -> &str {
        let file = self.plugin.file_name();
        file.strip_suffix(ENDING).unwrap_or(file)
    }
}
