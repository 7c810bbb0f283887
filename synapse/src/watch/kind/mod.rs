//! Which place a watcher follows, as it is configured.

mod looks;
mod multi;

use std::path::{Path, PathBuf};

use nerve::document::{Reported, Section};
use serde::Serialize;

use super::consul::{Consul, ConsulPlace};
use super::dns::{DnsPlace, Question};
use super::docker::{Docker, DockerPlace};
use super::ec2::{Ec2, Ec2Place};
use super::etcd::{Etcd, EtcdPlace};
use super::file::FilePlace;
use super::fixed::FixedPlace;
use super::kubernetes::{Kubernetes, KubernetesPlace};
use super::marathon::{Marathon, MarathonPlace};
use super::options::{Options, as_addresses};
use super::place::Place;
use super::resolve::Resolver;
use super::server::Server;
use super::zookeeper::{Sessions, ZooKeeper, ZooKeeperPlace};
pub use looks::Looks;
use looks::SWARM;
pub use multi::{Multi, Part, Which};

/// Which place, by its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Servers that stand in the configuration itself.
    Static(#[serde(serialize_with = "as_addresses")] Vec<Server>),
    /// A file that somebody else writes.
    File(PathBuf),
    /// Names of DNS.
    Dns(Vec<Question>),
    /// A path of ZooKeeper.
    #[serde(untagged)]
    ZooKeeper(ZooKeeper),
    /// A path of etcd, in the layout of SmartStack's Nerve.
    #[serde(untagged)]
    Etcd(Box<Etcd>),
    /// A service of Consul's.
    #[serde(untagged)]
    Consul(Box<Consul>),
    /// Containers of Dockers.
    #[serde(untagged)]
    Docker(Docker),
    /// Endpoint slices of Kubernetes.
    #[serde(untagged)]
    Kubernetes(Box<Kubernetes>),
    /// Tasks of Marathon.
    #[serde(untagged)]
    Marathon(Marathon),
    /// Instances of EC2.
    #[serde(untagged)]
    Ec2(Box<Ec2>),
    /// Several places, of which one counts or all do.
    #[serde(untagged)]
    Multi(Multi),
}

/// What places of one kind share.
#[derive(Debug, Clone, Default)]
pub(super) struct Means {
    pub(super) zookeeper: Sessions,
}

/// The keys that name a kind.
const WORDS: [&str; 11] = [
    "static",
    "file",
    "dns",
    "zookeeper",
    "etcd",
    "consul",
    "docker",
    "kubernetes",
    "marathon",
    "ec2",
    "multi",
];

impl Kind {
    /// Does a key name one?
    fn is_named(section: &Section<'_>) -> bool {
        WORDS.into_iter().any(|word| section.has(word))
    }

    /// Reads the key that names the kind, and those that belong to it. Paths begin at `base`; `service` is what is called so elsewhere,
    /// too, unless it is said.
    pub(super) fn read(section: &mut Section<'_>, base: &Path, service: &str) -> Result<Self, Reported> {
        let words = WORDS.into_iter().chain([SWARM]);
        words.clone().for_each(|word| section.allow(word));
        let mut named = words.clone().filter(|word| section.has(word));
        let (first, second) = (named.next(), named.next());
        if second.is_some() {
            return Err(section.refuse("it names two places", "a watcher for each"));
        }
        match first {
            Some("static") => section.required("static").map(Self::Static),
            Some("file") => section.required::<PathBuf>("file").map(|file| Self::File(base.join(file))),
            Some("dns") => {
                let names: Vec<Question> = section.required("dns")?;
                if names.is_empty() {
                    return Err(section.invalid(
                        "dns",
                        "it names nothing",
                        "names such as \"web.example.com:8080\"",
                    ));
                }
                Ok(Self::Dns(names))
            }
            Some("zookeeper") => ZooKeeper::read(section).map(Self::ZooKeeper),
            Some("etcd") => Etcd::read(section).map(Box::new).map(Self::Etcd),
            Some("consul") => Consul::read(section, service).map(Box::new).map(Self::Consul),
            Some("docker") => Docker::read(section).map(Self::Docker),
            Some("kubernetes") => Kubernetes::read(section, service).map(Box::new).map(Self::Kubernetes),
            Some("marathon") => Marathon::read(section, service).map(Self::Marathon),
            Some("ec2") => Ec2::read(section).map(Box::new).map(Self::Ec2),
            Some("multi") => Multi::read(section, base, service).map(Self::Multi),
            Some(SWARM) => {
                Err(section.invalid(SWARM, "a swarm is no part of several places", "a watcher of its own"))
            }
            _ => {
                let words: Vec<&str> = words.collect();
                let expected = format!("one of `{}`", words.join("`, `"));
                Err(section.refuse("it names no place", expected))
            }
        }
    }

    /// The word for it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Static(_) => "static",
            Self::File(_) => "file",
            Self::Dns(_) => "dns",
            Self::ZooKeeper(_) => "zookeeper",
            Self::Etcd(_) => "etcd",
            Self::Consul(_) => "consul",
            Self::Docker(_) => "docker",
            Self::Kubernetes(_) => "kubernetes",
            Self::Marathon(_) => "marathon",
            Self::Ec2(_) => "ec2",
            Self::Multi(_) => "multi",
        }
    }

    /// Where it is, in words.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Static(_) => "the configuration".to_owned(),
            Self::File(file) => file.display().to_string(),
            Self::Dns(names) => names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Self::ZooKeeper(zookeeper) => zookeeper.place(),
            Self::Etcd(etcd) => etcd.place(),
            Self::Consul(consul) => consul.place(),
            Self::Docker(docker) => docker.place(),
            Self::Kubernetes(kubernetes) => kubernetes.place(),
            Self::Marathon(marathon) => marathon.place(),
            Self::Ec2(ec2) => ec2.place(),
            Self::Multi(multi) => multi.place(),
        }
    }

    /// Does it stand in the configuration, so that nothing of it need be remembered?
    pub(super) fn is_here(&self) -> bool {
        matches!(self, Self::Static(_))
    }

    pub(super) fn open(&self, options: &Options, means: &Means) -> Box<dyn Place> {
        match self {
            Self::Static(servers) => Box::new(FixedPlace(servers.clone())),
            Self::File(file) => Box::new(FilePlace(file.clone())),
            Self::Dns(questions) => Box::new(DnsPlace {
                questions: questions.clone(),
                resolver: Resolver::Servers(options.resolvers.clone().unwrap_or_default()),
            }),
            Self::ZooKeeper(config) => {
                Box::new(ZooKeeperPlace { config: config.clone(), sessions: means.zookeeper.clone() })
            }
            Self::Etcd(config) => Box::new(EtcdPlace((**config).clone())),
            Self::Consul(config) => Box::new(ConsulPlace::new((**config).clone())),
            Self::Docker(config) => Box::new(DockerPlace::new(config.clone())),
            Self::Kubernetes(config) => Box::new(KubernetesPlace::new((**config).clone())),
            Self::Marathon(config) => Box::new(MarathonPlace::new(config.clone())),
            Self::Ec2(config) => Box::new(Ec2Place::new((**config).clone())),
            Self::Multi(config) => config.open(options, means),
        }
    }
}
