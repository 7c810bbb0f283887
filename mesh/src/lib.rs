//! Mesh: sends traffic where the catalog says. The library behind the program `plexus`.

pub mod balance;
pub mod drain;
pub mod ingress;
pub mod proxy;
