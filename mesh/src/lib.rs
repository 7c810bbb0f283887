//! Mesh: sends traffic where the catalog says. The library behind the program `plexus`.

pub mod agent;
pub mod drain;
