//! Which errors of clients a correct balancer could have avoided: all that [`excuse`] finds no excuse for.
//!
//! An excuse is narrow: a fault on the error's own way (its node, its endpoint where that is known), at its own time, of
//! a kind that brings such an error about. What is never excused:
//!
//! - **a take-over**, a drain, a deregistration, a store that stops or dies: nobody is to notice any of them;
//! - **an endpoint that hangs**: it goes on before clients of TCP give up ([`PATIENCE`]), and new ones are led elsewhere;
//! - **silence over TCP**: whatever hangs for [`PATIENCE`] hangs for longer than any fault lasts, retransmissions included;
//! - **a wrong answer**.

use std::fmt;
use std::time::Duration;

use super::plan::{ENDPOINTS, Fault, node_of};
use super::timeline::Happened;

/// How long clients of TCP wait for each step: longer than the longest fault and the retransmission that ends it
/// ([`LONGEST`](super::plan::LONGEST), doubled at worst, for each of the two connections there are).
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long clients of UDP wait for an answer.
pub const ANSWER: Duration = Duration::from_millis(1500);
/// `[drain] notice` of the agents.
pub const NOTICE: Duration = Duration::from_secs(1);
/// `[drain] deadline` of the agents.
pub const DRAIN: Duration = Duration::from_secs(5);
/// `[store] session_ttl` of the agents.
pub const SESSION: Duration = Duration::from_secs(3);
/// Until every node knows that an endpoint fails its check: three probes, 200 ms from one to the next, the last of which takes
/// 200 ms to time out, and a second for the store and its watch.
pub const CHECKED: Duration = Duration::from_millis(1800);
/// Until every node knows that a node is gone: its session ends, which etcd looks at twice a second, and a second as above.
pub const LEASED: Duration = SESSION.saturating_add(Duration::from_millis(1500));
/// For so long after a storm of closed ports a host is told of no other one: its peer's kernel tells it of six, and then of one a second
/// (`icmp_ratelimit`).
pub const TOLD_AGAIN: Duration = Duration::from_secs(6);
/// Until packets pass again after a cable is plugged in: neighbours are asked for once a second.
pub const PLUGGED: Duration = Duration::from_secs(1);

/// What a client did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// TCP: a connection, an exchange, the end.
    Once,
    /// TCP: a connection with exchanges over seconds.
    Kept,
    /// TCP: many blocks of content, up and down.
    Bulk,
    /// UDP: one exchange from a port of its own.
    Datagram,
    /// UDP: exchanges from one port, without end.
    Talk,
}

/// How it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// It was refused, reset, ended early, or found unreachable.
    Broken,
    /// Nothing came in time.
    Silent,
    /// What came is wrong.
    Wrong,
}

/// An error of a client.
#[derive(Debug, Clone)]
pub struct Failed {
    /// What it did.
    pub kind: Kind,
    /// The node whose agent it asked.
    pub node: usize,
    /// By the virtual address, from that node; else by the published port, from a machine of its own.
    pub by_vip: bool,
    /// When it began to connect; for UDP, when it asked.
    pub began: Duration,
    /// When it failed.
    pub ended: Duration,
    /// Who answered it before, on this connection or from this port, and when.
    pub answered: Option<(usize, Duration)>,
    /// How it failed.
    pub why: Why,
    /// In words.
    pub text: String,
}

/// Why nobody could have avoided an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Excuse {
    /// The agent that was asked was killed, and is not back.
    AgentKilled,
    /// The agent that was asked left, and is not back; or this connection had outlived its drain's deadline.
    AgentLeft,
    /// The node that was asked had no link.
    NodeCutOff,
    /// The connection was established to an endpoint that was killed; or the datagram was on its way there.
    EndpointKilled,
    /// A datagram went to an endpoint that was killed, whose host had told the one that asked of as many closed ports as it tells at
    /// a time: an endpoint there had come to itself just before, and answered late what nobody waited for any more.
    EndpointUntold,
    /// A datagram went to an endpoint that hangs, before its check could tell.
    EndpointHangs,
    /// The connection was established to an endpoint whose link went; or a datagram went there before anybody could tell.
    EndpointCutOff,
    /// No endpoint was well and within reach all the time.
    NobodyThere,
}

impl fmt::Display for Excuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AgentKilled => "its agent was killed",
            Self::AgentLeft => "its agent had left",
            Self::NodeCutOff => "its node was cut off",
            Self::EndpointKilled => "its endpoint was killed",
            Self::EndpointUntold => "its endpoint was killed, and its host could tell nobody",
            Self::EndpointHangs => "its endpoint hung, not yet noticed",
            Self::EndpointCutOff => "its endpoint was cut off",
            Self::NobodyThere => "no endpoint was there",
        })
    }
}

impl Kind {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Once, Self::Kept, Self::Bulk, Self::Datagram, Self::Talk];

    fn is_udp(self) -> bool {
        matches!(self, Self::Datagram | Self::Talk)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Once => "tcp, once",
            Self::Kept => "tcp, kept",
            Self::Bulk => "tcp, bulk",
            Self::Datagram => "udp, once",
            Self::Talk => "udp, kept",
        })
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, node, by_vip, began, ended, answered, why: _, text } = self;
        let way = if *by_vip { "virtual address" } else { "published port" };
        let endpoint = answered.map_or_else(|| "?".to_owned(), |(endpoint, _)| super::plan::id_of(endpoint));
        write!(
            f,
            "{kind} by the {way} of {}, endpoint {endpoint}, {:.3} to {:.3}: {text}",
            super::plan::name_of(*node),
            began.as_secs_f64(),
            ended.as_secs_f64(),
        )
    }
}

/// The excuse for an error, if there is one, of all that happened.
#[must_use]
pub fn excuse(failed: &Failed, happened: &[Happened]) -> Option<Excuse> {
    match failed.why {
        Why::Wrong => return None,
        Why::Silent if !failed.kind.is_udp() => return None,
        Why::Silent | Why::Broken => {}
    }
    // What was over so long before has to do with nothing any more, and errors and faults are many.
    let since = failed.answered.map_or(failed.began, |(_, heard)| heard.min(failed.began));
    let is_near = |fault: &&Happened| {
        fault.began <= failed.ended && fault.over().saturating_add(Duration::from_secs(60)) >= since
    };
    let near: Vec<Happened> = happened.iter().filter(is_near).copied().collect();
    let found =
        near.iter().find_map(|fault| of_node(failed, fault).or_else(|| of_endpoint(failed, fault, &near)));
    found.or_else(|| nobody_there(failed, &near).then_some(Excuse::NobodyThere))
}

/// Was the error's time at least partly between these two?
fn overlaps(failed: &Failed, from: Duration, to: Duration) -> bool {
    failed.began <= to && failed.ended >= from
}

/// What happened to the node that was asked.
fn of_node(failed: &Failed, fault: &Happened) -> Option<Excuse> {
    match fault.fault {
        Fault::KillAgent(node) if node == failed.node => {
            overlaps(failed, fault.began, fault.over()).then_some(Excuse::AgentKilled)
        }
        // It accepts until its notice is over, and what was accepted has the drain's deadline on top.
        Fault::TerminateAgent(node) if node == failed.node => {
            let stops = fault.began + NOTICE;
            let came_late = failed.began >= stops && failed.began <= fault.over();
            let lasted = failed.began < stops && failed.ended >= stops + DRAIN;
            // A UDP session that is quiet is not known to anybody: what comes next is as new.
            let new = failed.kind.is_udp() && overlaps(failed, stops, fault.over());
            (came_late || lasted || new).then_some(Excuse::AgentLeft)
        }
        // From the node itself its own endpoints are within reach. But over UDP nobody tells that the others are not.
        Fault::CutCable(node) | Fault::LinkDown(node)
            if node == failed.node && (!failed.by_vip || failed.kind.is_udp()) =>
        {
            overlaps(failed, fault.began, fault.over().saturating_add(PLUGGED)).then_some(Excuse::NodeCutOff)
        }
        _ => None,
    }
}

/// The endpoint that it was with, where that is certain. A connection stays with its endpoint. A port's session begins anew, and may
/// be with another one, when there is another agent, or when its endpoint was none for a while.
fn with(failed: &Failed, happened: &[Happened]) -> Option<usize> {
    let (endpoint, heard) = failed.answered?;
    let begins_anew = |fault: &Happened| match fault.fault {
        Fault::KillAgent(node) | Fault::TerminateAgent(node) => {
            node == failed.node || node == node_of(endpoint)
        }
        Fault::TakeOver(node) => node == failed.node,
        Fault::CutCable(node) | Fault::LinkDown(node) => node == node_of(endpoint),
        Fault::KillEndpoint(of)
        | Fault::FreezeEndpoint(of)
        | Fault::DrainEndpoint(of)
        | Fault::DeregisterEndpoint(of) => of == endpoint,
        Fault::FreezeStore | Fault::KillStore => false,
    };
    let has_begun_anew = failed.kind.is_udp()
        && happened.iter().any(|fault| {
            // It is gone from the catalog only a while after it is gone.
            let gone = fault.over().saturating_add(LEASED);
            begins_anew(fault) && fault.began <= failed.ended && gone >= heard
        });
    (!has_begun_anew).then_some(endpoint)
}

/// What happened to the endpoint, or to one that may have been it.
fn of_endpoint(failed: &Failed, fault: &Happened, happened: &[Happened]) -> Option<Excuse> {
    let known = with(failed, happened);
    let may_be = |endpoint| known.is_none_or(|known| known == endpoint);
    // Over TCP only what was established before: a connection that begins later is led elsewhere.
    let was_before = failed.began <= fault.done() && failed.ended >= fault.began;
    let unnoticed = |endpoint, within| {
        let noticed = noticed(endpoint, fault.done(), within, happened);
        failed.began <= noticed.min(fault.over().saturating_add(PLUGGED)) && failed.ended >= fault.began
    };
    match fault.fault {
        Fault::KillEndpoint(endpoint) if may_be(endpoint) => {
            // Who asks anew is told at once by the endpoint's host. A session that had answers learns of it by losing one.
            let silent = failed.kind == Kind::Talk && unnoticed(endpoint, CHECKED);
            let told_much = happened.iter().any(|other| {
                let is_there =
                    |late: usize| node_of(late) == failed.node && node_of(late) != node_of(endpoint);
                matches!(other.fault, Fault::FreezeEndpoint(late) if is_there(late))
                    && other.over() <= fault.done()
                    && other.over().saturating_add(TOLD_AGAIN) >= fault.began
            });
            let untold = failed.kind.is_udp()
                && failed.why == Why::Silent
                && told_much
                && unnoticed(endpoint, CHECKED);
            match (was_before || silent, untold) {
                (true, _) => Some(Excuse::EndpointKilled),
                (false, true) => Some(Excuse::EndpointUntold),
                (false, false) => None,
            }
        }
        Fault::FreezeEndpoint(endpoint) if failed.kind.is_udp() && may_be(endpoint) => {
            unnoticed(endpoint, CHECKED).then_some(Excuse::EndpointHangs)
        }
        Fault::CutCable(node) | Fault::LinkDown(node) => {
            // One of its endpoints asked from elsewhere, or one elsewhere asked from there.
            let lost = |endpoint: usize| {
                let crosses = (node_of(endpoint) == node) != (failed.node == node);
                let in_time = was_before || (failed.kind.is_udp() && unnoticed(endpoint, LEASED));
                crosses && may_be(endpoint) && in_time
            };
            (0..ENDPOINTS).any(lost).then_some(Excuse::EndpointCutOff)
        }
        _ => None,
    }
}

/// When every node must have noticed what happened to an endpoint at this time: `within` so long, but not while the store is
/// away, or the endpoint's node, which would tell.
fn noticed(endpoint: usize, at: Duration, within: Duration, happened: &[Happened]) -> Duration {
    let mut noticed = at.saturating_add(within);
    let mut tells_nobody: Vec<&Happened> = happened
        .iter()
        .filter(|other| match other.fault {
            Fault::FreezeStore | Fault::KillStore => true,
            Fault::KillAgent(node)
            | Fault::TerminateAgent(node)
            | Fault::CutCable(node)
            | Fault::LinkDown(node) => node == node_of(endpoint),
            _ => false,
        })
        .collect();
    tells_nobody.sort_by_key(|other| other.began);
    for other in tells_nobody {
        if other.began <= noticed && other.over() >= at {
            noticed = noticed.max(other.over().saturating_add(within));
        }
    }
    noticed
}

/// Is there no endpoint that was well, known to be, and within reach for all the time?
fn nobody_there(failed: &Failed, happened: &[Happened]) -> bool {
    (0..ENDPOINTS).all(|endpoint| {
        happened.iter().any(|fault| {
            let back = match fault.fault {
                Fault::KillEndpoint(of)
                | Fault::FreezeEndpoint(of)
                | Fault::DrainEndpoint(of)
                | Fault::DeregisterEndpoint(of)
                    if of == endpoint =>
                {
                    noticed(endpoint, fault.over(), CHECKED, happened)
                }
                Fault::KillAgent(node) | Fault::TerminateAgent(node) if node == node_of(endpoint) => {
                    noticed(endpoint, fault.over(), CHECKED, happened)
                }
                Fault::CutCable(node) | Fault::LinkDown(node)
                    if (node == node_of(endpoint)) != (node == failed.node) =>
                {
                    noticed(endpoint, fault.over(), LEASED, happened)
                }
                _ => return false,
            };
            overlaps(failed, fault.began, back)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// It lasts from 100 to 104.
    fn happened(fault: Fault) -> Vec<Happened> {
        vec![Happened { fault, began: at(100), done: Some(at(100)), over: Some(at(104)) }]
    }

    /// By the published port of node a.
    fn failed(kind: Kind, why: Why, began: f64, ended: f64) -> Failed {
        Failed {
            kind,
            node: 0,
            by_vip: false,
            began: Duration::from_secs_f64(began),
            ended: Duration::from_secs_f64(ended),
            answered: None,
            why,
            text: String::new(),
        }
    }

    #[test]
    fn what_was_established_to_a_killed_endpoint_is_excused_and_what_comes_after_is_not() {
        let happened = happened(Fault::KillEndpoint(1));
        let before = failed(Kind::Kept, Why::Broken, 99.0, 100.1);
        assert_eq!(excuse(&before, &happened), Some(Excuse::EndpointKilled));
        let elsewhere = Failed { answered: Some((3, at(99))), ..before };
        assert_eq!(excuse(&elsewhere, &happened), None);
        assert_eq!(excuse(&failed(Kind::Once, Why::Broken, 100.1, 100.2), &happened), None);
        assert_eq!(excuse(&failed(Kind::Once, Why::Broken, 98.0, 99.9), &happened), None);
    }

    #[test]
    fn a_kernel_that_told_of_many_closed_ports_tells_of_none_for_a_while() {
        let killed = happened(Fault::KillEndpoint(3));
        // One of the node that asks came to itself at 99, and its answers found closed ports elsewhere.
        let late = Happened {
            fault: Fault::FreezeEndpoint(0),
            began: at(95),
            done: Some(at(95)),
            over: Some(at(99)),
        };
        let lost = failed(Kind::Datagram, Why::Silent, 100.1, 101.6);
        let both = [killed.clone(), vec![late]].concat();
        assert_eq!(excuse(&lost, &both), Some(Excuse::EndpointUntold));
        assert_eq!(excuse(&lost, &killed), None);
        assert_eq!(excuse(&Failed { node: 2, ..lost.clone() }, &both), None);
        assert_eq!(excuse(&Failed { why: Why::Broken, ..lost.clone() }, &both), None);
        let own = [happened(Fault::KillEndpoint(1)), vec![late]].concat();
        assert_eq!(excuse(&lost, &own), None);
        let long_ago = Happened { over: Some(at(93)), ..late };
        assert_eq!(excuse(&lost, &[killed, vec![long_ago]].concat()), None);
    }

    #[test]
    fn take_overs_drains_and_the_store_excuse_nothing() {
        for fault in [
            Fault::TakeOver(0),
            Fault::DrainEndpoint(0),
            Fault::DeregisterEndpoint(1),
            Fault::FreezeStore,
            Fault::KillStore,
        ] {
            for kind in Kind::ALL {
                for why in [Why::Broken, Why::Silent] {
                    assert_eq!(excuse(&failed(kind, why, 99.9, 101.0), &happened(fault)), None, "{fault}");
                }
            }
        }
    }

    #[test]
    fn silence_over_tcp_and_wrong_answers_are_never_excused() {
        for fault in [Fault::KillAgent(0), Fault::CutCable(0), Fault::FreezeEndpoint(0)] {
            assert_eq!(excuse(&failed(Kind::Once, Why::Silent, 99.9, 119.9), &happened(fault)), None);
            assert_eq!(excuse(&failed(Kind::Datagram, Why::Wrong, 99.9, 100.5), &happened(fault)), None);
        }
    }

    #[test]
    fn a_killed_agent_excuses_its_own_clients_until_it_is_back() {
        let happened = happened(Fault::KillAgent(0));
        let during = failed(Kind::Once, Why::Broken, 103.0, 103.0);
        assert_eq!(excuse(&during, &happened), Some(Excuse::AgentKilled));
        assert_eq!(excuse(&Failed { node: 1, ..during }, &happened), None);
        assert_eq!(excuse(&failed(Kind::Once, Why::Broken, 104.1, 104.2), &happened), None);
    }

    #[test]
    fn an_agent_that_leaves_serves_until_its_notice_is_over_and_what_it_has_until_the_deadline() {
        let happened = happened(Fault::TerminateAgent(0));
        let once = |began, ended| excuse(&failed(Kind::Once, Why::Broken, began, ended), &happened);
        assert_eq!(once(100.5, 100.6), None);
        assert_eq!(once(101.5, 101.6), Some(Excuse::AgentLeft));
        assert_eq!(once(100.5, 103.0), None);
        assert_eq!(once(100.5, 106.1), Some(Excuse::AgentLeft));
    }

    #[test]
    fn datagrams_to_an_endpoint_that_hangs_are_excused_until_the_check_tells() {
        let mut happened = happened(Fault::FreezeEndpoint(2));
        let lost = |began: f64| failed(Kind::Datagram, Why::Silent, began, began + 1.5);
        assert_eq!(excuse(&lost(101.0), &happened), Some(Excuse::EndpointHangs));
        assert_eq!(excuse(&lost(102.0), &happened), None);
        let store =
            Happened { fault: Fault::KillStore, began: at(101), done: Some(at(101)), over: Some(at(103)) };
        happened.push(store);
        assert_eq!(excuse(&lost(102.0), &happened), Some(Excuse::EndpointHangs), "nobody could be told");
    }

    #[test]
    fn a_port_may_be_with_another_endpoint_once_there_is_another_agent() {
        let mut happened = happened(Fault::LinkDown(2));
        let lost = Failed { answered: Some((2, at(99))), ..failed(Kind::Talk, Why::Silent, 101.0, 102.5) };
        assert_eq!(excuse(&lost, &happened), None, "it was with an endpoint of b");
        happened.push(Happened { fault: Fault::TakeOver(0), ..happened[0] });
        assert_eq!(excuse(&lost, &happened), Some(Excuse::EndpointCutOff));
        let connection = Failed { kind: Kind::Kept, why: Why::Broken, ..lost };
        assert_eq!(excuse(&connection, &happened), None, "a connection stays where it is");
    }

    #[test]
    fn from_a_node_that_is_cut_off_its_own_endpoints_are_to_be_reached_over_tcp() {
        let mut happened = happened(Fault::LinkDown(0));
        let within = Failed { by_vip: true, ..failed(Kind::Once, Why::Broken, 101.0, 102.0) };
        assert_eq!(excuse(&within, &happened), None);
        for endpoint in 0..2 {
            happened.push(Happened { fault: Fault::KillEndpoint(endpoint), ..happened[0] });
        }
        assert_eq!(excuse(&within, &happened), Some(Excuse::NobodyThere));
        let elsewhere = Failed { node: 2, ..within };
        assert_eq!(excuse(&elsewhere, &happened), None, "those of b and c are well");
    }
}
