//! The program of this repository: an agent with an embedded store, its endpoints as `[[service]]`s without checks, its
//! ports published through its API as users publish them.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use plexus_tests::{Process, wait_until};

use super::{FIRST_PORT, Setup, Unable, write};
use crate::side_by_side::interrupt;
use crate::side_by_side::lab::Lab;

/// The admin address, inside the namespace.
const ADMIN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7070);
/// How long the agent may take to be ready, and its ports to open: ten thousand of them among the cases.
const PATIENCE: Duration = Duration::from_secs(60);
/// The ports of one service. Thousands are spread over services, as they are where there are that many.
const PORTS_A_SERVICE: u16 = 100;

pub(super) fn start(lab: &Lab, setup: &Setup) -> anyhow::Result<Result<Process, Unable>> {
    let file = write(lab, "plexus.toml", &configuration(lab, setup)?)?;
    let mut command = lab.balancer.command(&setup.plexus);
    command.arg("agent").arg("--config").arg(file);
    let mut process = Process::start("plexus", &mut command, &lab.log("plexus"));
    let ready = wait_until(
        PATIENCE,
        || {
            let is_ready = lab.balancer.enter(|| Admin::open()?.ask("GET", "/readyz", ""));
            is_ready.is_ok_and(|answer| answer.status == 200)
                || process.status().is_some()
                || interrupt::check().is_err()
        },
        |is_ready| *is_ready,
    );
    interrupt::check()?;
    ensure!(
        ready.is_ok() && process.status().is_none(),
        "plexus is not ready and said: {}",
        process.output()
    );
    let (listeners, protocol) = (setup.listeners, if setup.datagrams { "udp" } else { "tcp" });
    let published = lab.balancer.enter(move || publish(listeners, protocol))?;
    Ok(published.map(|()| process))
}

/// The API, as an operator or an orchestrator uses it.
pub(in crate::side_by_side) struct Control {
    admin: Admin,
}

impl Control {
    /// To be used by a thread inside the namespace.
    pub(super) fn open() -> anyhow::Result<Self> {
        Ok(Self { admin: Admin::open()? })
    }

    pub(super) fn change(
        &mut self,
        spare: usize,
        endpoint: SocketAddrV4,
        present: bool,
    ) -> anyhow::Result<()> {
        let id = format!("spare-{spare}");
        let answer = if present {
            let (address, port) = (endpoint.ip(), endpoint.port());
            let body = serde_json::json!({"name": "s0", "id": id, "address": address, "port": port});
            self.admin.ask("POST", "/v1/plexus/instances", &body.to_string())?
        } else {
            self.admin.ask("DELETE", &format!("/v1/plexus/instances/{id}"), "")?
        };
        ensure!((200..300).contains(&answer.status), "plexus: {} {}", answer.status, answer.body);
        Ok(())
    }
}

/// The services that there are: enough for the ports.
fn services(listeners: u16) -> u16 {
    listeners.div_ceil(PORTS_A_SERVICE)
}

fn configuration(lab: &Lab, setup: &Setup) -> anyhow::Result<String> {
    let (threads, state) = (setup.threads, lab.directory().join("state"));
    let mut text = format!(
        "state_dir = {state:?}\n\
         [node]\nname = \"bench\"\naddress = \"10.88.1.254\"\n\
         [store]\nurl = \"embedded\"\n\
         [ingress]\nlisten = [\"0.0.0.0\"]\n\
         [proxy]\nthreads = {threads}\n\
         [dns]\nenabled = false\n\
         [admin]\nlisten = [\"{ADMIN}\"]\n\
         [log]\nlevel = \"warn\"\n"
    );
    for service in 0..services(setup.listeners) {
        for (index, endpoint) in setup.endpoints.iter().enumerate() {
            let (address, port) = (endpoint.ip(), endpoint.port());
            writeln!(
                text,
                "[[service]]\nname = \"s{service}\"\nid = \"s{service}-{index}\"\naddress = \"{address}\"\nport = {port}"
            )?;
        }
    }
    Ok(text)
}

/// Publishes the ports and waits until they are open, or one of them cannot be.
fn publish(listeners: u16, protocol: &str) -> anyhow::Result<Result<(), Unable>> {
    let mut admin = Admin::open()?;
    for index in 0..listeners {
        let (service, port) = (index / PORTS_A_SERVICE, FIRST_PORT + index);
        let body = serde_json::json!({"port": {"port": port, "protocol": protocol}}).to_string();
        let answer = admin.ask("PUT", &format!("/v1/plexus/services/s{service}/ports"), &body)?;
        if !(200..300).contains(&answer.status) {
            return Ok(Err(Unable(format!("plexus refuses to publish {port}/{protocol}: {}", answer.body))));
        }
    }
    for service in 0..services(listeners) {
        let path = format!("/v1/plexus/why/s{service}");
        let expected = usize::from(PORTS_A_SERVICE.min(listeners - service * PORTS_A_SERVICE));
        let state = wait_until(
            PATIENCE,
            || listening(&mut admin, &path, expected),
            |state| !matches!(state, Ok(Opened::NotYet)),
        );
        match state {
            Ok(Ok(Opened::All)) => {}
            Ok(Ok(Opened::Failed(problem))) => return Ok(Err(Unable(format!("plexus: {problem}")))),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(Opened::NotYet)) | Err(_) => bail!("the ports of s{service} did not open"),
        }
    }
    Ok(Ok(()))
}

/// How it stands with the listeners of a service.
enum Opened {
    All,
    NotYet,
    Failed(String),
}

fn listening(admin: &mut Admin, path: &str, expected: usize) -> anyhow::Result<Opened> {
    interrupt::check()?;
    let answer = admin.ask("GET", path, "")?;
    let why: serde_json::Value =
        serde_json::from_str(&answer.body).context("what plexus says of a service")?;
    let listeners = why["listeners"].as_array().map_or(&[][..], Vec::as_slice);
    if let Some(problem) = listeners.iter().find_map(|listener| listener["problem"].as_str()) {
        return Ok(Opened::Failed(problem.to_owned()));
    }
    let open = listeners.iter().filter(|listener| listener["listening"] == true).count();
    Ok(if open == expected { Opened::All } else { Opened::NotYet })
}

/// A connection to the agent's API that stays open. To be used by a thread inside the namespace.
struct Admin {
    stream: BufReader<TcpStream>,
}

/// What the agent answered.
struct Answer {
    status: u16,
    body: String,
}

impl Admin {
    fn open() -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&SocketAddr::V4(ADMIN), Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    fn ask(&mut self, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        let malformed = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{path}: {what}"));
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {ADMIN}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| malformed(&format!("no status line: {line:?}")))?;
        let mut length = None;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            match line.trim_end().to_ascii_lowercase().split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().ok(),
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length.ok_or_else(|| malformed("no content-length"))?];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    }
}
