//! The agent: every room composed into one running program.
pub mod demo;
mod phase;
mod systemd;
pub use phase::Phase;
