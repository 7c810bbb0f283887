//! Balancers side by side: plexus, HAProxy, nginx and, as the limit, nobody, in the same place under the same load.
//!
//! ```text
//! client ──veth── balancer ──veth── backend        each a network namespace of its own
//! ```
//!
//! [`main`] goes through the [`case`]s; a [`sample`] sets a [`lab`] up, starts one [`balancer`] in it and this
//! same program twice more, as [`client`] and as [`backend`], and reads the processors' clocks ([`usage`]) when the client's
//! window begins and ends. `benches/README.md` says what the cases are and how to read the figures.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program whose result is a table")]

mod actor;
mod ahead;
pub mod backend;
mod balancer;
mod case;
mod churn;
pub mod client;
mod histogram;
mod interrupt;
mod lab;
mod message;
mod options;
mod pattern;
pub mod plan;
mod poller;
mod probe;
mod report;
mod run;
mod sample;
mod save;
mod tunnel;
mod usage;

use std::process::ExitCode;

use clap::Parser as _;

use options::{ActorCommand, Arguments};

/// The program: a run, or one of the actors in it.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.actor {
        None => run::run(&arguments.options),
        Some(ActorCommand::Node { node, directory }) => tunnel::run(&node, &directory),
        Some(ActorCommand::Client) => client::run(),
        Some(ActorCommand::Backend { datagrams, faulty }) => backend::run(&datagrams, faulty),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("side_by_side: {error:#}");
            ExitCode::FAILURE
        }
    }
}
