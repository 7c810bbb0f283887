//! Mesh: sends traffic where the catalog says. The library behind the program `plexus`.

mod advice;
pub mod balance;
pub mod dns;
pub mod drain;
pub mod ingress;
pub mod proxy;
