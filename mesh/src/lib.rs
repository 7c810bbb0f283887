//! Mesh: sends traffic where the catalog says. The library behind the program `plexus`.

pub mod admin;
mod advice;
pub mod agent;
pub mod api;
pub mod balance;
pub mod cli;
pub mod config;
mod credentials;
pub mod dns;
pub mod docker;
pub mod doctor;
pub mod drain;
pub mod identity;
pub mod ingress;
pub mod inherited;
pub mod link_local;
mod netlink;
mod netns;
mod nft;
pub mod overlay;
pub mod proxy;
pub mod readiness;
pub mod routes;
pub mod socket_file;
pub mod steer;
mod sys;
pub mod vip;
