//! Mesh: sends traffic where the catalog says. The library behind the program `plexus`.

pub mod dns;
pub mod drain;
