//! What the packet filter of others drops: Docker, and firewalls made with iptables, forward only what they know (`policy drop`).
//!
//! Who accepts a packet in a table of its own does not rescue it from another's. So where the chain `FORWARD` of iptables drops what
//! nothing there accepts, rules of ours stand at its end, marked by a comment: they take the place of the policy for packets of overlay
//! networks, and whatever the chain says before holds for these too. What may pass between networks, and into them, is decided in our
//! own table, whose drops hold here as well. Docker's bridges stay as closed as they are for each other. Where the policy is another one, or no network is here, nothing of
//! ours is in the chain.
//!
//! This goes for iptables as distributions have it, which is made of nf_tables; of the legacy one, `nft` knows nothing.

use std::fmt::Write as _;
use std::io;

use crate::nft::{self, Table};

const TABLE: &str = "filter";
/// Where it is looked, of each family.
pub(super) const TABLES: [Table; 2] =
    [Table { family: "ip", name: TABLE }, Table { family: "ip6", name: TABLE }];
const CHAIN: &str = "FORWARD";
/// Docker's rules against packets into its bridges.
const DOCKERS_BRIDGES: &str = "DOCKER-ISOLATION-STAGE-2";
/// Marks our rules, also in what `iptables -S` prints.
const MARK: &str = "comment \"plexus\"";

/// Makes our rules in others' chains what they are to be. Tells whether some were changed.
pub(super) async fn pass(has_networks: bool) -> io::Result<bool> {
    let mut changed = false;
    for Table { family, .. } in TABLES {
        let chain = nft::list_chain(family, TABLE, CHAIN).await.map_err(io::Error::other)?;
        let Some(chain) = chain else { continue };
        let bridges = nft::list_chain(family, TABLE, DOCKERS_BRIDGES).await.map_err(io::Error::other)?;
        let text = change(family, &chain, bridges.is_some(), has_networks);
        if !text.is_empty() {
            nft::apply(&text).await.map_err(io::Error::other)?;
            changed = true;
        }
    }
    Ok(changed)
}

/// The text that makes them so, of the chain as nft prints it with handles; empty where they are.
fn change(family: &str, chain: &str, docker: bool, has_networks: bool) -> String {
    let drops = chain.lines().any(|line| line.contains("hook forward") && line.contains("policy drop"));
    let wanted = if drops && has_networks { rules(docker) } else { Vec::new() };
    let ours: Vec<&str> = chain.lines().filter(|line| line.contains(MARK)).collect();
    let mut text = String::new();
    if ours.len() == wanted.len() {
        return text;
    }
    // Writing to a string does not fail.
    for handle in ours.iter().filter_map(|line| line.rsplit_once("# handle ")) {
        let _ = writeln!(text, "delete rule {family} {TABLE} {CHAIN} handle {}", handle.1.trim());
    }
    for rule in wanted {
        let _ = writeln!(text, "add rule {family} {TABLE} {CHAIN} {rule} {MARK}");
    }
    text
}

/// Of what iptables itself is made of, and nothing else: a rule with `ct state` in it, and it refuses to touch the chain any more.
fn rules(docker: bool) -> Vec<String> {
    let into_bridges = format!("iifname \"plx*\" counter jump {DOCKERS_BRIDGES}");
    let mut rules = vec!["oifname \"plx*\" counter accept".to_owned()];
    rules.extend(docker.then_some(into_bridges));
    rules.push("iifname \"plx*\" counter accept".to_owned());
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(policy: &str, rules: &[&str]) -> String {
        let rules: String = rules.iter().map(|rule| format!("\t\t{rule}\n")).collect();
        format!(
            "table ip filter {{\n\tchain FORWARD {{ # handle 4\n\t\ttype filter hook forward priority filter; policy {policy};\n\
             \t\tcounter jump DOCKER-USER # handle 30\n{rules}\t}}\n}}\n"
        )
    }

    #[test]
    fn a_chain_that_accepts_is_left_alone() {
        assert_eq!(change("ip", &chain("accept", &[]), true, true), "");
        assert_eq!(change("ip", &chain("drop", &[]), true, false), "");
    }

    #[test]
    fn a_chain_that_drops_gets_rules_at_its_end_once() {
        let text = change("ip6", &chain("drop", &[]), true, true);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(
            text.lines().all(|line| line.starts_with("add rule ip6 filter FORWARD ") && line.ends_with(MARK))
        );
        assert!(text.contains("jump DOCKER-ISOLATION-STAGE-2"), "{text}");
        let without_docker = change("ip", &chain("drop", &[]), false, true);
        assert!(
            without_docker.lines().count() == 2 && !without_docker.contains("DOCKER"),
            "{without_docker}"
        );
        let there: Vec<String> =
            rules(true).iter().enumerate().map(|(n, rule)| format!("{rule} {MARK} # handle {n}")).collect();
        let there: Vec<&str> = there.iter().map(String::as_str).collect();
        assert_eq!(change("ip", &chain("drop", &there), true, true), "");
    }

    #[test]
    fn rules_of_ours_go_when_they_are_not_needed_and_nobody_elses() {
        let there =
            ["iifname \"plx*\" counter accept comment \"plexus\" # handle 41", "counter accept # handle 42"];
        for (policy, has_networks) in [("accept", true), ("drop", false)] {
            let text = change("ip", &chain(policy, &there), true, has_networks);
            assert_eq!(text, "delete rule ip filter FORWARD handle 41\n");
        }
        let renewed = change("ip", &chain("drop", &there), false, true);
        assert!(renewed.starts_with("delete rule ip filter FORWARD handle 41\nadd rule"), "{renewed}");
    }
}
