//! What probes have told, judged (pure): which of them came back tells the usual culprits apart.

use std::time::Duration;

use super::Finding;
use crate::overlay::{Outcome, Path, Peer, Underlay, Way, probe_port};

/// A finding for each network of each peer.
pub(super) fn judge(peers: &[Peer], port: u16) -> Vec<Finding> {
    let paths = peers.iter().flat_map(|peer| peer.paths.iter().map(move |path| (peer, path)));
    paths.map(|(peer, path)| Case { peer, path, underlay: &peer.underlay, port }.finding()).collect()
}

struct Case<'a> {
    peer: &'a Peer,
    path: &'a Path,
    underlay: &'a Underlay,
    /// Of the tunnels.
    port: u16,
}

impl Case<'_> {
    fn finding(&self) -> Finding {
        use Outcome as O;
        match (&self.path.small, &self.path.full) {
            (O::Answered(after), O::Answered(_)) => self.whole(*after),
            (O::Answered(_), _) => self.too_large(),
            (O::Refused, _) => {
                let message =
                    "packets pass, but nothing there answers probes: what else is true of it is not known";
                Finding::note(&self.subject(), message)
                    .advice("is its agent running, and of this version? `plexus status` there")
            }
            (O::Failed(why), _) => {
                Finding::bad(&self.subject(), format!("packets cannot be sent there: {why}"))
                    .advice("`plexus status` says whether the network is as it should be on this node")
            }
            (O::Lost | O::TooLarge, _) if self.path.bare.as_ref().is_some_and(Outcome::passed) => {
                self.checksums()
            }
            (O::Lost | O::TooLarge, _) => self.nothing(),
        }
    }

    fn subject(&self) -> String {
        let how = if self.path.way == Way::Direct { ", without a tunnel" } else { "" };
        format!("{} on {}{how}", self.peer.node, self.path.network)
    }

    fn whole(&self, after: Duration) -> Finding {
        let Path { mtu, way, outside, .. } = self.path;
        let Underlay { small, large, size, largest, .. } = self.underlay;
        let is_cut = largest.map_or(outside == size, |largest| *outside > largest);
        if *way == Way::Tunnel && small.passed() && !large.passed() && is_cut {
            let largest = largest.map_or_else(String::new, |largest| format!(", only up to {largest}"));
            let message = format!(
                "packets of its MTU, {mtu} bytes, arrive, but in fragments: beneath, {outside} bytes do not pass whole{largest}"
            );
            return Finding::note(&self.subject(), message).advice(self.smaller_mtu());
        }
        let message = format!("small packets and those of {mtu} bytes pass, {after:.1?} there and back");
        Finding::good(&self.subject(), message)
    }

    fn too_large(&self) -> Finding {
        let Path { mtu, largest, .. } = self.path;
        let up_to = largest.map_or_else(String::new, |largest| format!(", only up to {largest}"));
        let message =
            format!("MTU: small packets pass, those of {mtu} bytes, which the network has, do not{up_to}");
        Finding::bad(&self.subject(), message).advice(self.smaller_mtu())
    }

    /// What makes the networks fit.
    fn smaller_mtu(&self) -> String {
        let Underlay { size, large, .. } = self.underlay;
        if self.path.way == Way::Tunnel && large.passed() && !matches!(self.path.full, Outcome::Answered(_)) {
            return format!(
                "beneath, packets of {size} bytes pass: compare the MTU of the network's links on both nodes (`ip link`), and \
                 look for a filter that drops large packets of UDP {}",
                self.port
            );
        }
        let added = self.path.outside - self.path.mtu;
        let beneath = self.underlay.largest.or(self.path.largest.map(|largest| largest + added));
        let fits = beneath.map_or_else(String::new, |fits| {
            let inside = fits.saturating_sub(added);
            format!(
                "; or tell this node, and the others like it: `ip link set LINK mtu {fits}`, or that MTU on the route to {}, and \
                 networks follow, or make the network anew with --mtu {inside}",
                self.peer.address
            )
        });
        format!(
            "something on the way carries less than this node's link, and does not say so: raise its MTU{fits}"
        )
    }

    fn checksums(&self) -> Finding {
        let message = "checksum offload: packets with a UDP checksum are lost and those without one arrive, so a network card, \
                       or its driver, writes wrong checksums into what is within VXLAN";
        Finding::bad(&self.subject(), message).advice(
            "turn that off on the links of both nodes, `ethtool -K LINK tx off`, and look again; a newer driver may do better",
        )
    }

    fn nothing(&self) -> Finding {
        let (port, probes, address) = (self.port, probe_port(self.port), self.peer.address);
        if !self.underlay.answers {
            let message = format!(
                "nothing comes back from {address}: the node is down, or cut off, or all of it is blocked"
            );
            return Finding::bad(&self.subject(), message)
                .advice(format!("is it up? `ping {address}`, and `plexus doctor` there"));
        }
        if self.path.way == Way::Direct {
            let message = format!(
                "packets without a tunnel are lost, though {address} answers: the network beneath drops what is not \
                                   from or for the addresses of its machines"
            );
            return Finding::bad(&self.subject(), message).advice(
                "allow it there (source and destination check, port security), or make the network anew without --direct",
            );
        }
        if self.underlay.small.passed() {
            let where_to = match self.path.arrived {
                Some(true) => format!(
                    "from {address} to this node: what this one sends arrives, and nothing comes back"
                ),
                Some(false) => format!("from this node to {address}: nothing arrives there"),
                None => format!("between this node and {address}, one way or both"),
            };
            let message = format!("UDP {port} is blocked {where_to}; other packets pass");
            return Finding::bad(&self.subject(), message).advice(format!(
                "open UDP {port} both ways in every firewall and security group between them; `tcpdump -ni any udp port {port}` on both \
                 shows where it ends"
            ));
        }
        let message = format!(
            "{address} answers, but neither what comes by the tunnel (UDP {port}) nor what comes beside it (UDP {probes})"
        );
        Finding::bad(&self.subject(), message)
            .advice(format!("open UDP {port} both ways, and {probes} for these probes; does the agent there run, with this overlay.port?"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    const BACK: Outcome = Outcome::Answered(Duration::from_millis(1));
    const LOST: Outcome = Outcome::Lost;

    fn underlay(small: Outcome, large: Outcome, largest: Option<u32>, answers: bool) -> Underlay {
        Underlay { small, large, size: 1500, largest, answers }
    }

    fn judged(
        way: Way,
        underlay: Underlay,
        path: [Outcome; 2],
        bare: Option<Outcome>,
        largest: Option<u32>,
    ) -> Finding {
        let [small, full] = path;
        let outside = if way == Way::Tunnel { 1500 } else { 1450 };
        let network = nerve::model::NetworkName::new("blue").unwrap();
        let path = Path { network, way, mtu: 1450, outside, small, bare, arrived: None, full, largest };
        let node = nerve::model::NodeName::new("b").unwrap();
        let peer = Peer { node, address: "192.0.2.2".parse().unwrap(), underlay, paths: vec![path] };
        judge(&[peer], 4789).remove(0)
    }

    #[test]
    fn what_comes_back_tells_the_culprit() {
        let fine = || underlay(BACK, BACK, None, true);
        let narrow = || underlay(BACK, LOST, Some(1400), true);
        let silent = |answers| underlay(LOST, LOST, None, answers);
        let cases = [
            (judged(Way::Tunnel, fine(), [BACK, BACK], None, None), State::Good, "those of 1450 bytes pass"),
            // A firewall may leave out the port of the probes.
            (
                judged(Way::Tunnel, silent(false), [BACK, BACK], None, None),
                State::Good,
                "those of 1450 bytes pass",
            ),
            (
                judged(Way::Tunnel, narrow(), [BACK, BACK], None, None),
                State::Note,
                "in fragments: beneath, 1500 bytes",
            ),
            (
                judged(Way::Tunnel, narrow(), [BACK, LOST], None, Some(1350)),
                State::Bad,
                "MTU: small packets pass",
            ),
            (judged(Way::Tunnel, fine(), [LOST, LOST], Some(BACK), None), State::Bad, "checksum offload"),
            (judged(Way::Tunnel, fine(), [LOST, LOST], Some(LOST), None), State::Bad, "UDP 4789 is blocked"),
            (
                judged(Way::Direct, fine(), [LOST, LOST], Some(LOST), None),
                State::Bad,
                "without a tunnel are lost",
            ),
            (
                judged(Way::Tunnel, silent(true), [LOST, LOST], Some(LOST), None),
                State::Bad,
                "neither what comes by the tunnel",
            ),
            (
                judged(Way::Tunnel, silent(false), [LOST, LOST], Some(LOST), None),
                State::Bad,
                "nothing comes back",
            ),
            (
                judged(Way::Tunnel, fine(), [Outcome::Refused, LOST], None, None),
                State::Note,
                "nothing there answers probes",
            ),
        ];
        for (finding, state, said) in cases {
            assert!(finding.subject.starts_with("b on blue"), "{finding:?}");
            assert_eq!(finding.state, state, "{finding:?}");
            assert!(finding.message.contains(said), "{finding:?}");
            assert_eq!(finding.advice.is_none(), state == State::Good);
        }
    }

    #[test]
    fn which_way_is_blocked_is_told_where_the_other_node_says_what_came() {
        let (node, network) = (nerve::model::NodeName::new("b").unwrap(), "blue".parse().unwrap());
        let path = Path {
            network,
            way: Way::Tunnel,
            mtu: 1450,
            outside: 1500,
            small: LOST,
            bare: Some(LOST),
            arrived: None,
            full: LOST,
            largest: None,
        };
        let (address, underlay) = ("192.0.2.2".parse().unwrap(), underlay(BACK, BACK, None, true));
        for (arrived, said) in [
            (Some(true), "from 192.0.2.2 to this node: what this one sends arrives"),
            (Some(false), "from this node to 192.0.2.2: nothing arrives there"),
            (None, "between this node and 192.0.2.2, one way or both"),
        ] {
            let paths = vec![Path { arrived, ..path.clone() }];
            let peer = Peer { node: node.clone(), address, underlay: underlay.clone(), paths };
            let finding = judge(&[peer], 4789).remove(0);
            assert!(finding.message.contains(&format!("UDP 4789 is blocked {said}")), "{finding:?}");
        }
    }

    #[test]
    fn packets_that_fit_are_well_whatever_larger_ones_of_other_networks_do() {
        let (node, network) = (nerve::model::NodeName::new("b").unwrap(), "blue".parse().unwrap());
        let (small, full) = (BACK, BACK);
        let path = Path {
            network,
            way: Way::Tunnel,
            mtu: 1300,
            outside: 1350,
            small,
            bare: None,
            arrived: None,
            full,
            largest: None,
        };
        for (largest, state) in [(Some(1400), State::Good), (None, State::Good), (Some(1349), State::Note)] {
            let (address, paths) = ("192.0.2.2".parse().unwrap(), vec![path.clone()]);
            let peer =
                Peer { node: node.clone(), address, underlay: underlay(BACK, LOST, largest, true), paths };
            assert_eq!(judge(&[peer], 4789).remove(0).state, state, "{largest:?}");
        }
    }

    #[test]
    fn the_mtu_that_fits_is_told_for_both_levels() {
        for finding in [
            judged(Way::Tunnel, underlay(BACK, LOST, Some(1400), true), [BACK, LOST], None, Some(1350)),
            judged(Way::Tunnel, underlay(LOST, LOST, None, true), [BACK, LOST], None, Some(1350)),
        ] {
            let advice = finding.advice.unwrap();
            assert!(advice.contains("mtu 1400`") && advice.contains("--mtu 1350"), "{advice}");
        }
        let other = judged(Way::Tunnel, underlay(BACK, BACK, None, true), [BACK, LOST], None, Some(1350));
        assert!(other.advice.unwrap().contains("a filter that drops large packets"));
    }
}
