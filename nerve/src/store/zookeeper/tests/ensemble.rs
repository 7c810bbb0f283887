//! Several real ZooKeeper servers that keep one tree.

use std::process::{Child, Command};

use async_trait::async_trait;
use tempfile::TempDir;

use super::server::{can_run, free_port, serves, spawn};
use crate::store::{StoreUrl, outages};

/// An ensemble whose servers are killed on drop.
pub(super) struct Ensemble {
    members: Vec<Member>,
    directory: TempDir,
}

struct Member {
    clients: u16,
    /// What the others of it, `server.N`.
    peers: String,
    process: Option<Child>,
}

impl Ensemble {
    /// Starts so many servers, or says why not.
    pub(super) fn start(count: usize) -> Option<Self> {
        if !can_run() {
            return None;
        }
        let member = |_| {
            let peers = format!("127.0.0.1:{}:{}", free_port(), free_port());
            Member { clients: free_port(), peers, process: None }
        };
        let mut ensemble =
            Self { members: (0..count).map(member).collect(), directory: TempDir::new().unwrap() };
        for i in 0..count {
            outages::Members::run(&mut ensemble, i);
        }
        Some(ensemble)
    }
}

#[async_trait]
impl outages::Members for Ensemble {
    fn url(&self) -> StoreUrl {
        let servers: Vec<_> =
            self.members.iter().map(|member| format!("127.0.0.1:{}", member.clients)).collect();
        format!("zookeeper://{}", servers.join(",")).parse().unwrap()
    }

    fn run(&mut self, i: usize) {
        let directory = self.directory.path().join(i.to_string());
        let data = directory.join("data");
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("myid"), i.to_string()).unwrap();
        let peers: Vec<_> = self
            .members
            .iter()
            .enumerate()
            .map(|(i, member)| format!("server.{i}={}\n", member.peers))
            .collect();
        let config = format!(
            "tickTime=500\ninitLimit=20\nsyncLimit=3\nmaxSessionTimeout=60000\ndataDir={}\nclientPort={}\n\
             clientPortAddress=127.0.0.1\nmaxClientCnxns=0\nadmin.enableServer=false\n{}",
            data.display(),
            self.members[i].clients,
            peers.concat()
        );
        self.members[i].process = Some(spawn(&directory, &config));
    }

    fn kill(&mut self, i: usize) {
        if let Some(mut process) = self.members[i].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    fn signal(&self, i: usize, signal: &str) {
        let id = self.members[i].process.as_ref().unwrap().id();
        assert!(Command::new("kill").args([signal, &id.to_string()]).status().unwrap().success());
    }

    async fn ready(&self) {
        for (i, member) in self.members.iter().enumerate() {
            serves(member.clients, &self.directory.path().join(i.to_string())).await;
        }
    }
}

impl Drop for Ensemble {
    fn drop(&mut self) {
        for i in 0..self.members.len() {
            outages::Members::kill(self, i);
        }
    }
}
