//! The part of the agent that runs: offers what it has, stops writing when asked to, and takes everything back when the next one
//! does not come to serve.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::message::{Described, Hello, MAX_DESCRIPTORS, Message, PROTOCOL, Prepared, Refused, Sockets};
use super::take::unexpected;
use super::wire::Wire;
use super::{ANSWER_WITHIN, Error, TAKE_BACK_AFTER, store_of};
use crate::config::Config;
use crate::inherited::Key;

/// Who goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::agent) struct Successor {
    /// Its process.
    pub(in crate::agent) pid: u32,
    /// Its version.
    pub(in crate::agent) version: String,
}

/// What an agent can give away, and take back.
pub(in crate::agent) trait Estate {
    /// Its configuration.
    fn config(&self) -> &Config;

    /// Opens and closes no port from now on.
    fn freeze(&self);

    /// Every listening socket.
    fn sockets(&self) -> Vec<Arc<OwnedFd>>;

    /// Is a socket the service manager's?
    fn is_lent(&self, key: &Key) -> bool;

    /// The catalog, if it has something to say.
    async fn catalog(&self) -> Result<Option<OwnedFd>, Error>;

    /// Writes nothing from now on; what the next one needs to write, by name.
    async fn stop_writing(&mut self) -> Result<Vec<(String, OwnedFd)>, Error>;

    /// Goes on as if nothing had happened.
    async fn take_back(&mut self);
}

/// Lets another agent take over. `Ok`: this one has nothing left to do but to finish what it has.
///
/// # Errors
/// It did not come to that, and this one goes on.
pub(in crate::agent) async fn give(
    estate: &mut impl Estate,
    mut wire: Wire,
    stop: &CancellationToken,
) -> Result<Successor, Error> {
    let given = tokio::select! {
        biased;
        () = stop.cancelled() => Err(Error::Leaving),
        given = negotiate(estate, &mut wire) => given,
    };
    if let Err(error) = &given {
        // Whoever has hung up needs no telling.
        let refused = Message::Refused(Refused { reason: error.to_string() });
        let _ = wire.send(&refused, &[], ANSWER_WITHIN).await;
        estate.take_back().await;
    }
    given
}

async fn negotiate(estate: &mut impl Estate, wire: &mut Wire) -> Result<Successor, Error> {
    wire.check_peer()?;
    let successor = introduce(estate.config(), wire).await?;
    estate.freeze();
    offer(estate, wire).await?;
    match wire.receive("that it is prepared", TAKE_BACK_AFTER).await? {
        (Message::Prepare, _) => {}
        (other, _) => return Err(unexpected(&other)),
    }
    let (documents, descriptors): (Vec<_>, Vec<_>) = estate.stop_writing().await?.into_iter().unzip();
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    wire.send(&Message::Prepared(Prepared { documents }), &descriptors, ANSWER_WITHIN).await?;
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

async fn introduce(config: &Config, wire: &mut Wire) -> Result<Successor, Error> {
    let (hello, _) = wire.receive("its name and version", ANSWER_WITHIN).await?;
    let Message::Hello(hello) = hello else { return Err(unexpected(&hello)) };
    let Hello { pid, version, protocol, .. } = &hello;
    tracing::info!(pid, version, protocol, "another agent wants to take over");
    let (node, store) = (config.node.name.to_string(), store_of(config));
    if let Some(reason) = objection(&hello, &node, &store) {
        return Err(Error::Refused(reason));
    }
    let (version, pid) = (env!("CARGO_PKG_VERSION").to_owned(), std::process::id());
    let own = Hello { protocol: PROTOCOL, version, pid, node, store };
    wire.send(&Message::Hello(own), &[], ANSWER_WITHIN).await?;
    Ok(Successor { pid: hello.pid, version: hello.version })
}

async fn offer(estate: &impl Estate, wire: &Wire) -> Result<(), Error> {
    for some in estate.sockets().chunks(MAX_DESCRIPTORS) {
        let described = some.iter().map(|socket| match Key::of(socket) {
            Ok(key) => Described { lent: estate.is_lent(&key), ..Described::of(&key) },
            Err(_) => Described::unknown(),
        });
        let message = Message::Sockets(Sockets { sockets: described.collect() });
        let descriptors: Vec<_> = some.iter().map(|socket| socket.as_fd()).collect();
        wire.send(&message, &descriptors, ANSWER_WITHIN).await?;
    }
    if let Some(catalog) = estate.catalog().await? {
        wire.send(&Message::Catalog, &[catalog.as_fd()], ANSWER_WITHIN).await?;
    }
    wire.send(&Message::Offered, &[], ANSWER_WITHIN).await
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
