//! The names that every server has, as each wants to be told, and what is asked of them.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::Context;
use nerve::model::Instance;

use super::ENDPOINTS;
use crate::fleet;

/// The domain.
pub(super) const DOMAIN: &str = "mesh.internal";
/// The domain of names that are forwarded.
pub(super) const AWAY: &str = "away.example";
/// The most names there: what every server's memory is made for.
const MOST_AWAY: usize = 8_000;
/// Questions in a file, which is asked from the beginning again.
const QUESTIONS: usize = 100_000;
/// A prime, to visit names in an order that no cache foresees.
const STEP: usize = 7919;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mix {
    /// A of every name.
    Addresses,
    /// SRV of every name.
    Ports,
    /// A of names that there are not.
    Missing,
    /// Six in ten A, one AAAA that there is none of, two SRV, one missing.
    Mixed,
    /// A of names that another server has, from memory.
    Forwarded,
}

impl Mix {
    pub(super) const ALL: [Self; 5] =
        [Self::Addresses, Self::Ports, Self::Missing, Self::Mixed, Self::Forwarded];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Addresses => "addresses",
            Self::Ports => "ports",
            Self::Missing => "missing",
            Self::Mixed => "mixed",
            Self::Forwarded => "forwarded",
        }
    }

    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|mix| mix.as_str() == text);
        found.with_context(|| format!("there is no mix {text:?}"))
    }

    /// As `dnsperf` reads them.
    pub(super) fn questions(self, names: usize) -> anyhow::Result<String> {
        let mut text = String::new();
        for at in 0..QUESTIONS {
            let name = fleet::service_name(at * STEP % names)?;
            let (prefix, kind) = match (self, at % 10) {
                (Self::Addresses, _) | (Self::Mixed, 0..=5) => ("", "A"),
                (Self::Mixed, 6) => ("", "AAAA"),
                (Self::Ports, _) | (Self::Mixed, 7 | 8) => ("", "SRV"),
                (Self::Missing | Self::Mixed, _) => ("no-", "A"),
                (Self::Forwarded, _) => {
                    writeln!(text, "n{}.{AWAY} A", at * STEP % names.min(MOST_AWAY))?;
                    continue;
                }
            };
            writeln!(text, "{prefix}{name}.{DOMAIN} {kind}")?;
        }
        Ok(text)
    }
}

/// Every service with its endpoints.
fn services(names: usize) -> impl Iterator<Item = anyhow::Result<(String, Vec<Instance>)>> {
    (0..names).map(|number| {
        let service = fleet::service_name(number)?;
        let endpoints = (0..ENDPOINTS).map(|number| fleet::instance(&service, number, 100));
        Ok((format!("{service}.{DOMAIN}"), endpoints.collect::<anyhow::Result<_>>()?))
    })
}

/// The name that an SRV record's target has.
fn host(address: IpAddr) -> String {
    format!("ip-{}.addr.{DOMAIN}", address.to_string().replace('.', "-"))
}

fn port(instance: &Instance) -> anyhow::Result<u16> {
    Ok(instance.port.context("a port")?.get())
}

/// The addresses that targets of SRV records have.
fn hosts() -> anyhow::Result<Vec<IpAddr>> {
    let service = fleet::service_name(0)?;
    (0..ENDPOINTS).map(|number| Ok(fleet::instance(&service, number, 100)?.address)).collect()
}

/// A zone's file (RFC 1035).
pub(super) fn zone_file(names: usize) -> anyhow::Result<String> {
    let mut text = format!(
        "$ORIGIN {DOMAIN}.\n$TTL 5\n@ SOA ns.addr hostmaster 1 1200 180 1209600 2\n@ NS ns.addr\nns.addr A 192.0.2.1\n"
    );
    for address in hosts()? {
        writeln!(text, "{}. A {address}", host(address))?;
    }
    for service in services(names) {
        let (name, endpoints) = service?;
        for endpoint in &endpoints {
            writeln!(text, "{name}. A {}", endpoint.address)?;
            writeln!(text, "{name}. SRV 0 100 {} {}.", port(endpoint)?, host(endpoint.address))?;
        }
    }
    Ok(text)
}

/// The zone of names that are forwarded.
pub(super) fn away(names: usize) -> anyhow::Result<String> {
    let mut text = format!(
        "$ORIGIN {AWAY}.\n$TTL 3600\n@ SOA ns hostmaster 1 1200 180 1209600 2\n@ NS ns\nns A 192.0.2.1\n"
    );
    for number in 0..names.min(MOST_AWAY) {
        writeln!(text, "n{number} A 198.51.{}.{}\nn{number} A 203.0.113.1", number / 250, number % 250)?;
    }
    Ok(text)
}

/// `local-data` of unbound.
pub(super) fn unbound(names: usize) -> anyhow::Result<String> {
    let mut text = format!(
        "local-zone: \"{DOMAIN}.\" static\nlocal-data: \"{DOMAIN}. 5 SOA ns.addr.{DOMAIN}. hostmaster.{DOMAIN}. 1 1200 180 1209600 2\"\n"
    );
    for address in hosts()? {
        writeln!(text, "local-data: \"{}. 5 A {address}\"", host(address))?;
    }
    for service in services(names) {
        let (name, endpoints) = service?;
        for endpoint in &endpoints {
            writeln!(text, "local-data: \"{name}. 5 A {}\"", endpoint.address)?;
            writeln!(
                text,
                "local-data: \"{name}. 5 SRV 0 100 {} {}.\"",
                port(endpoint)?,
                host(endpoint.address)
            )?;
        }
    }
    Ok(text)
}

/// Lines of dnsmasq's configuration.
pub(super) fn dnsmasq(names: usize) -> anyhow::Result<String> {
    let mut text = format!("local=/{DOMAIN}/\nlocal-ttl=5\n");
    for address in hosts()? {
        writeln!(text, "host-record={},{address}", host(address))?;
    }
    for service in services(names) {
        let (name, endpoints) = service?;
        for endpoint in &endpoints {
            writeln!(text, "host-record={name},{}", endpoint.address)?;
            writeln!(text, "srv-host={name},{},{},0,100", host(endpoint.address), port(endpoint)?)?;
        }
    }
    Ok(text)
}
