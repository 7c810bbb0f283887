//! What `docker inspect` shows of a container, as far as it matters here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

/// So many characters of its id Docker gives to a container as an alias.
const SHORT: usize = 12;
/// What Docker calls the network of a container that is on its host's.
const HOST: &str = "host";
/// How long `docker stop` waits for a container that says nothing of it.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Container {
    pub(super) id: String,
    /// With a `/` before it.
    pub(super) name: String,
    pub(super) state: State,
    pub(super) config: Configuration,
    pub(super) network_settings: NetworkSettings,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct State {
    pub(super) running: bool,
    /// It runs, and does nothing.
    pub(super) paused: bool,
    pub(super) health: Option<Health>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Health {
    pub(super) status: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Configuration {
    pub(super) labels: Option<BTreeMap<String, String>>,
    /// `NAME=VALUE`.
    pub(super) env: Option<Vec<String>>,
    /// As it was asked for: `registry:5000/shop/nginx:1.25`.
    pub(super) image: String,
    /// `80/tcp`.
    pub(super) exposed_ports: Option<BTreeMap<String, Value>>,
    /// `SIGQUIT`; Docker's default is `SIGTERM`.
    pub(super) stop_signal: Option<String>,
    /// In seconds; below 0: for ever.
    pub(super) stop_timeout: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct NetworkSettings {
    pub(super) networks: Option<BTreeMap<String, Connected>>,
    /// By `80/tcp`; nothing for one that is exposed and not published.
    pub(super) ports: Option<BTreeMap<String, Option<Vec<Binding>>>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Connected {
    #[serde(rename = "NetworkID")]
    pub(super) network: String,
    #[serde(rename = "IPAddress")]
    pub(super) address: String,
    #[serde(rename = "GlobalIPv6Address")]
    pub(super) address_v6: String,
    #[serde(rename = "Aliases")]
    pub(super) aliases: Option<Vec<String>>,
}

/// Where a port is published.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Binding {
    host_ip: String,
    host_port: String,
}

/// A port that a container listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    pub(super) number: NonZeroU16,
    pub(super) is_udp: bool,
}

impl Port {
    fn parse(text: &str) -> Option<Self> {
        let (number, protocol) = text.split_once('/')?;
        let is_udp = match protocol {
            "tcp" => false,
            "udp" => true,
            _ => return None,
        };
        Some(Self { number: number.parse().ok()?, is_udp })
    }
}

impl Binding {
    /// Where other nodes reach it; `None`: nowhere.
    fn reached(&self, node: IpAddr) -> Option<(IpAddr, NonZeroU16)> {
        let port = self.host_port.parse().ok()?;
        match self.host_ip.parse::<IpAddr>() {
            Ok(address) if address.is_loopback() => None,
            Ok(address) if !address.is_unspecified() => Some((address, port)),
            _ => Some((node, port)),
        }
    }
}

impl Container {
    /// What it is called.
    pub(super) fn name(&self) -> &str {
        self.name.trim_start_matches('/')
    }

    /// What Docker calls it as an alias.
    pub(super) fn short(&self) -> &str {
        self.id.get(..SHORT).unwrap_or(&self.id)
    }

    /// The value of a label.
    pub(super) fn label(&self, label: &str) -> Option<&str> {
        self.config.labels.as_ref()?.get(label).map(String::as_str)
    }

    /// Does it run, however well?
    pub(super) fn runs(&self) -> bool {
        self.state.running
    }

    /// The addresses that it has and nobody else.
    pub(super) fn own_addresses(&self) -> BTreeSet<IpAddr> {
        let texts = self.networks().flat_map(|(_, on)| [&on.address, &on.address_v6]);
        texts.filter_map(|text| text.parse().ok()).collect()
    }

    /// Does it do something, and is it well as far as Docker checks that?
    pub(super) fn runs_well(&self) -> bool {
        let State { running, paused, health } = &self.state;
        let is_well = health.as_ref().is_none_or(|health| matches!(&*health.status, "healthy" | "none"));
        *running && !paused && is_well
    }

    /// Its networks, by what Docker calls them.
    pub(super) fn networks(&self) -> impl Iterator<Item = (&str, &Connected)> {
        self.network_settings.networks.iter().flatten().map(|(name, on)| (name.as_str(), on))
    }

    /// Are its ports the host's?
    pub(super) fn is_on_host(&self) -> bool {
        self.networks().any(|(name, _)| name == HOST)
    }

    /// The ports that the image has, or `--expose` names.
    pub(super) fn exposed(&self) -> impl Iterator<Item = Port> {
        self.config.exposed_ports.iter().flat_map(BTreeMap::keys).filter_map(|port| Port::parse(port))
    }

    /// The ports that other nodes reach at `node`'s address, and where.
    pub(super) fn published(&self, node: IpAddr) -> BTreeMap<Port, (IpAddr, NonZeroU16)> {
        let ports = self.network_settings.ports.iter().flatten();
        ports
            .filter_map(|(port, bindings)| {
                let at = bindings.iter().flatten().find_map(|binding| binding.reached(node))?;
                Some((Port::parse(port)?, at))
            })
            .collect()
    }

    /// Is this the signal by which Docker stops it? `None`: whatever stops it at once.
    pub(super) fn is_stopped_by(&self, signal: i32) -> bool {
        const KILL: i32 = 9;
        signal == KILL || signal == self.config.stop_signal.as_deref().map_or(TERM, number)
    }

    /// How long Docker lets it go on after that signal, unless it is told otherwise with the stop.
    pub(super) fn stop_timeout(&self) -> Duration {
        let seconds = self.config.stop_timeout.and_then(|seconds| u64::try_from(seconds).ok());
        seconds.map_or(STOP_TIMEOUT, Duration::from_secs)
    }
}

const TERM: i32 = 15;

/// The number of a signal (signal(7)) that may be what stops a container; of another, that of `SIGTERM`.
fn number(signal: &str) -> i32 {
    /// Where the C library has `SIGRTMIN`.
    const RTMIN: i32 = 34;
    let name = signal.trim().to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(above) = name.strip_prefix("RTMIN") {
        return RTMIN + above.trim_start_matches('+').parse::<i32>().unwrap_or(0);
    }
    match name {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "USR1" => 10,
        "USR2" => 12,
        "WINCH" => 28,
        "PWR" => 30,
        other => other.parse().unwrap_or(TERM),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_stops_it_is_the_signal_that_its_image_names() {
        let with = |signal: Option<&str>| Container {
            config: Configuration { stop_signal: signal.map(str::to_owned), ..Configuration::default() },
            ..Container::default()
        };
        let stops = |signal, number| with(signal).is_stopped_by(number);
        assert_eq!([stops(None, 15), stops(None, 9), stops(None, 1)], [true, true, false]);
        assert_eq!([stops(Some("SIGQUIT"), 3), stops(Some("SIGQUIT"), 15)], [true, false]);
        assert_eq!([stops(Some("RTMIN+3"), 37), stops(Some("28"), 28)], [true, true]);
    }

    #[test]
    fn a_port_is_where_other_nodes_reach_it() {
        let inspected = json!({"NetworkSettings": {"Ports": {
            "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
            "81/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8081"}],
            "82/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8082"}, {"HostIp": "198.51.100.7", "HostPort": "82"}],
            "53/udp": [{"HostIp": "", "HostPort": "5353"}],
            "90/tcp": null,
            "91/sctp": [{"HostIp": "", "HostPort": "91"}],
        }}});
        let container: Container = serde_json::from_value(inspected).unwrap();
        let published = container.published("192.0.2.1".parse().unwrap());
        let shown: Vec<String> = published
            .iter()
            .map(|(port, (address, at))| {
                format!("{}{} {address} {at}", port.number, if port.is_udp { "u" } else { "" })
            })
            .collect();
        assert_eq!(shown, ["53u 192.0.2.1 5353", "80 192.0.2.1 8080", "82 198.51.100.7 82"]);
    }
}
