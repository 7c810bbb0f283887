//! The source that is what is attached to networks of this node: whoever attaches something says by labels and aliases what it serves.
//!
//! The whole list is told each time, and the newest one counts. What its labels mean is `labels.rs`'s; several
//! attachments of one container are one instance of a service, by the address of the first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::labels::{LabelError, Labels, Reached, Rest, free};
use super::{Client, Definition, InstanceKey, Local, Located, Origin, Snapshot, Source, SourceProblem};
use crate::model::ServiceName;

/// Something that is attached to a network, and what is said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// By what people know it.
    pub id: String,
    /// What its container is called, the end of its instances' ids: the same for all that one container has.
    pub container: String,
    /// What tells containers apart that are called the same.
    pub namespace: PathBuf,
    /// Where it is reached.
    pub address: IpAddr,
    /// Every address that it has, this one among them.
    pub addresses: BTreeSet<IpAddr>,
    /// As they were given.
    pub labels: BTreeMap<String, String>,
    /// What it is an instance of, unless a label says otherwise.
    pub aliases: BTreeSet<ServiceName>,
}

impl Attached {
    /// Its instances.
    ///
    /// # Errors
    /// A label cannot be what it is.
    pub fn instances(&self, local: &Local) -> Result<Vec<Definition>, LabelError> {
        let labels = Labels::read(&self.labels, &[])?;
        let services = labels.services()?.unwrap_or_else(|| self.aliases.clone());
        let services = services.into_iter().map(|service| (service, self.address)).collect();
        let mut free = free(&self.labels);
        free.entry("container".to_owned()).or_insert_with(|| self.container.clone());
        let rest = Rest { container: &self.container, port: None, free, reached: Reached::Directly };
        labels.instances(&services, &rest, local)
    }

    /// What it is as a client: what it is called, whether it serves or not.
    fn client(&self) -> Option<Client> {
        let said = Labels::read(&self.labels, &[]).ok()?.services().ok()?;
        let services = said.unwrap_or_else(|| self.aliases.clone());
        let mut labels = free(&self.labels);
        labels.entry("container".to_owned()).or_insert_with(|| self.container.clone());
        let addresses = self.addresses.clone();
        (!services.is_empty()).then_some(Client { services, addresses, labels })
    }

    /// Why it is no instance of anything, where labels or aliases say what it serves and nothing is wrong with any of them: what
    /// lacks. Who names everything, whether it serves or not, need not care.
    #[must_use]
    pub fn lacks(&self) -> Option<LabelError> {
        let labels = Labels::read(&self.labels, &[]).ok()?;
        match labels.services().ok()? {
            Some(_) => None,
            None => labels.lacks(&self.aliases),
        }
    }
}

/// What is attached on this node. Clones share it.
#[derive(Debug, Clone)]
pub struct AttachedSource {
    local: Local,
    snapshots: Arc<watch::Sender<Arc<Snapshot>>>,
}

impl AttachedSource {
    /// A source of these, the first of which take precedence.
    #[must_use]
    pub fn new(local: Local, attached: &[Attached]) -> Self {
        let snapshots = Arc::new(watch::Sender::new(Arc::new(snapshot(attached, &local))));
        Self { local, snapshots }
    }

    /// Puts these in their place.
    pub fn replace(&self, attached: &[Attached]) {
        let snapshot = snapshot(attached, &self.local);
        self.snapshots.send_if_modified(|current| {
            let is_new = **current != snapshot;
            if is_new {
                *current = Arc::new(snapshot);
            }
            is_new
        });
    }
}

impl Source for AttachedSource {
    fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }
}

fn snapshot(attached: &[Attached], local: &Local) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let mut known: BTreeSet<(InstanceKey, &PathBuf)> = BTreeSet::new();
    for one in attached {
        snapshot.clients.extend(one.client());
        let origin = || Origin::Attachment { id: one.id.as_str().into() };
        match one.instances(local) {
            Ok(definitions) => {
                for definition in definitions {
                    if known.insert((definition.key.clone(), &one.namespace)) {
                        snapshot.definitions.push(Arc::new(Located { definition, origin: origin() }));
                    }
                }
            }
            // It was well when it was attached, to an agent of another version.
            Err(error) => {
                let (place, message) = (origin().to_string(), error.to_string());
                snapshot.problems.push(SourceProblem { place, message });
            }
        }
    }
    snapshot
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> Local {
        Local { node: "a".parse().unwrap(), address: "192.0.2.1".parse().unwrap() }
    }

    fn attached(id: &str, namespace: &str, address: &str, labels: &[(&str, &str)]) -> Attached {
        Attached {
            id: id.to_owned(),
            container: "one".to_owned(),
            namespace: namespace.into(),
            address: address.parse().unwrap(),
            addresses: BTreeSet::from([address.parse().unwrap()]),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            aliases: BTreeSet::from(["web".parse().unwrap()]),
        }
    }

    fn shown(source: &AttachedSource) -> (Vec<String>, Vec<String>) {
        let snapshot = source.snapshots().borrow().clone();
        let defined = snapshot
            .definitions
            .iter()
            .map(|one| format!("{} {} by {}", one.definition.key, one.definition.listens_on(), one.origin));
        (
            defined.collect(),
            snapshot
                .problems
                .iter()
                .map(|problem| format!("{}: {}", problem.place, problem.message))
                .collect(),
        )
    }

    #[test]
    fn a_container_is_one_instance_of_a_service_whichever_networks_it_is_on() {
        let port = [("plexus.port", "80")];
        let default = attached("one.default", "/run/netns/one", "10.42.3.5", &port);
        let blue = attached("one.blue", "/run/netns/one", "10.43.3.5", &port);
        let source = AttachedSource::new(local(), &[blue.clone(), default.clone()]);
        let clients = source.snapshots().borrow().clients.clone();
        let (blue_addresses, web) = (blue.addresses.clone(), BTreeSet::from(["web".parse().unwrap()]));
        assert_eq!((clients.len(), &clients[0].addresses, &clients[0].services), (2, &blue_addresses, &web));
        let of_blue = "web/web-a-one 10.43.3.5:80 by the attachment one.blue";
        assert_eq!(shown(&source), (vec![of_blue.to_owned()], vec![]));
        // Another container that is called the same is not silently left out: both stand there, and are told apart later.
        let other = Attached { namespace: "/proc/7/ns/net".into(), ..default.clone() };
        source.replace(&[blue, other]);
        assert_eq!(shown(&source).0.len(), 2);
        let mut snapshots = source.snapshots();
        source.replace(std::slice::from_ref(&default));
        assert!(snapshots.has_changed().unwrap());
        let _ = snapshots.borrow_and_update();
        source.replace(&[default]);
        assert!(!snapshots.has_changed().unwrap());
    }

    #[test]
    fn what_lacks_is_told_where_something_is_said() {
        let with = |labels: &[(&str, &str)], aliases: &[&str]| {
            let aliases = aliases.iter().map(|alias| alias.parse().unwrap()).collect();
            let one = Attached { aliases, ..attached("one.default", "/run/netns/one", "10.42.3.5", labels) };
            one.lacks().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!([with(&[], &[]), with(&[("role", "primary")], &[])], ["", ""]);
        assert_eq!(
            [with(&[("plexus.port", "80")], &["web"]), with(&[("plexus.service", "none")], &["web"])],
            ["", ""]
        );
        assert!(with(&[], &["web"]).contains("the alias web leads nowhere"));
        assert!(
            with(&[("plexus.service.web.port", "80")], &["db", "web"]).contains("the alias db leads nowhere")
        );
        assert!(
            with(&[("plexus.port", "80")], &[]).starts_with("plexus.port: nothing says of which service")
        );
    }

    #[test]
    fn what_cannot_be_read_any_more_is_a_problem_and_no_other_s() {
        let good = attached("one.default", "/run/netns/one", "10.42.3.5", &[("plexus.port", "80")]);
        let bad = attached("two.default", "/run/netns/two", "10.42.3.6", &[("plexus.later", "1")]);
        let (defined, problems) = shown(&AttachedSource::new(local(), &[bad, good]));
        assert_eq!(defined.len(), 1);
        assert!(
            problems[0].starts_with("the attachment two.default: plexus.later: there is no such label"),
            "{problems:?}"
        );
    }
}
