//! `plexus dns install`: this host's programs find the mesh's names.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::files::{Step, apply, read};
use super::host::{Host, Method, ResolvConf, reload};
use super::text::Wish;
use super::{resolv_conf, server, text};
use crate::api::{self, DnsInfo, DnsOthers};
use crate::cli::Reach;
use crate::cli::error::{Error, Result};
use crate::cli::output::{Output, Tone};

const WHAT: &str = "having this host ask the agent for names";
/// How long a resolver that was started again may take to answer.
const SEEN_WITHIN: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);

const AFTER_HELP: &str = "\
Looks how this host resolves names, and tells that to ask the agent: systemd-resolved and dnsmasq for names of the mesh's domain (or
with --all for every name), by a file of their own; else the agent is the first server in /etc/resolv.conf, for every name. Twice is once.
A resolv.conf that another program writes is left alone, unless --method says otherwise.

Examples:
  plexus dns install --dry-run
  plexus dns install
  plexus dns install --search                      `ping web` instead of `ping web.mesh.internal`
  plexus dns install --method resolv.conf --only   nobody else is asked, not even while the agent is away";

/// Have this host's programs ask the agent for the mesh's names
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Install {
    /// What is told; found out unless given
    #[arg(long)]
    method: Option<Method>,
    /// Every name, not those of the mesh's domain alone; the agent asks others for the rest
    #[arg(long)]
    all: bool,
    /// Names without a dot are looked for in the mesh's domain too
    #[arg(long)]
    search: bool,
    /// In resolv.conf: the agent alone, without the servers that were there
    #[arg(long)]
    only: bool,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    reach: Reach,
}

/// What was done, or would be.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    method: Method,
    server: SocketAddr,
    domains: Vec<String>,
    all: bool,
    dry_run: bool,
    changed: bool,
    pub(super) steps: Vec<Step>,
    /// The name that was looked up afterwards, and whether the host found it; none: it cannot be told yet.
    found: Option<(String, bool)>,
    pub(super) notes: Vec<String>,
}

impl Install {
    pub(super) async fn run(self, out: &mut Output<'_>) -> Result {
        let info: DnsInfo =
            self.reach.agent().get("asking the agent where it answers names", api::path::DNS).await?;
        let host = Host::this();
        let mut done = self.plan(&host, &info)?;
        if !self.dry_run && done.changed {
            apply(&done.steps)?;
        }
        if !self.dry_run {
            let by_hand = if done.changed { reload(&host, done.method, &done.steps)? } else { None };
            if by_hand.is_none() {
                done.found = Some((info.probe.0.clone(), is_found(&info).await));
            }
            done.notes.extend(by_hand);
        }
        out.as_json(self.reach.json);
        out.answer(&done, human)?;
        match done.found {
            Some((name, false)) => Err(Error::failed(WHAT, format!("it was done, but this host does not find {name}")).hint(
                "look at `plexus resolve` of that name, and whether another file says otherwise; `plexus dns uninstall` takes it back",
            )),
            _ => Ok(()),
        }
    }

    /// What is to be done, without doing it.
    pub(super) fn plan(&self, host: &Host, info: &DnsInfo) -> Result<Done> {
        let is_own = |address| server::is_own(&info.listeners, address);
        let method = self.method.map_or_else(|| host.method(is_own), Ok)?;
        if self.only && method != Method::ResolvConf {
            let why = format!("--only is for resolv.conf, and here {} is told", method.who());
            return Err(Error::failed(WHAT, why).hint("leave it out"));
        }
        let server = server::choose(&info.listeners, method).ok_or_else(|| no_server(info, method))?;
        let all = self.all || method == Method::ResolvConf;
        let wish = Wish { server, domains: &info.domains, ranges: &info.ranges, all, search: self.search };
        let mut notes = Vec::new();
        let steps = match method {
            Method::ResolvConf => self.plan_resolv_conf(host, info, server, &mut notes)?,
            Method::Resolved => drop_in(host, method, text::resolved(&wish))?,
            Method::Dnsmasq => drop_in(host, method, text::dnsmasq(&wish))?,
        };
        others_are_answered(host, info, method, all)?;
        if method == Method::Resolved && !all {
            is_told_apart(host)?;
        }
        if self.search && method == Method::Dnsmasq {
            notes.push("dnsmasq looks names up as they are: put `search` and the domain into /etc/resolv.conf yourself".to_owned());
        }
        if host.has_docker() {
            notes.push(for_docker(server, info));
        }
        Ok(Done {
            method,
            server,
            domains: info.domains.clone(),
            all,
            dry_run: self.dry_run,
            changed: !steps.is_empty(),
            steps,
            found: None,
            notes,
        })
    }

    fn plan_resolv_conf(
        &self,
        host: &Host,
        info: &DnsInfo,
        server: SocketAddr,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Step>> {
        let (file, kept) = (host.resolv_conf(), host.kept());
        let (now, before, is_kept) = match host.look_at_resolv_conf()? {
            ResolvConf::Untouched { text } => (text.clone(), text, false),
            ResolvConf::HalfDone { text } => (Some(text.clone()), Some(text), true),
            ResolvConf::Installed { text, before } => (Some(text), before, true),
            ResolvConf::Changed => return Err(host.changed_since(WHAT)),
        };
        let before = before.unwrap_or_default();
        let others = resolv_conf::servers(&before);
        let others: Vec<&SocketAddr> =
            others.iter().filter(|other| !server::is_own(&info.listeners, **other)).collect();
        if info.others == DnsOthers::ResolvConf && (self.only || others.is_empty()) {
            let why = "the agent asks the servers of resolv.conf for other names, and there would be none but itself";
            return Err(Error::failed(WHAT, why).hint(name_upstreams(&others)));
        }
        if !self.only && !others.is_empty() {
            notes.push(
                "musl (Alpine's C library) asks all servers at once and believes the first: for such programs name the servers in [dns] \
                 upstreams, and say --only"
                    .to_owned(),
            );
        }
        if !self.only && others.len() >= resolv_conf::MOST_SERVERS {
            let most = resolv_conf::MOST_SERVERS;
            notes.push(format!(
                "of the servers in resolv.conf the C library asks {most}: the last is for the agent alone"
            ));
        }
        let search: &[String] = if self.search { &info.domains } else { &[] };
        let after = resolv_conf::with(&before, server.ip(), self.only, search);
        if now.as_ref() == Some(&after) {
            return Ok(Vec::new());
        }
        let keep = (now.is_some() && !is_kept).then(|| Step::Keep { file: file.clone(), to: kept });
        let written = host.written();
        let copy = Step::Write { before: read(&written)?, file: written, after: after.clone() };
        // Last, since it cannot be taken back to what it was, if that was a link.
        Ok(keep.into_iter().chain([copy, Step::Write { file, before: now, after }]).collect())
    }
}

fn drop_in(host: &Host, method: Method, after: String) -> Result<Vec<Step>> {
    let Some(file) = host.drop_in(method) else { return Ok(Vec::new()) };
    let before = host.ours(&file)?;
    let is_there = before.as_ref() == Some(&after);
    Ok(if is_there { Vec::new() } else { vec![Step::Write { file, before, after }] })
}

/// Servers of links are for what no domain is said for; servers of its configuration are as good as the agent.
fn is_told_apart(host: &Host) -> Result {
    let Some(file) = host.resolved_servers()? else { return Ok(()) };
    let why = format!(
        "systemd-resolved asks any one of all the servers of its configuration, and {} names others, which do not know the mesh",
        file.display()
    );
    Err(Error::failed(WHAT, why).hint(
        "give those servers to the link (DNS= in its .network file, or its connection); or name them in [dns] upstreams, and say --all",
    ))
}

fn no_server(info: &DnsInfo, method: Method) -> Error {
    let listed = server::listed(&info.listeners);
    let where_asked = if method.takes_ports() {
        "an address of this host"
    } else {
        "port 53, and resolv.conf can say no other"
    };
    let why = format!("the agent does not answer on {where_asked}; it listens on: {listed}");
    Error::failed(WHAT, why)
        .hint("set [dns] listen = [\"127.0.0.1:53\"], or link_local = \"169.254.53.53\", and restart it")
}

/// Names outside the domain that come to the agent go on to somebody, who does not ask the agent again.
fn others_are_answered(host: &Host, info: &DnsInfo, method: Method, all: bool) -> Result {
    let from: &[PathBuf] = match (info.others, method) {
        (DnsOthers::Refused, _) if all => {
            let why = "every name would be asked of the agent, which answers none outside the mesh's domain ([dns] recursion)";
            return Err(Error::failed(WHAT, why).hint("set recursion = \"private\", or leave out --all"));
        }
        (DnsOthers::Refused | DnsOthers::Configured, _) | (_, Method::ResolvConf) => return Ok(()),
        // It asks servers of its own configuration besides those that it has from the network, for every name. The agent asks
        // whom it asks, where resolv.conf names it alone.
        (DnsOthers::ResolvConf, Method::Resolved) => &[host.resolv_conf(), host.behind_stub()],
        (DnsOthers::ResolvConf, Method::Dnsmasq) if all => &[host.resolv_conf()],
        (DnsOthers::ResolvConf, Method::Dnsmasq) => return Ok(()),
    };
    let is_other = |named: &SocketAddr| !named.ip().is_loopback() && !server::is_own(&info.listeners, *named);
    for file in from {
        let named = resolv_conf::servers(&read(file)?.unwrap_or_default());
        if named.iter().any(is_other) {
            return Ok(());
        }
    }
    let from: Vec<String> = from.iter().map(|file| file.display().to_string()).collect();
    let why = format!(
        "{} asks the agent for other names as well, and the agent would have nobody else to ask: {} names no other server",
        method.who(),
        from.join(" or ")
    );
    Err(Error::failed(WHAT, why).hint(name_upstreams(&[])))
}

fn name_upstreams(others: &[&SocketAddr]) -> String {
    let shown: Vec<String> = others.iter().map(|other| format!("{:?}", other.ip().to_string())).collect();
    let shown = if shown.is_empty() { "\"192.0.2.53\"".to_owned() } else { shown.join(", ") };
    format!("name them in the agent's configuration, such as [dns] upstreams = [{shown}], and restart it")
}

/// Docker reads its file when it starts, and containers may stop with it: whoever runs it decides when.
fn for_docker(server: SocketAddr, info: &DnsInfo) -> String {
    let domains = info.domains.join("\", \"");
    if server.port() == resolv_conf::PORT && !server.ip().is_loopback() {
        return format!(
            "for containers of Docker, which is not started again here: put \"dns\": [\"{}\"], \"dns-search\": [\"{domains}\"] into \
             /etc/docker/daemon.json",
            server.ip()
        );
    }
    "containers of Docker on its default bridge do not reach the host's loopback: [dns] link_local gives them an address (docs/docker.md)"
        .to_owned()
}

/// Does this host find the node's own name, as its programs look for names?
async fn is_found(info: &DnsInfo) -> bool {
    let (name, address) = &info.probe;
    let look = async {
        loop {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            if found.is_ok_and(|mut all| all.any(|found| found.ip() == *address)) {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(SEEN_WITHIN, look).await.is_ok()
}

fn human(out: &mut Output<'_>, done: &Done) -> io::Result<()> {
    let Done { method, server, domains, all, dry_run, changed, steps, found, notes } = done;
    print_steps(out, steps, *dry_run)?;
    if !changed {
        out.line("nothing is to be changed")?;
    }
    let names = if *all { "every name".to_owned() } else { format!("names of {}", domains.join(", ")) };
    let asks = if *dry_run { "would ask" } else { "asks" };
    out.line(format!("{} {asks} {server} for {names}", method.who()))?;
    if let Some((name, true)) = found {
        out.toned_line(Tone::Good, format!("this host finds {name}"))?;
    }
    notes.iter().try_for_each(|note| out.toned_line(Tone::Warning, format!("note: {note}")))
}

/// What was done; or with its text, what would be.
pub(super) fn print_steps(out: &mut Output<'_>, steps: &[Step], dry_run: bool) -> io::Result<()> {
    for step in steps {
        out.line(step.to_string())?;
        if dry_run {
            step.diff().lines().try_for_each(|line| out.line(line))?;
        }
    }
    Ok(())
}
