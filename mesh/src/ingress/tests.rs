//! Ingress against a catalog made by hand and real sockets.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use nerve::model::{Instance, NodeName, Prefix, ServiceName, ServiceSettings, VirtualIp};
use nerve::tasks::Tasks;
use synapse::catalog::{Catalog, Change, Rank, Writer};
use tokio::sync::watch;

use super::*;
use crate::balance::{self, Place, Surroundings};
use crate::inherited::Inherited;
use crate::proxy::{self, DataPlane};
use crate::socket_file::Mode;

struct World {
    writer: Writer,
    handle: Handle,
    ranges: watch::Sender<Arc<[Prefix]>>,
    tasks: Tasks,
}

fn config(localhost: Vec<LocalPort>) -> Config {
    let node = NodeName::new("a").unwrap();
    Config { node, listen: vec![Ipv4Addr::LOCALHOST.into()], localhost, drain: Duration::from_millis(200) }
}

fn world(localhost: Vec<LocalPort>) -> World {
    let (catalog, writer) = Catalog::new();
    let plane = DataPlane::start(
        proxy::Config { threads: NonZeroU16::new(2).map(Into::into), ..Default::default() },
        proxy::Metrics::new().unwrap(),
    );
    let tasks = Tasks::new();
    let (ranges, local_ranges) = watch::channel(Arc::from([]));
    let config = config(localhost);
    let surroundings = Surroundings {
        place: Place::default(),
        metrics: balance::Metrics::new().unwrap(),
        on_closing: Arc::new(|_, _| {}),
    };
    let (plane, metrics) = (Arc::new(plane.unwrap()), Metrics::new().unwrap());
    let means = Means { plane, surroundings, inherited: Inherited::default(), metrics };
    let handle = start(config, catalog, local_ranges, means, &tasks);
    World { writer, handle, ranges, tasks }
}

fn free_port() -> NonZeroU16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    NonZeroU16::new(listener.local_addr().unwrap().port()).unwrap()
}

fn publish(service: &str, ports: &[NonZeroU16]) -> Change {
    let published = ports.iter().map(|port| port.to_string().parse().unwrap()).collect();
    let settings = ServiceSettings { published, ..Default::default() };
    Change::PutSettings(ServiceName::new(service).unwrap(), Arc::new(settings))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn greeter(text: &'static str) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = io::Write::write_all(&mut stream, text.as_bytes());
        }
    });
    address
}

fn instance(service: &str, address: SocketAddr) -> Change {
    let json = serde_json::json!({"service": service, "id": "1", "node": "a", "address": address.ip(), "port": address.port()});
    Change::PutInstance(Arc::new(serde_json::from_value::<Instance>(json).unwrap()))
}

fn ask(port: NonZeroU16) -> io::Result<String> {
    let mut text = String::new();
    TcpStream::connect((Ipv4Addr::LOCALHOST, port.get()))?.read_to_string(&mut text)?;
    Ok(text)
}

#[tokio::test]
async fn a_published_port_opens_serves_and_closes() {
    let mut world = world(Vec::new());
    let port = free_port();
    world.writer.apply([instance("web", greeter("hello")), publish("web", &[port])]);
    until("open", || ask(port).is_ok_and(|text| text == "hello")).await;
    world.writer.apply([publish("web", &[])]);
    until("closed", || TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).is_err()).await;
    assert!(world.handle.listeners().is_empty());
    world.tasks.shutdown().await;
}

#[tokio::test]
async fn a_localhost_port_is_open_before_its_service_is_known() {
    let (service, port) = (ServiceName::new("web").unwrap(), free_port());
    let listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.get());
    let mut world = world(vec![LocalPort { service, listen: LocalListen::Ip(listen), target: None }]);
    until("open", || TcpStream::connect(listen).is_ok()).await;
    world.writer.apply([instance("web", greeter("local"))]);
    until("served", || ask(port).is_ok_and(|text| text == "local")).await;
    world.handle.reload(&config(Vec::new()));
    until("closed", || TcpStream::connect(listen).is_err()).await;
    world.tasks.shutdown().await;
}

#[tokio::test]
async fn a_unix_socket_serves_follows_its_access_comes_back_and_goes_with_its_port() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = UnixPath::new(directory.path().join("web.sock").to_str().unwrap()).unwrap();
    let wanted = |mode: &str| {
        let access = Access { mode: mode.parse::<Mode>().unwrap(), ..Access::default() };
        let service = ServiceName::new("web").unwrap();
        vec![LocalPort { service, listen: LocalListen::Unix(path.clone(), access), target: None }]
    };
    let ask = || {
        let mut text = String::new();
        std::os::unix::net::UnixStream::connect(path.as_path())?.read_to_string(&mut text).map(|_| text)
    };
    let mode = || std::fs::metadata(path.as_path()).map_or(0, |file| file.permissions().mode() & 0o777);
    let mut world = world(wanted("0660"));
    world.writer.apply([instance("web", greeter("local"))]);
    until("served", || ask().is_ok_and(|text| text == "local")).await;
    assert_eq!(mode(), 0o660);
    let shown = &world.handle.listeners()[0];
    assert_eq!(shown.address.to_string(), format!("unix:{path}"));
    world.handle.reload(&config(wanted("0600")));
    until("another mode", || mode() == 0o600 && ask().is_ok()).await;
    std::fs::remove_file(path.as_path()).unwrap();
    until("back", || ask().is_ok_and(|text| text == "local")).await;
    world.handle.reload(&config(Vec::new()));
    until("gone", || !path.as_path().exists()).await;
    world.tasks.shutdown().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_and_tried_again() {
    let mut world = world(Vec::new());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = NonZeroU16::new(taken.local_addr().unwrap().port()).unwrap();
    world.writer.apply([publish("web", &[port])]);
    until("said", || {
        world.handle.listeners().iter().any(|l| {
            matches!(&l.state, ListenerState::Failed { error } if error.contains("another program listens there"))
        })
    })
    .await;
    drop(taken);
    let opened = async {
        until("open", || matches!(world.handle.listeners()[0].state, ListenerState::Open { .. })).await;
    };
    tokio::join!(opened);
    world.tasks.shutdown().await;
}

#[tokio::test]
async fn a_virtual_address_listens_where_its_range_is_local_on_the_ports_of_its_instances() {
    let mut world = world(Vec::new());
    // Any address of loopback can be bound without a route of ours.
    let vip: IpAddr = "127.77.0.1".parse().unwrap();
    let backend = greeter("virtual");
    let at = SocketAddr::new(vip, backend.port());
    let claim = Change::PutVip(vip, ServiceName::new("web").unwrap());
    world.writer.apply([instance("web", backend), claim.clone()]);
    let open = || TcpStream::connect(at).is_ok();
    let states = || world.handle.listeners().len();
    assert_eq!((open(), states()), (false, 0));
    world.ranges.send_replace(Arc::from(["127.77.0.0/16".parse().unwrap()]));
    until("open", || {
        let mut text = String::new();
        TcpStream::connect(at).and_then(|mut stream| stream.read_to_string(&mut text)).is_ok()
            && text == "virtual"
    })
    .await;
    let off = ServiceSettings { vip: VirtualIp::Off, ..Default::default() };
    let web = || ServiceName::new("web").unwrap();
    world.writer.apply([Change::PutSettings(web(), Arc::new(off))]);
    until("switched off", || !open()).await;
    world.writer.apply([Change::RemoveSettings(web())]);
    until("switched on", open).await;
    world.ranges.send_replace(Arc::from([]));
    until("closed with its range", || !open()).await;
    assert!(world.handle.listeners().is_empty() && world.handle.balancers(&web()).is_empty());
    world.tasks.shutdown().await;
}

#[tokio::test]
async fn a_host_port_leads_to_the_instances_of_this_node() {
    let mut world = world(Vec::new());
    let port = free_port();
    let on = |node: &str, address: SocketAddr| {
        let json = serde_json::json!({"service": "web", "id": node, "node": node, "address": address.ip(), "port": address.port()});
        Change::PutInstance(Arc::new(serde_json::from_value::<Instance>(json).unwrap()))
    };
    let published = nerve::model::PublishedPort {
        mode: nerve::model::PublishMode::Host,
        ..port.to_string().parse().unwrap()
    };
    let settings = ServiceSettings { published: vec![published], ..Default::default() };
    let web = ServiceName::new("web").unwrap();
    world.writer.apply([on("b", greeter("theirs")), Change::PutSettings(web.clone(), Arc::new(settings))]);
    world.writer.apply([on("a", greeter("ours"))]);
    until("open", || ask(port).is_ok()).await;
    for _ in 0..6 {
        assert_eq!(ask(port).unwrap(), "ours");
    }
    world.writer.apply([Change::RemoveInstance(web, nerve::model::InstanceId::new("a").unwrap())]);
    until("closed", || TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).is_err()).await;
    world.tasks.shutdown().await;
}

#[tokio::test]
async fn of_two_services_on_one_port_the_loser_is_told() {
    let mut world = world(Vec::new());
    let port = free_port();
    world.writer.apply([publish("web", &[port])]);
    until("open", || world.handle.listeners().len() == 1).await;
    world.writer.apply([publish("api", &[port])]);
    until("told", || world.handle.listeners().len() == 2).await;
    let loser = &world.handle.listeners()[1];
    assert_eq!(loser.service.as_str(), "api");
    assert!(
        matches!(&loser.state, ListenerState::Failed { error } if error.contains("is published by web too"))
    );
    world.tasks.shutdown().await;
}

/// Where a service runs, as a watcher says.
fn watched(service: &str, address: SocketAddr) -> Arc<Instance> {
    let json = serde_json::json!({"service": service, "id": address.to_string(), "node": "n", "address": address.ip(), "port": address.port()});
    Arc::new(serde_json::from_value(json).unwrap())
}

fn state_of(world: &World, service: &str) -> Option<ListenerState> {
    let listeners = world.handle.listeners_of(&ServiceName::new(service).unwrap());
    listeners.into_iter().map(|listener| listener.state).next()
}

#[tokio::test]
async fn a_port_that_an_instance_of_this_node_has_is_its_own_until_it_is_gone() {
    let world = world(Vec::new());
    let (web, port) = (ServiceName::new("web").unwrap(), free_port());
    let here = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.get());
    let layer = world.writer.layers().layer(Rank { place: 0, life: 0 }, "swarm");
    let says = |instances: Vec<Arc<Instance>>| {
        layer.say(&web, instances, vec![port.to_string().parse().unwrap()]);
    };
    let elsewhere = watched("web", greeter("elsewhere"));
    // Nobody listens there: a listener of ours would lead to itself.
    says(vec![watched("web", here), Arc::clone(&elsewhere)]);
    let is_held = |state: Option<ListenerState>| matches!(state, Some(ListenerState::Held { by }) if by.contains("itself"));
    until("held", || is_held(state_of(&world, "web"))).await;
    assert!(TcpStream::connect(here).is_err() && world.handle.failures().is_empty());
    let gone = std::time::Instant::now();
    says(vec![Arc::clone(&elsewhere)]);
    until("taken", || ask(port).is_ok_and(|text| text == "elsewhere")).await;
    assert!(gone.elapsed() > Duration::from_secs(1), "another one may come within a moment");
    // It comes back, and is to find the port free.
    says(vec![watched("web", here), Arc::clone(&elsewhere)]);
    until("given up", || std::net::TcpListener::bind(here).is_ok()).await;
    assert!(is_held(state_of(&world, "web")));
    world.tasks.shutdown().await;
}

#[tokio::test]
async fn the_store_s_word_on_a_port_goes_before_that_of_a_watcher() {
    let mut world = world(Vec::new());
    let (web, port) = (ServiceName::new("web").unwrap(), free_port());
    let layer = world.writer.layers().layer(Rank { place: 0, life: 0 }, "swarm");
    layer.say(&web, vec![watched("web", greeter("web"))], vec![port.to_string().parse().unwrap()]);
    until("a watcher's", || ask(port).is_ok_and(|text| text == "web")).await;
    // The same port of the same service: by the store's word from now on, and the listener stays.
    let held = TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).unwrap();
    world.writer.apply([publish("web", &[port])]);
    until("open", || matches!(state_of(&world, "web"), Some(ListenerState::Open { .. }))).await;
    drop(held);
    world.writer.apply([publish("web", &[]), instance("api", greeter("api")), publish("api", &[port])]);
    until("the store's", || ask(port).is_ok_and(|text| text == "api")).await;
    let told = |error: &str| error.contains("is published by api too") && error.contains("the watcher swarm");
    let refused = state_of(&world, "web");
    assert!(matches!(&refused, Some(ListenerState::Failed { error }) if told(error)), "{refused:?}");
    assert_eq!(world.handle.failures().len(), 1);
    world.writer.apply([publish("api", &[])]);
    until("a watcher's again", || ask(port).is_ok_and(|text| text == "web")).await;
    world.tasks.shutdown().await;
}

#[tokio::test]
async fn what_a_watcher_publishes_and_another_program_has_is_a_problem_unless_that_is_docker() {
    let world = world(Vec::new());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = NonZeroU16::new(taken.local_addr().unwrap().port()).unwrap();
    let layer = world.writer.layers().layer(Rank { place: 0, life: 0 }, "swarm");
    let web = ServiceName::new("web").unwrap();
    layer.say(&web, vec![watched("web", greeter("web"))], vec![port.to_string().parse().unwrap()]);
    until("said", || matches!(state_of(&world, "web"), Some(ListenerState::Failed { .. }))).await;
    assert!(occupant::may_be_docker("in use; now it is docker-proxy (process 7)"));
    assert!(
        occupant::may_be_docker("in use") && !occupant::may_be_docker("in use; now it is nginx (process 7)")
    );
    drop(taken);
    until("taken", || ask(port).is_ok_and(|text| text == "web")).await;
    world.tasks.shutdown().await;
}
