//! What is attached to overlay networks here: how the admin interface has it attached, and what is checked and registered of it.
//!
//! The overlay keeps what is said of an attachment and does not know what it means; the source of instances knows nothing
//! of networks. Here one is told what the other has. Labels are read before anything is attached: one that is wrong refuses it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use nerve::model::{NetworkName, NodeName};
use nerve::source::{self, AttachedSource, Local};
use nerve::tasks::Tasks;

use crate::admin::{Attacher, NotAttached};
use crate::api::{
    AttachRequest, Attachable, Attachment, AttachmentCheck, AttachmentInstance, AttachmentOwner,
    AttachmentRoute, Encryption, NewAttachment,
};
use crate::overlay::{self, Described};

/// So many characters of its id stand for a container, where the id is of the usual kind: 64 digits that are random.
const SHORT: usize = 12;
const USUAL: usize = 64;

/// A source of what is attached, now and from now on; `None` where this node takes part in no network.
pub(super) fn source(overlay: &overlay::Handle, local: &Local, tasks: &Tasks) -> Option<AttachedSource> {
    let mut described = overlay.described()?;
    let attached = described.borrow_and_update().iter().map(of_source).collect::<Vec<_>>();
    let source = AttachedSource::new(local.clone(), &attached);
    let told = source.clone();
    tasks.spawn_until_stopped("attachment source", move || {
        let (mut described, told) = (described.clone(), told.clone());
        async move {
            loop {
                let attached: Vec<_> = described.borrow_and_update().iter().map(of_source).collect();
                told.replace(&attached);
                if described.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    });
    Some(source)
}

/// The address that clients are told is of IPv4 where there is one.
fn of_source(attached: &overlay::Attached) -> source::Attached {
    let v4 = attached.addresses.iter().find(|address| address.is_ipv4());
    let address = v4.or(attached.addresses.first()).copied();
    source::Attached {
        id: attached.id.clone(),
        container: container(&attached.id, &attached.network, attached.owner.as_ref()),
        namespace: attached.namespace.clone(),
        // One without any is refused by whoever resolves it: there are none.
        address: address.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()),
        addresses: attached.addresses.iter().copied().collect(),
        labels: attached.described.labels.clone(),
        aliases: attached.described.aliases.clone(),
    }
}

/// What a container is called in the ids of its instances: the same on all of its networks.
fn container(id: &str, network: &NetworkName, owner: Option<&overlay::Owner>) -> String {
    match owner.map(|owner| owner.container.as_str()) {
        Some(id) if id.len() == USUAL && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            id[..SHORT].to_owned()
        }
        Some(id) => id.to_owned(),
        None => id.strip_suffix(&format!(".{network}")).unwrap_or(id).to_owned(),
    }
}

/// Attaches, for the admin interface.
#[derive(Debug, Clone)]
pub(crate) struct Attachments {
    overlay: overlay::Handle,
    local: Local,
}

impl Attachments {
    pub(crate) fn new(overlay: overlay::Handle, local: Local) -> Self {
        Self { overlay, local }
    }

    /// Refuses what is said of something and is wrong wherever it is attached.
    fn refuse_wrong(&self, request: &overlay::Attach) -> Result<(), NotAttached> {
        let overlay::Attach { id, network, owner, described, .. } = request;
        let attached = source::Attached {
            id: id.clone(),
            container: container(id, network, owner.as_ref()),
            namespace: PathBuf::new(),
            // It has none yet; this one can be connected to, as all of networks can.
            address: self.local.address,
            addresses: [self.local.address].into(),
            labels: described.labels.clone(),
            aliases: described.aliases.clone(),
        };
        let read = attached.instances(&self.local).map(|_| ());
        // A runtime names every container, and labels a whole network; a person means something by it.
        let meant = read.and(attached.lacks().filter(|_| owner.is_none()).map_or(Ok(()), Err));
        meant.map_err(|error| NotAttached::Wrong(error.to_string()))
    }

    fn attachment(&self, attached: overlay::Attached) -> Attachment {
        // What is wrong with it is a problem of the source, which says so.
        let instances = of_source(&attached).instances(&self.local).unwrap_or_default().into_iter();
        let instances = instances.map(|instance| AttachmentInstance {
            address: instance.listens_on().to_string(),
            service: instance.key.service,
            id: instance.key.id,
        });
        let instances = instances.collect();
        let overlay::Attached { id, network, addresses, mac, namespace, interface, link, owner, described } =
            attached;
        let owner = owner.map(|owner| {
            let overlay::Owner { configuration, container, interface } = owner;
            AttachmentOwner { configuration, container, interface }
        });
        let Described { labels, aliases } = described;
        Attachment {
            id,
            network,
            addresses,
            mac,
            namespace,
            interface,
            link,
            owner,
            labels,
            aliases,
            instances,
        }
    }
}

#[async_trait]
impl Attacher for Attachments {
    async fn attach(&self, request: AttachRequest) -> Result<NewAttachment, NotAttached> {
        let AttachRequest { id, network, namespace, interface, addresses, owner, labels, aliases } = request;
        let owner = owner.map(|owner| {
            let AttachmentOwner { configuration, container, interface } = owner;
            overlay::Owner { configuration, container, interface }
        });
        let described = Described { labels, aliases };
        let request = overlay::Attach { id, network, namespace, interface, addresses, owner, described };
        self.refuse_wrong(&request)?;
        let given = self.overlay.attach(request).await.map_err(|error| not_attached(&error))?;
        let routes = given.routes.into_iter().map(|(to, via)| AttachmentRoute { to, via }).collect();
        Ok(NewAttachment {
            attachment: self.attachment(given.attached),
            place: attachable(given.place),
            routes,
        })
    }

    async fn detach(&self, id: &str) -> Result<Option<Attachment>, NotAttached> {
        let detached = self.overlay.detach(id).await.map_err(|error| not_attached(&error))?;
        Ok(detached.map(|attached| self.attachment(attached)))
    }

    async fn check(&self, id: &str) -> Result<Option<AttachmentCheck>, NotAttached> {
        let checked = self.overlay.check(id).await.map_err(|error| not_attached(&error))?;
        Ok(checked
            .map(|(attached, problems)| AttachmentCheck { attachment: self.attachment(attached), problems }))
    }

    async fn attachable(&self, network: &NetworkName) -> Result<Attachable, NotAttached> {
        self.overlay.offer(network).await.map(attachable).map_err(|error| not_attached(&error))
    }

    async fn can_encrypt(&self) -> Result<(), String> {
        self.overlay.can_encrypt().await
    }

    fn encrypts(&self) -> BTreeMap<(NodeName, IpAddr), Encryption> {
        let ways = self.overlay.ways();
        let encryption = |way: &overlay::EncryptedWay| Encryption { cipher: way.cipher, since: way.since };
        ways.iter().map(|(peer, way)| (peer.clone(), encryption(way))).collect()
    }

    fn attached(&self) -> Vec<Attachment> {
        self.overlay.attached().into_iter().map(|attached| self.attachment(attached)).collect()
    }
}

fn attachable(offer: overlay::Offer) -> Attachable {
    let overlay::Offer { subnets, gateways, mtu } = offer;
    Attachable { subnets, gateways, mtu }
}

fn not_attached(error: &overlay::AttachError) -> NotAttached {
    use overlay::AttachError as E;
    let why = error.to_string();
    match error {
        E::Kernel(error) if error.kind() == std::io::ErrorKind::AlreadyExists => NotAttached::Taken(why),
        E::Off | E::NotReady(..) | E::NotOurs | E::Kernel(_) => NotAttached::Unavailable(why),
        E::NoNetwork(_) | E::Namespace { .. } | E::Interface(_) => NotAttached::Wrong(why),
        E::Address(_) => NotAttached::Taken(why),
    }
}
