//! The load: so many new connections and as many datagrams a second, whatever happens, by published ports and virtual addresses
//! of all nodes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::clients::{Shared, Way};
use super::crew::Crew;
use super::plan::NODES;
use super::random::Random;
use crate::client::http;
use crate::netns::Namespace;
use crate::wait::pause;

/// Clients that talk over UDP from one port each for the whole time.
const TALKS: usize = 60;

/// The ports that single datagrams are sent from, in turn: below those that the kernel gives out.
const PORTS: std::ops::Range<u32> = 10_000..30_000;

/// Where the load comes from and goes to.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// The machine of those who ask published ports.
    pub(super) outside: Namespace,
    /// The nodes.
    pub(super) inside: Vec<Namespace>,
    /// The virtual address of the service.
    pub(super) vip: IpAddr,
    /// The published port of all nodes, for TCP and UDP.
    pub(super) port: u16,
    /// The port of the virtual address, for TCP alone.
    pub(super) main_port: u16,
    /// New connections a second, and datagrams a second.
    pub(super) rate: u32,
}

/// A load that runs. It ends when it is dropped, and all its clients with it.
pub(super) struct Load {
    shared: Arc<Shared>,
    pacer: Option<JoinHandle<()>>,
    talks: Vec<JoinHandle<()>>,
}

impl Load {
    pub(super) fn start(target: &Target, shared: &Arc<Shared>, seed: u64) -> Self {
        shared.stop.store(false, Ordering::SeqCst);
        // Of five datagrams two are asked by talks.
        let pace = Duration::from_secs_f64(TALKS as f64 / (0.4 * f64::from(target.rate)));
        let talks = (0..TALKS).map(|number| {
            let (shared, way) = (Arc::clone(shared), target.by_udp(number));
            target.from(way).spawn("talk", move || shared.talk(way, pace)).expect("a thread")
        });
        let talks = talks.collect();
        let (target, of_pacer) = (target.clone(), Arc::clone(shared));
        let pacer = std::thread::spawn(move || keep_pace(&target, &of_pacer, seed));
        Self { shared: Arc::clone(shared), pacer: Some(pacer), talks }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.talks.drain(..).chain(self.pacer.take()) {
            let _ = thread.join();
        }
    }
}

impl Target {
    /// Waits until every way leads somewhere, over TCP and UDP.
    pub(super) fn wait_served(&self) {
        for number in 0..4 * NODES {
            let (tcp, udp) = (self.by_tcp(number), self.by_udp(number));
            let asked = || self.from(tcp).enter(move || is_served(tcp.address, udp.address));
            crate::eventually!(Duration::from_secs(20), (tcp, asked()), |(_, served)| *served
                == (true, true));
        }
    }

    /// The way of the client with this number: a node in turn, every fourth time by the virtual address.
    fn by_udp(&self, number: usize) -> Way {
        let (node, by_vip) = (number % NODES, number / NODES % 4 == 3);
        let ip = if by_vip { self.vip } else { self.inside[node].address() };
        Way { node, by_vip, address: SocketAddr::new(ip, self.port) }
    }

    /// The same over TCP, where a virtual address has the instances' own port too, and listeners of its own with it.
    fn by_tcp(&self, number: usize) -> Way {
        let mut way = self.by_udp(number);
        if way.by_vip {
            way.address.set_port(self.main_port);
        }
        way
    }

    /// Where who goes this way stands.
    fn from(&self, way: Way) -> &Namespace {
        if way.by_vip { &self.inside[way.node] } else { &self.outside }
    }
}

/// Is there an answer, over TCP and over UDP?
fn is_served(tcp: SocketAddr, udp: SocketAddr) -> (bool, bool) {
    let tcp = http::get(tcp, "/").is_ok_and(|answer| answer.status == 200);
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.connect(udp)?;
        socket.send(b"?")?;
        socket.recv(&mut [0; 2048])
    });
    (tcp, udp.is_ok())
}

fn keep_pace(target: &Target, shared: &Arc<Shared>, seed: u64) {
    let mut outside = Crew::new(&target.outside);
    let mut inside: Vec<Crew> = target.inside.iter().map(Crew::new).collect();
    let mut random = Random::new(seed);
    let start = Instant::now();
    for number in 0_u32.. {
        let due = Duration::from_secs(1) * number / target.rate;
        pause(due.saturating_sub(start.elapsed()));
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        let (way, by_udp) = (target.by_tcp(number as usize), target.by_udp(number as usize));
        let mut do_by = |work: Box<dyn FnOnce(&Shared) + Send>| {
            let crew = if way.by_vip { &mut inside[way.node] } else { &mut outside };
            let shared = Arc::clone(shared);
            crew.give(move || {
                shared.record.late(start.elapsed().saturating_sub(due));
                work(&shared);
            });
        };
        let own = random.fork();
        match random.below(100) {
            0..90 => do_by(Box::new(move |shared| shared.once(way))),
            90..99 => do_by(Box::new(move |shared| shared.kept(way, own))),
            _ => do_by(Box::new(move |shared| shared.bulk(way, own))),
        }
        if number % 5 < 3 {
            // A session may know its client for a while after its answer: a port comes again only long after that.
            let port = PORTS.start + number % (PORTS.end - PORTS.start);
            do_by(Box::new(move |shared| shared.datagram(by_udp, u16::try_from(port).unwrap_or(0))));
        }
    }
}
