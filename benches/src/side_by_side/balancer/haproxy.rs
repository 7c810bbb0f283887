//! HAProxy in TCP mode.
//!
//! Left at its defaults, which are good here: `tune.listener.multi-queue`, epoll, the buffer's size. `defer-accept` is
//! not set: with it a server that speaks first would wait, which no general TCP balancer may cause.

use std::fmt::Write as _;

use plexus_tests::Process;

use super::{FIRST_PORT, Setup, write};
use crate::side_by_side::lab::Lab;

pub(super) fn start(lab: &Lab, setup: &Setup, splice: bool) -> anyhow::Result<Process> {
    let file = write(lab, "haproxy.cfg", &configuration(lab, setup, splice)?)?;
    let mut command = lab.balancer.command("haproxy");
    command.arg("-db").arg("-f").arg(file);
    Ok(Process::start("haproxy", &mut command, &lab.log("haproxy")))
}

fn configuration(lab: &Lab, setup: &Setup, splice: bool) -> anyhow::Result<String> {
    let (threads, connections) = (setup.threads, setup.connections);
    let socket = lab.directory().join("haproxy.sock");
    let socket = socket.display();
    let last = FIRST_PORT + setup.listeners - 1;
    let splice = if splice { "option splice-auto" } else { "" };
    let mut text = format!(
        "global\n\
         \x20 nbthread {threads}\n\
         \x20 maxconn {connections}\n\
         \x20 stats socket {socket} mode 600 level admin\n\
         defaults\n\
         \x20 mode tcp\n\
         \x20 maxconn {connections}\n\
         \x20 timeout connect 5s\n\
         \x20 timeout client 1h\n\
         \x20 timeout server 1h\n\
         \x20 option tcp-smart-accept\n\
         \x20 option tcp-smart-connect\n\
         \x20 {splice}\n\
         frontend front\n\
         \x20 bind 0.0.0.0:{FIRST_PORT}-{last}\n\
         \x20 default_backend back\n\
         backend back\n\
         \x20 balance roundrobin\n"
    );
    for (index, endpoint) in setup.endpoints.iter().enumerate() {
        writeln!(text, "  server s{index} {endpoint}")?;
    }
    Ok(text)
}
