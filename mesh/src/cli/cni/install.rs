//! `plexus cni install`: what a container runtime needs to find on its node.
//!
//! Two things: the program among its plugins, as a link so that an upgrade reaches both, and the configuration of a network. Each
//! is made beside its place and renamed: a runtime that looks meanwhile sees all of it or nothing.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use nerve::model::NetworkName;
use serde_json::{Value, json};

use super::version::Version;
use crate::api::{Changed, NetworkInfo, path};
use crate::cli::attach::each_once;
use crate::cli::error::Error;
use crate::cli::files::{beside, remove_leftover, write};
use crate::cli::output::Output;
use crate::cli::register::Pair;
use crate::cli::{Reach, Result, print_change};

const AFTER_HELP: &str = "\
Runtimes take the first configuration of the directory, in the order of the files' names, as the one for containers that do
not ask for another.

Examples:
  plexus cni install
  plexus cni install --network blue
  plexus cni install --name mesh                          podman means a network of its own by `default`
  plexus cni install --bin-dir /usr/lib/cni               where podman of Debian looks
  plexus cni install --name web --label plexus.port=8080  containers with an alias are services of that name";

/// Put the plugin and the configuration of a network where runtimes look for them
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Install {
    /// The overlay network that containers are attached to
    #[arg(long, default_value = "default")]
    network: NetworkName,
    /// What the runtime calls it; the same unless given
    #[arg(long)]
    name: Option<NetworkName>,
    /// Where the runtime looks for plugins
    #[arg(long, value_name = "DIRECTORY", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// What is said of all containers that ask for it, such as plexus.port=8080
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Pair<String, String>>,
    /// Where it looks for configurations
    #[arg(long, value_name = "DIRECTORY", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    #[command(flatten)]
    reach: Reach,
}

impl Install {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let Self { network, name, bin_dir, labels, conf_dir, reach } = self;
        let labels = each_once(labels).map_err(|why| Error::failed("installing the plugin", why))?;
        let name = name.unwrap_or_else(|| network.clone());
        let failed = |what: String| move |error: io::Error| Error::failed(what, error);
        let program = std::env::current_exe().map_err(failed("finding this program".to_owned()))?;
        let plugin = bin_dir.join("plexus");
        let linked = link(&program, &plugin)
            .map_err(failed(format!("linking {} to this program", plugin.display())))?;
        let file = conf_dir.join(format!("10-plexus-{name}.conflist"));
        let text = format!("{:#}\n", conflist(&name, &network, reach.agent().written(), &labels));
        let written = write(&file, &text).map_err(failed(format!("writing {}", file.display())))?;
        let message = format!(
            "containers that ask for {name} are attached to network {network}: {} and {}",
            plugin.display(),
            file.display()
        );
        // What is not there yet may be there when the first container is.
        let path = path::NETWORK.replace("{network}", network.as_str());
        let asked = reach.agent().get::<NetworkInfo>(&format!("looking for network {network}"), &path).await;
        let notes = asked.err().map(|error| error.to_string()).into_iter().collect();
        print_change(out, reach.json, &Changed { message, changed: linked || written, notes })
    }
}

/// What runtimes read. Those of the latest version choose among `cniVersions`; others know `cniVersion` alone.
fn conflist(
    name: &NetworkName,
    network: &NetworkName,
    admin: Option<String>,
    labels: &BTreeMap<String, String>,
) -> Value {
    let capabilities = json!({"ips": true, "aliases": true, "io.kubernetes.cri.pod-annotations": true});
    let mut plugin = json!({"type": "plexus", "network": network, "capabilities": capabilities});
    if !labels.is_empty() {
        let labels: Vec<Value> =
            labels.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        plugin["args"] = json!({"cni": {"labels": labels}});
    }
    if let Some(admin) = admin {
        plugin["admin"] = json!(admin);
    }
    json!({
        "cniVersion": Version::V0_4_0.as_str(),
        "cniVersions": Version::ALL.map(Version::as_str),
        "name": name,
        "plugins": [plugin]
    })
}

/// Makes `link` a symbolic link to the program. Tells whether it was none.
fn link(program: &Path, link: &Path) -> io::Result<bool> {
    // Also where the program itself was put there.
    if link.canonicalize().is_ok_and(|there| program.canonicalize().is_ok_and(|program| there == program)) {
        return Ok(false);
    }
    let beside = beside(link)?;
    remove_leftover(&beside)?;
    std::os::unix::fs::symlink(program, &beside)?;
    std::fs::rename(&beside, link).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::super::configuration::Configuration;
    use super::*;

    #[test]
    fn what_is_written_is_what_the_plugin_reads() {
        let network = NetworkName::new("blue").unwrap();
        let name = NetworkName::new("mesh").unwrap();
        let labels = BTreeMap::from([("plexus.port".to_owned(), "80".to_owned())]);
        let list = conflist(&name, &network, Some("http://127.0.0.1:7171".to_owned()), &labels);
        // What a runtime makes of it for the one plugin.
        for version in list["cniVersions"].as_array().unwrap() {
            let mut one = list["plugins"][0].clone();
            one["name"] = list["name"].clone();
            one["cniVersion"] = version.clone();
            let read = Configuration::read(one.to_string().as_bytes()).unwrap();
            assert_eq!((read.name.as_str(), read.network), ("mesh", network.clone()));
            assert_eq!(read.admin, Some("127.0.0.1:7171".parse().unwrap()));
            assert_eq!(read.labels, labels);
        }
        let plain = conflist(&name, &network, None, &BTreeMap::new());
        assert_eq!(
            (&plain["plugins"][0]["admin"], &plain["plugins"][0]["args"]),
            (&Value::Null, &Value::Null)
        );
    }

    #[test]
    fn installing_again_changes_nothing_and_repairs_what_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let (program, plugin) = (directory.path().join("program"), directory.path().join("bin/plexus"));
        std::fs::write(&program, "").unwrap();
        assert!(link(&program, &plugin).unwrap() && !link(&program, &plugin).unwrap());
        assert_eq!(std::fs::read_link(&plugin).unwrap(), program);
        // Run from where it was linked to, it is left as it is.
        assert!(!link(&plugin, &plugin).unwrap());
        std::fs::remove_file(&plugin).unwrap();
        std::fs::write(&plugin, "an older version, copied").unwrap();
        assert!(link(&program, &plugin).unwrap() && plugin.is_symlink());
        let file = directory.path().join("net.d/10-plexus-blue.conflist");
        std::fs::create_dir(directory.path().join("net.d")).unwrap();
        std::fs::write(directory.path().join("net.d/10-plexus-blue.conflist.new"), "half").unwrap();
        assert!(write(&file, "{}").unwrap() && !write(&file, "{}").unwrap() && write(&file, "{ }").unwrap());
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }
}
