//! What this machine needs for overlay networks: privileges, `nft`, forwarding, and ranges that nothing else uses.

use std::fs;

use nerve::model::{NetworkName, Prefix};

use super::Finding;
use crate::overlay::{LINKS, PROTOCOL, TABLE};
use crate::routes::{self, Route, collision};

/// Bits of `capability.h` in the kernel.
const CAPABILITIES: [(&str, u32, &str); 2] =
    [("CAP_NET_ADMIN", 12, "networks need it"), ("CAP_SYS_ADMIN", 21, "attaching containers needs it")];
const FORWARD_V4: &str = "net.ipv4.ip_forward";
const FORWARD_V6: &str = "net.ipv6.conf.all.forwarding";

pub(super) async fn examine(networks: &[(NetworkName, Vec<Prefix>)]) -> Vec<Finding> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let mut findings = vec![capabilities(&status), rules(!networks.is_empty()).await];
    let has = |v4| networks.iter().flat_map(|(_, ranges)| ranges).any(|range| range.is_ipv4() == v4);
    for (needed, name) in [(has(true), FORWARD_V4), (has(false), FORWARD_V6)] {
        if needed {
            findings.push(forwarding(name, setting(name).as_deref()));
        }
    }
    match routes::read().await {
        Ok(routes) => findings.extend(networks.iter().map(|(name, ranges)| uses(name, ranges, &routes))),
        Err(error) => findings.push(Finding::note("routes", error.to_string())),
    }
    findings
}

/// A sysctl, where there is such a one.
pub(super) fn setting(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
    Some(text.trim().to_owned())
}

fn capabilities(status: &str) -> Finding {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return Finding::note("capabilities", "what the agent may do is not told by /proc");
    };
    let lacking = CAPABILITIES.iter().filter(|(_, bit, _)| effective & (1 << bit) == 0);
    let lacking: Vec<String> = lacking.map(|(name, _, why)| format!("{name} ({why})")).collect();
    if lacking.is_empty() {
        return Finding::good("capabilities", "the agent has CAP_NET_ADMIN and CAP_SYS_ADMIN");
    }
    let message = format!("the agent lacks {}", lacking.join(" and "));
    Finding::bad("capabilities", message).advice(
        "run it as root, or give its service AmbientCapabilities= and CapabilityBoundingSet= with them",
    )
}

async fn rules(wanted: bool) -> Finding {
    match TABLE.list().await {
        Ok(Some(_)) => Finding::good("nft", format!("it works, and the table {TABLE} is there")),
        Ok(None) if wanted => Finding::bad("nft", format!("the table {TABLE} is not there")).advice(
            "`plexus status` says why the agent cannot set it; without it nothing keeps networks apart",
        ),
        Ok(None) => Finding::good("nft", "it works"),
        Err(error) => Finding::bad("nft", error.to_string()),
    }
}

fn forwarding(name: &str, value: Option<&str>) -> Finding {
    match value {
        Some("1") => Finding::good("forwarding", format!("{name} is on")),
        Some(value) => {
            Finding::bad("forwarding", format!("{name} is {value}: containers reach this node and no other"))
                .advice(format!(
                    "sysctl -w {name}=1; the agent does so when it compares, so something turns it off again"
                ))
        }
        None => Finding::note("forwarding", format!("there is no {name} on this machine")),
    }
}

/// Does something of this host use addresses of a network?
fn uses(network: &NetworkName, ranges: &[Prefix], routes: &[Route]) -> Finding {
    let others = routes.iter().filter(|route| route.protocol != PROTOCOL && !route.is_on(LINKS));
    match collision(ranges, others) {
        None => Finding::good("ranges", format!("nothing else here uses addresses of network {network}")),
        Some(collision) => {
            let message = format!("network {network} has {}, and {collision}", collision.range);
            let shown_by = collision.shown_by();
            Finding::bad("ranges", message).advice(format!(
                "remove that from this host (`{shown_by}` shows it), or make the network with another range"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::routes::Kind;

    #[test]
    fn a_capability_that_lacks_is_named() {
        let full = capabilities("Name:\tplexus\nCapEff:\t000001ffffffffff\n");
        assert_eq!(full.state, State::Good);
        let network_alone = capabilities("CapEff:\t0000000000001000\n");
        assert_eq!(network_alone.state, State::Bad);
        assert!(
            network_alone.message.contains("CAP_SYS_ADMIN") && !network_alone.message.contains("NET_ADMIN")
        );
        assert_eq!(capabilities("").state, State::Note);
    }

    #[test]
    fn a_route_of_somebody_else_in_a_networks_range_is_bad_and_ours_is_not() {
        let route = |device: &str, protocol| Route {
            destination: "10.42.7.0/24".parse().unwrap(),
            kind: Kind::Forwards,
            device: Some(device.to_owned()),
            protocol,
        };
        let judged =
            |route| uses(&NetworkName::new("blue").unwrap(), &["10.42.0.0/16".parse().unwrap()], &[route]);
        assert_eq!(judged(route("plxb4096", 2)).state, State::Good);
        assert_eq!(judged(route("eth0", PROTOCOL)).state, State::Good);
        let taken = judged(route("docker0", 2));
        assert_eq!(taken.state, State::Bad);
        assert!(taken.message.contains("a route to 10.42.7.0/24 on docker0"), "{}", taken.message);
    }

    #[test]
    fn forwarding_that_is_off_is_bad() {
        let states = [Some("1"), Some("0"), None].map(|value| forwarding(FORWARD_V4, value).state);
        assert_eq!(states, [State::Good, State::Bad, State::Note]);
    }
}
