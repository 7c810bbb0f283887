//! DNS: names of the mesh answered from the catalog, every other name forwarded.
//!
//! [`bind`] takes the sockets, [`Bound::run`] serves them until it is drained. A question goes one of two ways that
//! share nothing but the socket: a name under the domain is answered at once, from memory, by `zone`; any other name
//! is handed to `forward`, which has a cache, a limit on what is in flight, and never slows the first way down.
//!
//! Messages are read and written by hickory (`message`); the loops around the sockets are ours (`server`), because
//! those of `hickory_server::Server` (0.26) spawn a task a datagram without a limit, accept connections without a
//! limit, answer a connection's queries in strict sequence, and cannot relay an answer's bytes as they came.
//! What a user sees of it is in `docs/dns.md`. No type of hickory leaves this room; it never touches the balancer or the proxy.

mod address;
mod alias;
mod clients;
mod config;
mod fast;
mod forward;
mod frames;
mod guard;
mod identity;
mod message;
mod metrics;
mod padding;
mod server;
mod suffix;
mod telling;
mod ttls;
mod wire;
mod zone;

pub use address::{UpstreamAddress, UpstreamError};
pub use clients::{Clients, Member, TooManyClients};
pub use config::{
    Config, Domain, DomainError, Encrypted, Limits, Place, RateLimit, RecursionFor, Route, Upstreams,
    VirtualRanges,
};
pub use forward::UpstreamReport;
pub use identity::{Identity, ShownText, ShownTextError};
pub use metrics::Metrics;
pub use server::{BindError, Bound, Handle, Listener, Over, bind};
pub use suffix::{Suffix, SuffixError};
pub use telling::{Frequent, TopReport};
pub use ttls::{PatternError, ServicePattern, ServiceTtls, Ttl, TtlError, Ttls};
pub use zone::{Excluded, Explanation, Outcome, Rule};
