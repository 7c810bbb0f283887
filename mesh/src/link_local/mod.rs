//! An address of this node alone, the same on every node: where containers find its name server, whichever node they are on.
//!
//! It is kept as the routes of virtual addresses are: a route `local <address> dev lo`, marked by a number of its own. So it is
//! found again after a crash, goes on while another agent takes over, and goes with the last one. A program may bind to it, and
//! the kernel answers ARP for it on every link. Only addresses of 169.254.0.0/16 are taken, and never one that an interface has:
//! that one is used as it is, and left alone. Who listens there is the name server's business.

mod netlink;

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nerve::tasks::Tasks;
use serde::Serialize;

/// How often it is looked whether the address is still there.
const TICK: Duration = Duration::from_secs(5);
/// How long the kernel may take when an agent starts; nothing else is to wait for it for long.
const FIRST_WITHIN: Duration = Duration::from_secs(2);
/// What clouds answer on such addresses themselves: instance metadata, their own resolver and clock, credentials of tasks.
const OF_CLOUDS: [u8; 2] = [169, 170];

/// A link-local address that a node may give itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LinkLocal(Ipv4Addr);

/// Why an address is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is no address to give every node: {rule}")]
pub struct LinkLocalError {
    value: String,
    rule: &'static str,
}

/// The address as this node has it. Clones are the same.
#[derive(Debug, Clone)]
pub struct Handle {
    wanted: Option<LinkLocal>,
    problem: Arc<Mutex<Option<String>>>,
}

impl LinkLocal {
    /// The address.
    #[must_use]
    pub fn ip(self) -> Ipv4Addr {
        self.0
    }
}

impl fmt::Display for LinkLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for LinkLocal {
    type Err = LinkLocalError;

    fn from_str(text: &str) -> Result<Self, LinkLocalError> {
        let refuse = |rule| LinkLocalError { value: text.chars().take(80).collect(), rule };
        let address: Ipv4Addr = text.parse().map_err(|_| refuse("write one such as 169.254.53.53"))?;
        let [_, _, third, _] = address.octets();
        if !address.is_link_local() {
            return Err(refuse("it is not in 169.254.0.0/16"));
        }
        // RFC 3927 section 2.1 reserves both ends.
        if third == 0 || third == 255 {
            return Err(refuse("the first and the last 256 addresses are reserved (RFC 3927)"));
        }
        if OF_CLOUDS.contains(&third) {
            return Err(refuse(
                "clouds have their metadata, resolvers and clocks in 169.254.169.0/24 and 169.254.170.0/24",
            ));
        }
        Ok(Self(address))
    }
}

/// Sees to it that this node has the address, now and from now on. Without `CAP_NET_ADMIN` that is a problem that is told, and
/// nothing else.
pub async fn start(wanted: Option<LinkLocal>, tasks: &Tasks) -> Handle {
    let handle = Handle { wanted, problem: Arc::default() };
    if let Some(address) = wanted {
        if tokio::time::timeout(FIRST_WITHIN, handle.keep(address)).await.is_err() {
            tracing::warn!(%address, "the kernel does not say whether this node has the link-local address; it is asked again");
        }
        let keeper = handle.clone();
        tasks.spawn_until_stopped("link-local address", move || {
            let keeper = keeper.clone();
            async move {
                let mut tick = tokio::time::interval(TICK);
                tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                loop {
                    tick.tick().await;
                    keeper.keep(address).await;
                }
            }
        });
    }
    handle
}

impl Handle {
    /// Why this node does not have the address.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the address away if this agent, or one before it, made it. Call it after the tasks were stopped, and not when another
    /// agent takes over.
    pub async fn withdraw(&self) {
        if self.wanted.is_some()
            && let Err(error) = netlink::keep(None).await
        {
            tracing::warn!(%error, "the link-local address stays behind; the next agent goes on with it");
        }
    }

    /// Level, not edge: makes what is missing, takes away what another configuration had.
    async fn keep(&self, address: LinkLocal) {
        let problem = match netlink::keep(Some(address.ip())).await {
            Ok(made) => {
                if made {
                    tracing::info!(%address, "this node has the link-local address");
                }
                None
            }
            Err(error) => Some(format!(
                "this node does not have {address}, so no name is answered there: {error}; or run `ip route add local \
                 {address}/32 dev lo` before the agent starts"
            )),
        };
        let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(problem) = problem.as_ref().filter(|problem| known.as_ref() != Some(problem)) {
            tracing::error!("{problem}");
        }
        *known = problem;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_a_node_may_give_itself_are_taken() {
        assert_eq!("169.254.53.53".parse::<LinkLocal>().unwrap().ip(), Ipv4Addr::new(169, 254, 53, 53));
        for (bad, why) in [
            ("10.0.0.1", "not in 169.254.0.0/16"),
            ("169.254.0.53", "reserved"),
            ("169.254.255.53", "reserved"),
            ("169.254.169.254", "clouds"),
            ("169.254.170.2", "clouds"),
            ("169.254.53.53:53", "write one such as"),
            ("fe80::1", "write one such as"),
        ] {
            let error = bad.parse::<LinkLocal>().unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains(why), "{error}");
        }
    }
}
