//! Which tunnels to other nodes a thread has, and for whom: those that are warm, those that are being made, and the connections
//! that wait for one. No sockets here.
//!
//! A tunnel that is given back is the next one to be lent, so that those that are not needed grow old and are closed. While a
//! peer is in use, a few more are made than are needed, so that the next client finds one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::proxy::arena::Key;
use crate::proxy::tunnel_table::TunnelPeer;

/// Warm tunnels to one peer that are kept.
const IDLE: usize = 64;
/// Handshakes with one peer at a time.
const CONNECTING: usize = 32;
/// Nobody needed it for so long: it is closed. Receivers wait longer, so that it is the sender who closes.
const LIFETIME: Duration = Duration::from_secs(60);
/// Who did not answer is not asked for so long: others, or another way, are better than waiting.
const SILENT: Duration = Duration::from_secs(5);
/// The last warm one is kept for so long after the peer was last asked for.
const LAST: Duration = Duration::from_secs(600);

/// The tunnels of a thread to all its peers.
#[derive(Debug, Default)]
pub(super) struct Pool {
    peers: HashMap<Arc<TunnelPeer>, Peer>,
}

#[derive(Debug)]
struct Peer {
    /// The newest last.
    idle: Vec<(Key, Instant)>,
    connecting: usize,
    lent: usize,
    waiting: VecDeque<Key>,
    asked: Instant,
    /// It did not answer, and is not asked before.
    silent_until: Option<Instant>,
}

/// What a connection that asks is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Here is one.
    Warm(Key),
    /// There will be one, or none.
    Waits,
    /// The peer did not answer just now.
    Silent,
}

/// What becomes of a tunnel that nobody has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A connection waits for it.
    Lend(Key),
    /// It is kept warm.
    Keep,
    /// There are enough: this one, the oldest, goes.
    KeepAndClose(Key),
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self {
            idle: Vec::new(),
            connecting: 0,
            lent: 0,
            waiting: VecDeque::new(),
            asked: now,
            silent_until: None,
        }
    }

    /// How many more there are to be than are needed.
    fn spare(&self) -> usize {
        (1 + self.lent / 8).min(8)
    }
}

impl Pool {
    /// A warm tunnel for a connection, if there is one; otherwise the connection waits.
    pub(super) fn ask(&mut self, to: &Arc<TunnelPeer>, connection: Key, now: Instant) -> Asked {
        let peer = self.peers.entry(Arc::clone(to)).or_insert_with(|| Peer::new(now));
        peer.asked = now;
        match peer.idle.pop() {
            Some((tunnel, _)) => {
                peer.lent += 1;
                Asked::Warm(tunnel)
            }
            None if peer.silent_until.is_some_and(|until| now < until) => Asked::Silent,
            None => {
                peer.waiting.push_back(connection);
                Asked::Waits
            }
        }
    }

    /// How many handshakes are to be begun.
    pub(super) fn wanted(&self, to: &TunnelPeer) -> usize {
        let Some(peer) = self.peers.get(to) else { return 0 };
        let needed = (peer.waiting.len() + peer.spare()).saturating_sub(peer.idle.len());
        needed.min(CONNECTING).saturating_sub(peer.connecting)
    }

    /// One was begun.
    pub(super) fn began(&mut self, to: &TunnelPeer) {
        if let Some(peer) = self.peers.get_mut(to) {
            peer.connecting += 1;
        }
    }

    /// It failed. Tells which connections have nothing to wait for now.
    pub(super) fn failed(&mut self, to: &TunnelPeer) -> Vec<Key> {
        let Some(peer) = self.peers.get_mut(to) else { return Vec::new() };
        peer.connecting = peer.connecting.saturating_sub(1);
        let without = peer.waiting.len().saturating_sub(peer.connecting);
        peer.waiting.drain(..without).collect()
    }

    /// The peer did not answer.
    pub(super) fn silent(&mut self, to: &TunnelPeer, now: Instant) {
        if let Some(peer) = self.peers.get_mut(to) {
            peer.silent_until = Some(now + SILENT);
        }
    }

    /// It was made.
    pub(super) fn made(&mut self, to: &TunnelPeer) {
        if let Some(peer) = self.peers.get_mut(to) {
            peer.silent_until = None;
            peer.connecting = peer.connecting.saturating_sub(1);
        }
    }

    /// One that was lent is lent no longer.
    pub(super) fn ended(&mut self, to: &TunnelPeer) {
        if let Some(peer) = self.peers.get_mut(to) {
            peer.lent = peer.lent.saturating_sub(1);
        }
    }

    /// A tunnel is free. `waits`: does this connection still want one?
    pub(super) fn free(&mut self, to: &Arc<TunnelPeer>, tunnel: Key, now: Instant) -> Next {
        let peer = self.peers.entry(Arc::clone(to)).or_insert_with(|| Peer::new(now));
        if let Some(connection) = peer.waiting.pop_front() {
            peer.lent += 1;
            return Next::Lend(connection);
        }
        peer.idle.push((tunnel, now));
        if peer.idle.len() > IDLE { Next::KeepAndClose(peer.idle.remove(0).0) } else { Next::Keep }
    }

    /// One that was warm is no more.
    pub(super) fn gone(&mut self, to: &TunnelPeer, tunnel: Key) {
        if let Some(peer) = self.peers.get_mut(to) {
            peer.idle.retain(|(key, _)| *key != tunnel);
        }
    }

    /// Those that nobody has needed for too long; they are no longer here.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Key> {
        let mut expired = Vec::new();
        self.peers.retain(|_, peer| {
            let old = peer.idle.partition_point(|(_, since)| now >= *since + LIFETIME);
            let is_asked_for = now < peer.asked + LAST;
            let kept = usize::from(old == peer.idle.len() && is_asked_for).min(old);
            expired.extend(peer.idle.drain(..old - kept).map(|(key, _)| key));
            is_asked_for || peer.connecting + peer.lent + peer.idle.len() + peer.waiting.len() > 0
        });
        expired
    }

    /// Is there anything that may expire?
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::arena::Arena;

    fn peer() -> Arc<TunnelPeer> {
        let (node, address) = ("b".to_owned(), "192.0.2.2:7443".parse().unwrap());
        Arc::new(TunnelPeer { node: nerve::model::NodeName::new(&node).unwrap(), address })
    }

    fn keys(count: usize) -> Vec<Key> {
        let mut arena = Arena::default();
        (0..count).map(|_| arena.insert(()).unwrap()).collect()
    }

    #[test]
    fn the_first_client_waits_and_the_next_one_does_not() {
        let (mut pool, to, keys, now) = (Pool::default(), peer(), keys(4), Instant::now());
        assert_eq!((pool.ask(&to, keys[0], now), pool.wanted(&to)), (Asked::Waits, 2));
        pool.began(&to);
        pool.began(&to);
        assert_eq!(pool.wanted(&to), 0);
        pool.made(&to);
        assert_eq!(pool.free(&to, keys[1], now), Next::Lend(keys[0]));
        pool.made(&to);
        assert_eq!(pool.free(&to, keys[2], now), Next::Keep);
        assert_eq!((pool.ask(&to, keys[3], now), pool.wanted(&to)), (Asked::Warm(keys[2]), 1));
    }

    #[test]
    fn whoever_has_nothing_to_wait_for_is_told_first_come_first() {
        let (mut pool, to, keys, now) = (Pool::default(), peer(), keys(3), Instant::now());
        for key in &keys {
            assert_eq!(pool.ask(&to, *key, now), Asked::Waits);
        }
        pool.began(&to);
        pool.began(&to);
        assert_eq!(pool.failed(&to), keys[..2]);
        assert_eq!(pool.failed(&to), keys[2..]);
        assert_eq!(pool.failed(&to), []);
    }

    #[test]
    fn who_did_not_answer_is_not_waited_for_until_it_may_answer_again() {
        let (mut pool, to, keys, now) = (Pool::default(), peer(), keys(3), Instant::now());
        assert_eq!(pool.ask(&to, keys[0], now), Asked::Waits);
        pool.began(&to);
        assert_eq!(pool.failed(&to), keys[..1]);
        pool.silent(&to, now);
        assert_eq!(pool.ask(&to, keys[1], now + SILENT / 2), Asked::Silent);
        assert_eq!(pool.ask(&to, keys[1], now + SILENT), Asked::Waits);
        pool.silent(&to, now + SILENT);
        pool.made(&to);
        assert_eq!(pool.ask(&to, keys[2], now + SILENT), Asked::Waits);
    }

    #[test]
    fn what_is_not_needed_grows_old_and_one_is_kept_for_longer() {
        let (mut pool, to, keys, now) = (Pool::default(), peer(), keys(IDLE + 2), Instant::now());
        assert_eq!(pool.ask(&to, keys[0], now), Asked::Waits);
        assert_eq!(pool.free(&to, keys[0], now), Next::Lend(keys[0]));
        pool.ended(&to);
        for key in &keys[..IDLE] {
            assert_eq!(pool.free(&to, *key, now), Next::Keep);
        }
        assert_eq!(pool.free(&to, keys[IDLE], now), Next::KeepAndClose(keys[0]));
        assert!(pool.expired(now + LIFETIME / 2).is_empty());
        assert_eq!(pool.expired(now + LIFETIME).len(), IDLE - 1);
        assert!(pool.expired(now + LIFETIME * 2).is_empty());
        assert_eq!(pool.expired(now + LAST), [keys[IDLE]]);
        pool.expired(now + LAST);
        assert!(pool.is_empty());
    }
}
