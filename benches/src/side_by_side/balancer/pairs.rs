//! Two balancers in a row, as on two nodes: what goes from one to the other is encrypted, and each side shows a certificate.
//!
//! Both stand in the balancer's namespace, and their processor time and memory are counted together.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use plexus_tests::Process;

use super::{FIRST_PORT, Setup, write};
use crate::side_by_side::lab::Lab;
use crate::side_by_side::tunnel::{AUTHORITY, Node, PORT, RECEIVER, SENDER, make_certificates};

/// Two data planes of this repository with a tunnel between them.
pub(super) fn tunnel(lab: &Lab, setup: &Setup) -> anyhow::Result<Vec<Process>> {
    make_certificates(lab.directory())?;
    let ports = FIRST_PORT..FIRST_PORT + setup.listeners;
    let node = |name: &str, listen| Node {
        name: name.to_owned(),
        threads: setup.threads,
        connections: setup.connections,
        listen,
        endpoints: setup.endpoints.clone(),
        encrypted: true,
    };
    let listen = ports.map(|port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)).collect();
    [node(RECEIVER, Vec::new()), node(SENDER, listen)]
        .iter()
        .map(|node| {
            let mut command = lab.balancer.command(std::env::current_exe()?);
            command.arg("node").arg(serde_json::to_string(node)?).arg(lab.directory());
            let name = format!("tunnel-{}", node.name);
            Ok(Process::start(&name, &mut command, &lab.log(&name)))
        })
        .collect()
}

/// Two HAProxys, each of which verifies the other's certificate. TLS 1.3 with OpenSSL's defaults; sessions are resumed.
pub(super) fn haproxy(lab: &Lab, setup: &Setup) -> anyhow::Result<Vec<Process>> {
    make_certificates(lab.directory())?;
    let directory = lab.directory().display();
    let tls = |node| {
        format!(
            "ssl ssl-min-ver TLSv1.3 verify required ca-file {directory}/{AUTHORITY} crt {directory}/{node}.pem"
        )
    };
    let last = FIRST_PORT + setup.listeners - 1;
    let mut sender = beginning(setup);
    writeln!(sender, "frontend front\n  bind 0.0.0.0:{FIRST_PORT}-{last}\n  default_backend back")?;
    writeln!(sender, "backend back\n  server b {PORT} {}", tls(SENDER))?;
    let mut receiver = beginning(setup);
    writeln!(receiver, "frontend front\n  bind {PORT} {}\n  default_backend back", tls(RECEIVER))?;
    writeln!(receiver, "backend back\n  balance roundrobin")?;
    for (index, endpoint) in setup.endpoints.iter().enumerate() {
        writeln!(receiver, "  server s{index} {endpoint}")?;
    }
    [("haproxy-b", receiver), ("haproxy-a", sender)]
        .iter()
        .map(|(name, text)| {
            let file = write(lab, &format!("{name}.cfg"), text)?;
            let mut command = lab.balancer.command("haproxy");
            command.arg("-db").arg("-f").arg(file);
            Ok(Process::start(name, &mut command, &lab.log(name)))
        })
        .collect()
}

fn beginning(setup: &Setup) -> String {
    let (threads, connections) = (setup.threads, setup.connections);
    format!(
        "global\n  nbthread {threads}\n  maxconn {connections}\n\
         defaults\n  mode tcp\n  maxconn {connections}\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         \x20 option tcp-smart-accept\n  option tcp-smart-connect\n"
    )
}
