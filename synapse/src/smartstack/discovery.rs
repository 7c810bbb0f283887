//! `discovery` of a service: which place is followed.

use std::collections::BTreeSet;

use nerve::document::{Reported, Section};
use nerve::smartstack::{Several, Word};

use crate::watch::{Condition, Decode, Kind, LabelFilter, Server, ZooKeeper};

/// The place, and which of the servers there count.
pub(super) struct Discovery {
    pub(super) kind: Kind,
    pub(super) label_filters: Vec<LabelFilter>,
}

/// Reads the section.
pub(super) fn read(section: &mut Section<'_>, default_servers: &[Server]) -> Result<Discovery, Reported> {
    let method = section.required::<Word>("method");
    let mut label_filters = section.list("label_filters", label_filter);
    label_filters.extend(section.list("label_filter", label_filter));
    let Word(method) = method?;
    // Reads the section's other keys, so it comes before anything is given up.
    let kind = kind(section, &method, default_servers);
    Ok(Discovery { kind: kind?, label_filters: label_filters.into_iter().collect::<Result<_, _>>()? })
}

/// What the method is here.
fn kind(section: &mut Section<'_>, method: &str, default_servers: &[Server]) -> Result<Kind, Reported> {
    match method {
        "base" | "stub" => Ok(Kind::Static(default_servers.to_vec())),
        // Names of hosts are looked up whatever the place; nobody polls where changes are told.
        "zookeeper" | "zookeeper_poll" | "zookeeper_dns" | "zookeeper_dns_poll" => zookeeper(section),
        other => Err(section.invalid(
            "method",
            format_args!("discovery method {other:?} is not supported"),
            "base, zookeeper, zookeeper_poll, zookeeper_dns or zookeeper_dns_poll",
        )),
    }
}

fn zookeeper(section: &mut Section<'_>) -> Result<Kind, Reported> {
    for key in [
        "retry_policy",
        "discovery_jitter",
        "polling_interval_sec",
        "generator_config_path",
        "nameserver",
        "check_interval",
    ] {
        section.allow(key);
    }
    let hosts = section.required::<Several<Word>>("hosts");
    let path = section.required::<String>("path");
    let decode = section.section_or_empty("decode", |decode| {
        let method = decode.or("method", Decode::default());
        let endpoint_name = decode.optional::<String>("endpoint_name");
        // Nerve's registrations have one endpoint, whatever is said.
        (method, endpoint_name.filter(|_| method == Decode::Serverset))
    });
    let (Several(hosts), path, (decode, endpoint_name)) = (hosts?, path?, decode);
    let hosts = hosts.iter().flat_map(|Word(hosts)| hosts.split(',')).map(|host| host.trim().to_owned());
    let hosts: Vec<String> = hosts.collect();
    let path = match path.trim_end_matches('/') {
        trimmed if trimmed.starts_with('/') => trimmed.to_owned(),
        trimmed => format!("/{trimmed}"),
    };
    ZooKeeper::new(hosts, path, decode, endpoint_name).map(Kind::ZooKeeper).map_err(|wrong| {
        section.invalid(
            if wrong.key == "zookeeper" { "hosts" } else { wrong.key },
            wrong.message,
            wrong.expected,
        )
    })
}

fn label_filter(section: &mut Section<'_>) -> Result<LabelFilter, Reported> {
    let label = section.required::<Word>("label");
    let value = section.required::<Word>("value");
    let condition = section.required::<String>("condition");
    let (Word(label), Word(value), condition) = (label?, value?, condition?);
    let condition = match condition.as_str() {
        "equals" => Condition::Equals,
        "not-equals" => Condition::NotEquals,
        other => {
            let why = format_args!("{other:?} is none");
            return Err(section.invalid("condition", why, "\"equals\" or \"not-equals\""));
        }
    };
    Ok(LabelFilter { label, condition, values: BTreeSet::from([value]) })
}
