//! What asks: single requests, a steady load, a resolver, steady questions, octets and datagrams.

pub mod datagrams;
pub mod dig;
pub mod http;
pub mod load;
pub mod names;
pub mod octets;
pub mod udp;
