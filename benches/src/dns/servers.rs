//! The servers, each on the first core with one thread that answers.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::names::{self, AWAY, DOMAIN};
use crate::fleet;

/// How long a server may take to answer its last name.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whose program it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Plexus,
    Knot,
    Unbound,
    Dnsmasq,
    Bind,
}

impl Name {
    pub(super) const ALL: [Self; 5] = [Self::Plexus, Self::Knot, Self::Unbound, Self::Dnsmasq, Self::Bind];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Plexus => "plexus",
            Self::Knot => "knot",
            Self::Unbound => "unbound",
            Self::Dnsmasq => "dnsmasq",
            Self::Bind => "bind9",
        }
    }

    /// Is it one that asks others?
    pub(super) fn forwards(self) -> bool {
        matches!(self, Self::Plexus | Self::Unbound | Self::Dnsmasq)
    }

    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|name| name.as_str() == text);
        found.with_context(|| format!("there is no server {text:?}"))
    }
}

/// A running server, gone with the value that stands for it.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) name: Name,
    pub(super) port: u16,
    child: Child,
}

impl Server {
    /// Starts whom names are forwarded to, on any core.
    pub(super) fn away(names: usize, directory: &Path) -> anyhow::Result<Self> {
        let own = directory.join("away");
        fs::create_dir_all(&own)?;
        let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        let arguments = knot(&own, port, (AWAY, &names::away(names)?))?;
        Self::run(Name::Knot, port, &["-c", "0,1"], &arguments, &own)
    }

    fn run(name: Name, port: u16, cores: &[&str], arguments: &[String], own: &Path) -> anyhow::Result<Self> {
        let log = fs::File::create(own.join("log"))?;
        let mut command = Command::new("taskset");
        command.args(cores).args(arguments).stdin(Stdio::null());
        let child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        Ok(Self { name, port, child })
    }

    /// Starts it with all names, and waits until it has them. It asks `away` for those that are forwarded.
    pub(super) fn start(
        name: Name,
        names: usize,
        store: &str,
        away: u16,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        // Servers give their privileges up, and must read what is here still.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        let own = directory.join(name.as_str());
        fs::create_dir_all(&own)?;
        let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        let arguments = match name {
            Name::Plexus => plexus(&own, port, away, store)?,
            Name::Knot => knot(&own, port, (DOMAIN, &names::zone_file(names)?))?,
            Name::Unbound => unbound(&own, port, away, names)?,
            Name::Dnsmasq => dnsmasq(&own, port, away, names)?,
            Name::Bind => bind9(&own, port, names)?,
        };
        let mut server = Self::run(name, port, &["-c", "0"], &arguments, &own)?;
        server.wait(names, &own)?;
        Ok(server)
    }

    /// `taskset` becomes it.
    pub(super) fn process(&self) -> u32 {
        self.child.id()
    }

    fn wait(&mut self, names: usize, own: &Path) -> anyhow::Result<()> {
        let last = format!("{}.{DOMAIN}", fleet::service_name(names - 1)?);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended: {status}\n{}", fs::read_to_string(own.join("log"))?);
            }
            let answer = Command::new("dig")
                .args([
                    "@127.0.0.1",
                    "-p",
                    &self.port.to_string(),
                    "+short",
                    "+time=1",
                    "+tries=1",
                    &last,
                    "A",
                ])
                .output()
                .context("run dig; on Debian: apt install bind9-dnsutils")?;
            if String::from_utf8_lossy(&answer.stdout).lines().filter(|line| !line.starts_with(';')).count()
                > 1
            {
                return Ok(());
            }
            plexus_tests::pause(Duration::from_millis(100));
        }
        bail!("it does not answer {last}\n{}", fs::read_to_string(own.join("log"))?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn path(path: &Path) -> anyhow::Result<String> {
    Ok(path.to_str().context("a path that is text")?.to_owned())
}

fn plexus(own: &Path, port: u16, away: u16, store: &str) -> anyhow::Result<Vec<String>> {
    let file = own.join("plexus.toml");
    let text = format!(
        "state_dir = {state:?}\n[node]\nname = \"bench\"\naddress = \"127.0.0.1\"\n[store]\nurl = {store:?}\n\
         [admin]\nlisten = []\n[dns]\nlisten = [\"127.0.0.1:{port}\"]\nupstreams = [\"127.0.0.1:{away}\"]\n[log]\nlevel = \"warn\"\n",
        state = own.join("state"),
    );
    fs::write(&file, text)?;
    let program = plexus_tests::plexus_program();
    Ok(vec![path(program)?, "agent".to_owned(), "--config".to_owned(), path(&file)?])
}

fn knot(own: &Path, port: u16, (domain, text): (&str, &str)) -> anyhow::Result<Vec<String>> {
    let (file, zone) = (own.join("knot.conf"), own.join("zone"));
    fs::write(&zone, text)?;
    let text = format!(
        "server:\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n  rundir: {own}\n\
         database:\n  storage: {own}\nlog:\n  - target: stderr\n    any: warning\n\
         zone:\n  - domain: {domain}\n    file: {zone}\n    journal-content: none\n    zonefile-sync: -1\n    semantic-checks: off\n",
        own = own.display(),
        zone = zone.display(),
    );
    fs::write(&file, text)?;
    Ok(vec!["knotd".to_owned(), "-c".to_owned(), path(&file)?])
}

fn unbound(own: &Path, port: u16, away: u16, names: usize) -> anyhow::Result<Vec<String>> {
    let file = own.join("unbound.conf");
    let text = format!(
        "server:\n interface: 127.0.0.1@{port}\n num-threads: 1\n do-daemonize: no\n chroot: \"\"\n username: \"\"\n directory: \"{own}\"\n\
         pidfile: \"\"\n use-syslog: no\n verbosity: 0\n do-not-query-localhost: no\n module-config: \"iterator\"\n{}\
         forward-zone:\n name: \"{AWAY}.\"\n forward-addr: 127.0.0.1@{away}\n",
        names::unbound(names)?,
        own = own.display(),
    );
    fs::write(&file, text)?;
    Ok(["unbound", "-d", "-c"].map(str::to_owned).into_iter().chain([path(&file)?]).collect())
}

fn dnsmasq(own: &Path, port: u16, away: u16, names: usize) -> anyhow::Result<Vec<String>> {
    let file = own.join("dnsmasq.conf");
    let text = format!(
        "port={port}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\nno-daemon\ncache-size=10000\nserver=/{AWAY}/127.0.0.1#{away}\n{}",
        names::dnsmasq(names)?
    );
    fs::write(&file, text)?;
    Ok(vec!["dnsmasq".to_owned(), "-C".to_owned(), path(&file)?])
}

fn bind9(own: &Path, port: u16, names: usize) -> anyhow::Result<Vec<String>> {
    let (file, zone) = (own.join("named.conf"), own.join("zone"));
    fs::write(&zone, names::zone_file(names)?)?;
    let text = format!(
        "options {{ directory \"{own}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; \
         pid-file none; session-keyfile none; check-names master ignore; }};\ncontrols {{ }};\n\
         zone \"{DOMAIN}\" {{ type master; file \"{zone}\"; check-names ignore; }};\n",
        own = own.display(),
        zone = zone.display(),
    );
    fs::write(&file, text)?;
    Ok(["named", "-g", "-n", "1", "-U", "1", "-c"]
        .map(str::to_owned)
        .into_iter()
        .chain([path(&file)?])
        .collect())
}
