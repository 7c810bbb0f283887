//! The plugin of container runtimes, called as the specification says: by variables, with a configuration on standard input.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use plexus_tests::{Cluster, Namespace, Node, eventually, needs, skipped};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);
/// Where Debian's containernetworking-plugins are.
const PLUGINS: &str = "/usr/lib/cni";

/// What a runtime has: the plugin and its configurations, on a node.
pub(crate) struct Runtime<'a> {
    node: &'a Node,
    plugins: PathBuf,
    configurations: PathBuf,
}

/// What a plugin answered.
#[derive(Debug)]
pub(crate) struct Told {
    done: bool,
    json: Value,
}

impl Told {
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!(self.done, "{self:?}");
        self.json
    }

    /// What it was refused with, in words.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert!(!self.done, "{self:?}");
        self.json["msg"].as_str().expect("a message").to_owned()
    }

    #[track_caller]
    pub(crate) fn code(self) -> u64 {
        assert!(!self.done, "{self:?}");
        assert!(self.json["msg"].as_str().is_some_and(|message| !message.is_empty()), "{self:?}");
        self.json["code"].as_u64().expect("a code")
    }
}

impl<'a> Runtime<'a> {
    pub(crate) fn on(node: &'a Node) -> Self {
        let (plugins, configurations) =
            (node.directory().join("cni/bin"), node.directory().join("cni/net.d"));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (bin, conf) = (text(&plugins), text(&configurations));
        // By the socket, as where no token is to lie about.
        let admin = node.admin_socket();
        let install = ["cni", "install", "--bin-dir", &bin, "--conf-dir", &conf, "--admin", &admin];
        let said = node.plexus(install).ok();
        assert!(said.contains(&bin) && !said.contains("note:"), "{said}");
        Self { node, plugins, configurations }
    }

    /// The configuration of the plugin, as a runtime makes it of the list that was installed.
    pub(crate) fn configuration(&self, version: &str) -> Value {
        let list =
            std::fs::read(self.configurations.join("10-plexus-default.conflist")).expect("it is installed");
        let list: Value = serde_json::from_slice(&list).expect("JSON");
        assert!(list["cniVersions"].as_array().expect("a list").contains(&json!(version)));
        let mut one = list["plugins"][0].clone();
        assert_eq!(one["type"], "plexus");
        one["name"] = list["name"].clone();
        one["cniVersion"] = json!(version);
        one
    }

    /// Calls the plugin as a runtime does.
    pub(crate) fn call(&self, command: &str, container: Option<&Container>, configuration: &Value) -> Told {
        self.call_with("", command, container, configuration)
    }

    /// The same, with `CNI_ARGS`.
    pub(crate) fn call_with(
        &self,
        arguments: &str,
        command: &str,
        container: Option<&Container>,
        configuration: &Value,
    ) -> Told {
        let own = self.plugins.join("plexus");
        self.run(&own, arguments, command, container, configuration)
    }

    /// The same of a plugin that came with the runtime.
    fn call_other(&self, plugin: &str, command: &str, container: &Container, configuration: &Value) -> Told {
        self.run(&Path::new(PLUGINS).join(plugin), "", command, Some(container), configuration)
    }

    fn run(
        &self,
        plugin: &Path,
        arguments: &str,
        command: &str,
        container: Option<&Container>,
        configuration: &Value,
    ) -> Told {
        let mut plugin = self.node.namespace().command(plugin);
        plugin.env("CNI_COMMAND", command).env("CNI_ARGS", arguments).env_remove("PLEXUS_ADMIN");
        plugin.env("CNI_PATH", format!("{}:{PLUGINS}", self.plugins.display()));
        if let Some(container) = container {
            plugin.env("CNI_CONTAINERID", &container.id).env("CNI_IFNAME", "eth0");
            plugin.env("CNI_NETNS", container.path());
        }
        plugin.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut plugin = plugin.spawn().expect("the plugin can be started");
        let text = configuration.to_string();
        let mut input = plugin.stdin.take().expect("it is piped");
        // One that fails early does not read it.
        let _ = input.write_all(text.as_bytes());
        drop(input);
        let ended = plugin.wait_with_output().expect("it ends");
        let printed = String::from_utf8_lossy(&ended.stdout);
        let json = match printed.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|error| panic!("no JSON ({error}): {text}")),
        };
        Told { done: ended.status.success(), json }
    }

    /// The ids of what is attached.
    pub(crate) fn attached(&self) -> Vec<String> {
        let listed = self.node.admin_json("/v1/plexus/attachments");
        let listed = listed["attachments"].as_array().cloned().unwrap_or_default();
        listed.iter().map(|one| one["id"].as_str().expect("an id").to_owned()).collect()
    }
}

/// A network namespace, by the id that a runtime has for it.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) namespace: Namespace,
}

impl Container {
    pub(crate) fn on(node: &Node, name: &str) -> Self {
        let namespace = Namespace::add(format!("{}-{name}", node.namespace().name()), node.address());
        Self { id: format!("{name}-0123456789abcdef"), namespace }
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(self.namespace.name())
    }

    fn ip(&self, arguments: &[&str]) -> String {
        self.namespace.exec("ip", arguments).ok()
    }

    fn reaches(&self, address: &str) -> bool {
        self.namespace.exec("ping", &["-n", "-q", "-c", "1", "-W", "1", address]).code == Some(0)
    }
}

pub(crate) fn cluster(nodes: usize) -> Cluster {
    let more = "[overlay]\nenabled = true\ndefault = [\"10.42.0.0/16\", \"fd00:42::/48\"]\nlease = \"1m\"\n";
    let cluster = Cluster::of(nodes).settings(|settings| settings.more = more.to_owned()).start();
    for node in cluster.all() {
        let peers = || node.metric("plexus_overlay_peers", "network=\"default\"");
        let _ = eventually!(SOON, peers(), |peers| *peers == Some((nodes - 1) as f64));
    }
    cluster
}

/// The first address of a result, without its length.
pub(crate) fn address(result: &Value) -> String {
    let address = result["ips"][0]["address"].as_str().expect("an address");
    address.split('/').next().expect("a part").to_owned()
}

#[test]
fn a_container_is_added_checked_and_deleted_in_every_version() {
    needs!("etcd", "etcdctl", "nft", "ping");
    let cluster = cluster(2);
    let [a, b] = cluster.nodes();
    let (runtime, other) = (Runtime::on(a), Runtime::on(b));
    let peer = Container::on(b, "peer");
    let there = address(&other.call("ADD", Some(&peer), &other.configuration("1.0.0")).ok());
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut configuration = runtime.configuration(version);
        let container = Container::on(a, &format!("v{}", version.replace('.', "-")));
        let result = runtime.call("ADD", Some(&container), &configuration).ok();
        assert_eq!(result["cniVersion"], version);
        let inside = &result["interfaces"][1];
        assert_eq!((&inside["name"], &inside["sandbox"]), (&json!("eth0"), &json!(container.path())));
        let link = result["interfaces"][0]["name"].as_str().expect("a name");
        assert!(a.exec("ip", &["link", "show", link]).ok().contains("plxb"));
        for ip in result["ips"].as_array().expect("addresses") {
            assert_eq!(ip["interface"], 1);
            assert_eq!(ip["version"].is_string(), version < "1.0.0", "{ip}");
            let own = container.ip(&["address", "show", "dev", "eth0"]);
            assert!(own.contains(ip["address"].as_str().expect("text")), "{own}");
            let gateway = ip["gateway"].as_str().expect("text");
            let _ = eventually!(SOON, container.reaches(gateway), |reaches| *reaches);
        }
        let _ = eventually!(SOON, container.reaches(&there), |reaches| *reaches);
        // It has one already.
        assert_eq!(runtime.call("ADD", Some(&container), &configuration).code(), 100);
        if version > "0.4" {
            assert_eq!(runtime.call("CHECK", Some(&container), &configuration).code(), 7);
            configuration["prevResult"] = result;
            let _ = runtime.call("CHECK", Some(&container), &configuration).ok();
            let _ = container.ip(&["address", "flush", "dev", "eth0"]);
            assert_eq!(runtime.call("CHECK", Some(&container), &configuration).code(), 101);
        } else {
            assert_eq!(runtime.call("CHECK", Some(&container), &configuration).code(), 1);
        }
        // "Plugins should generally complete a DEL action without error even if some resources are missing."
        for _ in 0..2 {
            let _ = runtime.call("DEL", Some(&container), &configuration).ok();
            assert!(!container.ip(&["link"]).contains("eth0"));
        }
        if version > "0.4" {
            assert_eq!(runtime.call("CHECK", Some(&container), &configuration).code(), 3);
        }
    }
    assert_eq!(runtime.attached(), Vec::<String>::new());
    let gone = Container::on(a, "gone");
    let configuration = runtime.configuration("1.0.0");
    let _ = runtime.call("ADD", Some(&gone), &configuration).ok();
    let _ = a.exec("ip", &["netns", "del", gone.namespace.name()]).ok();
    let _ = runtime.call("DEL", Some(&gone), &configuration).ok();
    assert_eq!(runtime.attached(), Vec::<String>::new());
    assert_eq!(runtime.call("ADD", Some(&gone), &configuration).code(), 3);
}

#[test]
fn what_the_runtime_does_not_know_is_collected_and_nothing_else() {
    needs!("etcd", "etcdctl", "nft");
    let cluster = cluster(1);
    let [a] = cluster.nodes();
    let runtime = Runtime::on(a);
    let mut configuration = runtime.configuration("1.1.0");
    let _ = runtime.call("STATUS", None, &configuration).ok();
    let [known, unknown, others] = ["known", "unknown", "others"].map(|name| Container::on(a, name));
    let plain = Container::on(a, "plain");
    for container in [&known, &unknown] {
        let _ = runtime.call("ADD", Some(container), &configuration).ok();
    }
    let mut of_another = configuration.clone();
    of_another["name"] = json!("another");
    let _ = runtime.call("ADD", Some(&others), &of_another).ok();
    let _ = a.plexus(["attach", plain.namespace.name(), "--network", "default"]).ok();
    // Who does not say who is valid does not mean that nobody is.
    assert_eq!(runtime.call("GC", None, &configuration).code(), 7);
    assert_eq!(runtime.call("GC", None, &runtime.configuration("1.0.0")).code(), 1);
    assert_eq!(runtime.attached().len(), 4);
    configuration["cni.dev/valid-attachments"] = json!([{"containerID": known.id, "ifname": "eth0"}]);
    let _ = runtime.call("GC", None, &configuration).ok();
    let left = runtime.attached();
    assert!(left.len() == 3 && !left.iter().any(|id| id.starts_with("unknown-")), "{left:?}");
    // An agent that is not there may be there later.
    let nowhere = json!({"cniVersion": "1.1.0", "name": "nowhere", "type": "plexus"});
    assert_eq!(runtime.call("STATUS", None, &nowhere).code(), 50);
    assert_eq!(runtime.call("ADD", Some(&unknown), &nowhere).code(), 100);
    a.kill_agent();
    assert_eq!(runtime.call("STATUS", None, &configuration).code(), 50);
    for command in ["ADD", "DEL", "CHECK", "GC"] {
        let mut configuration = configuration.clone();
        configuration["prevResult"] = json!({});
        assert_eq!(runtime.call(command, Some(&known), &configuration).code(), 11, "{command}");
    }
    a.restart_agent();
    let _ = eventually!(SOON, runtime.call("STATUS", None, &configuration), |told| told.done);
    let _ = runtime.call("DEL", Some(&known), &configuration).ok();
}

#[test]
fn a_call_that_is_wrong_is_refused_with_the_code_of_the_specification() {
    needs!("etcd", "etcdctl", "nft");
    let cluster = cluster(1);
    let [a] = cluster.nodes();
    let runtime = Runtime::on(a);
    let configuration = runtime.configuration("1.0.0");
    let versions = runtime.call("VERSION", None, &json!({"cniVersion": "1.0.0"})).ok();
    assert_eq!(versions["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    let container = Container::on(a, "one");
    let with = |key: &str, value: Value| {
        let mut changed = configuration.clone();
        changed[key] = value;
        runtime.call("ADD", Some(&container), &changed)
    };
    assert_eq!(with("cniVersion", json!("0.2.0")).code(), 1);
    assert_eq!(with("network", json!("No Network")).code(), 7);
    assert_eq!(with("runtimeConfig", json!({"ips": ["192.0.2.7/24"]})).code(), 100);
    assert_eq!(runtime.call("ADD", None, &configuration).code(), 4);
    assert_eq!(runtime.call("add", Some(&container), &configuration).code(), 4);
    assert_eq!(runtime.call("ADD", Some(&container), &json!("no configuration")).code(), 6);
    let own = Container { id: "own".to_owned(), namespace: a.namespace().clone() };
    assert_eq!(runtime.call("ADD", Some(&own), &configuration).code(), 8);
    assert_eq!(runtime.attached(), Vec::<String>::new());
    // With arguments it is the command line, whatever the environment says.
    let mut command = a.namespace().command(runtime.plugins.join("plexus"));
    let ran = command.arg("status").env("CNI_COMMAND", "ADD").env("PLEXUS_ADMIN", a.admin_socket()).output();
    assert!(ran.expect("it can be started").status.success());
}

#[test]
fn the_plugin_that_limits_bandwidth_can_follow_it() {
    needs!("etcd", "etcdctl", "nft", "ping", "tc");
    if !Path::new(PLUGINS).join("bandwidth").exists() {
        skipped("containernetworking-plugins are not installed; `tests/run` as root installs them");
        return;
    }
    let cluster = cluster(2);
    let [a, b] = cluster.nodes();
    let (runtime, other) = (Runtime::on(a), Runtime::on(b));
    let (free, peer) = (Container::on(a, "free"), Container::on(b, "peer"));
    let there = address(&other.call("ADD", Some(&peer), &other.configuration("1.0.0")).ok());
    let _ = runtime.call("ADD", Some(&free), &runtime.configuration("1.0.0")).ok();
    let programs = || a.metric("plexus_overlay_fast_path_program_containers", "");
    let _ = eventually!(SOON, programs(), |count| *count == Some(1.0));
    let limited = Container::on(a, "limited");
    let result = runtime.call("ADD", Some(&limited), &runtime.configuration("1.0.0")).ok();
    let link = result["interfaces"][0]["name"].as_str().expect("its end on the host").to_owned();
    let limits = json!({
        "cniVersion": "1.0.0", "name": "default", "type": "bandwidth", "prevResult": result,
        "ingressRate": 50_000_000, "ingressBurst": 5_000_000, "egressRate": 50_000_000, "egressBurst": 5_000_000,
    });
    let _ = runtime.call_other("bandwidth", "ADD", &limited, &limits).ok();
    let shaped = a.exec("tc", &["qdisc", "show", "dev", &link]).ok();
    assert!(shaped.contains("tbf") && shaped.contains("ingress"), "{shaped}");
    let _ = eventually!(SOON, limited.reaches(&there), |reaches| *reaches);
    // What it limits, the programs leave to it: of the two they have one.
    let short = || a.metric("plexus_overlay_fast_path_containers", "");
    let _ = eventually!(SOON, (short(), programs()), |counts| *counts == (Some(2.0), Some(1.0)));
    assert!(limited.reaches(&there));
    let _ = runtime.call_other("bandwidth", "DEL", &limited, &limits).ok();
    let _ = runtime.call("DEL", Some(&limited), &runtime.configuration("1.0.0")).ok();
}

#[test]
fn it_can_follow_another_plugin_and_ask_another_one_for_addresses() {
    needs!("etcd", "etcdctl", "nft", "ping");
    if !Path::new(PLUGINS).join("host-local").exists() {
        skipped("containernetworking-plugins are not installed; `tests/run` as root installs them");
        return;
    }
    let cluster = cluster(2);
    let [a, b] = cluster.nodes();
    let (runtime, other) = (Runtime::on(a), Runtime::on(b));
    let peer = Container::on(b, "peer");
    let there = address(&other.call("ADD", Some(&peer), &other.configuration("1.0.0")).ok());
    // After a plugin that made eth0.
    let both = Container::on(a, "both");
    let _ = both.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "other"]);
    let before = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": both.path()}],
        "ips": [{"interface": 0, "address": "192.0.2.7/24"}],
        "dns": {"nameservers": ["192.0.2.53"]}
    });
    let mut chained = runtime.configuration("1.0.0");
    chained["prevResult"] = before.clone();
    assert_eq!(runtime.call("ADD", Some(&both), &chained).code(), 7);
    chained["interface"] = json!("mesh0");
    let result = runtime.call("ADD", Some(&both), &chained).ok();
    assert_eq!((&result["interfaces"][0], &result["ips"][0]), (&before["interfaces"][0], &before["ips"][0]));
    assert_eq!((&result["dns"], &result["interfaces"][2]["name"]), (&before["dns"], &json!("mesh0")));
    let _ = eventually!(SOON, both.reaches(&there), |reaches| *reaches);
    chained["prevResult"] = result;
    let _ = runtime.call("CHECK", Some(&both), &chained).ok();
    let _ = runtime.call("DEL", Some(&both), &chained).ok();
    assert!(!both.ip(&["link"]).contains("mesh0") && both.ip(&["link"]).contains("eth0"));
    // With addresses of host-local, which are to be of this node's subnet.
    let given = a.admin_json("/v1/plexus/networks/default/attachable");
    let leases = a.directory().join("leases");
    let ipam = |subnet: &Value| {
        let ranges = json!([[{"subnet": subnet, "rangeStart": start(subnet)}]]);
        let routes = json!([{"dst": "0.0.0.0/0"}]);
        json!({"type": "host-local", "dataDir": leases, "ranges": ranges, "routes": routes})
    };
    let leased = || {
        let directory = std::fs::read_dir(leases.join("default")).into_iter().flatten().flatten();
        directory.filter(|entry| entry.file_name().to_string_lossy().contains("10.")).count()
    };
    let container = Container::on(a, "delegated");
    let mut delegated = runtime.configuration("1.0.0");
    delegated["ipam"] = ipam(&given["subnets"][0]);
    let result = runtime.call("ADD", Some(&container), &delegated).ok();
    assert_eq!(json!(address(&result)), start(&given["subnets"][0]));
    let _ = eventually!(SOON, container.reaches(&there), |reaches| *reaches);
    assert_eq!(leased(), 1);
    delegated["prevResult"] = result;
    let _ = runtime.call("CHECK", Some(&container), &delegated).ok();
    let _ = runtime.call("DEL", Some(&container), &delegated).ok();
    assert_eq!(leased(), 0);
    // One that is not this node's is given back.
    delegated["prevResult"] = Value::Null;
    delegated["ipam"] = ipam(&json!("10.99.0.0/24"));
    assert_eq!(runtime.call("ADD", Some(&container), &delegated).code(), 100);
    assert_eq!((leased(), runtime.attached().len()), (0, 0));
    delegated["ipam"] = json!({"type": "not-installed"});
    assert_eq!(runtime.call("ADD", Some(&container), &delegated).code(), 7);
}

/// The hundredth address of a subnet of 256.
fn start(subnet: &Value) -> Value {
    let subnet = subnet.as_str().expect("a subnet");
    json!(format!("{}.100", subnet.rsplit_once('.').expect("of IPv4").0))
}
