//! A container runtime as users have it: podman with its CNI backend, one on each node, each with storage of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use plexus_tests::{Cluster, Node, Ran, eventually, needs, run, skipped};

const SOON: Duration = Duration::from_secs(10);
const IMAGE: &str = "localhost/small";

/// The podman of a node.
struct Podman<'a> {
    node: &'a Node,
    directory: PathBuf,
}

impl<'a> Podman<'a> {
    /// With the plugin installed, and an image of busybox.
    fn on(node: &'a Node) -> Self {
        let directory = node.directory().join("podman");
        let text = |below: &str| directory.join(below).to_string_lossy().into_owned();
        let (plugins, configurations) = (text("cni/bin"), text("cni/net.d"));
        // podman means a network of its own by `default`.
        for (name, label) in [("mesh", "role=any"), ("served", "plexus.port=80")] {
            let install =
                ["cni", "install", "--name", name, "--bin-dir", &plugins, "--conf-dir", &configurations];
            let [cni, install, of_name, name, bin, plugins, conf, configurations] = install;
            let all = [cni, install, of_name, name, bin, plugins, conf, configurations, "--label", label];
            let said = node.plexus(all).ok();
            assert!(said.contains("are attached"), "{said}");
        }
        // Limits that whoever may not raise its own can give.
        let settings = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             [engine]\nevents_logger = \"file\"\ncgroup_manager = \"cgroupfs\"\nruntime = \"runc\"\n\
             [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{plugins}\"]\n\
             network_config_dir = \"{configurations}\"\n"
        );
        std::fs::write(directory.join("containers.conf"), settings)
            .expect("the node's directory is writable");
        let podman = Self { node, directory };
        podman.import();
        podman
    }

    fn import(&self) {
        let root = self.directory.join("image");
        std::fs::create_dir_all(root.join("bin")).expect("the node's directory is writable");
        let busybox = root.join("bin/busybox");
        std::fs::copy("/bin/busybox", &busybox).expect("busybox is installed");
        for name in ["ping", "sleep", "ip", "httpd"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name))
                .expect("a directory of our own");
        }
        let tar = self.directory.join("image.tar").to_string_lossy().into_owned();
        let _ =
            run(&["tar", "-C", &root.to_string_lossy(), "-cf", &tar, "."]).expect("tar is installed").ok();
        let _ = self.run(&["import", &tar, IMAGE]).ok();
    }

    fn command(&self) -> Command {
        let mut command = self.node.namespace().command("podman");
        for (option, below) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(self.directory.join(below));
        }
        command.args(["--storage-driver", "vfs"]).env_remove("PLEXUS_ADMIN");
        command.env("CONTAINERS_CONF", self.directory.join("containers.conf"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = self.command();
        let output = command.args(arguments).output().expect("podman is installed");
        Ran {
            command: format!("[{}] podman {}", self.node.name(), arguments.join(" ")),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts a container that waits.
    fn start(&self, name: &str) -> Ran {
        self.run(&["run", "--detach", "--name", name, "--network", "mesh", IMAGE, "sleep", "600"])
    }

    fn address(&self, name: &str) -> String {
        self.address_on("mesh", name)
    }

    fn address_on(&self, network: &str, name: &str) -> String {
        let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
        self.run(&["inspect", "--format", &format, name]).ok().trim().to_owned()
    }

    fn reaches(&self, name: &str, address: &str) -> bool {
        self.run(&["exec", name, "ping", "-c", "1", "-W", "1", address]).success()
    }

    /// Its containers are processes of this machine, which a world does not know.
    fn remove_all(&self) -> Ran {
        self.run(&["rm", "--all", "--force", "--time", "0"])
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        let _ = self.remove_all();
    }
}

fn links(node: &Node) -> bool {
    node.exec("ip", &["-br", "link"]).ok().contains("plxe")
}

/// Returns from a test where podman cannot be run.
macro_rules! needs_podman {
    () => {
        needs!("etcd", "etcdctl", "nft", "dig", "podman", "conmon", "runc", "tar", "busybox");
        // The root of a user namespace maps to nobody else, and images have files of others.
        if !std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295")) {
            skipped("podman with this storage needs the root of the machine");
            return;
        }
    };
}

fn cluster() -> Cluster {
    let more = "[overlay]\nenabled = true\ndefault = [\"10.42.0.0/16\"]\nlease = \"1m\"\n";
    let cluster = Cluster::of(2).settings(|settings| settings.more = more.to_owned()).start();
    for node in cluster.all() {
        let peers = || node.metric("plexus_overlay_peers", "network=\"default\"");
        let _ = eventually!(SOON, peers(), |peers| *peers == Some(1.0));
    }
    cluster
}

#[test]
fn names_of_podman_s_containers_are_services_on_every_node() {
    needs_podman!();
    let cluster = cluster();
    let [a, b] = cluster.nodes();
    let (here, there) = (Podman::on(a), Podman::on(b));
    let serve = |podman: &Podman<'_>, more: &[&str]| {
        let start = ["run", "--detach", "--network", "served"];
        let served = [IMAGE, "httpd", "-f", "-p", "80", "-h", "/"];
        podman.run(&[&start[..], more, &served].concat()).ok().trim()[..12].to_owned()
    };
    let first = serve(&here, &["--name", "first", "--network-alias", "web"]);
    let second = serve(&there, &["--name", "second", "--network-alias", "web"]);
    let alone = serve(&here, &["--name", "alone"]);
    let ids = [format!("web-a-{first}"), format!("web-b-{second}")];
    cluster.wait_serving("web", &[&ids[0], &ids[1]]);
    cluster.wait_serving("alone", &[&format!("alone-a-{alone}")]);
    let mut addresses = [here.address_on("served", "first"), there.address_on("served", "second")];
    addresses.sort();
    for node in [a, b] {
        assert_eq!(node.dig("web.mesh.internal", "A").data, addresses);
        assert_eq!(node.dig("alone.mesh.internal", "A").data, [here.address_on("served", "alone")]);
    }
    // It has an alias, and so its own name is none of a service.
    assert_eq!(a.known("first"), Vec::<String>::new());
    cluster.publish("web", 8080);
    let _ = here.run(&["rm", "--force", "--time", "0", "first"]).ok();
    cluster.wait_serving("web", &[&ids[1]]);
    // Nothing is served there, and that is said by who serves.
    assert_eq!(a.get(a.at(8080), "/nothing").expect("an answer").status, 404);
    // On a network without a port, names are nobody's.
    let _ =
        here.run(&["run", "--detach", "--name", "quiet", "--network", "mesh", IMAGE, "sleep", "600"]).ok();
    assert!(a.plexus(["attachments"]).ok().contains(&here.address("quiet")));
    assert_eq!(a.known("quiet"), Vec::<String>::new());
}

#[test]
fn containers_of_podman_reach_each_other_across_nodes() {
    needs_podman!();
    let cluster = cluster();
    let [a, b] = cluster.nodes();
    let (here, there) = (Podman::on(a), Podman::on(b));
    assert!(here.run(&["network", "ls"]).ok().contains("mesh"));
    for podman in [&here, &there] {
        let _ = podman.start("one").ok();
    }
    let (own, other) = (here.address("one"), there.address("one"));
    for (node, address) in [(a, &own), (b, &other)] {
        assert!(address.starts_with("10.42."), "{address:?}");
        assert!(node.plexus(["attachments"]).ok().contains(address.as_str()));
    }
    let _ = eventually!(SOON, here.reaches("one", &other), |reaches| *reaches);
    assert!(there.reaches("one", &own));
    // An agent that is away: what runs goes on, what is new is told why it cannot be.
    a.kill_agent();
    assert!(here.reaches("one", &other));
    let refused = here.start("two").refused();
    assert!(refused.contains("no agent answers"), "{refused}");
    a.restart_agent();
    let _ = here.run(&["rm", "--force", "two"]);
    let _ = here.start("three").ok();
    assert!(here.reaches("three", &other) && here.reaches("three", &own) && here.reaches("one", &other));
    for podman in [&here, &there] {
        let _ = podman.remove_all().ok();
        assert!(podman.node.plexus(["attachments"]).ok().contains("nothing is attached"));
        assert!(!links(podman.node));
    }
}
