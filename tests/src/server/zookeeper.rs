//! ZooKeeper: one real server on a machine of its own, and what can happen to it.
//!
//! What stands in it is asked by its four-letter words, so that what is looked with is not what is looked at.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::netns::{Fabric, Namespace};
use crate::process::{Process, Signal};
use crate::world::World;

const NAME: &str = "zookeeper1";
/// Where Debian's package has it; its manifest names what it needs.
const CLASSES: &str = "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar";

/// A ZooKeeper server.
#[derive(Debug)]
pub struct ZooKeeper {
    namespace: Namespace,
    directory: PathBuf,
    log: PathBuf,
    process: Mutex<Option<Process>>,
}

impl ZooKeeper {
    /// Starts a server and waits until it serves.
    #[must_use]
    pub fn start(world: &World, fabric: &Fabric) -> Self {
        let server = Self {
            namespace: fabric.machine(NAME),
            directory: world.directory().join(NAME),
            log: world.log(NAME),
            process: Mutex::default(),
        };
        server.start_again();
        server
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        NAME
    }

    /// Its network.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// `zookeeper://…`, as an agent is told.
    #[must_use]
    pub fn url(&self) -> String {
        format!("zookeeper://{}", self.clients())
    }

    /// `host:port`, as other clients are told.
    #[must_use]
    pub fn hosts(&self) -> String {
        self.clients().to_string()
    }

    /// Stops it, as a service manager does.
    pub fn stop(&self) {
        if let Some(mut process) = self.process().take() {
            process.signal(Signal::TERM);
            process.wait(Duration::from_secs(15));
        }
    }

    /// Starts it with the data that it has, and waits until it serves.
    ///
    /// # Panics
    /// Its configuration cannot be written, or it does not come up.
    pub fn start_again(&self) {
        if !self.runs() {
            *self.process() = Some(self.run());
        }
        crate::eventually!(Duration::from_secs(30), self.ask("srvr"), |answer| answer.contains("Mode: "));
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
        assert!(!self.runs(), "{NAME} runs");
        fs::remove_dir_all(self.data()).expect("its data can be removed");
    }

    /// The leased keys below a prefix, in order, with the session that each belongs to.
    #[must_use]
    pub fn leased(&self, prefix: &str) -> Vec<(String, String)> {
        let dump = self.ask("dump");
        let (mut session, mut leased) = (String::new(), Vec::new());
        for line in dump.lines() {
            match line.strip_prefix('\t') {
                // An entry of ours ends with `=`: see the store's documentation.
                Some(node) if node.starts_with(prefix) => {
                    leased.push((node.trim_end_matches('=').to_owned(), session.clone()));
                }
                Some(_) => {}
                None => line.trim_end_matches(':').clone_into(&mut session),
            }
        }
        leased.sort();
        leased
    }

    /// Is its process there?
    #[must_use]
    pub fn runs(&self) -> bool {
        self.process().as_mut().is_some_and(|process| process.status().is_none())
    }

    /// What it answers to a four-letter word; nothing while it does not.
    #[must_use]
    pub fn ask(&self, word: &str) -> String {
        let address = self.clients();
        let talk = format!(
            "exec 3<>/dev/tcp/{}/{} && printf {word} >&3 && timeout 2 cat <&3",
            address.ip(),
            address.port()
        );
        self.namespace.exec("bash", &["-c", &talk]).stdout
    }

    /// The names of a znode's children, in order; none of one that is not there.
    #[must_use]
    pub fn children(&self, path: &str) -> Vec<String> {
        let asked = "print(*sorted(zk.get_children(path)) if zk.exists(path) else [], sep='\\n')";
        self.client(asked, path).lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// What a znode holds, and whether it ends with a session.
    #[must_use]
    pub fn znode(&self, path: &str) -> Option<(String, bool)> {
        let answer =
            self.client("d, s = zk.get(path); print(s.ephemeralOwner); print(d.decode(), end='')", path);
        let (owner, data) = answer.split_once('\n')?;
        Some((data.to_owned(), owner != "0"))
    }

    /// Removes a znode.
    pub fn remove(&self, path: &str) {
        let _ = self.client("zk.delete(path)", path);
    }

    /// Makes a znode that holds this, and what is above it.
    pub fn create(&self, path: &str, data: &str) {
        let script = format!("zk.create(path, bytes.fromhex('{}'), makepath=True)", hex(data));
        let _ = self.client(&script, path);
    }

    /// Has a znode that is there hold this.
    pub fn set(&self, path: &str, data: &str) {
        let _ = self.client(&format!("zk.set(path, bytes.fromhex('{}'))", hex(data)), path);
    }

    /// How many clients are connected, this one not among them.
    #[must_use]
    pub fn connections(&self) -> Option<usize> {
        let answer = self.ask("srvr");
        let line = answer.lines().find_map(|line| line.strip_prefix("Connections: "))?;
        line.trim().parse::<usize>().ok()?.checked_sub(1)
    }

    /// What a script prints that uses another client than the agents'.
    fn client(&self, script: &str, path: &str) -> String {
        let whole = format!(
            "import sys\nfrom kazoo.client import KazooClient\npath = sys.argv[2]\nzk = KazooClient(sys.argv[1])\n\
             zk.start(10)\n{script}\nzk.stop()"
        );
        self.namespace.exec("/usr/bin/python3", &["-c", &whole, &self.hosts(), path]).stdout
    }

    fn run(&self) -> Process {
        fs::create_dir_all(&self.directory).expect("the server's directory");
        let file = self.directory.join("zoo.cfg");
        // The shortest sessions that agents of these tests ask for, and the longest.
        let config = format!(
            "tickTime=500\nminSessionTimeout=1000\nmaxSessionTimeout=120000\ndataDir={}\nclientPort={}\n\
             clientPortAddress={}\nadmin.enableServer=false\n4lw.commands.whitelist=srvr,dump\n",
            self.data().display(),
            self.clients().port(),
            self.clients().ip(),
        );
        fs::write(&file, config).expect("the server's configuration");
        let mut command = self.namespace.command("java");
        // It is up the sooner the less is compiled, and little is asked of it.
        command.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        // What is written need not outlive the machine.
        command.arg("-Dzookeeper.forceSync=no");
        command.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn");
        command.args(["-cp", CLASSES, "org.apache.zookeeper.server.quorum.QuorumPeerMain"]);
        command.arg(&file);
        Process::start(NAME, &mut command, &self.log)
    }

    fn clients(&self) -> SocketAddr {
        SocketAddr::new(self.namespace.address(), 2181)
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}
