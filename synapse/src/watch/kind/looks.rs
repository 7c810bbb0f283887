//! What a watcher fills, and from where: one service from a place of some kind, or what a directory names.

use std::path::Path;

use nerve::document::{Reported, Section};
use nerve::model::ServiceName;
use serde::Serialize;

use super::{Kind, Means};
use crate::watch::options::Options;
use crate::watch::place::{Directory, OfOne};
use crate::watch::swarm::{Swarm, SwarmDirectory};

/// The key of a swarm.
pub(super) const SWARM: &str = "swarm";

/// Where a watcher looks, and for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Looks {
    /// One service.
    One {
        /// The service.
        service: ServiceName,
        /// Where.
        #[serde(flatten)]
        kind: Kind,
    },
    /// The services of a Docker swarm, or one of them.
    Swarm(Box<Swarm>),
}

impl Looks {
    /// Reads the key that names the place, those that belong to it, and the service. Paths begin at `base`.
    pub(in crate::watch) fn read(section: &mut Section<'_>, base: &Path) -> Result<Self, Reported> {
        if section.has(SWARM) && !Kind::is_named(section) {
            let service = section.given::<ServiceName>("service")?;
            return Swarm::read(section, service).map(Box::new).map(Self::Swarm);
        }
        let service = section.required::<ServiceName>("service");
        let kind = Kind::read(section, base, service.as_ref().map_or("", ServiceName::as_str));
        Ok(Self::One { service: service?, kind: kind? })
    }

    /// The one service, if it is one.
    #[must_use]
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::One { service, .. } => Some(service),
            Self::Swarm(swarm) => swarm.service.as_ref(),
        }
    }

    /// The word for the kind of place.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::One { kind, .. } => kind.as_str(),
            Self::Swarm(_) => SWARM,
        }
    }

    /// Where it is, in words.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::One { kind, .. } => kind.place(),
            Self::Swarm(swarm) => swarm.place(),
        }
    }

    /// Does it stand in the configuration, so that nothing of it need be remembered?
    pub(in crate::watch) fn is_here(&self) -> bool {
        matches!(self, Self::One { kind, .. } if kind.is_here())
    }

    pub(in crate::watch) fn open(&self, options: &Options, means: &Means) -> Box<dyn Directory> {
        match self {
            Self::One { service, kind } => {
                Box::new(OfOne { service: service.clone(), place: kind.open(options, means) })
            }
            Self::Swarm(swarm) => Box::new(SwarmDirectory::new((**swarm).clone())),
        }
    }
}
