//! Real etcd servers in child processes, and a gate that cuts the way to one.

use std::net::TcpListener as StdListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use etcd_client::Client;
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

use crate::store::{Metrics, Store, StoreConfig, StoreUrl, open};

/// A cluster whose members are killed on drop.
pub(crate) struct Cluster {
    members: Vec<Member>,
    /// Arguments that all members get.
    extra: Vec<String>,
    scheme: &'static str,
    directory: TempDir,
}

struct Member {
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

impl Cluster {
    /// Starts `count` members, or says why not.
    pub(crate) fn start(count: usize) -> Option<Self> {
        Self::start_with(count, "http", |_| Vec::new())
    }

    /// … with more arguments, which may name files in the cluster's directory.
    pub(super) fn start_with(
        count: usize,
        scheme: &'static str,
        extra: impl FnOnce(&std::path::Path) -> Vec<String>,
    ) -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("skipped: there is no `etcd` in PATH");
            return None;
        }
        let directory = TempDir::new().unwrap();
        // All ports are held until all are chosen.
        let held: Vec<_> = (0..2 * count).map(|_| StdListener::bind("127.0.0.1:0").unwrap()).collect();
        let port = |i: usize| held[i].local_addr().unwrap().port();
        let members = (0..count)
            .map(|i| Member { client_port: port(2 * i), peer_port: port(2 * i + 1), process: None })
            .collect();
        let extra = extra(directory.path());
        drop(held);
        let mut cluster = Self { members, extra, scheme, directory };
        for i in 0..count {
            cluster.run(i);
        }
        Some(cluster)
    }

    /// Starts a member that does not run.
    pub(super) fn run(&mut self, i: usize) {
        let members = self.members.iter().enumerate();
        let peers: Vec<_> =
            members.map(|(i, member)| format!("m{i}=http://127.0.0.1:{}", member.peer_port)).collect();
        let client = format!("{}://127.0.0.1:{}", self.scheme, self.members[i].client_port);
        let peer = format!("http://127.0.0.1:{}", self.members[i].peer_port);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join(format!("m{i}.log")))
            .unwrap();
        let mut command = Command::new("etcd");
        command.args(["--name", &format!("m{i}"), "--data-dir"]).arg(self.data(i));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &peers.join(",")]);
        command.args(["--logger", "zap", "--log-outputs", "stderr"]).args(&self.extra);
        let process = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.members[i].process = Some(process);
    }

    fn data(&self, i: usize) -> PathBuf {
        self.directory.path().join(format!("m{i}"))
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self, i: usize) {
        if let Some(mut process) = self.members[i].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// SIGSTOP or SIGCONT.
    pub(super) fn signal(&self, i: usize, signal: &str) {
        let id = self.members[i].process.as_ref().unwrap().id();
        assert!(Command::new("kill").args([signal, &id.to_string()]).status().unwrap().success());
    }

    /// Removes all that a stopped member knew.
    pub(super) fn wipe(&self, i: usize) {
        std::fs::remove_dir_all(self.data(i)).unwrap();
    }

    pub(super) fn port(&self, i: usize) -> u16 {
        self.members[i].client_port
    }

    pub(super) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    pub(crate) fn url(&self) -> StoreUrl {
        let hosts: Vec<_> =
            self.members.iter().map(|member| format!("127.0.0.1:{}", member.client_port)).collect();
        let scheme = if self.scheme == "https" { "etcds" } else { "etcd" };
        format!("{scheme}://{}", hosts.join(",")).parse().unwrap()
    }

    /// A client of the library, to do what a store cannot.
    pub(super) async fn client(&self, i: usize) -> Client {
        Client::connect([format!("127.0.0.1:{}", self.port(i))], None).await.unwrap()
    }

    /// Waits until every member that runs takes part: it answers a linearizable read.
    pub(crate) async fn ready(&self) {
        for (i, _) in self.members.iter().enumerate().filter(|(_, member)| member.process.is_some()) {
            let end = Instant::now() + Duration::from_secs(20);
            loop {
                let mut client = self.client(i).await;
                match timeout(Duration::from_secs(1), client.get("ready", None)).await {
                    Ok(Ok(_)) => break,
                    result => {
                        assert!(Instant::now() < end, "member {i} is not ready: {result:?}\n{}", self.logs())
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn logs(&self) -> String {
        let read =
            |i| std::fs::read_to_string(self.directory.path().join(format!("m{i}.log"))).unwrap_or_default();
        let tail = |log: String| log.lines().rev().take(10).collect::<Vec<_>>().join("\n");
        (0..self.members.len()).map(|i| format!("m{i}, last line first:\n{}\n", tail(read(i)))).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for i in 0..self.members.len() {
            self.kill(i);
        }
    }
}

/// A store at `url` with the defaults.
pub(super) fn store(url: StoreUrl) -> Arc<dyn Store> {
    open(&StoreConfig::new(url), &Metrics::default()).unwrap()
}
