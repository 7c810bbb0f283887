//! etcd: real servers, one or several, each on a machine of its own, and what can happen to them.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::netns::{Fabric, Namespace};
use crate::process::{Process, Ran, Signal};
use crate::world::World;

/// Where members talk to each other.
const PEERS: u16 = 2380;

/// A cluster of etcd servers.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
}

/// What has changed in the store since a moment.
#[derive(Debug)]
pub struct Changes {
    process: Process,
}

/// One server of the cluster.
#[derive(Debug)]
pub struct Member {
    name: String,
    namespace: Namespace,
    data: PathBuf,
    log: PathBuf,
    cluster: String,
    process: Mutex<Option<Process>>,
}

impl Etcd {
    /// Starts `count` servers and waits until they have a leader.
    #[must_use]
    pub fn start(world: &World, fabric: &Fabric, count: usize) -> Self {
        let names: Vec<String> = (1..=count).map(|n| format!("etcd{n}")).collect();
        let namespaces: Vec<Namespace> = names.iter().map(|name| fabric.machine(name)).collect();
        let peers = names
            .iter()
            .zip(&namespaces)
            .map(|(name, ns)| format!("{name}=http://{}", SocketAddr::new(ns.address(), PEERS)));
        let cluster = peers.collect::<Vec<_>>().join(",");
        let members = names.into_iter().zip(namespaces).map(|(name, namespace)| Member {
            data: world.directory().join(&name),
            log: world.log(&name),
            name,
            namespace,
            cluster: cluster.clone(),
            process: Mutex::default(),
        });
        let etcd = Self { members: members.collect() };
        etcd.members.iter().for_each(Member::start);
        etcd.wait_ready();
        etcd
    }

    /// Its servers.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// `etcd://…`, as an agent is told.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts = self.members.iter().map(|member| member.clients().to_string());
        format!("etcd://{}", hosts.collect::<Vec<_>>().join(","))
    }

    /// Waits until every server that runs answers.
    #[track_caller]
    pub fn wait_ready(&self) {
        for member in self.members.iter().filter(|member| member.runs()) {
            crate::eventually!(
                Duration::from_secs(20),
                member.ctl(&["endpoint", "health", "--command-timeout=1s"]),
                Ran::success,
            );
        }
    }

    /// Stops all servers, as a service manager does.
    pub fn stop(&self) {
        self.members.iter().for_each(Member::stop);
    }

    /// Starts all servers again, with the data that they have, and waits until they answer.
    pub fn start_again(&self) {
        self.members.iter().for_each(Member::start);
        self.wait_ready();
    }

    /// Removes the data of all servers, which must be stopped.
    pub fn wipe(&self) {
        self.members.iter().for_each(Member::wipe);
    }

    /// `etcdctl` on the first server that runs.
    ///
    /// # Panics
    /// None runs.
    #[track_caller]
    #[must_use]
    pub fn ctl(&self, arguments: &[&str]) -> Ran {
        let member = self.members.iter().find(|member| member.runs() && !member.is_frozen());
        member.expect("an etcd server that runs").ctl(arguments)
    }

    /// Writes so much that the history moves on, and compacts it: who held a revision from before has lost its place.
    pub fn compact(&self) {
        for n in 0..20 {
            let _ = self.ctl(&["put", "/unrelated", &n.to_string()]).ok();
        }
        let revision = self.revision().to_string();
        let _ = self.ctl(&["compact", &revision]).ok();
    }

    /// The newest revision.
    ///
    /// # Panics
    /// etcd does not answer.
    #[must_use]
    pub fn revision(&self) -> i64 {
        let answer = self.ctl(&["get", "/none", "-w", "json"]).ok();
        let answer: Value = serde_json::from_str(&answer).expect("etcdctl prints JSON");
        answer["header"]["revision"].as_i64().expect("a revision")
    }

    /// All keys that begin so, in order.
    #[must_use]
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let listed = self.ctl(&["get", "--prefix", "--keys-only", prefix]).ok();
        listed.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// Follows every change below a prefix from now on.
    ///
    /// # Panics
    /// No server runs.
    #[must_use]
    pub fn watch(&self, prefix: &str) -> Changes {
        let member = self.members.iter().find(|member| member.runs()).expect("an etcd server that runs");
        // A log of its own: what is asked of it is what is in it.
        let log = member.log.with_file_name(format!("watch-{}.log", self.revision()));
        let endpoints = format!("--endpoints=http://{}", member.clients());
        let mut command = member.namespace.command("env");
        command.args(["ETCDCTL_API=3", "etcdctl", &endpoints, "watch", "--prefix", prefix]);
        Changes { process: Process::start("etcdctl watch", &mut command, &log) }
    }

    /// The lease of a key: `None` where there is no such key, 0 where it has no lease.
    ///
    /// # Panics
    /// etcd does not answer.
    #[must_use]
    pub fn lease_of(&self, key: &str) -> Option<u64> {
        let answer = self.ctl(&["get", key, "-w", "json"]).ok();
        let answer: Value = serde_json::from_str(&answer).expect("etcdctl prints JSON");
        let found = answer["kvs"].as_array()?.first()?;
        // Absent means 0; an id may not fit an i64.
        Some(
            found
                .get("lease")
                .map_or(0, |lease| lease.as_u64().or(lease.as_i64().map(i64::cast_unsigned)).unwrap_or(0)),
        )
    }

    /// Seconds until a lease ends unless it is renewed; `None` when it has ended.
    #[must_use]
    pub fn lease_left(&self, lease: u64) -> Option<i64> {
        let ran = self.ctl(&["lease", "timetolive", &format!("{lease:x}"), "-w", "json"]);
        let answer: Value = serde_json::from_str(&ran.stdout).ok()?;
        answer["ttl"].as_i64().filter(|ttl| *ttl > 0)
    }
}

impl Changes {
    /// The keys that were written so far, and the keys that were deleted, in their order.
    #[must_use]
    pub fn so_far(&self) -> (Vec<String>, Vec<String>) {
        let output = self.process.output();
        let after = |kind: &str| {
            let lines = output.lines().collect::<Vec<_>>();
            let keys = lines.windows(2).filter(|pair| pair[0] == kind).map(|pair| pair[1].to_owned());
            keys.collect()
        };
        (after("PUT"), after("DELETE"))
    }
}

impl Member {
    /// Its name: `etcd1` and so on.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Where it answers its clients.
    #[must_use]
    pub fn clients(&self) -> SocketAddr {
        SocketAddr::new(self.namespace.address(), 2379)
    }

    /// Starts it with the data that it has. Does nothing when it runs.
    pub fn start(&self) {
        if self.runs() {
            return;
        }
        let peers = SocketAddr::new(self.namespace.address(), PEERS);
        let (clients, peers) = (format!("http://{}", self.clients()), format!("http://{peers}"));
        let mut command = self.namespace.command("etcd");
        command.args(["--name", &self.name, "--data-dir", &self.data.to_string_lossy()]);
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        command.args(["--initial-cluster", &self.cluster, "--initial-cluster-state", "new"]);
        // Members of a cluster are near each other here. With the default of 1 s, an election whose votes are split takes longer
        // than what is asserted of us.
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        command.args(["--log-level", "warn", "--logger", "zap"]);
        *self.process() = Some(Process::start(&self.name, &mut command, &self.log));
    }

    /// Stops it, as a service manager does.
    pub fn stop(&self) {
        if let Some(mut process) = self.process().take() {
            process.signal(Signal::TERM);
            process.wait(Duration::from_secs(15));
        }
    }

    /// Kills it.
    pub fn kill(&self) {
        self.process().as_mut().expect("it was started").kill();
    }

    /// Stops its clock: connections stay, nothing answers.
    pub fn freeze(&self) {
        self.process().as_mut().expect("it runs").signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.process().as_mut().expect("it runs").signal(Signal::CONT);
    }

    /// Removes its data.
    ///
    /// # Panics
    /// It runs.
    pub fn wipe(&self) {
        assert!(!self.runs(), "{} runs", self.name);
        fs::remove_dir_all(&self.data).expect("its data can be removed");
    }

    /// `etcdctl` on its machine.
    #[track_caller]
    #[must_use]
    pub fn ctl(&self, arguments: &[&str]) -> Ran {
        let endpoints = format!("--endpoints=http://{}", self.clients());
        let mut all = vec!["ETCDCTL_API=3", "etcdctl", &endpoints];
        all.extend(arguments);
        self.namespace.exec("env", &all)
    }

    /// Is its process there?
    #[must_use]
    pub fn runs(&self) -> bool {
        self.process().as_mut().is_some_and(|process| process.status().is_none())
    }

    fn is_frozen(&self) -> bool {
        let id = self.process().as_ref().map(Process::id);
        let state = id.and_then(|id| fs::read_to_string(format!("/proc/{id}/stat")).ok());
        // The state follows the name in brackets: proc(5).
        state.is_some_and(|stat| {
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        })
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
