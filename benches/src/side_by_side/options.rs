//! The command line.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::balancer::Peer;
use super::case::Case;

/// Plexus, HAProxy, nginx and nobody in the same place under the same load.
#[derive(Debug, Parser)]
#[command(name = "side_by_side", args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) actor: Option<ActorCommand>,
    #[command(flatten)]
    pub(crate) options: Options,
}

/// What this program is in the namespaces.
#[derive(Debug, Subcommand)]
pub(crate) enum ActorCommand {
    /// The load generator
    #[command(hide = true)]
    Client,
    /// One of two nodes with a tunnel between them
    #[command(hide = true)]
    Node {
        /// What it is to do
        node: String,
        /// Where certificates are
        directory: PathBuf,
    },
    /// The server behind the balancers
    #[command(hide = true)]
    Backend {
        /// Addresses that answer datagrams
        #[arg(long)]
        datagrams: Vec<Ipv4Addr>,
        /// Make mistakes
        #[arg(long)]
        faulty: bool,
    },
}

/// What is measured, and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// A case; several may be given. All of them otherwise
    #[arg(long = "case", value_name = "NAME")]
    pub(crate) cases: Vec<Case>,
    /// How often each peer is measured; medians are shown
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// How long each measurement is
    #[arg(long, default_value_t = 3.0)]
    pub(crate) seconds: f64,
    /// Load before each measurement, that is not counted
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5)]
    pub(crate) warm_up: f64,
    /// Data-plane threads of the balancers
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    pub(crate) threads: Vec<usize>,
    /// Who is measured: direct, plexus, haproxy, haproxy-copy, nginx; tunnel, haproxy-tls
    ///
    /// Without it all of the first five, haproxy-copy with streams alone. The last two are two balancers in a row with mutual TLS
    /// between them.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub(crate) peers: Vec<Peer>,
    /// The program under test; `plexus` beside this program otherwise
    #[arg(long, value_name = "PATH")]
    pub(crate) plexus: Option<PathBuf>,
    /// Write every sample there as well
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write samples and tables into benches/results/<date>-<MACHINE>
    #[arg(long, value_name = "MACHINE")]
    pub(crate) save: Option<String>,
    /// How long a machine that is busy with other things is waited for, before each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    pub(crate) patience: f64,
    /// Run ahead of other programs, for a look while they use the machine; not for figures to be published
    #[arg(long)]
    pub(crate) ahead: bool,
    /// Let the backend make mistakes, to see that they are found
    #[arg(long)]
    pub(crate) faulty_backend: bool,
}
