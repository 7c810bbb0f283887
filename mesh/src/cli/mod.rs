//! The command line: arguments in, one command run, its outcome as a result.
//!
//! One file a command. All but `agent`, `demo`, `ca`, `config`, `network cleanup` and `dns` are clients of an agent's admin address and
//! change nothing by themselves. Never exits the process and never reads a configuration to find the agent: `--admin` says where it is, or it is where agents are unless
//! told otherwise.

mod agent;
mod attach;
mod ca;
mod cleanup;
mod client;
mod cni;
mod completions;
mod config;
mod demo;
mod deregister;
mod dns;
mod doctor;
mod drain;
mod endpoints;
mod enrolment;
mod error;
mod files;
mod identity;
mod mtls;
mod network;
mod nodes;
mod output;
mod place;
mod publish;
mod register;
mod resolve;
mod rules;
mod services;
mod settings;
mod split;
mod status;
mod upstreams;
mod vip;
mod watchers;
mod why;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};

pub use error::{Error, Fault, Result};

use client::Client;
use output::{Output, Tone};

const AFTER_HELP: &str = "\
Examples:
  plexus demo                            a whole mesh on this machine
  plexus agent --config /etc/plexus/plexus.toml
  plexus services                        what there is, and how much of it serves
  plexus why web                         which endpoints get traffic, which not, and why
  plexus publish web 8080                open port 8080 on every node for `web`
  plexus set web policy=maglev           change how its connections are shared out

Exit codes: 0 done, 1 failed, 2 wrong usage.";

/// Service discovery, health checks, load balancing and DNS in one program.
#[derive(Debug, Parser)]
#[command(name = "plexus", version, about, after_help = AFTER_HELP)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Demo),
    Agent(agent::Agent),
    Services(services::Services),
    Endpoints(endpoints::Endpoints),
    Nodes(nodes::Nodes),
    Node(enrolment::Node),
    Identity(identity::Identity),
    Mtls(mtls::Mtls),
    Ca(ca::Ca),
    JoinToken(enrolment::JoinTokens),
    Watchers(watchers::Watchers),
    Upstreams(upstreams::Upstreams),
    Dns(dns::Dns),
    Why(why::Why),
    Status(status::Status),
    Doctor(doctor::Doctor),
    Resolve(resolve::Resolve),
    Publish(publish::Publish),
    Unpublish(publish::Unpublish),
    Settings(settings::Settings),
    Set(settings::Set),
    Unset(settings::Unset),
    Split(split::Split),
    Vip(vip::Vip),
    Allow(rules::Allow),
    Deny(rules::Deny),
    Rules(rules::Rules),
    Network(network::Network),
    Register(register::Register),
    Deregister(deregister::Deregister),
    Drain(drain::Drain),
    Undrain(drain::Undrain),
    Attach(attach::Attach),
    Detach(attach::Detach),
    Attachments(attach::List),
    Cni(cni::Cni),
    Config(config::Config),
    Completions(completions::Completions),
    #[command(hide = true)]
    DemoBackend(demo::Backend),
}

/// Where the agent is, and how its answer is printed.
#[derive(Debug, Args)]
struct Reach {
    /// Where the agent is: http://HOST:PORT or unix:/PATH; unless given at its usual socket, or else at http://127.0.0.1:7070
    #[arg(long, value_name = "URL", env = crate::api::URL_VARIABLE)]
    admin: Option<Client>,

    /// A file whose first line is a token, for what the agent does not let everyone do
    #[arg(long, value_name = "FILE", env = crate::api::TOKEN_VARIABLE)]
    token_file: Option<PathBuf>,

    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

impl Reach {
    fn agent(&self) -> Client {
        self.admin.clone().unwrap_or_else(Client::usual).with_token(self.token_file.clone())
    }
}

/// Runs the command that `arguments` (the program's name first) ask for.
///
/// # Errors
/// It was not done: [`Error::report`] tells the user, [`Error::exit_code`] the caller of the program.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if cni::is_called(&arguments) {
        return block_on(cni::run(&mut Output::stdout()));
    }
    match Arguments::try_parse_from(arguments)?.command {
        Command::Agent(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::DemoBackend(command) => command.run(),
        command => block_on(execute(command, &mut Output::stdout())),
    }
}

fn block_on(command: impl Future<Output = Result>) -> Result {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::failed("starting the command", e))?;
    runtime.block_on(command)
}

/// Runs a command that only asks and prints.
async fn execute(command: Command, out: &mut Output<'_>) -> Result {
    match command {
        Command::Services(command) => command.run(out).await,
        Command::Endpoints(command) => command.run(out).await,
        Command::Nodes(command) => command.run(out).await,
        Command::Node(command) => command.run(out).await,
        Command::Identity(command) => command.run(out).await,
        Command::Mtls(command) => command.run(out).await,
        Command::Ca(command) => command.run(out).await,
        Command::JoinToken(command) => command.run(out).await,
        Command::Watchers(command) => command.run(out).await,
        Command::Upstreams(command) => command.run(out).await,
        Command::Dns(command) => command.run(out).await,
        Command::Why(command) => command.run(out).await,
        Command::Status(command) => command.run(out).await,
        Command::Doctor(command) => command.run(out).await,
        Command::Resolve(command) => command.run(out).await,
        Command::Publish(command) => command.run(out).await,
        Command::Unpublish(command) => command.run(out).await,
        Command::Settings(command) => command.run(out).await,
        Command::Set(command) => command.run(out).await,
        Command::Unset(command) => command.run(out).await,
        Command::Split(command) => command.run(out).await,
        Command::Vip(command) => command.run(out).await,
        Command::Allow(command) => command.run(out).await,
        Command::Deny(command) => command.run(out).await,
        Command::Rules(command) => command.run(out).await,
        Command::Network(command) => command.run(out).await,
        Command::Register(command) => command.run(out).await,
        Command::Deregister(command) => command.run(out).await,
        Command::Drain(command) => command.run(out).await,
        Command::Undrain(command) => command.run(out).await,
        Command::Attach(command) => command.run(out).await,
        Command::Detach(command) => command.run(out).await,
        Command::Attachments(command) => command.run(out).await,
        Command::Cni(command) => command.run(out).await,
        Command::Config(command) => command.run(out),
        Command::Completions(command) => command.run(&mut Arguments::command(), out),
        Command::Agent(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::DemoBackend(command) => command.run(),
    }
}

/// The line that stands above whatever may be out of date.
fn stale_banner(out: &mut Output<'_>, stale: Option<&crate::api::Stale>) -> std::io::Result<()> {
    let Some(stale) = stale else { return Ok(()) };
    let since = std::time::Duration::from_secs(stale.for_seconds);
    let since = humantime::format_duration(since);
    out.toned_line(
        Tone::Warning,
        format!("STALE: last known good, not confirmed by the store for {since}: {}", stale.reason),
    )
}

/// Prints what a change did.
fn print_change(out: &mut Output<'_>, json: bool, changed: &crate::api::Changed) -> Result {
    out.as_json(json);
    out.answer(changed, |out, changed| {
        out.line(&changed.message)?;
        changed.notes.iter().try_for_each(|note| out.toned_line(Tone::Warning, format!("note: {note}")))
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
