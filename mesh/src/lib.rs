//! Mesh: sends traffic where the catalog says. The library behind the program `plexus`.

pub mod admin;
pub mod agent;
pub mod api;
pub mod cli;
pub mod config;
pub mod drain;
pub mod readiness;
