//! Who may be connected to what: asked before an endpoint is looked for, said to other nodes, and heard from them.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::proxy::AccessRules;

/// Whoever asks is `batch`, and may while this says so.
#[derive(Debug, Default)]
struct Batch {
    may: AtomicBool,
    asked: Mutex<Vec<(Option<IpAddr>, String)>>,
}

impl AccessRules for Batch {
    fn admit(&self, client: Option<IpAddr>, service: &ServiceName) -> bool {
        self.asked.lock().unwrap().push((client, service.to_string()));
        self.may.load(Ordering::Relaxed)
    }

    fn identify(&self, _: Option<IpAddr>, _: &ServiceName) -> Option<ServiceName> {
        ServiceName::new("batch").ok()
    }
}

/// Nothing is let in; who was said to be the client.
#[derive(Debug, Default)]
struct Closed(Mutex<Vec<Option<String>>>);

impl TunnelTargets for Closed {
    fn target(&self, call: &TunnelCall<'_>) -> Result<Address, Refusal> {
        self.0.lock().unwrap().push(call.client_service.map(str::to_owned));
        Err(Refusal::Denied)
    }
}

#[test]
fn whom_the_rules_forbid_is_reset_and_counted_and_no_endpoint_hears_of_it() {
    let world = world(Config::default(), &[echo()]);
    exchange(&world, b"nobody has said anything");
    let rules = Arc::new(Batch::default());
    world.plane.access().set(Arc::clone(&rules) as _);
    assert_eq!(world.connect().read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    until("counted", || world.dropped(Dropped::Denied) == 1);
    assert_eq!(*rules.asked.lock().unwrap(), [(Some("127.0.0.1".parse().unwrap()), "web".to_owned())]);
    rules.may.store(true, Ordering::Relaxed);
    exchange(&world, b"let in");
    world.end();
}

#[test]
fn what_another_nodes_rules_forbid_is_final_and_no_fault_of_its_endpoints() {
    let (authority, at) = (Authority::new(), [echo(), echo()]);
    let metrics = Metrics::new().unwrap();
    let plane = DataPlane::start(Config::default(), metrics.clone()).unwrap();
    plane.tunnels().set_credentials(Some(authority.credentials("b")));
    let closed = Arc::new(Closed::default());
    let targets: Arc<dyn TunnelTargets> = Arc::clone(&closed) as _;
    let address = "127.0.0.1:0".parse().unwrap();
    let listener = plane.open_tunnel(TunnelListenerSpec { address, targets, inherited: Vec::new() }).unwrap();
    let receiver = Receiver { plane, listener, metrics, here: Arc::default() };
    let world = sender(Config::default(), &authority, &receiver, &at, &serde_json::json!({}));
    let rules = Arc::new(Batch::default());
    rules.may.store(true, Ordering::Relaxed);
    world.plane.access().set(rules);
    let mut client = world.connect();
    client.write_all(b"x").unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    until("counted", || world.dropped(Dropped::Denied) == 1);
    assert_eq!(*closed.0.lock().unwrap(), [Some("batch".to_owned())], "asked once");
    assert_eq!(world.dropped(Dropped::ConnectFailed), 0);
    assert!(world.balancer.endpoints().iter().all(|endpoint| endpoint.connect_failures() == 0));
    world.end();
    receiver.end();
}
