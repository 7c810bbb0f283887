//! The store of a cluster, of whatever make: what stories do to it that run on each.

use std::fmt;

use super::etcd::Etcd;
use super::zookeeper::ZooKeeper;
use crate::netns::Fabric;
use crate::world::World;

/// A make of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// So many members of an etcd cluster.
    Etcd(usize),
    /// One ZooKeeper server.
    ZooKeeper,
}

/// The store's servers.
#[derive(Debug)]
pub enum Store {
    /// etcd's.
    Etcd(Etcd),
    /// ZooKeeper's.
    ZooKeeper(ZooKeeper),
}

impl Store {
    /// Starts servers of this make and waits until they serve.
    #[must_use]
    pub fn start(world: &World, fabric: &Fabric, make: Make) -> Self {
        match make {
            Make::Etcd(members) => Self::Etcd(Etcd::start(world, fabric, members)),
            Make::ZooKeeper => Self::ZooKeeper(ZooKeeper::start(world, fabric)),
        }
    }

    /// Its URL, as an agent is told.
    #[must_use]
    pub fn url(&self) -> String {
        match self {
            Self::Etcd(etcd) => etcd.url(),
            Self::ZooKeeper(zookeeper) => zookeeper.url(),
        }
    }

    /// The machines that it runs on.
    #[must_use]
    pub fn machines(&self) -> Vec<&str> {
        match self {
            Self::Etcd(etcd) => etcd.members().iter().map(|member| member.name()).collect(),
            Self::ZooKeeper(zookeeper) => vec![zookeeper.name()],
        }
    }

    /// Stops all servers, as a service manager does.
    pub fn stop(&self) {
        match self {
            Self::Etcd(etcd) => etcd.stop(),
            Self::ZooKeeper(zookeeper) => zookeeper.stop(),
        }
    }

    /// Starts all servers again, with the data that they have, and waits until they serve.
    pub fn start_again(&self) {
        match self {
            Self::Etcd(etcd) => etcd.start_again(),
            Self::ZooKeeper(zookeeper) => zookeeper.start_again(),
        }
    }

    /// Stops the clock of all servers.
    pub fn freeze(&self) {
        match self {
            Self::Etcd(etcd) => etcd.members().iter().for_each(super::etcd::Member::freeze),
            Self::ZooKeeper(zookeeper) => zookeeper.freeze(),
        }
    }

    /// Lets them go on.
    pub fn thaw(&self) {
        match self {
            Self::Etcd(etcd) => etcd.members().iter().for_each(super::etcd::Member::thaw),
            Self::ZooKeeper(zookeeper) => zookeeper.thaw(),
        }
    }

    /// Removes the data of all servers, which must be stopped.
    pub fn wipe(&self) {
        match self {
            Self::Etcd(etcd) => etcd.wipe(),
            Self::ZooKeeper(zookeeper) => zookeeper.wipe(),
        }
    }

    /// The keys below a prefix whose lease lives, in order, with what names the lease.
    #[must_use]
    pub fn leased(&self, prefix: &str) -> Vec<(String, String)> {
        match self {
            Self::Etcd(etcd) => {
                let alive = |key: String| {
                    let lease = etcd.lease_of(&key).filter(|lease| *lease != 0)?;
                    etcd.lease_left(lease).map(|_| (key, format!("{lease:x}")))
                };
                etcd.keys(prefix).into_iter().filter_map(alive).collect()
            }
            Self::ZooKeeper(zookeeper) => zookeeper.leased(prefix),
        }
    }
}

/// What a failure prints.
impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Etcd(etcd) => {
                for member in etcd.members() {
                    let (name, address) = (member.name(), member.namespace().address());
                    writeln!(f, "==== {name} ({address}): runs {}", member.runs())?;
                }
                if etcd.members().iter().any(super::etcd::Member::runs) {
                    writeln!(f, "{}", etcd.ctl(&["get", "--prefix", "", "--command-timeout=2s"]))?;
                }
                Ok(())
            }
            Self::ZooKeeper(zookeeper) => {
                let (name, address) = (zookeeper.name(), zookeeper.namespace().address());
                writeln!(f, "==== {name} ({address}): runs {}\n{}", zookeeper.runs(), zookeeper.ask("dump"))
            }
        }
    }
}
