//! What a swarm shows, as services of the mesh (pure): where its tasks are reached, and which ports are published for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nerve::model::{Health, ServiceName, Zone};

use super::Swarm;
use super::api::{Node, Service, Task};
use super::ports::Ports;
use crate::watch::place::{Copies, Refused, Services};
use crate::watch::server::{Host, Server};

/// The label of a node that tells its zone.
const ZONE: &str = "zone";
/// So many labels of a service travel along, and so long ones, in bytes.
const MOST_LABELS: usize = 64;
const LONGEST_LABEL: usize = 512;

/// What a manager has said.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) services: Vec<Service>,
    pub(super) nodes: Vec<Node>,
    pub(super) tasks: Vec<Task>,
}

/// A node as far as its tasks are concerned.
struct Machine<'a> {
    address: Result<IpAddr, String>,
    name: &'a str,
    zone: Option<Zone>,
    /// Its tasks are lost, or are moved elsewhere.
    is_leaving: bool,
}

impl Swarm {
    /// The services that the watcher fills, by their names here.
    pub(super) fn sought<'a>(
        &self,
        services: &'a [Service],
        refused: &mut Vec<Refused>,
    ) -> BTreeMap<ServiceName, &'a Service> {
        let mut sought: BTreeMap<ServiceName, &Service> = BTreeMap::new();
        let mut listed: Vec<&Service> = services.iter().collect();
        // Of two of one name the older one has it, on every node.
        listed.sort_by_key(|service| (&service.created_at, &service.id));
        for service in listed {
            let name = &service.spec.name;
            let is_sought = match (&self.service, &self.swarm_service) {
                (Some(_), Some(called)) => name == called,
                (Some(of), None) => name == of.as_str() || ServiceName::of_swarm(name).as_ref() == Ok(of),
                (None, _) => service.has_labels(&self.service_labels),
            };
            if !is_sought {
                continue;
            }
            let here = self.service.clone().map_or_else(|| ServiceName::of_swarm(name), Ok);
            match here {
                Err(error) => refused.push((shown(name), error.to_string())),
                Ok(here) => match sought.get(&here) {
                    Some(other) => {
                        let why =
                            format!("{} has the name {here} here; give it another one", other.spec.name);
                        refused.push((shown(name), why));
                    }
                    None => drop(sought.insert(here, service)),
                },
            }
        }
        sought
    }

    /// What is told of it. `asked` is the host of the manager that said it, if it is not this one.
    pub(super) fn judged(&self, seen: &Seen, asked: Option<&str>) -> (Services, Vec<Refused>) {
        let mut refused = Vec::new();
        let sought = self.sought(&seen.services, &mut refused);
        if let Some(service) = self.service.as_ref().filter(|_| sought.is_empty()) {
            let called = self.swarm_service.as_deref().unwrap_or(service.as_str());
            refused.push((called.to_owned(), "there is no such service in the swarm".to_owned()));
        }
        let machines = machines(&seen.nodes, asked);
        let mut tasks: BTreeMap<&str, Vec<&Task>> = BTreeMap::new();
        for task in &seen.tasks {
            tasks.entry(task.service.as_str()).or_default().push(task);
        }
        let mut found = Services::new();
        for (here, service) in sought {
            let reached = service.ports().iter().filter(|port| self.ingress || port.is_of_host());
            let ports = Ports::of(reached, self.swarm_port);
            if !ports.has_main() {
                refused.extend(self.unreachable(service, &ports).map(|why| (shown(&service.spec.name), why)));
                // It is still the one that the watcher is for.
                if self.service.is_some() {
                    found.insert(here, Copies::default());
                }
                continue;
            }
            let labels = labels(service, &mut refused);
            let of = tasks.get(service.id.as_str()).map(Vec::as_slice).unwrap_or_default();
            let servers = servers(service, of, &ports, &machines, &labels, &mut refused);
            let published = if self.publish { ports.published().collect() } else { Vec::new() };
            found.insert(here, Copies { servers, published });
        }
        (found, refused)
    }

    /// Why nothing of a service can be connected to; `None`: it is not meant to be.
    fn unreachable(&self, service: &Service, ports: &Ports<'_>) -> Option<String> {
        let why = match (self.swarm_port, service.ports().is_empty()) {
            (Some(port), _) if !ports.is_empty() => {
                format!("it publishes no port that leads to its port {port}")
            }
            (_, false) => {
                "its ports are those of Swarm's own mesh (mode=ingress); publish them with mode=host, or say \
                           `ingress = true` on nodes that are not of the swarm"
                    .to_owned()
            }
            (_, true) => {
                // Services that nobody outside connects to are no mistake.
                self.service.as_ref()?;
                "it publishes no port; publish one with mode=host".to_owned()
            }
        };
        Some(why)
    }
}

fn servers(
    service: &Service,
    tasks: &[&Task],
    ports: &Ports<'_>,
    machines: &BTreeMap<&str, Machine<'_>>,
    labels: &BTreeMap<String, String>,
    refused: &mut Vec<Refused>,
) -> Vec<Server> {
    let mut servers = Vec::new();
    let mut places = BTreeSet::new();
    let mut tasks: Vec<&Task> =
        tasks.iter().copied().filter(|task| task.runs() || task.is_coming()).collect();
    // Of two at one place, the one that runs counts.
    tasks.sort_by_key(|task| (!task.runs(), task.slot, &task.id));
    for task in tasks {
        let name = |suffix: &str| shown(&format!("{}.{suffix}", service.spec.name));
        let Some(machine) = machines.get(task.node.as_str()) else {
            refused.push((name(&task.id), "the swarm does not know its node".to_owned()));
            continue;
        };
        if machine.is_leaving {
            continue;
        }
        let slot = task.slot.to_string();
        let name = name(if task.slot == 0 { machine.name } else { &slot });
        let (address, reached) = match (&machine.address, ports.reached(task)) {
            (Err(why), _) => {
                refused.push((name, why.clone()));
                continue;
            }
            // Docker has not chosen yet.
            (Ok(_), None) if !task.runs() => continue,
            (Ok(_), None) => {
                refused.push((name, "its node does not tell the port that leads to it".to_owned()));
                continue;
            }
            (Ok(address), Some(reached)) => (*address, reached),
        };
        // Tasks of one node behind Swarm's own mesh are behind one port of it.
        if !places.insert((address, reached.main)) {
            continue;
        }
        let mut labels = labels.clone();
        labels.insert("node".to_owned(), machine.name.to_owned());
        if task.slot > 0 {
            labels.insert("slot".to_owned(), slot);
        }
        servers.push(Server {
            ports: reached.named,
            name: Some(name),
            labels,
            zone: machine.zone.clone(),
            health: if task.runs() { Health::Passing } else { Health::Starting },
            ..Server::at(Host::Address(address), reached.main)
        });
    }
    servers
}

fn machines<'a>(nodes: &'a [Node], asked: Option<&str>) -> BTreeMap<&'a str, Machine<'a>> {
    let is_only_manager = nodes.iter().filter(|node| node.manager_status.is_some()).count() == 1;
    let machine = |node: &'a Node| {
        let zone = node.spec.labels.as_ref().and_then(|labels| labels.get(ZONE));
        let name = if node.description.hostname.is_empty() { &node.id } else { &node.description.hostname };
        let machine = Machine {
            address: address(node, is_only_manager, asked),
            name: bounded(name, 128),
            zone: zone.and_then(|zone| Zone::new(zone).ok()),
            // One that is `unknown` may just have another leader.
            is_leaving: node.status.state == "down" || node.spec.availability == "drain",
        };
        (node.id.as_str(), machine)
    };
    nodes.iter().map(machine).collect()
}

/// The address of a node, as others reach it. A manager may tell 0.0.0.0 or 127.0.0.1 of itself.
fn address(node: &Node, is_only_manager: bool, asked: Option<&str>) -> Result<IpAddr, String> {
    let is_good = |address: &IpAddr| !address.is_unspecified() && !address.is_loopback();
    let of_manager = node.manager_status.as_ref().map(|manager| manager.addr.as_str());
    let said = node.status.addr.parse().ok().filter(is_good);
    let advertised = of_manager.and_then(|text| text.parse::<SocketAddr>().ok()).map(|at| at.ip());
    if let Some(address) = said.or(advertised.filter(is_good)) {
        return Ok(address);
    }
    // It is the one that was asked.
    let known = match asked {
        _ if !is_only_manager || of_manager.is_none() => None,
        None => Some(Ipv4Addr::LOCALHOST.into()),
        Some(host) => host.parse().ok().filter(is_good),
    };
    known.ok_or_else(|| {
        let said = bounded(&node.status.addr, 64);
        format!("the swarm tells no address of its node but {said:?}; give it one with --advertise-addr")
    })
}

/// The labels of a service that travel along.
fn labels(service: &Service, refused: &mut Vec<Refused>) -> BTreeMap<String, String> {
    let fits = |(key, value): &(&String, &String)| key.len() + value.len() <= LONGEST_LABEL;
    let all = service.labels().count();
    let some = service.labels().filter(fits).take(MOST_LABELS);
    let labels: BTreeMap<String, String> = some.map(|(key, value)| (key.clone(), value.clone())).collect();
    if labels.len() < all {
        let left = all - labels.len();
        let why = format!(
            "{left} of its labels are left out: {MOST_LABELS} of at most {LONGEST_LABEL} bytes travel along"
        );
        refused.push((shown(&service.spec.name), why));
    }
    labels
}

/// As it may stand in a message.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(128).collect()
}

/// Its beginning.
fn bounded(text: &str, most: usize) -> &str {
    text.char_indices().nth(most).map_or(text, |(end, _)| &text[..end])
}
