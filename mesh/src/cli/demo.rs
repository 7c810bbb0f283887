//! `plexus demo`: a whole mesh on this machine; and the hidden backend that it starts as its services.

use std::net::SocketAddr;

use clap::Args;
use nerve::model::{InstanceId, NodeName, ServiceName};

use super::output::Output;
use super::{Error, Result};
use crate::agent::demo;

const AFTER_HELP: &str = "\
As root: three nodes in network namespaces of their own, and services in containers on an overlay network between them, if nft is
installed. Otherwise, or with --loopback: one node on 127.0.0.1 with high ports. Nothing needs to be installed, and Ctrl-C leaves
nothing behind.";

/// Bring up a whole mesh on this machine and print what to try
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Demo {
    /// One node on 127.0.0.1, also as root
    #[arg(long)]
    loopback: bool,
}

/// A service of the demo: answers over HTTP with its service, instance and node
#[derive(Debug, Args)]
pub(super) struct Backend {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// The service that it plays
    #[arg(long)]
    service: ServiceName,
    /// Its instance id
    #[arg(long)]
    instance: InstanceId,
    /// The node that it plays on
    #[arg(long)]
    node: NodeName,
}

impl Demo {
    pub(super) fn run(self) -> Result {
        let mut out = Output::stdout();
        // Whoever closed standard output has stopped reading; the demo goes on until Ctrl-C.
        let mut say = |text: &str| drop(out.line(text));
        demo::run(demo::DemoOptions { loopback: self.loopback }, &mut say).map_err(Error::Program)
    }
}

impl Backend {
    pub(super) fn run(self) -> Result {
        let Self { listen, service, instance, node } = self;
        let mut out = Output::stdout();
        let say = |address: SocketAddr| drop(out.line(address.to_string()));
        demo::backend::run(&demo::backend::Backend { service, instance, node, listen }, say)
            .map_err(Error::Program)
    }
}
