//! `plexus demo`: a whole mesh on this machine, with nothing installed.
//!
//! As root, three nodes in network namespaces of their own, and the instances in others, on an overlay network between the nodes; else
//! one node on loopback. The agents are what `plexus agent`
//! runs, each configured by a text that a user could have written, sharing one embedded store in this process. The
//! instances are processes of their own, so that they can be killed. Everything ends with this process, however it ends.

pub mod backend;
mod guide;
mod instances;
mod network;
mod plan;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nerve::document::Document;
use nerve::model::{NetworkName, Protocol, PublishedPort, ServiceName};
use nerve::store::{self, Store, StoreConfig, StoreUrl};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Agent;
use super::signals::Signals;
use crate::config::{Config, Machine};
use crate::netns::Namespace;
use crate::overlay::{Attach, AttachError, Described};
use backend::Backend;
use guide::{Guide, GuideInstance, GuideNode, Tools};
use instances::{Event, Supervisor};
use network::Network;
use plan::{Plan, PlannedNode};

/// How long the mesh may take to come up before the demo says what is missing.
const UP_WITHIN: Duration = Duration::from_secs(20);

/// The overlay network that instances are on.
const NETWORK: &str = "default";
/// Until it is asked again whether a node can attach containers.
const PAUSE: Duration = Duration::from_millis(20);

/// What the user asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct DemoOptions {
    /// One node on loopback, even as root.
    pub loopback: bool,
}

/// Runs the demo until Ctrl-C. `say` shows text to the user.
pub fn run(options: DemoOptions, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    super::logging::start_quiet()?;
    let network = if options.loopback { None } else { try_network(say)? };
    let tools = Tools::find();
    if network.is_some() && !tools.nft {
        say("nft is not installed here: instances run on the nodes themselves, without an overlay network.");
    }
    let plan = match &network {
        Some(network) => Plan::in_network(network, tools.nft)?,
        None => Plan::on_loopback()?,
    };
    let program = std::env::current_exe().context("find this program, to run the demo's instances with")?;
    let state =
        tempfile::Builder::new().prefix("plexus-demo-").tempdir().context("make a directory for the demo")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut demo = Demo::start(plan, program, tools, &state).await?;
        let outcome = demo.show(say).await;
        say("\nEnding the demo …");
        demo.end().await;
        outcome
    })
}

/// The network, or `None` where this process may not make one.
fn try_network(say: &mut dyn FnMut(&str)) -> anyhow::Result<Option<Network>> {
    match Network::create(&Plan::node_names()?) {
        Ok(network) => Ok(Some(network)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            say(
                "Not root: one node on loopback. As root, the demo brings up three nodes in namespaces of their own.",
            );
            Ok(None)
        }
        Err(error) => Err(error).context("build the demo's network (plexus demo --loopback does without)"),
    }
}

struct Demo {
    plan: Plan,
    program: PathBuf,
    tools: Tools,
    up_until: Instant,
    store: Arc<dyn Store>,
    agents: Vec<Agent>,
    supervisors: Vec<std::thread::JoinHandle<()>>,
    stop: CancellationToken,
    events: mpsc::Receiver<Event>,
    running: BTreeMap<String, GuideInstance>,
}

impl Demo {
    async fn start(
        plan: Plan,
        program: PathBuf,
        tools: Tools,
        state: &tempfile::TempDir,
    ) -> anyhow::Result<Self> {
        let store =
            store::open(&StoreConfig::new(StoreUrl::Embedded { file: None }), &store::Metrics::default())?;
        let (sender, events) = mpsc::channel(64);
        let mut demo = Self {
            plan,
            program,
            tools,
            up_until: Instant::now() + UP_WITHIN,
            store,
            agents: Vec::new(),
            supervisors: Vec::new(),
            stop: CancellationToken::new(),
            events,
            running: BTreeMap::new(),
        };
        for node in &demo.plan.nodes {
            std::fs::create_dir_all(node.services_dir(state.path()))
                .context("make a directory for the demo")?;
            demo.agents.push(start_agent(&demo.plan, node, &demo.store, state)?);
        }
        for (node, agent) in demo.plan.nodes.iter().zip(&demo.agents) {
            for planned in &node.backends {
                let mut backend = planned.clone();
                let namespace = if demo.plan.has_containers {
                    let (container, address) = attach(node, agent, planned, demo.up_until).await?;
                    backend.listen.set_ip(address);
                    Some(container)
                } else {
                    node.namespace.clone()
                };
                let file = node.services_dir(state.path()).join(format!("{}.toml", backend.instance));
                std::fs::write(file, plan::definition(&backend)).context("define an instance of the demo")?;
                let (program, events, stop) = (demo.program.clone(), sender.clone(), demo.stop.clone());
                let supervisor = Supervisor { program, backend, namespace, events, stop };
                demo.supervisors.push(supervisor.start().context("start an instance of the demo")?);
            }
        }
        Ok(demo)
    }

    /// Waits until it is up, prints the guide, and reports what happens until a signal comes.
    async fn show(&mut self, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        let mut signals = Signals::new()?;
        tokio::select! {
            up = self.wait_until_up() => up?,
            _ = signals.leave() => return Ok(()),
        }
        say(&self.guide());
        loop {
            tokio::select! {
                _ = signals.leave() => return Ok(()),
                event = self.events.recv() => match event {
                    Some(event) => self.report(event, say),
                    None => bail!("nobody looks after the demo's instances any more"),
                },
            }
        }
    }

    async fn wait_until_up(&mut self) -> anyhow::Result<()> {
        let expected: usize = self.plan.nodes.iter().map(|node| node.backends.len()).sum();
        let deadline = self.up_until;
        while self.running.len() < expected {
            match tokio::time::timeout_at(deadline, self.events.recv()).await {
                Ok(Some(Event::Started { instance, pid, address })) => {
                    self.note_started(instance, pid, address)
                }
                Ok(Some(Event::Ended { instance, how })) => {
                    bail!("the instance {instance} ended at once: {how}")
                }
                Ok(Some(Event::Failed { instance, error })) => {
                    bail!("cannot start the instance {instance}: {error}")
                }
                Ok(None) | Err(_) => bail!("only {} of {expected} instances started", self.running.len()),
            }
        }
        let port = PublishedPort::new(self.plan.published.into(), Protocol::Tcp);
        nerve::publish::publish(&*self.store, &ServiceName::new("web")?, port)
            .await
            .context("publish the demo's service")?;
        for agent in &self.agents {
            tokio::time::timeout_at(deadline, agent.wait_until_serving(expected, 1)).await.with_context(
                || format!("the mesh is not up after {} s: {}", UP_WITHIN.as_secs(), agent.awaited()),
            )?;
        }
        Ok(())
    }

    fn note_started(&mut self, instance: String, pid: u32, address: std::net::SocketAddr) {
        let node =
            self.plan.nodes.iter().find(|n| n.backends.iter().any(|b| b.instance.as_str() == instance));
        let node = node.map_or_else(String::new, |n| n.name.to_string());
        self.running.insert(instance.clone(), GuideInstance { name: instance, node, pid, address });
    }

    fn report(&mut self, event: Event, say: &mut dyn FnMut(&str)) {
        match event {
            Event::Started { instance, pid, address } => {
                say(&format!("{instance} runs again: pid {pid}, {address}"));
                self.note_started(instance, pid, address);
            }
            Event::Ended { instance, how } => {
                let pause = instances::RESTART_AFTER.as_secs();
                say(&format!("{instance} ended ({how}); it is started again in {pause} s"));
            }
            Event::Failed { instance, error } => say(&format!("{instance} cannot be started: {error}")),
        }
    }

    fn guide(&self) -> String {
        let nodes: Vec<_> = self
            .plan
            .nodes
            .iter()
            .map(|n| GuideNode { name: n.name.to_string(), address: n.address, admin: n.admin, dns: n.dns })
            .collect();
        let web: Vec<_> = self.running.values().filter(|i| i.name.starts_with("web-")).cloned().collect();
        let guide = Guide {
            program: &self.program,
            nodes: &nodes,
            published: self.plan.published.get(),
            web: &web,
            has_containers: self.plan.has_containers,
            tools: self.tools,
        };
        guide.text()
    }

    /// Ends the agents in order, as a signal would, and then the instances.
    async fn end(self) {
        for agent in &self.agents {
            agent.stop();
        }
        for agent in self.agents {
            agent.join().await;
        }
        self.stop.cancel();
        self.store.shutdown().await;
        for supervisor in self.supervisors {
            if supervisor.join().is_err() {
                tracing::warn!("a thread of the demo panicked");
            }
        }
    }
}

/// Threads inherit the namespace of the thread that makes them, so the whole agent is inside.
fn start_agent(
    plan: &Plan,
    node: &PlannedNode,
    store: &Arc<dyn Store>,
    state: &tempfile::TempDir,
) -> anyhow::Result<Agent> {
    let (text, file) =
        (plan.configuration(node, state.path()), state.path().join(format!("{}.toml", node.name)));
    let document = Document::parse(&file.to_string_lossy(), &text)?;
    let config = Config::read(&document, &file, &Machine::this())?;
    let start = || Agent::start(config, Some(Arc::clone(store))).map_err(io::Error::other);
    match &node.namespace {
        Some(namespace) => namespace.run(start),
        None => start(),
    }
    .with_context(|| format!("start the agent of node {}", node.name))
}

/// Makes a container of a node, as soon as it can attach one, and gives it an address on the overlay network.
async fn attach(
    node: &PlannedNode,
    agent: &Agent,
    backend: &Backend,
    until: Instant,
) -> anyhow::Result<(Namespace, IpAddr)> {
    let container = Namespace::create().context("make a network namespace for a container")?;
    let request = Attach {
        id: backend.instance.to_string(),
        network: NetworkName::new(NETWORK)?,
        namespace: format!("/proc/{}/fd/{}", std::process::id(), container.as_raw_fd()).into(),
        interface: "eth0".to_owned(),
        addresses: Vec::new(),
        owner: None,
        // The node's configuration says what it serves.
        described: Described::default(),
    };
    loop {
        let (overlay, request) = (agent.overlay(), request.clone());
        let place = node.namespace.clone().context("a node without a namespace has no containers")?;
        let attached = tokio::task::spawn_blocking(move || {
            place.block_on(|| async move { Ok(overlay.attach(request).await) })
        });
        match attached.await?? {
            Ok(given) => {
                let address = given.attached.addresses.first().context("a container without an address")?;
                return Ok((container, *address));
            }
            // It is told of the network and takes its part of it at this moment.
            Err(AttachError::NoNetwork(_) | AttachError::NotReady(..)) if Instant::now() < until => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                return Err(error).context(format!("attach {} on node {}", backend.instance, node.name));
            }
        }
    }
}
