//! `plexus join-token` and `plexus node`: what lets nodes in, and what keeps them out.

use std::num::NonZeroU32;

use clap::{Args, Subcommand};
use hyper::Method;
use nerve::model::NodeName;

use super::output::Output;
use super::{Reach, Result, print_change};
use crate::api::{self, Changed, JoinToken, JoinTokenRequest, RevokeRequest};

const TOKEN_HELP: &str = "\
The token is what the new agent is started with: `plexus agent --config FILE --join TOKEN`. The agent that is asked has to be one that
certifies others (identity.authority).

Examples:
  plexus join-token create                        for one node, within the hour
  plexus join-token create --uses 20 --ttl 10m    for twenty
  plexus join-token create --node db-1            for db-1 alone, also in the place of one of that name";

const REVOKE_HELP: &str = "\
Every node refuses its certificates from now on, until they have ended. What the node may do in the store is the store's to say.

Examples:
  plexus node revoke db-1";

/// Let new nodes in
#[derive(Debug, Args)]
pub(super) struct JoinTokens {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token
    #[command(after_help = TOKEN_HELP)]
    Create {
        /// How long it is good
        #[arg(long, value_name = "DURATION", default_value = "1h")]
        ttl: humantime::Duration,
        /// How many nodes it lets in
        #[arg(long, value_name = "COUNT", default_value = "1")]
        uses: NonZeroU32,
        /// As many as want, until it expires
        #[arg(long, conflicts_with = "uses")]
        unlimited: bool,
        /// For this node alone
        #[arg(long, value_name = "NAME")]
        node: Option<NodeName>,
        #[command(flatten)]
        reach: Reach,
    },
}

/// Say whom to believe
#[derive(Debug, Args)]
pub(super) struct Node {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Have every node refuse the certificates of one
    #[command(after_help = REVOKE_HELP)]
    Revoke {
        /// Its name
        node: NodeName,
        #[command(flatten)]
        reach: Reach,
    },
}

impl JoinTokens {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let TokenCommand::Create { ttl, uses, unlimited, node, reach } = self.command;
        let uses = (!unlimited).then_some(uses);
        let request = JoinTokenRequest { ttl_seconds: ttl.as_secs(), uses, node };
        let path = api::path::JOIN_TOKENS;
        let made: JoinToken = reach.agent().send("making a join token", Method::POST, path, &request).await?;
        out.as_json(reach.json);
        // Alone on its line, for `$(…)`.
        out.answer(&made, |out, made| out.line(&made.token))?;
        Ok(())
    }
}

impl Node {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let NodeCommand::Revoke { node, reach } = self.command;
        let path = api::path::REVOCATION.replace("{node}", node.as_str());
        let what = format!("revoking the certificates of {node}");
        let changed: Changed = reach.agent().send(&what, Method::PUT, &path, &RevokeRequest {}).await?;
        print_change(out, reach.json, &changed)
    }
}
