//! nginx's stream module.

use std::fmt::Write as _;

use anyhow::ensure;
use plexus_tests::Process;

use super::{FIRST_PORT, Setup, write};
use crate::side_by_side::lab::Lab;

/// Where Debian installs it (libnginx-mod-stream).
const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub(super) fn start(lab: &Lab, setup: &Setup) -> anyhow::Result<Process> {
    ensure!(std::path::Path::new(MODULE).is_file(), "no {MODULE}; apt-get install libnginx-mod-stream");
    let file = write(lab, "nginx.conf", &configuration(lab, setup)?)?;
    let mut command = lab.balancer.command("nginx");
    command.arg("-c").arg(file).arg("-p").arg(lab.directory());
    Ok(Process::start("nginx", &mut command, &lab.log("nginx")))
}

fn configuration(lab: &Lab, setup: &Setup) -> anyhow::Result<String> {
    let (workers, directory) = (setup.threads, lab.directory().display());
    // Each has two descriptors, and a worker may get more than its share. They are allocated when it starts.
    let connections = setup.connections * 2 + usize::from(setup.listeners) * setup.threads + 64;
    let last = FIRST_PORT + setup.listeners - 1;
    let ports = if setup.listeners == 1 { last.to_string() } else { format!("{FIRST_PORT}-{last}") };
    let options = if setup.datagrams { "udp reuseport" } else { "reuseport backlog=4096" };
    let mut text = format!(
        "load_module {MODULE};\n\
         user root;\n\
         daemon off;\n\
         pid {directory}/nginx.pid;\n\
         error_log stderr crit;\n\
         worker_processes {workers};\n\
         worker_rlimit_nofile {connections};\n\
         events {{ worker_connections {connections}; multi_accept on; use epoll; }}\n\
         stream {{\n\
         \x20 access_log off;\n\
         \x20 proxy_timeout 1h;\n\
         \x20 proxy_connect_timeout 5s;\n\
         \x20 upstream back {{\n"
    );
    for endpoint in &setup.endpoints {
        writeln!(text, "    server {endpoint};")?;
    }
    writeln!(text, "  }}\n  server {{ listen 0.0.0.0:{ports} {options}; proxy_pass back; }}\n}}")?;
    Ok(text)
}
