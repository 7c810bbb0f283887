//! `plexus attach`, `plexus detach`, `plexus attachments`: network namespaces of this node on overlay networks.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use hyper::Method;
use nerve::model::{NetworkName, ServiceName};

use super::client::escape;
use super::output::{Cell, Output, Table};
use super::register::Pair;
use super::{Error, Reach, Result, print_change};
use crate::api::{self, AttachRequest, Attachment, AttachmentInstance, Attachments, Changed, NewAttachment};

const ATTACH_HELP: &str = "\
It gets an interface with addresses of the network, routes, and a way to every container of the network on every node. The
agent of its node has to do it, so the command runs there. The first network that it is attached to leads to the rest of
the world as well. It is detached by `plexus detach`, or when its namespace is gone.

Labels say what it serves: `plexus.service` names services, `plexus.port` the port, `plexus.check` how to check it (`tcp`, a path,
or as `plexus register` has it). An alias is a service as well, where no label names any. It is checked and registered for as
long as it is attached, by its address on the network. Other labels travel along.

Examples:
  ip netns add one && plexus attach one --network default
  plexus attach 4711 --network default                    the network namespace of a process
  plexus attach one --network backend --interface eth1    a second network
  plexus attach one --network default --address 10.42.3.80
  plexus attach one --network default --label plexus.service=web --label plexus.port=8080 --label plexus.check=/healthz
  plexus attach one --network default --alias db --label plexus.port=5432";

const DETACH_HELP: &str = "\
Examples:
  plexus detach one --network default
  plexus detach 4711 --network default";

const LIST_HELP: &str = "\
Examples:
  plexus attachments
  plexus attachments --json | jq -r '.attachments[].addresses[]'";

/// Attach a network namespace of this node to an overlay network
#[derive(Debug, Args)]
#[command(after_help = ATTACH_HELP)]
pub(super) struct Attach {
    /// A name in /run/netns, the file of a namespace, or the number of a process
    namespace: Namespace,
    /// To which network
    #[arg(long)]
    network: NetworkName,
    /// What the interface is called in there
    #[arg(long, default_value = "eth0")]
    interface: String,
    /// An address that it is to have, one of a family at most; chosen unless given
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<IpAddr>,
    /// What it serves, such as plexus.service=web, or free data that travels along
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Pair<String, String>>,
    /// A service that it is an instance of, unless the label plexus.service says otherwise
    #[arg(long = "alias", value_name = "NAME")]
    aliases: Vec<ServiceName>,
    #[command(flatten)]
    reach: Reach,
}

/// Detach a network namespace of this node from an overlay network
#[derive(Debug, Args)]
#[command(after_help = DETACH_HELP)]
pub(super) struct Detach {
    /// As it was attached
    namespace: Namespace,
    /// From which network
    #[arg(long)]
    network: NetworkName,
    #[command(flatten)]
    reach: Reach,
}

/// List what is attached to overlay networks on this node
#[derive(Debug, Args)]
#[command(after_help = LIST_HELP)]
pub(super) struct List {
    #[command(flatten)]
    reach: Reach,
}

/// Whose network it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Namespace {
    /// As it was typed, without what a file's name cannot have.
    word: String,
    file: PathBuf,
}

impl FromStr for Namespace {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text.is_empty() {
            return Err("name a network namespace, or a process".to_owned());
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Self {
                word: format!("pid-{text}"),
                file: PathBuf::from(format!("/proc/{text}/ns/net")),
            });
        }
        if text.starts_with('/') {
            let word = text.trim_start_matches('/').replace('/', "-");
            return Ok(Self { word, file: PathBuf::from(text) });
        }
        if text.contains('/') {
            return Err(format!("{text:?} is neither a name in /run/netns nor a whole path"));
        }
        Ok(Self { word: text.to_owned(), file: PathBuf::from(format!("/run/netns/{text}")) })
    }
}

impl Namespace {
    /// By what the agent knows it in a network.
    fn id(&self, network: &NetworkName) -> String {
        format!("{}.{network}", self.word)
    }
}

impl Attach {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let Self { namespace, network, interface, address, labels, aliases, reach } = self;
        let what = format!("attaching {} to network {network}", namespace.word);
        let id = namespace.id(&network);
        let (namespace, addresses) = (namespace.file, address);
        let labels = each_once(labels).map_err(|why| Error::failed(&what, why))?;
        let aliases = aliases.into_iter().collect();
        let owner = None;
        let request = AttachRequest { id, network, namespace, interface, addresses, owner, labels, aliases };
        let done: NewAttachment =
            reach.agent().send(&what, Method::POST, api::path::ATTACHMENTS, &request).await?;
        out.as_json(reach.json);
        out.answer(&done, |out, done| {
            let Attachment { interface, addresses, network, instances, .. } = &done.attachment;
            out.line(format!("{interface} has {} on network {network}", joined(addresses)))?;
            instances.iter().try_for_each(|AttachmentInstance { service, id, address }| {
                out.line(format!("it is the instance {id} of {service}, at {address}"))
            })
        })?;
        Ok(())
    }
}

impl Detach {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let what = format!("detaching {} from network {}", self.namespace.word, self.network);
        let path = api::path::ATTACHMENT.replace("{id}", &escape(&self.namespace.id(&self.network)));
        let changed: Changed = self.reach.agent().send(&what, Method::DELETE, &path, &()).await?;
        print_change(out, self.reach.json, &changed)
    }
}

impl List {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let answer: Attachments =
            self.reach.agent().get("listing what is attached", api::path::ATTACHMENTS).await?;
        out.as_json(self.reach.json);
        out.answer(&answer, |out, answer| {
            let table = table(&answer.attachments);
            if table.is_empty() {
                return out.line("nothing is attached on this node");
            }
            out.table(&table)
        })?;
        Ok(())
    }
}

/// One line for each.
pub(super) fn table(attachments: &[Attachment]) -> Table {
    const COLUMNS: &[&str] = &["NETWORK", "ADDRESSES", "MAC", "INTERFACE", "LINK", "NAMESPACE", "INSTANCES"];
    let mut table = Table::new(COLUMNS);
    for attachment in attachments {
        table.row([
            Cell::from(attachment.network.as_str()),
            Cell::from(joined(&attachment.addresses)),
            Cell::from(attachment.mac),
            Cell::from(&attachment.interface),
            Cell::from(&attachment.link),
            Cell::from(attachment.namespace.display()),
            Cell::from(served(&attachment.instances)),
        ]);
    }
    table
}

/// `web/web-a-one`, as an instance is named everywhere.
fn served(instances: &[AttachmentInstance]) -> String {
    let instances: Vec<String> = instances.iter().map(|one| format!("{}/{}", one.service, one.id)).collect();
    if instances.is_empty() { "-".to_owned() } else { instances.join(", ") }
}

/// As a table of labels; of two values for one key, one would get lost.
pub(super) fn each_once(
    labels: Vec<Pair<String, String>>,
) -> std::result::Result<BTreeMap<String, String>, String> {
    let mut all = BTreeMap::new();
    for Pair(key, value) in labels {
        match all.entry(key) {
            Entry::Vacant(new) => drop(new.insert(value)),
            Entry::Occupied(known) => return Err(format!("the label {} is given twice", known.key())),
        }
    }
    Ok(all)
}

fn joined(addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    addresses.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_a_name_a_file_or_a_process() {
        for (typed, word, file) in [
            ("one", "one", "/run/netns/one"),
            ("4711", "pid-4711", "/proc/4711/ns/net"),
            ("/proc/1/ns/net", "proc-1-ns-net", "/proc/1/ns/net"),
        ] {
            let expected = Namespace { word: word.to_owned(), file: PathBuf::from(file) };
            assert_eq!(typed.parse(), Ok(expected), "{typed}");
        }
        assert!("a/b".parse::<Namespace>().is_err() && "".parse::<Namespace>().is_err());
    }
}
