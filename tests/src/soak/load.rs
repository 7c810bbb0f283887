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

/// Where the load comes from and goes to.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// The machine of those who ask published ports.
    pub(super) outside: Namespace,
    /// The nodes.
    pub(super) inside: Vec<Namespace>,
    /// The virtual address of the service.
    pub(super) vip: IpAddr,
    /// The published port of all nodes, which the virtual address has too.
    pub(super) port: u16,
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
            let (shared, way) = (Arc::clone(shared), target.way(number));
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
            let way = self.way(number);
            let asked = || self.from(way).enter(move || is_served(way.address));
            crate::eventually!(Duration::from_secs(20), (way, asked()), |(_, served)| *served == (true, true));
        }
    }

    /// The way of the client with this number: a node in turn, every fourth time by the virtual address.
    fn way(&self, number: usize) -> Way {
        let (node, by_vip) = (number % NODES, number / NODES % 4 == 3);
        let ip = if by_vip { self.vip } else { self.inside[node].address().into() };
        Way { node, by_vip, address: SocketAddr::new(ip, self.port) }
    }

    /// Where who goes this way stands.
    fn from(&self, way: Way) -> &Namespace {
        if way.by_vip { &self.inside[way.node] } else { &self.outside }
    }
}

/// Is there an answer, over TCP and over UDP?
fn is_served(address: SocketAddr) -> (bool, bool) {
    let tcp = http::get(address, "/").is_ok_and(|answer| answer.status == 200);
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.connect(address)?;
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
        let way = target.way(number as usize);
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
            do_by(Box::new(move |shared| shared.datagram(way)));
        }
    }
}
