//! The configuration of a node: read from TOML, validated as a whole, composed into what each room is told.
//!
//! `sections` has every key with its default, `validate` what several keys must agree on, `machine` what the defaults
//! depend on, `rooms` the conversion into the rooms' own `Config` types, `reload` which changes a running agent can
//! apply. All mistakes of a file are told at once, each with its line; a half-right file is never used. No room imports
//! this one.

mod admin;
mod checks;
mod dns;
mod docker;
mod identity;
mod localhost;
mod machine;
mod mtls;
mod output;
mod reload;
mod rooms;
mod sections;
mod sources;
mod validate;

use std::path::{Path, PathBuf};

use nerve::check::CheckSpec;
use nerve::document::{Document, Errors, Reported, Section};
use nerve::source::{Draft, Located, read_config};
use serde::{Serialize, Serializer};

use crate::identity::Token;

pub use admin::{Admin, AdminToken, usual_admin_sockets};
pub use checks::Checks;
pub use dns::{Dns, QueryLog, Rate, Recursion, Route, ServeStale, Ttls};
pub use docker::Docker;
pub use identity::{CertificateFiles, External, Identity, IdentityError};
pub use localhost::{Listen, Localhost};
pub use machine::Machine;
pub use mtls::Mtls;
pub use output::{Output, OutputFiles};
pub use reload::{Reload, diff};
pub use sections::{
    Drain, Ingress, Log, LogFormat, LogLevel, Node, Overlay, Proxy, Secret, SecretFile, Store, Vip,
};
pub use sources::{Checked, Nerve, Sources, Synapse};

/// Everything that a node is told, with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Where the agent keeps what it must know after a restart.
    pub state_dir: PathBuf,
    /// A directory of service definitions, a file each; it need not exist.
    pub services_dir: PathBuf,
    /// `[node]`.
    pub node: Node,
    /// `[store]`.
    pub store: Store,
    /// `[ingress]`.
    pub ingress: Ingress,
    /// `[vip]`.
    pub vip: Vip,
    /// `[overlay]`.
    pub overlay: Overlay,
    /// `[docker]`.
    pub docker: Docker,
    /// `[source.…]`.
    #[serde(rename = "source", skip_serializing_if = "Sources::is_empty")]
    pub sources: Sources,
    /// `[[watch]]`: where else services are found, in the order in which they are believed.
    #[serde(rename = "watch", skip_serializing_if = "Vec::is_empty")]
    pub watchers: Vec<synapse::watch::Config>,
    /// `[output.…]`: which other programs are told of services.
    #[serde(skip_serializing_if = "Output::is_empty")]
    pub output: Output,
    /// `[checks]`.
    pub checks: Checks,
    /// `[proxy]`.
    pub proxy: Proxy,
    /// `[dns]`.
    pub dns: Dns,
    /// `[admin]`.
    pub admin: Admin,
    /// `[identity]`.
    pub identity: Identity,
    /// `[mtls]`.
    pub mtls: Mtls,
    /// `[drain]`.
    pub drain: Drain,
    /// `[log]`.
    pub log: Log,
    /// `[[service]]`: what runs on this node.
    #[serde(rename = "service", serialize_with = "as_drafts", skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Located>,
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path, machine: &Machine) -> Result<Self, Errors> {
        let document = Document::read(path)?;
        // What is printed of it, and where it has sockets, is not to depend on where one stands.
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self::read(&document, &whole, machine)
    }

    /// Validates a document; relative paths in it are relative to the directory of `path`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(document: &Document, path: &Path, machine: &Machine) -> Result<Self, Errors> {
        let base = path.parent().unwrap_or(Path::new(""));
        document.decode(|root| {
            let config = Self::sections(root, base, machine)?;
            validate::sections_agree(&config, root)?;
            Ok(config)
        })
    }

    /// What the agent runs with, as a configuration file; passwords are hidden.
    ///
    /// # Errors
    /// A value of it has no form in TOML.
    pub fn to_toml(&self) -> Result<String, nerve::document::Unprintable> {
        nerve::document::to_toml(self)
    }

    fn sections(root: &mut Section<'_>, base: &Path, machine: &Machine) -> Result<Self, Reported> {
        let state_dir = root.optional::<PathBuf>("state_dir").map(|path| base.join(path));
        let state_dir = state_dir.or_else(|| machine.state_dir.clone());
        let services_dir = base.join(root.or("services_dir", PathBuf::from("services.d")));
        let node = root.section_or_empty("node", |section| Node::read(section, machine));
        let store = root.section_or_empty("store", |section| Store::read(section, base));
        let ingress = root.section_or_empty("ingress", Ingress::read);
        let vip = root.section_or_empty("vip", Vip::read);
        let overlay = root.section_or_empty("overlay", Overlay::read);
        let docker = root.section_or_empty("docker", Docker::read);
        let sources = root.section_or_empty("source", |section| Sources::read(section, base));
        let watchers = root.list("watch", |section| synapse::watch::Config::read(section, base));
        let output = root.section_or_empty("output", |section| Output::read(section, base));
        let checks = root.section_or_empty("checks", Checks::read);
        let proxy = root.section_or_empty("proxy", Proxy::read);
        let dns = root.section_or_empty("dns", Dns::read);
        let admin = root.section_or_empty("admin", |section| Admin::read(section, state_dir.as_deref()));
        let identity = root.section_or_empty("identity", |section| Identity::read(section, base));
        let mtls = root.section_or_empty("mtls", Mtls::read);
        let drain = root.section_or_empty("drain", Drain::read);
        let log = root.section_or_empty("log", Log::read);
        let services = match &node {
            Ok(node) => read_config(root, &node.local()),
            Err(reported) => {
                // Without a node there is nothing to complete definitions with: their mistakes come out at the next try.
                root.allow("service");
                Err(*reported)
            }
        };
        let state_dir = state_dir.ok_or_else(|| {
            let why = "neither XDG_STATE_HOME nor HOME says where this user keeps state";
            root.invalid("state_dir", why, "a directory")
        });
        Ok(Self {
            state_dir: state_dir?,
            services_dir,
            node: node?,
            store: store?,
            ingress: ingress?,
            vip: vip?,
            overlay: overlay?,
            docker: docker?,
            sources: sources?,
            watchers: watchers.into_iter().collect::<Result<_, _>>()?,
            output: output?,
            checks: checks?,
            proxy,
            dns: dns?,
            admin: admin?,
            identity: identity?,
            mtls: mtls?,
            drain,
            log,
            services: services?,
        })
    }
}

/// The files that an agent was started with, to be read again.
#[derive(Debug, Clone)]
pub struct Files {
    /// Ours.
    pub config: PathBuf,
    /// One of Nerve's, whatever ours says.
    pub nerve: Option<Nerve>,
    /// One of Synapse's, whatever ours says.
    pub synapse: Option<PathBuf>,
    /// What lets this node in, whatever ours says.
    pub token: Option<Token>,
}

impl Files {
    /// Reads and validates them.
    ///
    /// # Errors
    /// Everything that is wrong with ours.
    pub fn load(&self, machine: &Machine) -> Result<Config, Errors> {
        let mut config = Config::load(&self.config, machine)?;
        if self.nerve.is_some() {
            config.sources.nerve.clone_from(&self.nerve);
        }
        if let Some(file) = self.synapse.clone() {
            let haproxy = config.sources.synapse.take().map(|synapse| synapse.haproxy).unwrap_or_default();
            config.sources.synapse = Some(Synapse { file, haproxy });
        }
        config.identity.token.clone_from(&self.token);
        Ok(config)
    }
}

/// Definitions as they would be written, with every default filled in and passwords hidden.
fn as_drafts<S: Serializer>(services: &[Located], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(services.iter().map(|Located { definition, .. }| Draft {
        name: definition.key.service.clone(),
        id: Some(definition.key.id.clone()),
        address: Some(definition.address),
        port: definition.port,
        socket: definition.socket.clone(),
        ports: definition.ports.clone(),
        tags: definition.tags.clone(),
        labels: definition.labels.clone(),
        weight: definition.weight,
        backup: definition.backup,
        checks: definition.checks.iter().cloned().map(without_secrets).collect(),
        check_mode: definition.check_mode,
        deregister_critical_after: definition.deregister_critical_after,
    }))
}

fn without_secrets(mut check: CheckSpec) -> CheckSpec {
    check.probe.hide_secrets();
    check
}

#[cfg(test)]
mod tests;
