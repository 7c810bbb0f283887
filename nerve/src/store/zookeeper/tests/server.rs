//! A real ZooKeeper server in a child process.

use std::net::TcpListener as StdListener;
use std::path::Path as FilePath;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, timeout};
use zookeeper_client::Client;

use crate::store::StoreUrl;

/// Where Debian's package has it, with all that it needs named in its manifest.
const JAR: &str = "/usr/share/java/zookeeper.jar";
const LOGGER: &str = "/usr/share/java/slf4j-simple.jar";

/// A server that is killed on drop.
pub(super) struct Server {
    port: u16,
    process: Option<Child>,
    directory: TempDir,
}

impl Server {
    /// Starts one, or says why not.
    pub(super) fn start() -> Option<Self> {
        if !can_run() {
            return None;
        }
        let port = free_port();
        let mut server = Self { port, process: None, directory: TempDir::new().unwrap() };
        server.run();
        Some(server)
    }

    /// Starts it while it does not run.
    pub(super) fn run(&mut self) {
        let directory = self.directory.path();
        // Sessions from 1 s on: a promise is kept for the shortest TTL that anyone asks for.
        let config = format!(
            "tickTime=500\ndataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\nmaxClientCnxns=0\n\
             admin.enableServer=false\n",
            directory.join("data").display(),
            self.port
        );
        let process = spawn(directory, &config);
        self.process = Some(process);
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// SIGSTOP or SIGCONT.
    pub(super) fn signal(&self, signal: &str) {
        let id = self.process.as_ref().unwrap().id();
        assert!(Command::new("kill").args([signal, &id.to_string()]).status().unwrap().success());
    }

    /// Removes all that a stopped server knew.
    pub(super) fn wipe(&self) {
        std::fs::remove_dir_all(self.directory.path().join("data")).unwrap();
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn url(&self) -> StoreUrl {
        format!("zookeeper://127.0.0.1:{}", self.port).parse().unwrap()
    }

    /// A client of the library, to do what a store cannot.
    pub(super) async fn client(&self) -> Client {
        Client::connect(&format!("127.0.0.1:{}", self.port)).await.unwrap()
    }

    /// Waits until it serves.
    pub(super) async fn ready(&self) {
        serves(self.port, self.directory.path()).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Can servers be run here? If not, why not is printed.
pub(super) fn can_run() -> bool {
    let java = Command::new("java").arg("-version").stderr(Stdio::null()).status();
    let can = java.is_ok() && FilePath::new(JAR).exists();
    if !can {
        println!("skipped: there is no `java` in PATH or no {JAR}");
    }
    can
}

pub(super) fn free_port() -> u16 {
    StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts a server with this configuration; it logs into the directory.
pub(super) fn spawn(directory: &FilePath, config: &str) -> Child {
    let file = directory.join("zoo.cfg");
    std::fs::write(&file, config).unwrap();
    let log = std::fs::File::create(directory.join("log")).unwrap();
    let mut command = Command::new("java");
    command.args([
        "-Xmx256m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-Dznode.container.checkIntervalMs=500",
    ]);
    // What is written need not outlive the machine.
    command.arg("-Dzookeeper.forceSync=no");
    command.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn");
    command.args(["-cp", &format!("{JAR}:{LOGGER}"), "org.apache.zookeeper.server.quorum.QuorumPeerMain"]);
    command.arg(file).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

/// Waits until the server of this port serves, whose log is in the directory.
pub(super) async fn serves(port: u16, directory: &FilePath) {
    let (end, address) = (Instant::now() + Duration::from_secs(30), format!("127.0.0.1:{port}"));
    loop {
        let connector = Client::connector().with_fail_eagerly();
        match timeout(Duration::from_secs(2), connector.connect(&address)).await {
            Ok(Ok(_)) => return,
            result => {
                let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
                assert!(Instant::now() < end, "the server is not ready: {:?}\n{log}", result.map(|_| ()));
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
