//! How this host finds names: who is asked, and in which files that is said.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use serde::Serialize;

use super::files::{self, read};
use super::{resolv_conf, text};
use crate::cli::error::{Error, Result};

/// What systemd-resolved answers on itself.
const STUB: [u8; 4] = [127, 0, 0, 53];

/// By what the host is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
pub(super) enum Method {
    /// A file for systemd-resolved
    #[serde(rename = "resolved")]
    Resolved,
    /// A file for dnsmasq
    #[serde(rename = "dnsmasq")]
    Dnsmasq,
    /// /etc/resolv.conf itself
    #[value(name = "resolv.conf")]
    #[serde(rename = "resolv.conf")]
    ResolvConf,
}

/// The files of a host.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) root: PathBuf,
}

/// What is known of `/etc/resolv.conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ResolvConf {
    /// Ours was never there.
    Untouched {
        /// What it says, if it is there.
        text: Option<String>,
    },
    /// It was kept, and nothing was written.
    HalfDone {
        /// What it says.
        text: String,
    },
    /// It is ours.
    Installed {
        /// What it says.
        text: String,
        /// What it said before, if it was there.
        before: Option<String>,
    },
    /// Somebody else has changed it since.
    Changed,
}

impl Method {
    pub(super) fn takes_ports(self) -> bool {
        self != Self::ResolvConf
    }

    /// Who asks, in words.
    pub(super) fn who(self) -> &'static str {
        match self {
            Self::Resolved => "systemd-resolved",
            Self::Dnsmasq => "dnsmasq",
            Self::ResolvConf => "whoever reads /etc/resolv.conf",
        }
    }

    /// Has whoever asks read its files again. `None`: nobody need.
    pub(super) fn reload(self) -> Option<[&'static str; 2]> {
        match self {
            Self::Resolved => Some(["try-reload-or-restart", "systemd-resolved.service"]),
            Self::Dnsmasq => Some(["try-restart", "dnsmasq.service"]),
            Self::ResolvConf => None,
        }
    }
}

impl Host {
    /// This machine.
    pub(super) fn this() -> Self {
        Self { root: PathBuf::from("/") }
    }

    pub(super) fn resolv_conf(&self) -> PathBuf {
        self.root.join("etc/resolv.conf")
    }

    /// What `resolv.conf` was before, under another name.
    pub(super) fn kept(&self) -> PathBuf {
        self.root.join("etc/resolv.conf.before-plexus")
    }

    /// What we have written into it, to tell whether somebody has changed it since.
    pub(super) fn written(&self) -> PathBuf {
        self.root.join("etc/resolv.conf.by-plexus")
    }

    /// Whom systemd-resolved asks, as it says itself.
    pub(super) fn behind_stub(&self) -> PathBuf {
        self.root.join("run/systemd/resolve/resolv.conf")
    }

    /// The file of ours for a method that has one.
    pub(super) fn drop_in(&self, method: Method) -> Option<PathBuf> {
        match method {
            Method::Resolved => Some(self.root.join("etc/systemd/resolved.conf.d/plexus.conf")),
            Method::Dnsmasq => Some(self.root.join("etc/dnsmasq.d/plexus.conf")),
            Method::ResolvConf => None,
        }
    }

    /// A file besides ours that gives systemd-resolved servers for whatever no link has servers for: it tells those and the agent
    /// apart by nothing.
    pub(super) fn resolved_servers(&self) -> Result<Option<PathBuf>> {
        let mut files = vec![self.root.join("etc/systemd/resolved.conf")];
        for place in ["etc", "run", "usr/lib"] {
            let directory = self.root.join(place).join("systemd/resolved.conf.d");
            // Most hosts have none.
            let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
            files.extend(entries.filter(|file| file.extension().is_some_and(|end| end == "conf")));
        }
        for file in files.into_iter().filter(|file| Some(file) != self.drop_in(Method::Resolved).as_ref()) {
            let text = read(&file)?.unwrap_or_default();
            let mut servers = text.lines().filter_map(|line| line.trim().strip_prefix("DNS="));
            if servers.any(|servers| !servers.trim().is_empty()) {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    pub(super) fn has_docker(&self) -> bool {
        self.root.join("etc/docker").is_dir()
    }

    /// Is its service manager systemd, which can have a service read its files again?
    pub(super) fn has_systemd(&self) -> bool {
        self.root.join("run/systemd/system").is_dir()
    }

    /// The text of a file of ours; `None`: there is none. Somebody else's is an error.
    pub(super) fn ours(&self, file: &Path) -> Result<Option<String>> {
        let found = read(file)?;
        if found.as_ref().is_some_and(|found| !found.starts_with(text::MARK)) {
            let why = "it was not written by `plexus dns install`";
            return Err(Error::failed(format!("changing {}", file.display()), why).hint("move it away first"));
        }
        Ok(found)
    }

    /// How names are found here; `is_own`: is a server the agent?
    pub(super) fn method(&self, is_own: impl Fn(SocketAddr) -> bool) -> Result<Method> {
        const WHAT: &str = "finding out how this host resolves names";
        let file = self.resolv_conf();
        let target = fs::read_link(&file).ok();
        let leads_to =
            |part: &str| target.as_ref().is_some_and(|target| target.to_string_lossy().contains(part));
        let text = read(&file)?.unwrap_or_default();
        let servers = resolv_conf::servers(&text);
        if leads_to("systemd/resolve/")
            || servers.iter().any(|server| server.ip() == std::net::IpAddr::from(STUB))
        {
            return Ok(Method::Resolved);
        }
        let by = resolv_conf::writer(&text).map(|by| format!("its comments say {by:?}"));
        let by = by.or_else(|| target.map(|target| format!("it is a link to {}", target.display())));
        if let Some(by) = by {
            let why = format!(
                "{} is written by another program, which would undo the change: {by}",
                file.display()
            );
            return Err(Error::failed(WHAT, why).hint(
                "have that program name the agent (docs/dns.md says how), or say with --method what is to be changed all the same",
            ));
        }
        let others: Vec<&SocketAddr> = servers.iter().filter(|server| !is_own(**server)).collect();
        if others.is_empty() || others.iter().any(|server| !server.ip().is_loopback()) {
            return Ok(Method::ResolvConf);
        }
        if self.drop_in(Method::Dnsmasq).is_some_and(|file| file.parent().is_some_and(Path::is_dir)) {
            return Ok(Method::Dnsmasq);
        }
        let why = format!("{} leads to {}, a name server of this host's own", file.display(), others[0].ip());
        Err(Error::failed(WHAT, why)
            .hint("have that one ask the agent (docs/dns.md says how), or say --method"))
    }

    /// What is known of `/etc/resolv.conf`.
    pub(super) fn look_at_resolv_conf(&self) -> Result<ResolvConf> {
        let text = read(&self.resolv_conf())?;
        let (kept, written) = (read(&self.kept())?, read(&self.written())?);
        Ok(match (text, kept, written) {
            (text, None, None) => ResolvConf::Untouched { text },
            (Some(text), before, Some(written)) if text == written => ResolvConf::Installed { text, before },
            (Some(text), Some(before), _) if text == before => ResolvConf::HalfDone { text },
            _ => ResolvConf::Changed,
        })
    }

    /// What to say where somebody else has changed it.
    pub(super) fn changed_since(&self, what: &str) -> Error {
        let [file, kept, written] =
            [self.resolv_conf(), self.kept(), self.written()].map(|file| file.display().to_string());
        Error::failed(what, format!("{file} was changed by somebody else since it was written ({written})")).hint(format!(
            "look at `diff {written} {file}`; then `mv {kept} {file}` gives back what was there before, or remove {kept}, and \
             in either case {written}"
        ))
    }
}

/// Has whoever reads the files read them again; what was done is taken back where that fails. Tells what is left to do by hand.
pub(super) fn reload(host: &Host, method: Method, steps: &[files::Step]) -> Result<Option<String>> {
    let Some([verb, service]) = method.reload() else { return Ok(None) };
    if !host.has_systemd() {
        return Ok(Some(format!("no systemd runs here: restart {} yourself", method.who())));
    }
    let what = format!("systemctl {verb} {service}");
    let why = match Command::new("systemctl").args([verb, service]).output() {
        Ok(ran) if ran.status.success() => return Ok(None),
        Ok(ran) => String::from_utf8_lossy(&ran.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    let left = files::take_back(steps);
    let hint = if left.is_empty() { "the files are as they were before".to_owned() } else { left };
    Err(Error::failed(what, why).hint(hint))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A host with this `/etc/resolv.conf`.
    fn host(text: &str) -> (tempfile::TempDir, Host) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("etc")).unwrap();
        fs::write(directory.path().join("etc/resolv.conf"), text).unwrap();
        let host = Host { root: directory.path().to_owned() };
        (directory, host)
    }

    #[test]
    fn who_resolves_names_is_seen_from_resolv_conf() {
        let method = |host: &Host| host.method(|server| server.ip().to_string() == "127.0.0.1");
        for (text, expected) in [
            ("nameserver 192.0.2.53\n", Method::ResolvConf),
            ("nameserver 127.0.0.1\n", Method::ResolvConf),
            ("", Method::ResolvConf),
            ("nameserver 127.0.0.53\noptions edns0 trust-ad\n", Method::Resolved),
        ] {
            assert_eq!(method(&host(text).1).unwrap(), expected, "{text}");
        }
        for (text, why) in [
            ("# Generated by NetworkManager\nnameserver 192.0.2.53\n", "Generated by NetworkManager"),
            ("nameserver 127.0.0.2\n", "leads to 127.0.0.2"),
        ] {
            let error = method(&host(text).1).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("--method"), "{error}");
        }
        let (directory, local) = host("nameserver 127.0.0.2\n");
        fs::create_dir(directory.path().join("etc/dnsmasq.d")).unwrap();
        assert_eq!(method(&local).unwrap(), Method::Dnsmasq);
        for (target, expected) in [
            ("../run/systemd/resolve/stub-resolv.conf", Some(Method::Resolved)),
            ("../run/resolvconf/resolv.conf", None),
        ] {
            let (directory, linked) = host("");
            fs::remove_file(directory.path().join("etc/resolv.conf")).unwrap();
            symlink(target, directory.path().join("etc/resolv.conf")).unwrap();
            assert_eq!(method(&linked).ok(), expected, "{target}");
        }
    }

    #[test]
    fn a_file_of_somebody_else_is_not_taken_for_ours() {
        let (directory, host) = host("");
        let file = directory.path().join("plexus.conf");
        assert_eq!(host.ours(&file).unwrap(), None);
        fs::write(&file, format!("{}x\n", text::MARK)).unwrap();
        assert!(host.ours(&file).unwrap().is_some());
        fs::write(&file, "server=192.0.2.1\n").unwrap();
        assert!(host.ours(&file).unwrap_err().to_string().contains("was not written by"));
    }
}
