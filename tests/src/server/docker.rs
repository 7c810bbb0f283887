//! Docker on a node: containerd and dockerd as they are installed, with files, mounts and processes of their own, so that several of
//! them stand side by side on one machine.
//!
//! dockerd looks for plugins in `/run/docker/plugins` and nowhere else: each has a `/run` of its own, in a mount namespace, with the
//! node's `plugins` directory in that place. Its process namespace ends with everything in it when its first process does, however
//! a test ends.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::netns::Namespace;
use crate::node::Node;
use crate::process::{Process, Ran, run, run_command};
use crate::world::World;

/// The image that every Docker here has: busybox, and nothing else.
pub const IMAGE: &str = "busybox";

/// How long dockerd may take to start, with containers to look after.
const START: Duration = Duration::from_secs(60);

/// Where control groups are: one hierarchy, or one for each controller.
const GROUPS: &str = "/sys/fs/cgroup";

/// What makes the surroundings; its arguments are the directory of plugins and the file for `/etc/resolv.conf`.
const SURROUNDINGS: &str = "set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/docker/plugins
mount --bind \"$1\" /run/docker/plugins
mount --bind \"$2\" /etc/resolv.conf
touch /run/made
exec tini -s -- sleep infinity";

/// A node's Docker. Ended with all of its containers when dropped.
#[derive(Debug)]
pub struct Docker {
    namespace: Namespace,
    directory: PathBuf,
    /// Where everything of this world is in the control groups.
    group: String,
    dockerd: Mutex<Option<Process>>,
    containerd: Mutex<Option<Process>>,
    /// The first process of the process namespace, as the machine numbers it.
    first: u32,
    logs: PathBuf,
    name: String,
    /// Containers go on while it is down, which a swarm's node cannot do.
    live_restore: bool,
    // Last: everything else ends with it.
    _surroundings: Process,
}

impl Docker {
    /// Why Docker cannot be run here, if it cannot.
    #[must_use]
    pub fn lacks() -> Option<&'static str> {
        let users = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let is_root = users.split_whitespace().eq(["0", "0", "4294967295"]);
        let has_groups = ["devices", "cgroup.controllers"].map(|file| Path::new(GROUPS).join(file).exists());
        match (is_root, has_groups.contains(&true)) {
            (false, _) => Some("dockerd needs root of the machine, not of a user namespace"),
            (true, false) => Some("dockerd needs control groups in /sys/fs/cgroup"),
            (true, true) => None,
        }
    }

    /// Where the agent of a node is to put its socket for this node's Docker to find it: `docker.plugin`.
    #[must_use]
    pub fn plugin(node: &Node) -> PathBuf {
        node.directory().join("plugins/plexus.sock")
    }

    /// Where it answers its API: `docker.api`.
    #[must_use]
    pub fn api(node: &Node) -> PathBuf {
        directory(node).join("docker.sock")
    }

    /// Starts it, with the image, and with the node's name server as its own.
    ///
    /// # Panics
    /// It does not start.
    #[track_caller]
    #[must_use]
    pub fn start(world: &World, node: &Node) -> Self {
        Self::start_as(world, node, true)
    }

    /// The same of one that can be a node of a swarm: its containers end with it.
    ///
    /// # Panics
    /// It does not start.
    #[track_caller]
    #[must_use]
    pub fn start_for_swarm(world: &World, node: &Node) -> Self {
        Self::start_as(world, node, false)
    }

    #[track_caller]
    fn start_as(world: &World, node: &Node, live_restore: bool) -> Self {
        let (directory, name) = (directory(node), node.name().to_owned());
        let plugins = node.directory().join("plugins");
        fs::create_dir_all(&plugins)
            .and_then(|()| fs::create_dir_all(&directory))
            .expect("the node's directory");
        let names = directory.join("resolv.conf");
        // A node of a swarm asks for the newest version of an image before it starts one: nobody answers, and it goes on at once.
        let server = if live_restore { "127.0.0.1" } else { "127.0.0.9" };
        fs::write(&names, format!("nameserver {server}\nsearch mesh.internal\n"))
            .expect("the node's directory");
        let logs = world.log(&format!("docker-{name}"));
        let mut command = node.namespace().command("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            SURROUNDINGS,
            "sh",
        ]);
        command.args([&plugins, &names]);
        let mut surroundings = Process::start("docker's surroundings", &mut command, &logs);
        let first = first_of(&mut surroundings);
        let docker = Self {
            namespace: node.namespace().clone(),
            directory,
            group: format!("/{}-{name}", world.name()),
            dockerd: Mutex::default(),
            containerd: Mutex::default(),
            first,
            logs,
            name,
            live_restore,
            _surroundings: surroundings,
        };
        crate::eventually!(START, docker.inside("test", &["-e", "/run/made"]).success(), |made| *made);
        docker.start_containerd();
        docker.start_again();
        docker.import();
        docker
    }

    fn start_containerd(&self) {
        let config = self.directory.join("containerd.toml");
        let text = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
        fs::write(&config, text).expect("the node's directory");
        let mut command = self.command("containerd");
        command.arg("--config").arg(&config).arg("--root").arg(self.directory.join("containerd"));
        command.args(["--state", "/run/containerd", "--address", "/run/containerd/containerd.sock"]);
        *lock(&self.containerd) = Some(Process::start("containerd", &mut command, &self.logs));
    }

    /// Starts dockerd, at first or after it has ended, and waits until it answers. Containers that run go on.
    ///
    /// # Panics
    /// It does not start.
    #[track_caller]
    pub fn start_again(&self) {
        let mut command = self.command("dockerd");
        command.arg("--data-root").arg(self.directory.join("data"));
        command.arg("--host").arg(self.host()).args([
            "--pidfile",
            "/run/dockerd.pid",
            "--exec-root",
            "/run/docker",
        ]);
        command.args(["--containerd", "/run/containerd/containerd.sock", "--storage-driver", "vfs"]);
        command.args(["--cgroup-parent", &self.group]);
        command.args(self.live_restore.then_some("--live-restore"));
        *lock(&self.dockerd) = Some(Process::start("dockerd", &mut command, &self.logs));
        crate::eventually!(
            START,
            {
                lock(&self.dockerd).as_mut().expect("it was started").assert_running();
                self.docker(&["version"]).success()
            },
            |answers| *answers
        );
    }

    /// SIGKILL to dockerd; it is gone when this returns. Its containers go on.
    #[track_caller]
    pub fn kill(&self) {
        self.end("-KILL");
    }

    /// SIGTERM to dockerd; it is gone when this returns. Its containers go on.
    #[track_caller]
    pub fn stop(&self) {
        self.end("-TERM");
    }

    /// SIGSTOP to dockerd: it answers nobody. Its containers go on.
    #[track_caller]
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Ends [`Docker::freeze`].
    #[track_caller]
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    #[track_caller]
    fn signal(&self, signal: &str) {
        let kill = ["-c", "kill \"$0\" \"$(cat /run/dockerd.pid)\"", signal];
        let _ = self.inside("sh", &kill).ok();
    }

    #[track_caller]
    fn end(&self, signal: &str) {
        self.signal(signal);
        let _ = lock(&self.dockerd).as_mut().expect("it was started").wait(START);
        let _ = self.inside("rm", &["-f", "/run/dockerd.pid"]);
    }

    /// Ends all of it at once, as if the machine had lost its power, and forgets what it had.
    #[track_caller]
    pub fn lose(self) {
        let directory = self.directory.clone();
        drop(self);
        fs::remove_dir_all(directory).expect("nobody uses it any more");
    }

    /// Runs `docker` to its end.
    #[track_caller]
    pub fn docker(&self, arguments: &[&str]) -> Ran {
        let shown = format!("[{}] docker {}", self.name, arguments.join(" "));
        run_command(&mut self.docker_command(arguments), &shown).expect("docker is installed")
    }

    fn docker_command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.namespace.command("docker");
        command.arg("--host").arg(self.host()).args(arguments);
        command.env("DOCKER_CONFIG", &self.directory).env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT");
        command
    }

    /// Runs `docker` on a thread of its own.
    ///
    /// # Panics
    /// There is no thread to be had.
    #[must_use]
    pub fn docker_in_background(&self, arguments: &[&str]) -> std::thread::JoinHandle<Ran> {
        let shown = format!("[{}] docker {}", self.name, arguments.join(" "));
        let mut command = self.docker_command(arguments);
        std::thread::spawn(move || run_command(&mut command, &shown).expect("docker is installed"))
    }

    /// Runs `docker-compose` to its end, on a project of this text.
    #[track_caller]
    pub fn compose(&self, project: &str, text: &str, arguments: &[&str]) -> Ran {
        let directory = self.directory.join(project);
        let file = directory.join("docker-compose.yml");
        fs::create_dir_all(&directory).and_then(|()| fs::write(&file, text)).expect("the node's directory");
        let shown = format!("[{}] docker-compose {}", self.name, arguments.join(" "));
        let mut command = self.namespace.command("docker-compose");
        command.arg("--file").arg(&file).args(arguments).env("DOCKER_HOST", self.host());
        command.env("DOCKER_CONFIG", &self.directory).env("COMPOSE_PROJECT_NAME", project);
        run_command(&mut command, &shown).expect("docker-compose is installed")
    }

    /// Starts a container that runs this in a shell, with these options of `docker run`.
    ///
    /// # Panics
    /// It does not start.
    #[track_caller]
    pub fn run(&self, name: &str, options: &[&str], script: &str) {
        let fixed = ["run", "--detach", "--init", "--name", name];
        let all: Vec<&str> =
            fixed.iter().chain(options).copied().chain([IMAGE, "sh", "-c", script]).collect();
        let _ = self.docker(&all).ok();
    }

    /// Runs a command in a container.
    #[track_caller]
    pub fn exec(&self, container: &str, command: &[&str]) -> Ran {
        let all: Vec<&str> = ["exec", container].iter().chain(command).copied().collect();
        self.docker(&all)
    }

    /// What `docker inspect` says of something.
    #[track_caller]
    #[must_use]
    pub fn inspect(&self, what: &str, format: &str) -> String {
        self.docker(&["inspect", "--format", format, what]).ok().trim().to_owned()
    }

    /// Runs a program beside dockerd, with its mounts and its processes.
    #[track_caller]
    pub fn inside(&self, program: &str, arguments: &[&str]) -> Ran {
        let shown = format!("[{}, with dockerd] {program} {}", self.name, arguments.join(" "));
        run_command(self.command(program).args(arguments), &shown).expect("nsenter is installed")
    }

    fn command(&self, program: &str) -> std::process::Command {
        let mut command = self.namespace.command("nsenter");
        command.args(["--target", &self.first.to_string(), "--mount", "--pid", "--", program]);
        command
    }

    fn host(&self) -> String {
        format!("unix://{}", self.directory.join("docker.sock").display())
    }

    fn import(&self) {
        let root = self.directory.join("image");
        let bin = root.join("bin");
        let busybox = Path::new("/bin/busybox");
        fs::create_dir_all(&bin)
            .and_then(|()| fs::create_dir_all(root.join("tmp")))
            .expect("the node's directory");
        fs::copy(busybox, bin.join("busybox")).expect("busybox-static is installed");
        let programs = run(&["/bin/busybox", "--list"]).expect("busybox can be run").ok();
        for program in programs.lines().filter(|program| *program != "busybox") {
            symlink("busybox", bin.join(program)).expect("a link in an empty directory");
        }
        let archive = self.directory.join("image.tar");
        let (root, archive) = (root.to_string_lossy(), archive.to_string_lossy());
        let _ = run(&["tar", "-C", &root, "-cf", &archive, "."]).expect("tar is installed").ok();
        let _ = self.docker(&["import", "--change", "ENV PATH=/bin", &archive, IMAGE]).ok();
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if World::keeps() {
            return;
        }
        // The first process takes all others along, and the mounts; what is left is empty control groups.
        let _ = run(&["kill", "-KILL", &self.first.to_string()]);
        for process in [&self.dockerd, &self.containerd] {
            if let Some(process) = lock(process).as_mut() {
                process.kill();
            }
        }
        let gone = || !Path::new("/proc").join(self.first.to_string()).exists();
        let _ = crate::wait::wait_until(START, gone, |gone| *gone);
        remove_groups(self.group.trim_start_matches('/'));
    }
}

/// Removes the control groups whose names begin so, and that nothing runs in any more.
pub(crate) fn remove_groups(prefix: &str) {
    let roots = fs::read_dir(GROUPS).into_iter().flatten().flatten().map(|entry| entry.path());
    for root in roots.chain([PathBuf::from(GROUPS)]) {
        for group in fs::read_dir(root).into_iter().flatten().flatten() {
            if group.file_name().to_string_lossy().starts_with(prefix) {
                remove_group(&group.path());
            }
        }
    }
}

/// A control group is removed as an empty directory is, whatever files it shows.
fn remove_group(group: &Path) {
    for below in fs::read_dir(group).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&below.path());
        }
    }
    // One that is in use stays.
    let _ = fs::remove_dir(group);
}

/// Where it has its files.
fn directory(node: &Node) -> PathBuf {
    node.directory().join("docker")
}

/// The process that `unshare` has started.
#[track_caller]
fn first_of(surroundings: &mut Process) -> u32 {
    let id = surroundings.id();
    let mut children = || {
        surroundings.assert_running();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        children.split_whitespace().next().and_then(|child| child.parse::<u32>().ok())
    };
    crate::eventually!(START, children(), Option::is_some).expect("it is there")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
