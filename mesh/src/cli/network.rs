//! `plexus network`: overlay networks, created, listed, looked at and removed, and what they leave behind.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use hyper::Method;
use nerve::model::{Mtu, NetworkName, Pool, Prefix, Vni};

use super::cleanup::Cleanup;
use super::output::{Cell, Output, Table, Tone};
use super::{Error, Reach, Result, attach, print_change, stale_banner};
use crate::api::{self, Changed, NetworkInfo, NetworkRequest, NetworkSummary, Networks, SubnetInfo};

const CREATE_HELP: &str = "\
Each node that takes part in the network gets one subnet of each range, so a range is cut into subnets of one length: /24 of
IPv4 and /64 of IPv6 unless said, in the order of the ranges. Addresses and numbers belong to one network: what another one
has, or what this host uses, is refused. A network is never changed; to create what is there already changes nothing.

Examples:
  plexus network create blue --cidr 10.42.0.0/16
  plexus network create blue --cidr 10.42.0.0/16 --cidr fd42::/48
  plexus network create many --cidr 10.64.0.0/12 --subnet-len 26      for up to 16384 nodes
  plexus network create red --cidr 10.43.0.0/16 --reach blue          containers of the two reach each other
  plexus network create fast --cidr 10.44.0.0/16 --direct             nodes on one link need no tunnel
  plexus network create safe --cidr 10.45.0.0/16 --encrypted          nobody between the nodes can read it";

const LS_HELP: &str = "\
NODES is how many nodes take part in the network, of how many can.

Examples:
  plexus network ls
  plexus network ls --json | jq -r '.networks[].vni'";

const RM_HELP: &str = "\
Refused while containers are attached to the network; their nodes are named. With --force the network goes all the same.

Examples:
  plexus network rm blue
  plexus network rm blue --force";

const INSPECT_HELP: &str = "\
Which node holds which subnet, where the others send its packets, and the address of its VXLAN device; of an encrypted network, what the
node that answers encrypts with for each of the others, and since when it has that key; and what is attached on it.

Examples:
  plexus network inspect blue
  plexus network inspect blue --json | jq '.subnets[] | {node, prefixes}'";

/// Work with overlay networks
#[derive(Debug, Args)]
pub(super) struct Network {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Create(Create),
    Ls(Ls),
    Rm(Rm),
    Inspect(Inspect),
    Cleanup(Cleanup),
}

/// Create a network
#[derive(Debug, Args)]
#[command(after_help = CREATE_HELP)]
struct Create {
    /// Its name
    name: NetworkName,
    /// The range of its addresses; a second one of the other family
    #[arg(long, value_name = "ADDRESS/LENGTH", required = true)]
    cidr: Vec<Prefix>,
    /// How long the prefix of a node's subnet is, of each range in turn
    #[arg(long, value_name = "LENGTH")]
    subnet_len: Vec<u8>,
    /// Its number between nodes (VXLAN Network Identifier), from 1 to 16777215; a free one unless given
    #[arg(long)]
    vni: Option<Vni>,
    /// The largest packet of its containers; made of the underlay's unless given
    #[arg(long, value_name = "BYTES")]
    mtu: Option<Mtu>,
    /// A network whose containers may reach this one's and be reached by them; as often as needed
    #[arg(long = "reach", value_name = "NETWORK")]
    reaches: Vec<NetworkName>,
    /// Without a tunnel between nodes on one link, which has to pass packets whose addresses are not its machines'
    #[arg(long)]
    direct: bool,
    /// Encrypted between nodes by the kernel: WireGuard, or IPsec where a node has no WireGuard; nodes with neither take no part
    #[arg(long, conflicts_with = "direct")]
    encrypted: bool,
    #[command(flatten)]
    reach: Reach,
}

/// List the networks
#[derive(Debug, Args)]
#[command(after_help = LS_HELP)]
struct Ls {
    #[command(flatten)]
    reach: Reach,
}

/// Remove a network
#[derive(Debug, Args)]
#[command(after_help = RM_HELP)]
struct Rm {
    /// Its name
    name: NetworkName,
    /// Also while containers are attached to it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    reach: Reach,
}

/// Show a network and who takes part in it
#[derive(Debug, Args)]
#[command(after_help = INSPECT_HELP)]
struct Inspect {
    /// Its name
    name: NetworkName,
    #[command(flatten)]
    reach: Reach,
}

impl Network {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        match self.action {
            Action::Create(create) => create.run(out).await,
            Action::Ls(ls) => ls.run(out).await,
            Action::Rm(rm) => rm.run(out).await,
            Action::Inspect(inspect) => inspect.run(out).await,
            Action::Cleanup(cleanup) => cleanup.run(out).await,
        }
    }
}

impl Create {
    async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("creating network {}", self.name);
        let pools = self.pools().map_err(|error| Error::failed(&what, error))?;
        let Self { name, vni, mtu, reaches, direct, encrypted, reach, .. } = self;
        let body =
            NetworkRequest { pools, vni, mtu, reaches: reaches.into_iter().collect(), direct, encrypted };
        let changed: Changed = reach.agent().send(&what, Method::PUT, &path(&name), &body).await?;
        print_change(out, reach.json, &changed)
    }

    /// The ranges, each with the length of its subnets.
    fn pools(&self) -> std::result::Result<Vec<Pool>, String> {
        let Self { cidr, subnet_len, .. } = self;
        if subnet_len.len() > cidr.len() {
            return Err(
                "there is a --subnet-len too many: each belongs to a --cidr, in their order".to_owned()
            );
        }
        let lengths = subnet_len.iter().copied().map(Some).chain(std::iter::repeat(None));
        let pools = cidr.iter().zip(lengths).map(|(cidr, length)| {
            let length = length.unwrap_or_else(|| Pool::usual_subnet_length(*cidr));
            Pool::new(*cidr, length).map_err(|error| format!("{error} (--subnet-len)"))
        });
        pools.collect()
    }
}

impl Ls {
    async fn run(self, out: &mut Output<'_>) -> Result {
        let answer: Networks = self.reach.agent().get("listing the networks", api::path::NETWORKS).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, |out, answer| {
            stale_banner(out, answer.stale.as_ref())?;
            let mut table = Table::new(&["NAME", "VNI", "RANGES", "MTU", "NODES"]);
            for network in &answer.networks {
                table.row([
                    Cell::from(&network.name),
                    Cell::from(network.vni),
                    Cell::from(list(&network.pools)),
                    Cell::from(mtu(network)),
                    Cell::from(format!("{}/{}", network.nodes, network.slots)),
                ]);
            }
            if table.is_empty() {
                return out.line("there is no network; `plexus network create` makes one");
            }
            out.table(&table)
        })?;
        Ok(())
    }
}

impl Rm {
    async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("removing network {}", self.name);
        let path = path(&self.name) + if self.force { "?force=true" } else { "" };
        let changed: Changed = self.reach.agent().send(&what, Method::DELETE, &path, &()).await?;
        print_change(out, self.reach.json, &changed)
    }
}

impl Inspect {
    async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("looking at network {}", self.name);
        let answer: NetworkInfo = self.reach.agent().get(&what, &path(&self.name)).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, |out, answer| {
            stale_banner(out, answer.stale.as_ref())?;
            let network = &answer.network;
            out.line(format!("ranges        {}", list(&network.pools)))?;
            out.line(format!("VNI           {}", network.vni))?;
            out.line(format!("MTU           {}", mtu(network)))?;
            out.line(format!("reaches       {}", reached(network)))?;
            if network.direct {
                out.line("on one link   without a tunnel")?;
            }
            if network.encrypted {
                out.line("encrypted     between nodes")?;
            }
            out.line(format!("nodes         {} of at most {}", network.nodes, network.slots))?;
            for (head, table) in [
                ("", subnets(&answer.subnets)),
                ("encrypted by the node that answers:", encryption(network, &answer.subnets)),
                ("attached on the node that answers:", attach::table(&answer.attachments)),
            ] {
                if table.is_empty() {
                    continue;
                }
                out.line("")?;
                if !head.is_empty() {
                    out.line(head)?;
                }
                out.table(&table)?;
            }
            Ok(())
        })?;
        Ok(())
    }
}

/// One line for each.
fn subnets(subnets: &[SubnetInfo]) -> Table {
    let mut table = Table::new(&["SLOT", "SUBNET", "NODE", "ADDRESS", "MAC"]);
    for subnet in subnets {
        let node = if subnet.unconfirmed {
            Cell::new(format!("{} (unconfirmed)", subnet.node), Tone::Warning)
        } else {
            Cell::from(&subnet.node)
        };
        table.row([
            Cell::from(subnet.slot),
            Cell::from(list(&subnet.prefixes)),
            node,
            Cell::from(subnet.address),
            Cell::from(subnet.mac),
        ]);
    }
    table
}

/// What each node is reached by, where the network is encrypted.
fn encryption(network: &NetworkSummary, subnets: &[SubnetInfo]) -> Table {
    let mut table = Table::new(&["NODE", "TO IT BY", "KEY SINCE", "ITS KEYS"]);
    for subnet in subnets.iter().filter(|_| network.encrypted) {
        let keys = subnet.keys.iter().map(|key| format!("{} of {}", key.cipher, moment(key.since)));
        let keys = keys.collect::<Vec<_>>().join(", ");
        let (by, since) = match &subnet.encryption {
            Some(encryption) => (encryption.cipher.to_string(), moment(encryption.since)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        table.row([Cell::from(&subnet.node), Cell::from(by), Cell::from(since), Cell::from(keys)]);
    }
    table
}

fn moment(seconds: u64) -> String {
    let moment = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    moment.map_or_else(|| "?".to_owned(), |moment| humantime::format_rfc3339_seconds(moment).to_string())
}

fn path(network: &NetworkName) -> String {
    api::path::NETWORK.replace("{network}", network.as_str())
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn mtu(network: &NetworkSummary) -> String {
    network.mtu.map_or_else(|| "automatic".to_owned(), |mtu| mtu.to_string())
}

/// Whose containers reach this one's, whichever of the two says so.
fn reached(network: &NetworkSummary) -> String {
    let others: Vec<_> = network.reaches.union(&network.reached_by).collect();
    if others.is_empty() { "no other network".to_owned() } else { list(&others) }
}
