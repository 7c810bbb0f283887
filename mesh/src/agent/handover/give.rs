//! The part of the agent that runs: offers what it has, stops writing when asked to, and takes everything back when the next one
//! does not come to serve.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use synapse::memory;
use tokio_util::sync::CancellationToken;

use super::message::{Described, Hello, MAX_DESCRIPTORS, Message, PROTOCOL, Prepared, Refused, Sockets};
use super::take::{in_background, unexpected};
use super::wire::Wire;
use super::{ANSWER_WITHIN, Error, TAKE_BACK_AFTER, memfd, store_of};
use crate::agent::rooms::Rooms;
use crate::inherited::Key;

/// Who goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::agent) struct Successor {
    /// Its process.
    pub(in crate::agent) pid: u32,
    /// Its version.
    pub(in crate::agent) version: String,
}

impl Rooms {
    /// Waits until another agent asks to take over, and lets it. `Ok`: this one has nothing left to do but to finish what it
    /// has. Cancel-safe until somebody knocks.
    pub(in crate::agent) async fn give(
        &mut self,
        mut wire: Wire,
        stop: &CancellationToken,
    ) -> Result<Successor, Error> {
        let given = tokio::select! {
            biased;
            () = stop.cancelled() => Err(Error::Leaving),
            given = self.negotiate(&mut wire) => given,
        };
        if let Err(error) = &given {
            // Whoever has hung up needs no telling.
            let refused = Message::Refused(Refused { reason: error.to_string() });
            let _ = wire.send(&refused, &[], ANSWER_WITHIN).await;
            self.take_back().await;
        }
        given
    }

    async fn negotiate(&mut self, wire: &mut Wire) -> Result<Successor, Error> {
        wire.check_peer()?;
        let successor = self.introduce(wire).await?;
        self.ingress.freeze(true);
        self.offer(wire).await?;
        match wire.receive("that it is prepared", TAKE_BACK_AFTER).await? {
            (Message::Prepare, _) => {}
            (other, _) => return Err(unexpected(&other)),
        }
        self.prepare(wire).await?;
        match wire.receive("that it serves", TAKE_BACK_AFTER).await? {
            (Message::Serving, _) => {}
            (other, _) => return Err(unexpected(&other)),
        }
        // It serves, whether it hears this or not.
        if let Err(error) = wire.send(&Message::Leaving, &[], ANSWER_WITHIN).await {
            tracing::warn!(%error, "the next agent serves, and was not told that this one leaves");
        }
        Ok(successor)
    }

    async fn introduce(&self, wire: &mut Wire) -> Result<Successor, Error> {
        let (hello, _) = wire.receive("its name and version", ANSWER_WITHIN).await?;
        let Message::Hello(hello) = hello else { return Err(unexpected(&hello)) };
        let (node, store) = (self.config.node.name.to_string(), store_of(&self.config));
        tracing::info!(
            pid = hello.pid,
            version = hello.version,
            protocol = hello.protocol,
            "another agent wants to take over"
        );
        if let Some(reason) = objection(&hello, &node, &store) {
            return Err(Error::Refused(reason));
        }
        let (version, pid) = (env!("CARGO_PKG_VERSION").to_owned(), std::process::id());
        let own = Hello { protocol: PROTOCOL, version, pid, node, store };
        wire.send(&Message::Hello(own), &[], ANSWER_WITHIN).await?;
        Ok(Successor { pid: hello.pid, version: hello.version })
    }

    async fn offer(&self, wire: &Wire) -> Result<(), Error> {
        let mut sockets: Vec<Arc<OwnedFd>> = self.ingress.sockets();
        let dns = self.name_server.iter().flat_map(|server| server.handle.sockets()).map(Arc::new);
        sockets.extend(dns);
        sockets.extend(self.admin_sockets.iter().cloned());
        for some in sockets.chunks(MAX_DESCRIPTORS) {
            let described = some.iter().map(|socket| match Key::of(socket) {
                Ok(key) => Described { transport: key.transport.to_string(), address: Some(key.address) },
                Err(_) => Described { transport: "unknown".to_owned(), address: None },
            });
            let message = Message::Sockets(Sockets { sockets: described.collect() });
            let descriptors: Vec<_> = some.iter().map(|socket| socket.as_fd()).collect();
            wire.send(&message, &descriptors, ANSWER_WITHIN).await?;
        }
        if self.is_filled() {
            let (catalog, watcher) = (self.catalog.clone(), self.watcher.clone());
            let write =
                move || memfd::filled("plexus catalog", |file| memory::write_to(file, &catalog, &watcher));
            let catalog = in_background(write).await?;
            wire.send(&Message::Catalog, &[catalog.as_fd()], ANSWER_WITHIN).await?;
        }
        wire.send(&Message::Offered, &[], ANSWER_WITHIN).await
    }

    async fn prepare(&mut self, wire: &Wire) -> Result<(), Error> {
        self.writes = false;
        let carried = self.registrar.hand_over(ANSWER_WITHIN / 2).await;
        let carried = carried.map_err(|error| Error::Room(error.to_string()))?;
        self.owners.memory.shutdown().await;
        let store = self.store.hand_over().await.map_err(|error| Error::Room(error.to_string()))?;
        let registrar = in_background(move || {
            memfd::filled("plexus registrar", |file| Ok(serde_json::to_writer(file, &carried)?))
        });
        let (mut documents, mut descriptors) = (vec!["registrar".to_owned()], vec![registrar.await?]);
        if let Some(image) = store {
            documents.push("store".to_owned());
            descriptors.push(
                in_background(move || memfd::filled("plexus store", |file| file.write_all(&image))).await?,
            );
        }
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        wire.send(&Message::Prepared(Prepared { documents }), &descriptors, ANSWER_WITHIN).await
    }

    /// Goes on as if nothing had happened.
    async fn take_back(&mut self) {
        self.ingress.freeze(false);
        if std::mem::replace(&mut self.writes, true) {
            return;
        }
        // The store first: the registrar writes as soon as it may.
        while let Err(error) = self.store.take_back().await {
            tracing::error!(%error, "the store is not to be had again; it is tried until it is");
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        self.registrar.take_back().await;
        self.keep_memory();
    }
}

/// Why this one must not take over, if it must not.
fn objection(hello: &Hello, node: &str, store: &str) -> Option<String> {
    let version = env!("CARGO_PKG_VERSION");
    if hello.protocol != PROTOCOL {
        return Some(format!(
            "version {} speaks hand-over protocol {}, and this one ({version}) {PROTOCOL}: restart instead, which drains first",
            hello.version, hello.protocol
        ));
    }
    if hello.node != node {
        return Some(format!(
            "it is to be node {:?} and this is node {node:?}: records cannot change their node; restart instead",
            hello.node
        ));
    }
    (hello.store != store).then(|| {
        format!(
            "its store is {}, and this one's is {store}: records cannot move; restart instead",
            hello.store
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_of_another_protocol_node_or_store_is_refused_with_what_to_do() {
        let hello = |protocol, node: &str, store: &str| Hello {
            protocol,
            version: "9.9".to_owned(),
            pid: 7,
            node: node.to_owned(),
            store: store.to_owned(),
        };
        assert_eq!(objection(&hello(PROTOCOL, "a", "s"), "a", "s"), None);
        for (hello, why) in [
            (hello(PROTOCOL + 1, "a", "s"), "version 9.9 speaks hand-over protocol 2"),
            (hello(0, "a", "s"), "protocol 0"),
            (hello(PROTOCOL, "b", "s"), "node \"b\""),
            (hello(PROTOCOL, "a", "t"), "its store is t"),
        ] {
            let objection = objection(&hello, "a", "s").unwrap();
            assert!(objection.contains(why) && objection.contains("restart instead"), "{objection}");
        }
    }
}
