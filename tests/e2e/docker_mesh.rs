//! The routing mesh with Docker: a container on one node, its service on a port of every node, for clients of both families and both
//! protocols, who are seen as who they are.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use plexus_tests::client::http::{self, Held};
use plexus_tests::client::udp::Talk;
use plexus_tests::{Namespace, backend_program, eventually};

use crate::docker::{CREATE, SOON, cluster, needs_docker};
use crate::{INSTANCE, PUBLISHED};

const ANSWER: Duration = Duration::from_millis(500);

/// Two addresses of a client that is on nobody's network, and its node's ends of its links.
const CLIENT: [&str; 2] = ["172.30.0.2", "fd77:30::2"];
const GATEWAY: [&str; 2] = ["172.30.0.1", "fd77:30::1"];

fn at(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), PUBLISHED)
}

/// Whom the container sees, over TCP.
fn seen_by_tcp(client: &Namespace, at: SocketAddr) -> Result<IpAddr, http::Failure> {
    client.enter(move || {
        let answer = Held::open(at)?.get("/client")?;
        Ok(answer.body.parse::<SocketAddr>().expect("an address").ip().to_canonical())
    })
}

/// Whom it sees over UDP; `None` without an answer.
fn seen_by_udp(client: &Namespace, at: SocketAddr) -> Option<IpAddr> {
    let answer = Talk::open(client, at).expect("a socket").ask(b"/client", ANSWER)?;
    Some(answer.parse::<SocketAddr>().expect("an address").ip().to_canonical())
}

#[test]
fn a_container_of_one_docker_answers_on_a_port_of_every_node() {
    needs_docker!();
    let (cluster, dockers) = cluster(3);
    for docker in &dockers {
        let _ = docker.docker(&[&CREATE[..], &["mynet"]].concat()).ok();
    }
    // The test's backend, with the libraries of this machine: the image has none.
    let program = format!("{}:/backend:ro", backend_program().display());
    let port = INSTANCE.to_string();
    let mut options = vec!["--network", "mynet", "--expose", &port, "--volume", &program];
    for libraries in ["/usr:/usr:ro", "/lib:/lib:ro", "/lib64:/lib64:ro"] {
        options.extend(["--volume", libraries]);
    }
    dockers[1].run("web", &options, &format!("exec /backend [::]:{INSTANCE} web web b"));
    let a = cluster.all().next().expect("three of them");
    let serving = || a.serving("web").len();
    let _ = eventually!(SOON, serving(), |count| *count == 1);
    for protocol in ["tcp", "udp"] {
        let _ = a.plexus(["publish", "web", &format!("{PUBLISHED}/{protocol}")]).ok();
    }
    let clients: Vec<Namespace> =
        cluster.all().map(|node| node.namespace().container(&format!("far-{}", node.name()))).collect();
    for (client, gateway) in clients.iter().flat_map(|client| GATEWAY.map(|gateway| (client, gateway))) {
        let _ = eventually!(SOON, seen_by_tcp(client, at(gateway)), Result::is_ok);
        let _ = eventually!(SOON, seen_by_udp(client, at(gateway)), Option::is_some);
    }
    // Nobody is shown a client that has not asked for it.
    for client in &clients {
        assert_ne!(
            seen_by_tcp(client, at(GATEWAY[0])).ok().map(|ip| ip.to_string()).as_deref(),
            Some(CLIENT[0])
        );
    }
    // What Docker gives is an IPv4 address: clients of that family are shown to it, and others are served.
    let _ = a.plexus(["set", "web", "client_address=transparent"]).ok();
    let own: IpAddr = CLIENT[0].parse().expect("an address");
    for client in &clients {
        let _ = eventually!(
            SOON,
            seen_by_tcp(client, at(GATEWAY[0])),
            |seen| matches!(seen, Ok(seen) if *seen == own)
        );
        let _ = eventually!(SOON, seen_by_udp(client, at(GATEWAY[0])), |seen| *seen == Some(own));
        assert!(seen_by_tcp(client, at(GATEWAY[1])).is_ok() && seen_by_udp(client, at(GATEWAY[1])).is_some());
    }
}
