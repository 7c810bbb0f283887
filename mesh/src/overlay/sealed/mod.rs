//! What encrypts the packets of encrypted networks between nodes: links of the kernel that a network's tunnel leads through.
//!
//! Each key of this node has a link of its own, WireGuard's or IPsec's (`xfrm`), with an address inside that follows from the key. A tunnel's
//! forwarding entry names the peer's address inside and the link to send by, so a packet whose link is gone leads nowhere; `guard`
//! drops what would leave or come otherwise. A key is made with its link, published when all peers can be received with it, sent by once they know it
//! (`choice`), and ends with its link. The kernel alone knows private keys of WireGuard, and this process's memory those of IPsec:
//! none is on disk. A link says of itself, in its alias, which key it has, so that the next life of the agent goes on with it.
//!
//! *Never* sends or receives anything in the clear, and *never* touches links, associations or policies that are not ours.

mod choice;
mod esp;
mod guard;
mod links;
mod wire;
mod wireguard;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nerve::model::{Cipher, NodeKey, NodeName, PublicKey};

use super::Metrics;
use super::netlink::Netlink;
use super::ways::{Way, Ways};
use crate::nft;
use choice::{Contact, Own, choose, has_served, inner, is_due};
pub(super) use guard::{TABLE, Zone};
pub(super) use links::is_sealed;
use links::{SealedLink, name, number, slots};

/// How soon it is looked again while a new key is not known everywhere.
const SOON: Duration = Duration::from_secs(1);

/// What this node says and is told.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) address: IpAddr,
    /// WireGuard's first UDP port; the other keys have the next ones.
    pub(super) port: u16,
    /// Of the tunnels inside.
    pub(super) tunnels: u16,
    /// The age at which a key is followed by the next one.
    pub(super) lifetime: Duration,
    /// The largest packet that links take.
    pub(super) mtu: u32,
}

/// The encrypted networks.
#[derive(Debug)]
pub(super) struct Zones {
    pub(super) wanted: BTreeSet<Zone>,
    /// Others may have links still.
    pub(super) is_left: bool,
}

/// Another node of an encrypted network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Peer {
    pub(super) node: NodeName,
    pub(super) address: IpAddr,
    pub(super) keys: Vec<NodeKey>,
}

/// What a comparison came to.
#[derive(Debug)]
pub(super) struct Compared {
    /// What others are to know; with none, why this node cannot encrypt.
    pub(super) keys: Result<Vec<NodeKey>, String>,
    /// The ways are others than before.
    pub(super) is_changed: bool,
    /// When it is to be looked again.
    pub(super) again: Duration,
}

/// All of it on this node.
pub(super) struct Sealed {
    guard: nft::Kept<1>,
    /// Those that it is set for.
    zones: BTreeSet<Zone>,
    secrets: BTreeMap<PublicKey, esp::Secret>,
    /// `None`: nothing may be set up yet.
    ways: Option<Arc<Ways>>,
    metrics: Metrics,
}

/// The links of one cipher while they are compared.
struct Side<'a> {
    cipher: Cipher,
    terms: &'a Terms,
    now: u64,
    /// The oldest first.
    owns: Vec<Own>,
    there: BTreeMap<u8, SealedLink>,
}

/// What the kernel says of pairs of keys, by the own one.
type Contacts = BTreeMap<PublicKey, BTreeMap<PublicKey, Contact>>;

impl Sealed {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            guard: nft::Kept::new([TABLE]),
            zones: BTreeSet::new(),
            secrets: BTreeMap::new(),
            ways: None,
            metrics,
        }
    }

    /// Somebody may have changed the packet filter.
    pub(super) fn doubt(&mut self) {
        self.guard.doubt();
    }

    /// Is it ours that has changed?
    pub(super) fn is_changed(&self, changed: &nft::Changed) -> bool {
        self.guard.is_changed(changed)
    }

    /// The ways to peers; `None`: encrypted networks may not be set up.
    pub(super) fn ways(&self) -> Option<&Arc<Ways>> {
        self.ways.as_ref()
    }

    /// Makes everything what these networks and peers need.
    pub(super) async fn ensure(
        &mut self,
        netlink: &Netlink,
        rules: &mut Option<nft::Events>,
        terms: &Terms,
        Zones { wanted: zones, is_left }: Zones,
        peers: &[Peer],
    ) -> io::Result<Compared> {
        self.zones = if is_left { &self.zones | &zones } else { zones };
        let text = guard::ruleset(&self.zones, terms.tunnels);
        if self.guard.ensure(text, rules).await.map_err(io::Error::other)? {
            self.metrics.repairs.inc();
            tracing::warn!(
                "rules that keep encrypted networks from sending in the clear were changed by somebody else; they are put back"
            );
        }
        let ranges = self.zones.iter().flat_map(|(_, ranges)| ranges.iter().copied()).collect();
        netlink.ensure_held(&ranges, is_left).await?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let (mut keys, mut ways, mut reasons, mut again) =
            (Vec::new(), Ways::new(), Vec::new(), terms.lifetime);
        let mut open: BTreeSet<&Peer> = peers.iter().collect();
        for cipher in Cipher::ALL {
            let mine: Vec<&Peer> = open
                .iter()
                .copied()
                .filter(|peer| peer.keys.iter().any(|key| key.cipher == cipher))
                .collect();
            match self.ensure_side(netlink, cipher, (terms, now), &mine).await {
                Ok((owns, found, is_settled)) => {
                    open.retain(|peer| !mine.contains(peer));
                    again = again.min(if is_settled { until_due(&owns, terms, now) } else { SOON });
                    keys.extend(owns.iter().map(|own| published(own, terms)));
                    ways.extend(found);
                }
                // What has links goes on with them until it can be compared again.
                Err(error) if netlink.sealed_links().await?.keys().any(|(of, _)| *of == cipher) => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::debug!(%cipher, %error, "the kernel does not encrypt by this");
                    reasons.push(format!("{cipher}: {error}"));
                }
            }
        }
        for cipher in Cipher::ALL {
            let count = ways.values().filter(|way| way.cipher == cipher).count();
            self.metrics.count_encrypted(&cipher.to_string(), count);
        }
        self.metrics.count_encrypted("none", peers.len().saturating_sub(ways.len()));
        let is_changed = self.ways.as_deref() != Some(&ways);
        self.ways = Some(Arc::new(ways));
        let keys = if keys.is_empty() { Err(reasons.join("; ")) } else { Ok(keys) };
        Ok(Compared { keys, is_changed, again: again.max(SOON) })
    }

    /// Removes everything, where there are no encrypted networks any more.
    pub(super) async fn clear(
        &mut self,
        netlink: &Netlink,
        rules: &mut Option<nft::Events>,
    ) -> io::Result<()> {
        for (cipher, slot) in remove_links(netlink).await? {
            tracing::info!(
                link = name(cipher, slot),
                "removed a link that encrypted for networks that are no more"
            );
        }
        self.secrets.clear();
        self.ways = None;
        netlink.ensure_held(&BTreeSet::new(), false).await?;
        self.zones.clear();
        if self.guard.is_set() {
            self.guard.ensure(guard::ruleset(&BTreeSet::new(), 0), rules).await.map_err(io::Error::other)?;
            self.guard = nft::Kept::new([TABLE]);
        }
        Ok(())
    }

    /// The links of one cipher: makes them, their keys and their peers what they are to be. Tells the keys, the ways, and whether nothing is under
    /// way.
    async fn ensure_side(
        &mut self,
        netlink: &Netlink,
        cipher: Cipher,
        (terms, now): (&Terms, u64),
        peers: &[&Peer],
    ) -> io::Result<(Vec<Own>, Ways, bool)> {
        if cipher == Cipher::WireGuard {
            blocking(|| wireguard::WireGuard::open().map(drop)).await?;
        }
        let mut side = Side::read(netlink, cipher, terms, now).await?;
        let newest = side.owns.last();
        let is_lost = cipher == Cipher::Esp && newest.is_some_and(|own| !self.secrets.contains_key(&own.key));
        if is_lost || is_due(newest, terms.lifetime, now) {
            self.add_key(netlink, &mut side).await?;
        }
        let (mut contacts, mut is_spent) = (Contacts::new(), false);
        for own in side.owns.clone() {
            side.adjust(netlink, &own).await?;
            let (of_own, spent) = match cipher {
                Cipher::WireGuard => match self.shake_hands(&side, &own, peers).await {
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        // It is of no use to anybody any more; the next try makes another one.
                        self.end_key(netlink, &own).await?;
                        return Err(error);
                    }
                    shaken => (shaken?, false),
                },
                Cipher::Esp => self.associate(&side, &own, peers).await?,
            };
            contacts.insert(own.key, of_own);
            is_spent |= spent && side.owns.last() == Some(&own);
        }
        if is_spent {
            tracing::warn!(
                "associations of IPsec were taken away by somebody else; they are made again with another key"
            );
            self.metrics.repairs.inc();
            self.add_key(netlink, &mut side).await?;
            return Ok((side.owns.clone(), side.ways(peers, &contacts), false));
        }
        let ways = side.ways(peers, &contacts);
        self.retire(netlink, &mut side, &ways).await?;
        let is_settled = side.owns.len() <= 1 && peers.iter().all(|peer| of(cipher, peer).len() <= 1);
        Ok((side.owns, ways, is_settled))
    }

    /// A new key, with its link. Where there is no place for it, the oldest one goes.
    async fn add_key(&mut self, netlink: &Netlink, side: &mut Side<'_>) -> io::Result<()> {
        let cipher = side.cipher;
        let is_used = |slot: &u8| side.owns.iter().any(|own| own.slot == *slot);
        let slot = match (0..slots(cipher)).find(|slot| !is_used(slot)) {
            Some(slot) => slot,
            None => {
                let oldest = side.owns.remove(0);
                self.end_key(netlink, &oldest).await?;
                oldest.slot
            }
        };
        let link = name(cipher, slot);
        let index = netlink.add_sealed(cipher, slot, side.terms.mtu).await?;
        let key = match cipher {
            Cipher::WireGuard => {
                let port = port(side.terms, slot);
                blocking(move || wireguard::WireGuard::open()?.set_key(index, port)).await
            }
            Cipher::Esp => {
                let private =
                    esp::Private::generate().ok_or_else(|| io::Error::other("there is no randomness"))?;
                let key = private.public();
                let checked = blocking(move || {
                    let mut esp = esp::Esp::open()?;
                    // Of a link of this name that somebody has removed.
                    esp.clear([number(slot)])?;
                    esp.check(number(slot))
                });
                checked.await.map(|()| {
                    self.secrets.insert(key, esp::Secret::new(private));
                    key
                })
            }
        };
        let finished = match key {
            Ok(key) => netlink.finish_sealed(index, &link, (key, side.now)).await.map(|()| key),
            Err(error) => Err(error),
        };
        let key = match finished {
            Ok(key) => key,
            Err(error) => {
                netlink.remove_link(index).await?;
                return Err(error);
            }
        };
        tracing::info!(%cipher, link, %key, "made a key for encrypted networks");
        self.metrics.keys.with_label_values(&[&cipher.to_string(), "made"]).inc();
        side.owns.push(Own { cipher, slot, index, key, since: side.now });
        Ok(())
    }

    async fn end_key(&mut self, netlink: &Netlink, own: &Own) -> io::Result<()> {
        netlink.remove_link(own.index).await?;
        if own.cipher == Cipher::Esp {
            let number = number(own.slot);
            blocking(move || esp::Esp::open()?.clear([number])).await?;
            self.secrets.remove(&own.key);
        }
        tracing::info!(cipher = %own.cipher, key = %own.key, "a key for encrypted networks has ended");
        self.metrics.keys.with_label_values(&[&own.cipher.to_string(), "ended"]).inc();
        Ok(())
    }

    /// Ends keys that are followed by another one and that nothing is sent by.
    async fn retire(&mut self, netlink: &Netlink, side: &mut Side<'_>, ways: &Ways) -> io::Result<()> {
        let Some(newest) = side.owns.last().cloned() else { return Ok(()) };
        if !has_served(&newest, side.terms.lifetime, side.now) {
            return Ok(());
        }
        let is_used = |own: &Own| own.key == newest.key || ways.values().any(|way| way.link == own.index);
        let (kept, served): (Vec<Own>, Vec<Own>) = side.owns.drain(..).partition(is_used);
        side.owns = kept;
        for own in served {
            self.end_key(netlink, &own).await?;
        }
        Ok(())
    }

    async fn shake_hands(
        &self,
        side: &Side<'_>,
        own: &Own,
        peers: &[&Peer],
    ) -> io::Result<BTreeMap<PublicKey, Contact>> {
        let mut wanted = BTreeMap::new();
        for peer in peers {
            let keys = of(Cipher::WireGuard, peer);
            let probe = side.owns.len() > 1 || keys.len() > 1;
            wanted.extend(keys.iter().map(|key| {
                let endpoint = SocketAddr::new(peer.address, key.port);
                (key.key, wireguard::Peer { endpoint, inner: inner(key.key), probe })
            }));
        }
        let (index, key) = (own.index, own.key);
        let keys: Vec<PublicKey> = wanted.keys().copied().collect();
        let heard = blocking(move || wireguard::WireGuard::open()?.ensure(index, key, &wanted)).await?;
        let contact = |key: &PublicKey| if heard.contains(key) { Contact::Heard } else { Contact::Ready };
        Ok(keys.iter().map(|key| (*key, contact(key))).collect())
    }

    async fn associate(
        &mut self,
        side: &Side<'_>,
        own: &Own,
        peers: &[&Peer],
    ) -> io::Result<(BTreeMap<PublicKey, Contact>, bool)> {
        let wanted = peers.iter().flat_map(|peer| {
            let keys = of(Cipher::Esp, peer).into_iter();
            keys.map(|key| esp::Peer { key: key.key, outer: peer.address, inner: inner(key.key) })
        });
        let wanted: Vec<esp::Peer> = wanted.collect();
        let end = esp::End { link: number(own.slot), outer: side.terms.address, inner: inner(own.key) };
        let mut secret = self.secrets.remove(&own.key);
        let (found, secret) = blocking(move || {
            let found = esp::Esp::open().and_then(|mut esp| esp.ensure(end, secret.as_mut(), &wanted));
            Ok((found, secret))
        })
        .await?;
        self.secrets.extend(secret.map(|secret| (own.key, secret)));
        let esp::Found { ready, heard, is_spent, .. } = found?;
        let contact =
            |key: PublicKey| (key, if heard.contains(&key) { Contact::Heard } else { Contact::Ready });
        Ok((ready.into_iter().map(contact).collect(), is_spent))
    }
}

impl<'a> Side<'a> {
    /// What there is of it; what was never finished goes.
    async fn read(netlink: &Netlink, cipher: Cipher, terms: &'a Terms, now: u64) -> io::Result<Self> {
        let (mut owns, mut there) = (Vec::new(), BTreeMap::new());
        for ((of, slot), link) in netlink.sealed_links().await? {
            match link.key {
                _ if of != cipher => {}
                Some((key, since)) => {
                    owns.push(Own { cipher, slot, index: link.index, key, since });
                    there.insert(slot, link);
                }
                None => netlink.remove_link(link.index).await?,
            }
        }
        owns.sort_by_key(|own| own.since);
        Ok(Self { cipher, terms, now, owns, there })
    }

    async fn adjust(&self, netlink: &Netlink, own: &Own) -> io::Result<()> {
        // One that was made a moment ago is as it is to be; another one may have been in its place.
        let there = self.there.get(&own.slot).filter(|link| link.index == own.index);
        let Some(link) = there else { return Ok(()) };
        netlink.adjust_sealed(&name(self.cipher, own.slot), link, own.key, self.terms.mtu).await
    }

    fn ways(&self, peers: &[&Peer], contacts: &Contacts) -> Ways {
        let way = |peer: &&Peer| {
            let keys = of(self.cipher, peer);
            let contact = |own: &Own, key: &NodeKey| {
                contacts
                    .get(&own.key)
                    .and_then(|of_own| of_own.get(&key.key))
                    .copied()
                    .unwrap_or(Contact::None)
            };
            let (own, key) = choose(&self.owns, &keys, contact)?;
            let way = Way { cipher: self.cipher, since: own.since, link: own.index, to: inner(key.key) };
            Some(((peer.node.clone(), peer.address), way))
        };
        peers.iter().filter_map(way).collect()
    }
}

/// Removes every link that encrypts, and what IPsec has behind them. Tells which there were.
pub(super) async fn remove_links(netlink: &Netlink) -> io::Result<Vec<(Cipher, u8)>> {
    let links = netlink.sealed_links().await?;
    for link in links.values() {
        netlink.remove_link(link.index).await?;
    }
    let numbers: Vec<u32> =
        links.keys().filter(|(cipher, _)| *cipher == Cipher::Esp).map(|(_, slot)| number(*slot)).collect();
    if !numbers.is_empty() {
        blocking(move || esp::Esp::open()?.clear(numbers)).await?;
    }
    Ok(links.into_keys().collect())
}

/// The names of the links that there were.
pub(super) fn link_names(removed: Vec<(Cipher, u8)>) -> Vec<String> {
    removed.into_iter().map(|(cipher, slot)| name(cipher, slot)).collect()
}

/// Can this node encrypt? Looks at what there is and, where there is nothing, makes a link and removes it.
///
/// # Errors
/// Why it can by none of the ciphers.
pub(super) async fn check(netlink: &Netlink) -> Result<(), String> {
    let there = netlink.sealed_links().await.map_err(|error| error.to_string())?;
    if there.values().any(|link| link.key.is_some()) {
        return Ok(());
    }
    let mut reasons = Vec::new();
    for cipher in Cipher::ALL {
        match check_cipher(netlink, cipher).await {
            Ok(()) => return Ok(()),
            Err(error) => reasons.push(format!("{cipher}: {error}")),
        }
    }
    Err(reasons.join("; "))
}

async fn check_cipher(netlink: &Netlink, cipher: Cipher) -> io::Result<()> {
    if cipher == Cipher::WireGuard {
        return blocking(|| wireguard::WireGuard::open().map(drop)).await;
    }
    let slot = slots(cipher) - 1;
    let index = netlink.add_sealed(cipher, slot, 1280).await?;
    let checked = blocking(move || esp::Esp::open()?.check(number(slot))).await;
    netlink.remove_link(index).await?;
    checked
}

/// A peer's keys for a cipher, the oldest first.
fn of(cipher: Cipher, peer: &Peer) -> Vec<NodeKey> {
    peer.keys.iter().filter(|key| key.cipher == cipher).cloned().collect()
}

fn port(terms: &Terms, slot: u8) -> u16 {
    terms.port.saturating_add(u16::from(slot))
}

fn published(own: &Own, terms: &Terms) -> NodeKey {
    let port = match own.cipher {
        Cipher::WireGuard => port(terms, own.slot),
        Cipher::Esp => 0,
    };
    NodeKey { cipher: own.cipher, key: own.key, port, since: own.since }
}

fn until_due(owns: &[Own], terms: &Terms, now: u64) -> Duration {
    owns.last().map_or(SOON, |own| terms.lifetime.saturating_sub(choice::age(own, now)))
}

/// Speaks with the kernel on a thread that nobody waits for.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
