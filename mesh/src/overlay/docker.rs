//! Docker's containers: addresses that it asks for one by one, and links whose other end it moves into its containers itself.
//!
//! Docker asks for an address before it says what for, gives it back after it has let go of the link, and keeps its own books of
//! both. So each address is an owner of its own in the ledger, and an endpoint, Docker's word for a container on a network, is
//! what some of them belong to. Everything can be asked twice: Docker does, when an agent was killed in the middle.
//!
//! What Docker has forgotten is given back: an address whose link is missing, or was never moved, for a while. Docker may come back
//! to one that was free by then; it gets it again unless somebody else has it. An address with a link that is in use
//! is never given back, whatever Docker says: it is another container's by then.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::TryStreamExt;
use nerve::model::{Mac, NetworkName, Prefix};
use nerve::tasks::Tasks;
use tokio::time::{Instant, MissedTickBehavior};

use super::attach::{AttachError, Attachments, Described, Details, Hold, Refused, link_name, mac_of, veth};
use super::keeper::Place;
use super::ledger::{Ledger, LedgerError, Record};
use super::netlink::{Netlink, failed, name_of, with_netlink};
use super::plan::gateway;
use super::veth::LINK;

/// How often it is looked what Docker has forgotten.
const TICK: Duration = Duration::from_secs(5);
/// Longer than Docker takes from asking for an address to moving the link, and from removing the link to giving the address back.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);
/// The beginning of the names of links that wait for Docker to move them.
const WAITING: &str = "plxc";

/// A network's part on this node, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// The addresses of the whole network.
    pub range: Prefix,
    /// Those of this node.
    pub subnet: Prefix,
    /// The address of this node's bridge.
    pub gateway: IpAddr,
}

/// A link that waits to be moved into a container, and what is to be set there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// What it is called until then.
    pub interface: String,
    /// One of each family that it has an address of.
    pub gateways: Vec<IpAddr>,
    /// What is behind these whatever else the container is attached to.
    pub ranges: Vec<Prefix>,
}

/// Why something was not done for Docker.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// The network, an address or the kernel.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// It has addresses of the other family alone.
    #[error("network {network} has no {family} range; `plexus network inspect {network}` shows what it has")]
    NoRange {
        /// The network.
        network: NetworkName,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// No container here can have it.
    #[error("{0} is no address of a network here")]
    Stray(IpAddr),
    /// Another endpoint, or something that is not Docker's, has the address.
    #[error("{address} is {holder}'s")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: String,
    },
    /// Nothing is known of it.
    #[error(
        "endpoint {0} has no address here any more; connect the container to the network again, or restart it"
    )]
    Unknown(String),
    /// The node has another subnet by now.
    #[error(
        "{0} is of a subnet that another node has by now; restart the container to give it another address"
    )]
    Moved(IpAddr),
}

impl From<LedgerError> for DockerError {
    fn from(error: LedgerError) -> Self {
        Self::Attach(Refused::from(error).into())
    }
}

impl From<io::Error> for DockerError {
    fn from(error: io::Error) -> Self {
        Self::Attach(AttachError::Kernel(error))
    }
}

/// What is done for Docker. Clones are the same.
#[derive(Debug, Clone)]
pub struct DockerLinks(Attachments);

impl DockerLinks {
    /// Looks after what Docker has from now on, whether it is served or not.
    pub(super) fn start(attachments: Attachments, tasks: &Tasks) -> Self {
        let links = Self(attachments);
        let looked_after = links.clone();
        tasks.spawn_until_stopped("overlay docker", move || looked_after.clone().look_after());
        links
    }

    /// The network that has exactly this range.
    #[must_use]
    pub fn network_of_range(&self, range: Prefix) -> Option<NetworkName> {
        self.network(|pool| pool == range)
    }

    /// The network that an address lies in.
    #[must_use]
    pub fn network_of(&self, address: IpAddr) -> Option<NetworkName> {
        self.network(|pool| pool.contains(address))
    }

    fn network(&self, is_it: impl Fn(Prefix) -> bool) -> Option<NetworkName> {
        let networks = self.0.catalog.networks();
        let mut networks = networks.iter();
        networks
            .find(|view| view.network.pools.iter().any(|pool| is_it(pool.cidr())))
            .map(|view| view.name.clone())
    }

    /// This node's part of a network.
    ///
    /// # Errors
    /// There is no such network, it has none, or none of the family.
    pub async fn pool(&self, network: &NetworkName, v4: bool) -> Result<Pool, DockerError> {
        let (place, ranges) = self.place(network).await?;
        let no_range =
            || DockerError::NoRange { network: network.clone(), family: if v4 { "IPv4" } else { "IPv6" } };
        let of_family = |prefix: &&Prefix| prefix.is_ipv4() == v4;
        let range = ranges.iter().find(of_family).copied().ok_or_else(no_range)?;
        let subnet = place.subnets.iter().find(of_family).copied().ok_or_else(no_range)?;
        let gateway = gateway(subnet).ok_or_else(no_range)?;
        Ok(Pool { range, subnet, gateway })
    }

    async fn place(&self, network: &NetworkName) -> Result<(Place, Vec<Prefix>), AttachError> {
        let view = self.0.catalog.network(network.as_str());
        let view = view.ok_or_else(|| AttachError::NoNetwork(network.clone()))?;
        let ranges = view.network.pools.iter().map(|pool| pool.cidr()).collect();
        Ok((self.0.place(network).await?, ranges))
    }

    /// Keeps an address for Docker: the one that is asked for, or the next that is free. With the length of its subnet.
    ///
    /// # Errors
    /// There is no such network, or no address.
    pub async fn reserve(
        &self,
        network: &NetworkName,
        v4: bool,
        asked: Option<IpAddr>,
    ) -> Result<(IpAddr, u8), DockerError> {
        let subnet = self.pool(network, v4).await?.subnet;
        let _ours = self.0.ours().await?;
        let address = {
            let mut ledger = self.0.ledger();
            let address = asked.or_else(|| ledger.next(network, subnet)).ok_or(LedgerError::Full(subnet))?;
            give(&mut ledger, network, subnet, address)?;
            address
        };
        self.0.note_changed();
        Ok((address, subnet.length()))
    }

    /// Takes an address back that Docker has let go of; one that it does not have is no error.
    ///
    /// # Errors
    /// It cannot be forgotten, or the kernel does not say what it has.
    pub async fn release(&self, address: IpAddr) -> Result<(), DockerError> {
        let owner = owner(address);
        let _ours = self.0.ours().await?;
        let Some(record) = self.0.record(&owner) else { return Ok(()) };
        let _turn = self.0.turns.wait(&record.details.link).await;
        let ends = with_netlink(Ends::read).await?;
        if ends.is_in_use(&record.details) {
            tracing::warn!(%address, "Docker gives an address back that a container has; it is kept");
            return Ok(());
        }
        self.0.ledger().take_back(&owner)?;
        self.0.note_changed();
        Ok(())
    }

    /// Notes that addresses are an endpoint's. Returns its MAC: `asked`, or one that follows from the first address, so that what
    /// neighbours know of an address is true of its next owner as well.
    ///
    /// # Errors
    /// Another has one of them.
    pub async fn assign(
        &self,
        endpoint: &str,
        addresses: &[IpAddr],
        asked: Option<Mac>,
    ) -> Result<Mac, DockerError> {
        let _ours = self.0.ours().await?;
        let mac = asked.unwrap_or_else(|| mac_of(addresses));
        for address in addresses {
            let network = self.network_of(*address).ok_or(DockerError::Stray(*address))?;
            let subnet = self.pool(&network, address.is_ipv4()).await?.subnet;
            let mut ledger = self.0.ledger();
            let holder = ledger.holder(&network, *address).map(str::to_owned);
            match holder.as_deref().and_then(|holder| ledger.get(holder)?.details.docker.clone()) {
                Some(Hold::Reserved) => {}
                Some(Hold::Endpoint(other)) if other == endpoint => {}
                Some(Hold::Endpoint(other)) => {
                    return Err(DockerError::Taken {
                        address: *address,
                        holder: format!("endpoint {other}"),
                    });
                }
                // It was forgotten by mistake, or another has it.
                None => give(&mut ledger, &network, subnet, *address)?,
            }
            let details = Details {
                namespace: PathBuf::new(),
                interface: waiting_name(endpoint),
                link: link_name(endpoint),
                mac,
                owner: None,
                described: Described::default(),
                unfinished: false,
                docker: Some(Hold::Endpoint(endpoint.to_owned())),
            };
            ledger.amend(&owner(*address), |kept| *kept = details)?;
        }
        self.0.note_changed();
        Ok(mac)
    }

    /// Makes an endpoint's link, for Docker to move the other end into `sandbox`.
    ///
    /// # Errors
    /// Nothing is known of the endpoint, or the kernel refuses.
    pub async fn join(&self, endpoint: &str, sandbox: PathBuf) -> Result<Joined, DockerError> {
        let _ours = self.0.ours().await?;
        let records = self.records(endpoint);
        let (_, first) = records.first().ok_or_else(|| DockerError::Unknown(endpoint.to_owned()))?;
        let (place, ranges) = self.place(&first.network).await?;
        let addresses: Vec<IpAddr> =
            records.iter().flat_map(|(_, record)| record.addresses.clone()).collect();
        let is_here = |address: &&IpAddr| place.subnets.iter().any(|subnet| subnet.contains(**address));
        if let Some(moved) = addresses.iter().find(|address| !is_here(address)) {
            return Err(DockerError::Moved(*moved));
        }
        let whole = Record { addresses, ..first.clone() };
        let veth = veth(&whole, &place, Vec::new());
        let _turn = self.0.turns.wait(&veth.link).await;
        for (owner, _) in records {
            self.0.ledger().amend(&owner, |details| details.namespace.clone_from(&sandbox))?;
        }
        with_netlink(async |netlink| {
            // Of an earlier try.
            netlink.remove_veth(&veth.link).await?;
            netlink.add_veth(&veth, place.bridge, None).await
        })
        .await?;
        let gateways: Vec<IpAddr> = veth.addresses.iter().map(|(.., gateway)| *gateway).collect();
        let reached = |range: &Prefix| gateways.iter().any(|gateway| gateway.is_ipv4() == range.is_ipv4());
        let ranges = ranges.into_iter().filter(reached).collect();
        tracing::info!(endpoint, network = %whole.network, addresses = ?whole.addresses, "attached a container of Docker");
        Ok(Joined { interface: veth.interface, gateways, ranges })
    }

    /// Removes an endpoint's link; one that is gone is no error. Its addresses stay Docker's until it gives them back.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn leave(&self, endpoint: &str) -> Result<(), DockerError> {
        let _ours = self.0.ours().await?;
        let link = link_name(endpoint);
        let _turn = self.0.turns.wait(&link).await;
        Ok(with_netlink(async |netlink| netlink.remove_veth(&link).await).await?)
    }

    /// What an endpoint has.
    fn records(&self, endpoint: &str) -> Vec<(String, Record<Details>)> {
        let ledger = self.0.ledger();
        let is_its = |record: &Record<Details>| matches!(&record.details.docker, Some(Hold::Endpoint(of)) if of == endpoint);
        let its = ledger.all().filter(|(_, record)| is_its(record));
        its.map(|(owner, record)| (owner.clone(), record.clone())).collect()
    }

    async fn look_after(self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut idle = HashMap::new();
        loop {
            tick.tick().await;
            if let Err(error) = self.give_back_forgotten(&mut idle).await {
                tracing::debug!(%error, "what Docker has forgotten is looked for again later");
            }
        }
    }

    /// Gives back what nothing has used for a while. `idle`: since when.
    async fn give_back_forgotten(&self, idle: &mut HashMap<String, Instant>) -> Result<(), DockerError> {
        let _ours = self.0.ours().await?;
        let of_docker: Vec<_> = {
            let ledger = self.0.ledger();
            let held = ledger.all().filter(|(_, record)| record.details.docker.is_some());
            held.map(|(owner, record)| (owner.clone(), record.clone())).collect()
        };
        if of_docker.is_empty() {
            idle.clear();
            return Ok(());
        }
        with_netlink(async |netlink| {
            let ends = Ends::read(netlink).await?;
            let unused: Vec<_> =
                of_docker.into_iter().filter(|(_, record)| !ends.is_in_use(&record.details)).collect();
            idle.retain(|owner, _| unused.iter().any(|(of, _)| of == owner));
            for (owner, record) in unused {
                if idle.entry(owner.clone()).or_insert_with(Instant::now).elapsed() < FORGOTTEN_AFTER {
                    continue;
                }
                let _turn = self.0.turns.wait(&record.details.link).await;
                // Docker may have come back to it meanwhile.
                if self.0.record(&owner).as_ref() != Some(&record)
                    || Ends::read(netlink).await?.is_in_use(&record.details)
                {
                    continue;
                }
                netlink.remove_veth(&record.details.link).await?;
                self.0.ledger().take_back(&owner).map_err(io::Error::other)?;
                self.0.note_changed();
                idle.remove(&owner);
                tracing::info!(owner, "Docker has forgotten an address; it is free");
            }
            Ok(())
        })
        .await?;
        Ok(())
    }
}

/// Both ends of containers' links, as far as they are on this host.
struct Ends {
    links: BTreeSet<String>,
    waiting: BTreeSet<String>,
}

impl Ends {
    async fn read(netlink: &Netlink) -> io::Result<Self> {
        let mut ends = Self { links: BTreeSet::new(), waiting: BTreeSet::new() };
        let mut listed = netlink.handle.link().get().execute();
        while let Some(message) = listed.try_next().await.map_err(|e| failed("list the links", &e))? {
            match name_of(&message) {
                Some(name) if name.starts_with(LINK) => drop(ends.links.insert(name.to_owned())),
                Some(name) if name.starts_with(WAITING) => drop(ends.waiting.insert(name.to_owned())),
                _ => {}
            }
        }
        Ok(ends)
    }

    /// Has a container the other end?
    fn is_in_use(&self, details: &Details) -> bool {
        self.links.contains(&details.link) && !self.waiting.contains(&details.interface)
    }
}

/// Writes an address down as Docker's.
fn give(
    ledger: &mut Ledger<Details>,
    network: &NetworkName,
    subnet: Prefix,
    address: IpAddr,
) -> Result<(), LedgerError> {
    if let Some(holder) = ledger.holder(network, address) {
        return Err(LedgerError::Taken { address, holder: holder.to_owned() });
    }
    let owner = owner(address);
    let details = |given: &[IpAddr]| Details {
        namespace: PathBuf::new(),
        interface: String::new(),
        // There is none until it is an endpoint's.
        link: link_name(&owner),
        mac: mac_of(given),
        owner: None,
        described: Described::default(),
        unfinished: false,
        docker: Some(Hold::Reserved),
    };
    ledger.give(&owner, network, &[subnet], &[address], details)?;
    Ok(())
}

/// An address as an owner in the ledger, whose names are those of files.
fn owner(address: IpAddr) -> String {
    format!("docker-{}", address.to_string().replace(':', "-"))
}

/// The other end of [`link_name`]'s.
fn waiting_name(endpoint: &str) -> String {
    link_name(endpoint).replacen(LINK, WAITING, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details(interface: &str, docker: Hold) -> Details {
        Details {
            namespace: PathBuf::new(),
            interface: interface.to_owned(),
            link: link_name("e"),
            mac: Mac([0; 6]),
            owner: None,
            described: Described::default(),
            unfinished: false,
            docker: Some(docker),
        }
    }

    #[test]
    fn a_link_is_in_use_once_docker_has_moved_it() {
        let of_endpoint = details(&waiting_name("e"), Hold::Endpoint("e".to_owned()));
        let names = |names: &[String]| names.iter().cloned().collect::<BTreeSet<String>>();
        let (link, waiting) = (link_name("e"), waiting_name("e"));
        assert!(link.len() <= 15 && waiting.len() <= 15 && link != waiting, "{link} {waiting}");
        for (links, waits, is_in_use) in [
            (names(&[]), names(&[]), false),
            (names(std::slice::from_ref(&link)), names(&[waiting]), false),
            (names(&[link]), names(&[]), true),
        ] {
            let ends = Ends { links, waiting: waits };
            assert_eq!(ends.is_in_use(&of_endpoint), is_in_use, "{:?}", ends.links);
        }
    }

    #[test]
    fn an_address_is_an_owner_of_its_own() {
        let owner_of = |address: &str| owner(address.parse().unwrap());
        assert_eq!(owner_of("10.42.3.5"), "docker-10.42.3.5");
        assert_eq!(owner_of("fd00:42::5"), "docker-fd00-42--5");
    }

    #[test]
    fn what_docker_holds_is_remembered_and_other_attachments_are_as_they_were() {
        let held = details("plxc1", Hold::Endpoint("e".to_owned()));
        let written = serde_json::to_string(&held).unwrap();
        assert!(written.contains(r#""docker":{"endpoint":"e"}"#), "{written}");
        assert_eq!(serde_json::from_str::<Details>(&written).unwrap(), held);
        let plain = serde_json::to_string(&Details { docker: None, ..held }).unwrap();
        assert!(!plain.contains("docker"), "{plain}");
        assert_eq!(serde_json::from_str::<Details>(&plain).unwrap().docker, None);
    }
}
