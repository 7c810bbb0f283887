//! A node: a machine with an agent, and the verbs that a person on that machine has.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::client::datagrams::Datagrams;
use crate::client::load::{Load, Plan};
use crate::client::names::Names;
use crate::client::{dig, http};
use crate::netns::Namespace;
use crate::process::{Process, Ran, Signal};
use crate::program::plexus_program;
use crate::server::backend::Backend;
use crate::world::World;

/// The agent's admin address inside its node.
const ADMIN: &str = "127.0.0.1:7070";

/// The same, for programs that look for an agent of this machine: one that is no test's may run here, and its socket would be found.
pub(crate) const ADMIN_VARIABLE: (&str, &str) = ("PLEXUS_ADMIN", "http://127.0.0.1:7070");

/// What differs from node to node and from test to test in an agent's configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `[store] url`.
    pub store: String,
    /// `[store] session_ttl`.
    pub session_ttl: Duration,
    /// `[drain] notice`.
    pub notice: Duration,
    /// `[drain] deadline`.
    pub drain_deadline: Duration,
    /// Put at the end of the file, as it is.
    pub more: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            store: "embedded".to_owned(),
            session_ttl: Duration::from_secs(3),
            notice: Duration::from_secs(1),
            drain_deadline: Duration::from_secs(5),
            more: String::new(),
        }
    }
}

/// A file for services.d.
#[derive(Debug, Clone)]
pub struct ServiceFile {
    name: String,
    port: u16,
    id: Option<String>,
    keys: BTreeMap<&'static str, String>,
    check: String,
}

impl ServiceFile {
    /// An instance with an HTTP check of `/healthz` each 200 ms, rise 1, fall 3.
    #[must_use]
    pub fn new(name: &str, port: u16) -> Self {
        let check = "{ http = \"/healthz\", interval = \"200ms\", timeout = \"200ms\", rise = 1, fall = 3 }";
        Self { name: name.to_owned(), port, id: None, keys: BTreeMap::new(), check: check.to_owned() }
    }

    /// With this id.
    #[must_use]
    pub fn id(mut self, id: &str) -> Self {
        self.id = Some(id.to_owned());
        self
    }

    /// With this check instead, as written in the file; nothing for none.
    #[must_use]
    pub fn check(mut self, check: &str) -> Self {
        check.clone_into(&mut self.check);
        self
    }

    /// With a further key, its value as written in the file.
    #[must_use]
    pub fn key(mut self, key: &'static str, value: &str) -> Self {
        self.keys.insert(key, value.to_owned());
        self
    }

    /// The file's text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("[[service]]\nname = \"{}\"\nport = {}\n", self.name, self.port);
        if let Some(id) = &self.id {
            let _ = writeln!(text, "id = \"{id}\"");
        }
        for (key, value) in &self.keys {
            let _ = writeln!(text, "{key} = {value}");
        }
        if !self.check.is_empty() {
            let _ = writeln!(text, "check = [{}]", self.check);
        }
        text
    }
}

/// A machine with an agent.
#[derive(Debug)]
pub struct Node {
    name: String,
    namespace: Namespace,
    directory: PathBuf,
    log: PathBuf,
    agent: Mutex<Option<Process>>,
    environment: Mutex<BTreeMap<String, String>>,
}

impl Node {
    /// A machine with a configuration, its agent not yet started.
    pub(crate) fn new(world: &World, name: &str, namespace: Namespace, settings: &Settings) -> Self {
        let directory = world.directory().join(name);
        fs::create_dir_all(directory.join("services.d")).expect("the node's directory");
        let node = Self {
            name: name.to_owned(),
            namespace,
            directory,
            log: world.log(&format!("agent-{name}")),
            agent: Mutex::default(),
            environment: Mutex::default(),
        };
        node.configure(settings);
        node
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address in the world's network.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.namespace.address()
    }

    /// A port of it, as other nodes reach it.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.address(), port))
    }

    /// Its network.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its own directory: `plexus.toml`, `services.d`, `state`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where its agent's admin interface is besides, as the command line is told.
    #[must_use]
    pub fn admin_socket(&self) -> String {
        format!("unix:{}", self.directory.join("state/admin.sock").display())
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("plexus.toml")
    }

    /// Writes its configuration file. A running agent learns of it by SIGHUP.
    pub fn configure(&self, settings: &Settings) {
        let seconds = |duration: Duration| format!("{}ms", duration.as_millis());
        let Settings { store, session_ttl, notice, drain_deadline, more } = settings;
        let text = format!(
            "state_dir = \"state\"\n\
             [node]\nname = \"{name}\"\naddress = \"{address}\"\n\
             [store]\nurl = \"{store}\"\nrequest_timeout = \"1s\"\nsession_ttl = \"{ttl}\"\n\
             [dns]\nlisten = [\"127.0.0.1:53\", \"{names}\"]\nttl = \"1s\"\n\
             [admin]\nlisten = [\"{ADMIN}\"]\n\
             [drain]\nnotice = \"{notice}\"\ndeadline = \"{deadline}\"\n\
             {more}\n",
            name = self.name,
            address = self.address(),
            names = self.at(53),
            ttl = seconds(*session_ttl),
            notice = seconds(*notice),
            deadline = seconds(*drain_deadline),
        );
        replace(&self.config_file(), &text);
    }

    /// A file with a token, and the table that has the agent know it by this name for this role.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write_token(&self, name: &str, role: &str, token: &str) -> (String, String) {
        let path = self.directory.join(name);
        replace(&path, token);
        let path = path.to_string_lossy().into_owned();
        let summed = self.exec("sha256sum", &[&path]).ok();
        let sha256 = summed.split_whitespace().next().expect("a digest");
        (path, format!("[[admin.token]]\nname = \"{name}\"\nrole = \"{role}\"\nsha256 = \"{sha256}\"\n"))
    }

    /// Puts a file into services.d, as editors do: complete from the moment it has its name.
    pub fn write_service_file(&self, file: &str, text: &str) {
        replace(&self.directory.join("services.d").join(file), text);
    }

    /// Removes a file from services.d.
    ///
    /// # Panics
    /// It is not there.
    pub fn remove_service_file(&self, file: &str) {
        fs::remove_file(self.directory.join("services.d").join(file)).expect("a file that is there");
    }

    /// Starts an HTTP backend on this machine, of which nobody is told.
    #[must_use]
    pub fn backend(&self, service: &str, port: u16) -> Backend {
        let id = format!("{service}-{}-{port}", self.name);
        let log = self.log.with_file_name(format!("{id}.log"));
        Backend::start(&self.namespace, service, &id, &self.name, port, &log)
    }

    /// Starts an HTTP backend and defines it in services.d, checked over HTTP.
    #[must_use]
    pub fn serve(&self, service: &str, port: u16) -> Backend {
        let backend = self.backend(service, port);
        self.define(&ServiceFile::new(service, port));
        backend
    }

    /// Defines an instance in services.d.
    pub fn define(&self, service: &ServiceFile) {
        self.write_service_file(&format!("{}-{}.toml", service.name, service.port), &service.text());
    }

    /// A variable that the agent has from its next start on.
    pub fn set_agent_variable(&self, name: &str, value: &str) {
        let mut environment = self.environment.lock().unwrap_or_else(PoisonError::into_inner);
        environment.insert(name.to_owned(), value.to_owned());
    }

    /// Starts its agent; does not wait until it is ready.
    ///
    /// # Panics
    /// There is one already.
    #[track_caller]
    pub fn start_agent(&self) {
        self.start_agent_by(&[plexus_program().as_os_str()]);
    }

    /// Starts its agent by this program with these arguments before the agent's own; does not wait until it is ready.
    ///
    /// # Panics
    /// There is one already.
    #[track_caller]
    pub fn start_agent_by(&self, program: &[&OsStr]) {
        let mut agent = self.agent();
        assert!(agent.as_mut().is_none_or(|agent| agent.status().is_some()), "{} has an agent", self.name);
        *agent = Some(self.agent_process(program, &[]));
    }

    /// Starts a further agent with the same configuration and these arguments, whose process is the caller's.
    #[must_use]
    pub fn start_beside(&self, arguments: &[&str]) -> Process {
        self.agent_process(&[plexus_program().as_os_str()], arguments)
    }

    /// Starts a further agent that takes over, and waits until it has. Returns the process of the one before.
    ///
    /// # Panics
    /// There is none, or it is not taken over from.
    #[track_caller]
    #[must_use]
    pub fn take_over(&self) -> Process {
        let next = self.start_beside(&["--take-over"]);
        let before = self.agent().replace(next).expect("an agent was started");
        let _ = crate::eventually!(
            Duration::from_secs(20),
            {
                self.agent().as_mut().expect("it was started").assert_running();
                self.took_over_from()
            },
            |pid| *pid == Some(before.id()),
        );
        before
    }

    /// The process of the agent that the one which answers took over from.
    #[must_use]
    pub fn took_over_from(&self) -> Option<u32> {
        let pid = self.admin_json("/v1/plexus/status")["took_over"]["pid"].as_u64()?;
        u32::try_from(pid).ok()
    }

    fn agent_process(&self, program: &[&OsStr], arguments: &[&str]) -> Process {
        let mut command = self.namespace.command(program[0]);
        command.args(&program[1..]).arg("agent").arg("--config").arg(self.config_file()).args(arguments);
        command.current_dir(&self.directory);
        command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET").env_remove("PLEXUS_ADMIN");
        command.envs(&*self.environment.lock().unwrap_or_else(PoisonError::into_inner));
        Process::start(&format!("the agent of {}", self.name), &mut command, &self.log)
    }

    /// The process id of its agent.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn agent_id(&self) -> u32 {
        self.agent().as_ref().expect("an agent was started").id()
    }

    /// Starts its agent again and waits until it is ready.
    #[track_caller]
    pub fn restart_agent(&self) {
        self.start_agent();
        self.wait_ready(Duration::from_secs(15));
    }

    /// Waits until the agent says that it is ready.
    #[track_caller]
    pub fn wait_ready(&self, within: Duration) {
        let _ = crate::eventually!(
            within,
            {
                self.agent().as_mut().expect("an agent was started").assert_running();
                self.admin("/readyz")
            },
            |answer| matches!(answer, Ok(answer) if answer.status == 200),
        );
    }

    /// Sends a signal to its agent.
    ///
    /// # Panics
    /// There is none.
    #[track_caller]
    pub fn signal_agent(&self, signal: Signal) {
        self.agent().as_mut().expect("an agent was started").signal(signal);
    }

    /// SIGKILL to its agent, which is gone when this returns.
    ///
    /// # Panics
    /// There is none.
    #[track_caller]
    pub fn kill_agent(&self) {
        self.agent().as_mut().expect("an agent was started").kill();
    }

    /// SIGTERM to its agent.
    #[track_caller]
    pub fn terminate_agent(&self) {
        self.signal_agent(Signal::TERM);
    }

    /// Waits until its agent has ended.
    ///
    /// # Panics
    /// It has not, or was never started.
    #[track_caller]
    pub fn wait_agent_end(&self, within: Duration) -> ExitStatus {
        self.agent().as_mut().expect("an agent was started").wait(within)
    }

    /// The process id of its agent.
    ///
    /// # Panics
    /// None was started.
    #[track_caller]
    #[must_use]
    pub fn agent_pid(&self) -> u32 {
        self.agent().as_ref().expect("an agent was started").id()
    }

    /// Has its agent ended (or never been started)?
    #[must_use]
    pub fn agent_has_ended(&self) -> bool {
        self.agent().as_mut().is_none_or(|agent| agent.status().is_some())
    }

    /// What its agents have logged so far.
    #[must_use]
    pub fn agent_log(&self) -> String {
        self.agent().as_ref().map(Process::output).unwrap_or_default()
    }

    /// Runs a program on this machine, to its end.
    #[track_caller]
    pub fn exec(&self, program: &str, arguments: &[&str]) -> Ran {
        self.namespace.exec(program, arguments)
    }

    /// Runs `plexus` on this machine, to its end.
    ///
    /// # Panics
    /// It cannot be started.
    #[track_caller]
    pub fn plexus<const N: usize>(&self, arguments: [&str; N]) -> Ran {
        self.plexus_from(plexus_program(), &arguments)
    }

    fn plexus_from(&self, program: &Path, arguments: &[&str]) -> Ran {
        let shown = format!("[{}] plexus {}", self.name, arguments.join(" "));
        let mut command: Command = self.namespace.command(program);
        command.args(arguments).envs([ADMIN_VARIABLE]).current_dir(&self.directory);
        crate::process::run_command(&mut command, &shown).expect("plexus can be started")
    }

    /// Runs `plexus … --json` and parses what it prints; `Null` when it fails.
    #[track_caller]
    #[must_use]
    pub fn plexus_json<const N: usize>(&self, arguments: [&str; N]) -> Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        let ran = self.plexus_from(plexus_program(), &all);
        if !ran.success() {
            return Value::Null;
        }
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {ran}"))
    }

    /// `GET` from the agent's admin address.
    ///
    /// # Errors
    /// It does not answer.
    pub fn admin(&self, path: &str) -> Result<http::Answer, String> {
        let path = path.to_owned();
        let address: SocketAddr = ADMIN.parse().expect("an address");
        self.namespace.enter(move || http::get(address, &path).map_err(|error| error.to_string()))
    }

    /// The JSON that the agent's admin address answers; `Null` while it does not. Faster than [`Node::plexus_json`].
    #[must_use]
    pub fn admin_json(&self, path: &str) -> Value {
        let answer = self.admin(path).ok().filter(|answer| answer.status == 200);
        answer.and_then(|answer| serde_json::from_str(&answer.body).ok()).unwrap_or_default()
    }

    /// The value of a metric of its agent: the sum over all labels that contain `labels`.
    #[must_use]
    pub fn metric(&self, name: &str, labels: &str) -> Option<f64> {
        metric(&self.admin("/metrics").ok()?.body, name, labels)
    }

    /// The ids of a service's endpoints that get traffic, as this node's catalog has them, in order.
    #[must_use]
    pub fn serving(&self, service: &str) -> Vec<String> {
        let answer = self.admin_json(&format!("/v1/plexus/services/{service}"));
        let endpoints = answer["endpoints"].as_array().cloned().unwrap_or_default();
        let serving = endpoints.iter().filter(|endpoint| endpoint["serving"] == true);
        serving.filter_map(|endpoint| Some(endpoint["id"].as_str()?.to_owned())).collect()
    }

    /// The ids of all of a service's endpoints in this node's catalog, in order.
    #[must_use]
    pub fn known(&self, service: &str) -> Vec<String> {
        let answer = self.admin_json(&format!("/v1/plexus/services/{service}"));
        let endpoints = answer["endpoints"].as_array().cloned().unwrap_or_default();
        endpoints.iter().filter_map(|endpoint| Some(endpoint["id"].as_str()?.to_owned())).collect()
    }

    /// The nodes in this node's catalog, in order.
    #[must_use]
    pub fn known_nodes(&self) -> Vec<String> {
        let nodes = self.admin_json("/v1/plexus/nodes")["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().filter_map(|node| Some(node["name"].as_str()?.to_owned())).collect()
    }

    /// The virtual addresses of a service, as this node can use them.
    #[must_use]
    pub fn vips(&self, service: &str) -> Vec<IpAddr> {
        let answer = self.admin_json(&format!("/v1/plexus/services/{service}"));
        let vips = answer["vips"].as_array().cloned().unwrap_or_default();
        vips.iter().filter_map(|ip| ip.as_str()?.parse().ok()).collect()
    }

    /// Asks this node's name server, from this node.
    #[must_use]
    pub fn dig(&self, name: &str, kind: &str) -> dig::Answer {
        dig::ask(&self.namespace, Ipv4Addr::LOCALHOST.into(), name, kind, &[])
    }

    /// One HTTP request from this machine, on a connection of its own.
    ///
    /// # Errors
    /// What failed, and in which step.
    pub fn get(&self, address: SocketAddr, path: &str) -> Result<http::Answer, http::Failure> {
        let path = path.to_owned();
        self.namespace.enter(move || http::get(address, &path))
    }

    /// A connection from this machine that stays open between requests.
    ///
    /// # Errors
    /// What failed, and in which step.
    pub fn hold(&self, address: SocketAddr) -> Result<http::Held, http::Failure> {
        self.namespace.enter(move || http::Held::open(address))
    }

    /// A steady load from this machine: 200 new connections a second to one address.
    #[must_use]
    pub fn load(&self, address: SocketAddr) -> Load {
        Load::start(&self.namespace, Plan::steady(address))
    }

    /// A steady load of questions from this machine to a name server.
    #[must_use]
    pub fn names(&self, server: IpAddr, name: &str) -> Names {
        Names::start(&self.namespace, server, name)
    }

    /// A steady load of datagrams from this machine to one address.
    #[must_use]
    pub fn datagrams(&self, address: SocketAddr) -> Datagrams {
        Datagrams::start(&self.namespace, address)
    }

    /// May a TCP connection to this address be made from this machine now?
    #[must_use]
    pub fn can_connect(&self, address: SocketAddr) -> bool {
        self.namespace.enter(move || http::can_connect(address))
    }

    pub(crate) fn log_file(&self) -> &Path {
        &self.log
    }

    fn agent(&self) -> MutexGuard<'_, Option<Process>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The value of a metric in what `/metrics` answered: the sum over all labels that contain `labels`.
pub(crate) fn metric(text: &str, name: &str, labels: &str) -> Option<f64> {
    let lines = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])) && line.contains(labels)
    });
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).reduce(|a, b| a + b)
}

/// Lets closures of several threads have the node.
pub(crate) type Shared = Arc<Node>;

fn replace(path: &Path, text: &str) {
    let mut new = path.to_owned();
    // Hidden and with another ending, so that nobody takes the half-written file for a real one.
    new.set_file_name(format!(".{}.new", path.file_name().and_then(|name| name.to_str()).unwrap_or("file")));
    fs::write(&new, text).and_then(|()| fs::rename(&new, path)).expect("the node's directory is writable");
}
