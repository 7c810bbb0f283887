//! `plexus mtls`: how nodes reach each other's instances.

use clap::Args;
use hyper::Method;
use nerve::model::MtlsMode;

use super::output::{Cell, Output, Table, Tone};
use super::{Reach, Result, print_change};
use crate::api::{self, Changed, MtlsInfo, MtlsRequest};

const AFTER_HELP: &str = "\
off: in the clear. permissive: by mutual TLS where both nodes can; both are let in. strict: by mutual TLS alone; who comes from another
host otherwise is refused. Connections that are open go on. What is asked for here holds on every node; a node's own configuration
([mtls] mode) can ask for more, and a service has its own word by `plexus set SERVICE mtls=MODE`.

Examples:
  plexus mtls                    who takes tunnels
  plexus mtls permissive
  plexus mtls strict";

/// Show or say how nodes reach each other's instances
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Mtls {
    /// From now on: off, permissive or strict
    mode: Option<MtlsMode>,
    /// Also where nodes take no tunnels, and are cut off by it
    #[arg(long, requires = "mode")]
    force: bool,
    #[command(flatten)]
    reach: Reach,
}

impl Mtls {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        out.as_json(self.reach.json);
        let agent = self.reach.agent();
        if let Some(mode) = self.mode {
            let request = MtlsRequest { mode, force: self.force };
            let changed: Changed = agent
                .send("saying how nodes reach each other", Method::PUT, api::path::MTLS, &request)
                .await?;
            return print_change(out, self.reach.json, &changed);
        }
        let answer: MtlsInfo = agent.get("asking for mutual TLS", api::path::MTLS).await?;
        out.answer(&answer, |out, answer| {
            let MtlsInfo { mesh, mode, nodes, problems, .. } = answer;
            out.line(format!("the mesh is {mesh}, and this node is {mode}"))?;
            let mut table = Table::new(&["NODE", "ADDRESS", "TUNNELS"]);
            for node in nodes {
                let tunnels = match node.tunnel_port {
                    Some(port) => Cell::from(format!("port {port}")),
                    None => Cell::new("none", Tone::Warning),
                };
                table.row([Cell::from(node.node.as_str()), Cell::from(node.address.to_string()), tunnels]);
            }
            for problem in problems {
                out.line(format!("problem: {problem}"))?;
            }
            out.table(&table)
        })?;
        Ok(())
    }
}
