//! Packet filters of others that let nothing pass between links: Docker's policy `DROP` above all.
//!
//! Every filter that hooks into forwarding has its say: what ours accepts, another one may still drop. Read as `nft` and
//! `iptables-legacy` print them; the judgement is pure. A filter that ends in a drop and has a rule for our links is taken
//! to let them pass.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use nerve::model::{NetworkName, Prefix};
use tokio::process::Command;

use super::Finding;
use super::host::setting;
use crate::nft;
use crate::overlay::TABLE;

const SUBJECT: &str = "filters";
/// On the path, or where distributions have it, which is not on everyone's path.
const LEGACY: [(&str, &str, bool); 4] = [
    ("iptables-legacy", "ip_tables_names", true),
    ("/usr/sbin/iptables-legacy", "ip_tables_names", true),
    ("ip6tables-legacy", "ip6_tables_names", false),
    ("/usr/sbin/ip6tables-legacy", "ip6_tables_names", false),
];
/// How long it may take.
const WITHIN: Duration = Duration::from_secs(5);
/// Makes frames between ports of a bridge pass the filters for IPv4 packets.
const BRIDGED: &str = "net.bridge.bridge-nf-call-iptables";

/// A filter that drops what it has no rule for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Closed {
    /// What it is called.
    name: String,
    /// What lets our packets pass it.
    remedy: String,
}

pub(super) async fn examine(networks: &[(NetworkName, Vec<Prefix>)]) -> Vec<Finding> {
    let has = |v4| networks.iter().flat_map(|(_, ranges)| ranges).any(|range| range.is_ipv4() == v4);
    let (v4, v6) = (has(true), has(false));
    let (mut closed, mut findings) = (Vec::new(), Vec::new());
    match of_nft(v4, v6).await {
        Ok(found) => closed.extend(found),
        Err(error) => {
            findings.push(Finding::note(SUBJECT, format!("those of others cannot be read: {error}")))
        }
    }
    for family in [true, false].into_iter().filter(|family| if *family { v4 } else { v6 }) {
        match of_legacy(family).await {
            Ok(found) => closed.extend(found),
            Err(why) => findings.push(Finding::note(SUBJECT, why)),
        }
    }
    let bridged = setting(BRIDGED).is_some_and(|value| value == "1");
    let also = if bridged {
        format!("; with {BRIDGED} = 1 not even containers on this node reach each other")
    } else {
        String::new()
    };
    findings.extend(closed.iter().map(|Closed { name, remedy }| {
        let message = format!(
            "{name} drops what passes between links and has no rule for those of networks: containers of this node reach \
             nobody elsewhere, though nodes reach them{also}"
        );
        Finding::bad(SUBJECT, message).advice(format!("let them pass: {remedy}"))
    }));
    if findings.is_empty() {
        findings.push(Finding::good(SUBJECT, "no packet filter of others drops what passes between links"));
    }
    findings
}

async fn of_nft(v4: bool, v6: bool) -> Result<Vec<Closed>, nft::Error> {
    let mut closed = Vec::new();
    for (family, table) in forwarding_tables(&nft::chains().await?) {
        let matters = match family.as_str() {
            "ip" => v4,
            "ip6" => v6,
            _ => family == "inet",
        };
        if matters
            && table != TABLE.name
            && let Some(text) = nft::list_of(&family, &table).await?
        {
            closed.extend(closed_chain(&text).map(|chain| named(&family, &table, chain, &text)));
        }
    }
    Ok(closed)
}

/// The rules that the kernel's older packet filter has, where it has any.
async fn of_legacy(v4: bool) -> Result<Option<Closed>, String> {
    let of_family = || LEGACY.iter().filter(|(_, _, family)| *family == v4);
    let Some((_, names, _)) = of_family().next() else { return Ok(None) };
    let tables = fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
    if !tables.lines().any(|table| table == "filter") {
        return Ok(None);
    }
    for (program, _, _) in of_family() {
        let mut command = Command::new(program);
        command.arg("-S").env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        let Ok(Ok(output)) = tokio::time::timeout(WITHIN, command.output()).await else { continue };
        if output.status.success() {
            return Ok(closed_legacy(&String::from_utf8_lossy(&output.stdout), v4));
        }
    }
    let program = if v4 { "iptables-legacy" } else { "ip6tables-legacy" };
    Err(format!("this host has rules of {program}, and that program, which could list them, is not there"))
}

/// The family and the name of each table with a chain that packets between links pass.
fn forwarding_tables(chains: &str) -> Vec<(String, String)> {
    let mut tables: Vec<(String, String)> = Vec::new();
    let mut current = None;
    for line in chains.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["table", family, table, ..] => current = Some((family.to_owned(), table.to_owned())),
            ["type", "filter", "hook", "forward", ..] => {
                tables.extend(current.take());
            }
            _ => {}
        }
    }
    tables
}

/// The chain of a table in which what passes between links ends as dropped, if it has no rule for our links.
fn closed_chain(table: &str) -> Option<&str> {
    if table.lines().any(|line| line.contains("\"plx") && line.contains("accept")) {
        return None;
    }
    let (mut chain, mut forwards, mut drops, mut decided) = ("", false, false, false);
    for line in table.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("chain ") {
            (chain, forwards, decided) = (rest.trim_end_matches('{').trim(), false, false);
        } else if line.starts_with("type filter hook forward") {
            (forwards, drops) = (true, line.contains("policy drop"));
        } else if line == "}" {
            if forwards && drops {
                return Some(chain);
            }
            forwards = false;
        } else if let Some(verdict) = for_everything(line).filter(|_| forwards && !decided) {
            // The first rule that is for everything is what the policy would have been.
            (drops, decided) = (verdict != "accept", true);
        }
    }
    None
}

/// The verdict of a rule without conditions: `drop`, `counter packets 0 bytes 0 reject with icmpx admin-prohibited`.
fn for_everything(rule: &str) -> Option<&str> {
    let is_of_counter =
        |word: &&str| matches!(*word, "counter" | "packets" | "bytes") || word.parse::<u64>().is_ok();
    let verdict = rule.split_whitespace().find(|word| !is_of_counter(word));
    verdict.filter(|word| matches!(*word, "accept" | "drop" | "reject"))
}

fn named(family: &str, table: &str, chain: &str, text: &str) -> Closed {
    let name = format!("the packet filter table {family} {table}, chain {chain},");
    let remedy = match (family, table, chain) {
        ("ip", "filter", "FORWARD") => iptables("iptables", text.contains("chain DOCKER-USER")),
        ("ip6", "filter", "FORWARD") => iptables("ip6tables", text.contains("chain DOCKER-USER")),
        _ => ["iifname", "oifname"]
            .map(|side| format!("`nft insert rule {family} {table} {chain} {side} '\"plx*\"' accept`"))
            .join(" and "),
    };
    Closed { name, remedy }
}

/// What `iptables-legacy -S` prints.
fn closed_legacy(rules: &str, v4: bool) -> Option<Closed> {
    let mut of_chain = rules.lines().filter(|line| line.starts_with("-A FORWARD "));
    let last = of_chain.next_back();
    let closes = rules.lines().any(|line| line == "-P FORWARD DROP")
        || last.is_some_and(|rule| rule == "-A FORWARD -j DROP" || rule.starts_with("-A FORWARD -j REJECT"));
    let lets_pass = rules.lines().any(|line| line.contains(" plx") && line.ends_with("-j ACCEPT"));
    (closes && !lets_pass).then(|| {
        let program = if v4 { "iptables-legacy" } else { "ip6tables-legacy" };
        let remedy = iptables(program, rules.contains("-N DOCKER-USER"));
        Closed { name: format!("the chain FORWARD of {program}"), remedy }
    })
}

fn iptables(program: &str, is_dockers: bool) -> String {
    // Docker leaves that chain to others, and makes FORWARD anew when it starts.
    let chain = if is_dockers { "DOCKER-USER" } else { "FORWARD" };
    format!("`{program} -I {chain} -i plx+ -j ACCEPT` and `{program} -I {chain} -o plx+ -j ACCEPT`")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = "table ip filter {\n\tchain DOCKER-USER {\n\t\tcounter packets 1 bytes 2 return\n\t}\n\n\tchain FORWARD {\n\t\t\
        type filter hook forward priority filter; policy drop;\n\t\tcounter packets 9 bytes 9 jump DOCKER-USER\n\t}\n}\n";

    fn with_policy(policy: &str, rules: &str) -> String {
        format!(
            "table inet fw {{\n\tchain other {{\n\t\tdrop\n\t}}\n\n\tchain forward {{\n\t\ttype filter hook forward priority 0; \
             policy {policy};\n{rules}\t}}\n}}\n"
        )
    }

    #[test]
    fn tables_with_a_chain_for_what_passes_between_links_are_found() {
        let chains = format!(
            "table bridge b {{\n}}\ntable ip nat {{\n\tchain X {{\n\t\ttype nat hook output priority 0; policy accept;\n\t}}\n}}\n{DOCKER}"
        );
        assert_eq!(forwarding_tables(&chains), [("ip".to_owned(), "filter".to_owned())]);
    }

    #[test]
    fn a_policy_or_a_last_rule_that_drops_closes_a_chain_unless_a_rule_is_for_our_links() {
        for (policy, rules, closed) in [
            ("drop", "", true),
            ("accept", "", false),
            (
                "accept",
                "\t\tct state established accept\n\t\tcounter packets 0 bytes 0 reject with icmpx admin-prohibited\n",
                true,
            ),
            ("accept", "\t\tdrop\n\t\taccept\n", true),
            ("drop", "\t\tcounter packets 1 bytes 1 accept\n", false),
            ("accept", "\t\tip saddr 192.0.2.1 drop\n", false),
            ("drop", "\t\tiifname \"plx*\" counter packets 1 bytes 1 accept\n", false),
        ] {
            let text = with_policy(policy, rules);
            assert_eq!(closed_chain(&text), closed.then_some("forward"), "{text}");
        }
    }

    #[test]
    fn what_to_do_is_in_the_words_of_whoever_made_the_filter() {
        let closed = closed_chain(DOCKER).map(|chain| named("ip", "filter", chain, DOCKER)).unwrap();
        assert!(closed.remedy.contains("iptables -I DOCKER-USER -i plx+ -j ACCEPT"), "{}", closed.remedy);
        let text = with_policy("drop", "");
        let closed = closed_chain(&text).map(|chain| named("inet", "fw", chain, &text)).unwrap();
        assert!(
            closed.remedy.contains("nft insert rule inet fw forward iifname '\"plx*\"' accept"),
            "{}",
            closed.remedy
        );
    }

    #[test]
    fn the_older_packet_filter_is_judged_alike() {
        for (rules, closed) in [
            ("-P INPUT ACCEPT\n-P FORWARD DROP\n", true),
            ("-P FORWARD ACCEPT\n", false),
            (
                "-P FORWARD ACCEPT\n-A FORWARD -i eth0 -j ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n",
                true,
            ),
            ("-P FORWARD DROP\n-A FORWARD -i plx+ -j ACCEPT\n", false),
        ] {
            assert_eq!(closed_legacy(rules, true).is_some(), closed, "{rules}");
        }
    }
}
