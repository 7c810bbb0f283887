//! What asks: single requests, a steady load, a resolver.

pub mod dig;
pub mod http;
pub mod load;
pub mod udp;
