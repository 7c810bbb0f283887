//! Network namespaces: nodes' machines, and the switch that joins them in a namespace of its own.
//!
//! The host's namespace is never touched: both ends of every cable are made inside. So worlds may all use the same
//! addresses, and nothing of the host (a firewall, a route, a port that is taken) has a say in a test.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{Ran, run, run_command};
use crate::world::World;

const DIRECTORY: &str = "/run/netns";
/// The network of every world. TEST-NET-1 and friends are too small to tell nodes from servers by their address.
const NETWORK: [u8; 2] = [10, 77];
const NETWORK_V6: u16 = 0xfd77;
/// The address of the switch where it is a router too, to the machines on it and to those behind it.
const ROUTER: [u8; 2] = [0, 254];
const FAR_SIDE: [u8; 2] = [255, 254];

/// One machine's network.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: String,
    address: IpAddr,
}

impl Namespace {
    /// A new one, empty but for `lo`. `address` is what it will be known by; giving it an interface is the caller's.
    /// It is removed with the world if its name begins with the world's.
    ///
    /// # Panics
    /// Namespaces cannot be made here: see [`crate::can_make_namespaces`].
    #[track_caller]
    #[must_use]
    pub fn add(name: String, address: impl Into<IpAddr>) -> Self {
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Self { name, address: address.into() }
    }

    /// Its name, as `ip netns` lists it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the switch.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// A command that will run inside. `nsenter` replaces itself by the program: the process id is the program's.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a program inside, to its end.
    ///
    /// # Panics
    /// It cannot be started.
    #[track_caller]
    pub fn exec(&self, program: &str, arguments: &[&str]) -> Ran {
        let shown = format!("[{}] {program} {}", self.name, arguments.join(" "));
        run_command(self.command(program).args(arguments), &shown).expect("nsenter is installed")
    }

    /// Runs `work` on a thread of its own that stands inside.
    ///
    /// # Errors
    /// The thread could not be made, or the namespace is gone.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<thread::JoinHandle<T>> {
        let namespace = File::open(self.path())?;
        thread::Builder::new().name(name.to_owned()).stack_size(256 * 1024).spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("whoever may make a namespace may enter it");
            drop(namespace);
            work()
        })
    }

    /// Runs `work` inside and returns what it returns.
    ///
    /// # Panics
    /// The namespace is gone, or `work` panicked.
    pub fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = self.spawn("inside", work).expect("a thread inside the namespace");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A namespace behind this machine, as a container is behind its host: a cable of its own, and a default route
    /// through the machine. It goes with the world.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn container(&self, name: &str) -> Self {
        let (inside, cable) = (format!("{}-{name}", self.name), format!("to-{name}"));
        ip(&["netns", "add", &inside]);
        ip(&[
            "-n", &self.name, "link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &inside,
        ]);
        let (host, own) = (["172.30.0.1", "fd77:30::1"], ["172.30.0.2", "fd77:30::2"]);
        for (namespace, device, addresses) in [(&self.name, cable.as_str(), host), (&inside, "eth0", own)] {
            ip(&["-n", namespace, "address", "add", &format!("{}/24", addresses[0]), "dev", device]);
            // Without duplicate address detection: the address can be used at once.
            ip(&["-n", namespace, "address", "add", &format!("{}/64", addresses[1]), "dev", device, "nodad"]);
            ip(&["-n", namespace, "link", "set", device, "up"]);
        }
        ip(&["-n", &inside, "link", "set", "lo", "up"]);
        for gateway in host {
            ip(&["-n", &inside, "route", "add", "default", "via", gateway]);
        }
        Self { name: inside, address: own[0].parse().expect("an address") }
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(DIRECTORY).join(&self.name)
    }
}

/// Of which family the addresses of a world's machines are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Family {
    /// IPv4, and nothing else.
    #[default]
    V4,
    /// IPv6, and nothing else.
    V6,
}

impl Family {
    /// The address of this number in the network of every world.
    fn address(self, number: [u8; 2]) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(NETWORK[0], NETWORK[1], number[0], number[1]).into(),
            Self::V6 => Ipv6Addr::new(NETWORK_V6, 0, 0, 0, 0, 0, number[0].into(), number[1].into()).into(),
        }
    }

    /// The length of the prefix of the switch's link, and of a single machine.
    fn lengths(self) -> (u8, u8) {
        match self {
            Self::V4 => (24, 32),
            // The last group is the number of the machine on its link.
            Self::V6 => (112, 128),
        }
    }

    fn forwarding(self) -> &'static str {
        match self {
            Self::V4 => "net.ipv4.ip_forward=1",
            Self::V6 => "net.ipv6.conf.all.forwarding=1",
        }
    }
}

/// The switch of a world, and the cables to its machines.
#[derive(Debug)]
pub struct Fabric {
    world: String,
    switch: String,
    family: Family,
    machines: Mutex<BTreeMap<String, Namespace>>,
}

impl Fabric {
    /// A switch without cables.
    ///
    /// # Panics
    /// Namespaces cannot be made here: see [`crate::can_make_namespaces`].
    #[must_use]
    pub fn new(world: &World) -> Self {
        Self::of(world, Family::default())
    }

    /// A switch whose machines have addresses of this family.
    ///
    /// # Panics
    /// Namespaces cannot be made here: see [`crate::can_make_namespaces`].
    #[must_use]
    pub fn of(world: &World, family: Family) -> Self {
        let switch = format!("{}-switch", world.name());
        ip(&["netns", "add", &switch]);
        // No spanning tree and no forwarding delay, or the first seconds of every cable would be lost.
        ip(&[
            "-n",
            &switch,
            "link",
            "add",
            "switch",
            "type",
            "bridge",
            "stp_state",
            "0",
            "forward_delay",
            "0",
        ]);
        ip(&["-n", &switch, "link", "set", "switch", "up"]);
        Self { world: world.name().to_owned(), switch, family, machines: Mutex::default() }
    }

    /// A machine on the switch, its `lo` and `eth0` up. `name` is at most 12 characters: it names the switch's port.
    ///
    /// # Panics
    /// There is one of that name.
    #[must_use]
    pub fn machine(&self, name: &str) -> Namespace {
        assert!(name.len() <= 12, "{name}: an interface name has at most 15 characters");
        let mut machines = self.machines.lock().expect("no machine panics while being made");
        let host = u8::try_from(machines.len() + 1).expect("fewer than 255 machines");
        let address = self.family.address([0, host]);
        let namespace = Namespace::add(format!("{}-{name}", self.world), address);
        let (ns, port) = (namespace.name.clone(), format!("to-{name}"));
        ip(&[
            "link",
            "add",
            "eth0",
            "netns",
            &ns,
            "type",
            "veth",
            "peer",
            "name",
            &port,
            "netns",
            &self.switch,
        ]);
        self.give(&ns, "eth0", address, self.family.lengths().0);
        ip(&["-n", &ns, "link", "set", "eth0", "up"]);
        // A default route, as machines have; nothing answers there.
        ip(&["-n", &ns, "route", "add", "default", "via", &self.family.address(ROUTER).to_string()]);
        ip(&["-n", &self.switch, "link", "set", &port, "master", "switch", "up"]);
        let known = machines.insert(name.to_owned(), namespace.clone());
        assert!(known.is_none(), "there is a machine {name} already");
        namespace
    }

    /// The switch's own namespace: what is done there is done on the way between machines.
    #[must_use]
    pub fn switch(&self) -> Namespace {
        Namespace { name: self.switch.clone(), address: self.family.address(ROUTER) }
    }

    /// Puts a machine behind a router, with the address that it has: it is on a link of its own, and the switch passes packets on
    /// from and to those that are on it by now.
    ///
    /// # Panics
    /// There is no such machine.
    pub fn route(&self, name: &str) {
        let machines = self.machines.lock().expect("no machine panics while being made");
        let (moved, port) = (&machines[name], format!("to-{name}"));
        let (link, single) = self.family.lengths();
        let (far, near) = (self.family.address(FAR_SIDE), self.family.address(ROUTER));
        let (own, far_text) = (format!("{}/{single}", moved.address), far.to_string());
        self.cut(name);
        self.give(&self.switch, "switch", near, link);
        self.give(&self.switch, &port, far, single);
        ip(&["-n", &self.switch, "route", "add", &own, "dev", &port]);
        let _ = self.switch().exec("sysctl", &["-qw", self.family.forwarding()]).ok();
        ip(&["-n", &moved.name, "address", "flush", "dev", "eth0"]);
        self.give(&moved.name, "eth0", moved.address, single);
        ip(&["-n", &moved.name, "route", "add", &far_text, "dev", "eth0"]);
        ip(&["-n", &moved.name, "route", "replace", "default", "via", &far_text]);
        for other in machines.values().filter(|other| other.name != moved.name) {
            ip(&["-n", &other.name, "route", "replace", &own, "via", &near.to_string()]);
        }
    }

    /// Without duplicate address detection: the address can be used at once.
    fn give(&self, namespace: &str, link: &str, address: IpAddr, length: u8) {
        let address = format!("{address}/{length}");
        let mut arguments = vec!["-n", namespace, "address", "replace", &address, "dev", link];
        arguments.extend((self.family == Family::V6).then_some("nodad"));
        ip(&arguments);
    }

    /// Pulls the machine's cable: packets are lost both ways and nobody is told.
    pub fn cut(&self, name: &str) {
        ip(&["-n", &self.switch, "link", "set", &format!("to-{name}"), "nomaster"]);
    }

    /// Takes the switch's end of the machine's cable down: the machine's interface loses its carrier.
    pub fn link_down(&self, name: &str) {
        ip(&["-n", &self.switch, "link", "set", &format!("to-{name}"), "down"]);
    }

    /// Takes it up again.
    pub fn link_up(&self, name: &str) {
        ip(&["-n", &self.switch, "link", "set", &format!("to-{name}"), "up"]);
    }

    /// Plugs the machine's cable in again.
    pub fn heal(&self, name: &str) {
        ip(&["-n", &self.switch, "link", "set", &format!("to-{name}"), "master", "switch"]);
    }
}

#[track_caller]
fn ip(arguments: &[&str]) {
    let command: Vec<&str> = std::iter::once("ip").chain(arguments.iter().copied()).collect();
    let _ = run(&command).expect("iproute2 is installed").ok();
}

/// The namespaces whose names begin so.
pub(crate) fn named(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    names
}

/// Kills what runs in a namespace and removes it; its cables go with it.
pub(crate) fn remove(name: &str) {
    if let Ok(ran) = run(&["ip", "netns", "pids", name]) {
        for pid in ran.stdout.split_whitespace() {
            let _ = run(&["kill", "-KILL", pid]);
        }
    }
    match run(&["ip", "netns", "del", name]) {
        Ok(ran) if ran.success() => {}
        failed => eprintln!("namespace {name} stays behind: {failed:?}"),
    }
}
