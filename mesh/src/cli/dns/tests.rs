//! What would be done, on hosts of several kinds; and that it is undone.

use std::fs;
use std::path::Path;

use clap::Parser;

use super::files::apply;
use super::host::{Host, Method};
use super::install::{Done, Install};
use super::uninstall;
use crate::api::{DnsInfo, DnsListener, DnsOthers};
use crate::cli::error::Result;

const BEFORE: &str = "search corp.example\nnameserver 192.0.2.53\n";

#[derive(Debug, Parser)]
struct Typed {
    #[command(flatten)]
    install: Install,
}

/// Files, and what they say.
type Files<'a> = &'a [(&'a str, &'a str)];

/// A host with these files.
fn host(files: Files<'_>) -> (tempfile::TempDir, Host) {
    let directory = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let file = directory.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    let host = Host { root: directory.path().to_owned() };
    (directory, host)
}

fn info(listen: &[&str], others: DnsOthers) -> DnsInfo {
    let listener = |address: &&str| DnsListener { address: address.parse().unwrap(), problem: None };
    DnsInfo {
        probe: ("a.node.mesh.internal".to_owned(), "192.0.2.1".parse().unwrap()),
        domains: vec!["mesh.internal".to_owned()],
        ranges: Vec::new(),
        listeners: listen.iter().map(listener).collect(),
        others,
    }
}

fn plan(host: &Host, info: &DnsInfo, options: &str) -> Result<Done> {
    let words = ["install"].into_iter().chain(options.split_whitespace());
    Typed::try_parse_from(words).unwrap().install.plan(host, info)
}

fn etc(root: &Path) -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(root.join("etc"))
        .unwrap()
        .flatten()
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn what_would_be_a_loop_or_answered_by_nobody_is_refused_with_what_to_do() {
    let agent = &["127.0.0.1:53"][..];
    let stub = ("etc/resolv.conf", "nameserver 127.0.0.53\n");
    let uplink = |text| [stub, ("run/systemd/resolve/resolv.conf", text)];
    let told = [stub, ("etc/systemd/resolved.conf", "[Resolve]\n#DNS=\nDNS=192.0.2.53\n")];
    let alone = [("etc/resolv.conf", "nameserver 127.0.0.1\n")];
    let usual = [("etc/resolv.conf", BEFORE)];
    let local = [("etc/resolv.conf", "nameserver 127.0.0.2\n"), ("etc/dnsmasq.d/README", "")];
    let cases: [(Files<'_>, &[&str], DnsOthers, &str, &str); 13] = [
        (&usual, agent, DnsOthers::ResolvConf, "", ""),
        (&usual, agent, DnsOthers::ResolvConf, "--only", "upstreams = [\"192.0.2.53\"]"),
        (&usual, agent, DnsOthers::Configured, "--only", ""),
        (&usual, agent, DnsOthers::Refused, "", "recursion = \"private\""),
        (&usual, &["127.0.0.1:8600"], DnsOthers::ResolvConf, "", "it listens on: 127.0.0.1:8600"),
        (&alone, agent, DnsOthers::ResolvConf, "", "upstreams = [\"192.0.2.53\"]"),
        (&uplink("nameserver 192.0.2.53\n"), &["127.0.0.1:8600"], DnsOthers::ResolvConf, "--all", ""),
        (&told, agent, DnsOthers::Configured, "", "systemd/resolved.conf names others"),
        (&told, agent, DnsOthers::Configured, "--all", ""),
        (&uplink("nameserver 127.0.0.1\n"), agent, DnsOthers::ResolvConf, "", "names no other server"),
        (&uplink("nameserver 127.0.0.1\n"), agent, DnsOthers::Configured, "--all", ""),
        (&local, agent, DnsOthers::ResolvConf, "--all", "names no other server"),
        (&local, agent, DnsOthers::ResolvConf, "", ""),
    ];
    for (files, listen, others, options, expected) in cases {
        let (_directory, host) = host(files);
        let planned = plan(&host, &info(listen, others), options);
        let error = planned.map(|done| assert!(!done.steps.is_empty())).err();
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(error.is_empty(), expected.is_empty(), "{files:?} {options}: {error}");
        assert!(error.contains(expected), "{files:?} {options}: {error}");
    }
}

#[test]
fn what_was_installed_is_undone_to_the_last_octet_and_twice_is_once() {
    let stub = [("etc/resolv.conf", "nameserver 127.0.0.53\n"), ("run/systemd/resolve/resolv.conf", BEFORE)];
    let plain = [("etc/resolv.conf", BEFORE)];
    let cases: [(Files<'_>, &str, Method); 4] = [
        (&plain, "--search", Method::ResolvConf),
        (&[("etc/hosts", "")], "--method resolv.conf --only", Method::ResolvConf),
        (&stub, "--all", Method::Resolved),
        (&plain, "--method dnsmasq", Method::Dnsmasq),
    ];
    for (files, options, method) in cases {
        let (directory, host) = host(files);
        for made in ["etc/systemd/resolved.conf.d", "etc/dnsmasq.d"] {
            fs::create_dir_all(directory.path().join(made)).unwrap();
        }
        let file = host.drop_in(method).unwrap_or_else(|| host.resolv_conf());
        let (before, resolv_conf) = (fs::read(&file).ok(), fs::read(host.resolv_conf()).ok());
        let info = info(&["127.0.0.1:53"], DnsOthers::Configured);
        apply(&plan(&host, &info, options).unwrap().steps).unwrap();
        assert!(fs::read_to_string(&file).unwrap().contains("127.0.0.1"), "{options}");
        assert!(plan(&host, &info, options).unwrap().steps.is_empty(), "{options}: nothing is left to do");
        // Said in another way, it is done in that way, from what was there at first.
        let other = plan(&host, &self::info(&["192.0.2.1:53"], DnsOthers::Configured), options).unwrap();
        apply(&other.steps).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains("192.0.2.1") && !text.contains("127.0.0.1"), "{options}: {text}");
        apply(&uninstall::steps(&host, method).unwrap()).unwrap();
        assert_eq!(
            (fs::read(&file).ok(), fs::read(host.resolv_conf()).ok()),
            (before, resolv_conf),
            "{options}"
        );
        assert!(!host.kept().exists() && !host.written().exists());
        assert!(uninstall::steps(&host, method).unwrap().is_empty());
    }
}

#[test]
fn what_somebody_else_has_changed_since_is_left_to_people() {
    let (directory, host) = host(&[("etc/resolv.conf", BEFORE)]);
    let info = info(&["127.0.0.1:53"], DnsOthers::Configured);
    apply(&plan(&host, &info, "").unwrap().steps).unwrap();
    fs::write(host.resolv_conf(), "nameserver 192.0.2.99\n").unwrap();
    let as_it_was = etc(directory.path());
    let refused = [plan(&host, &info, "").err(), uninstall::steps(&host, Method::ResolvConf).err()];
    for error in refused {
        let error = error.unwrap().to_string();
        assert!(
            error.contains("was changed by somebody else") && error.contains("resolv.conf.before-plexus"),
            "{error}"
        );
    }
    assert_eq!(etc(directory.path()), as_it_was);
    // Whoever gives it back by hand has only what was kept to lose.
    fs::copy(host.kept(), host.resolv_conf()).unwrap();
    apply(&uninstall::steps(&host, Method::ResolvConf).unwrap()).unwrap();
    assert_eq!(etc(directory.path()), [("resolv.conf".to_owned(), BEFORE.to_owned())]);
}

#[test]
fn whoever_asks_all_servers_at_once_is_warned_of() {
    let (_directory, host) = host(&[("etc/resolv.conf", BEFORE)]);
    let notes = |options| {
        plan(&host, &info(&["127.0.0.1:53"], DnsOthers::Configured), options).unwrap().notes.join("\n")
    };
    assert!(notes("").contains("musl"));
    assert!(!notes("--only").contains("musl"));
}
