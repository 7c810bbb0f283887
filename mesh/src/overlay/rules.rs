//! The routing rules of answers to clients elsewhere: `ip rule add iif plxb4096 fwmark MARK/MASK lookup TABLE pref 82 protocol 82`.

use std::collections::BTreeSet;
use std::io;

use futures_util::TryStreamExt;
use nerve::model::Vni;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::messages::{OURS, is_our_rule};
use super::names::bridge;
use super::netlink::{Netlink, failed, or_gone, or_none};
use super::returns::{FORMS, Form, table};
use crate::netlink::is_rule;

/// Where they stand: before those of tables that others route containers by.
const PRIORITY: u32 = 82;

impl Netlink {
    /// Makes the rules those of these networks, each with whether it is of IPv4 and not of IPv6. Tells how many were lacking.
    pub(super) async fn ensure_rules(&self, wanted: &BTreeSet<(Vni, bool)>) -> io::Result<usize> {
        let of_forms = |(vni, v4): (Vni, bool)| FORMS.map(|form| (vni, v4, form));
        let mut lacking: BTreeSet<(Vni, bool, Form)> = wanted.iter().copied().flat_map(of_forms).collect();
        for v4 in [true, false] {
            for found in self.rules(v4).await? {
                let is_it = |(vni, of_v4, form): &&(Vni, bool, Form)| {
                    *of_v4 == v4 && is_rule(&found, &rule(*vni, v4, *form))
                };
                let wanted = lacking.iter().find(is_it);
                match wanted.copied() {
                    Some(wanted) => drop(lacking.remove(&wanted)),
                    // Of a network that is no more, one of two, or changed by somebody.
                    None => self.remove_rule(found).await?,
                }
            }
        }
        for (vni, v4, form) in &lacking {
            let mut add = self.handle.rule().add();
            *add.message_mut() = rule(*vni, *v4, *form);
            add.execute().await.map_err(|e| failed("add a routing rule", &e))?;
        }
        Ok(lacking.len())
    }

    /// Removes all of them. Tells how many there were.
    pub(super) async fn remove_rules(&self) -> io::Result<usize> {
        let mut count = 0;
        for v4 in [true, false] {
            for rule in self.rules(v4).await? {
                self.remove_rule(rule).await?;
                count += 1;
            }
        }
        Ok(count)
    }

    async fn remove_rule(&self, rule: RuleMessage) -> io::Result<()> {
        or_gone(self.handle.rule().del(rule).execute().await).map_err(|e| failed("remove a routing rule", &e))
    }

    async fn rules(&self, v4: bool) -> io::Result<Vec<RuleMessage>> {
        let mut listed = self.handle.rule().get(if v4 { IpVersion::V4 } else { IpVersion::V6 }).execute();
        let mut rules = Vec::new();
        while let Some(rule) = or_none(listed.try_next().await, "list the routing rules")? {
            if is_our_rule(&rule) {
                rules.push(rule);
            }
        }
        Ok(rules)
    }
}

fn rule(vni: Vni, v4: bool, form: Form) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Iifname(bridge(vni)),
        RuleAttribute::FwMark(form.mark),
        RuleAttribute::FwMask(form.mask),
        RuleAttribute::Table(table(vni)),
        RuleAttribute::Protocol(OURS),
    ];
    rule
}
