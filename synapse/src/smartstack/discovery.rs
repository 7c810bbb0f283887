//! `discovery` of a service: which place is followed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use nerve::document::{Reported, Section};
use nerve::http::Url;
use nerve::smartstack::{Number, Several, Word};

use super::server::server;
use crate::watch::{Condition, Decode, Docker, Kind, LabelFilter, Server, ZooKeeper};

/// The port of DNS.
const DNS: u16 = 53;
/// Where Synapse takes Docker to be.
const DOCKER: u16 = 4243;

/// The place, and which of the servers there count.
pub(super) struct Discovery {
    pub(super) kind: Kind,
    pub(super) label_filters: Vec<LabelFilter>,
    /// Who is asked for the names of servers, if it is not this machine's resolver.
    pub(super) resolvers: Option<Vec<SocketAddr>>,
}

/// Reads the section.
pub(super) fn read(section: &mut Section<'_>, default_servers: &[Server]) -> Result<Discovery, Reported> {
    let method = section.required::<Word>("method");
    let mut label_filters = section.list("label_filters", label_filter);
    label_filters.extend(section.list("label_filter", label_filter));
    let Word(method) = method?;
    // Reads the section's other keys, so it comes before anything is given up.
    let kind = kind(section, &method, default_servers);
    let resolvers = resolvers(section, &method);
    let label_filters = label_filters.into_iter().collect::<Result<_, _>>();
    Ok(Discovery { kind: kind?, label_filters: label_filters?, resolvers: resolvers? })
}

/// Where names are what is found, name servers are asked, as Synapse does: they say for how long an answer holds.
fn resolvers(section: &mut Section<'_>, method: &str) -> Result<Option<Vec<SocketAddr>>, Reported> {
    if !matches!(method, "dns" | "zookeeper_dns" | "zookeeper_dns_poll") {
        return Ok(None);
    }
    let given = section.given::<Several<Word>>("nameserver")?.map_or(Vec::new(), |Several(servers)| servers);
    let address = |Word(text): &Word| {
        let address = text.trim().parse::<IpAddr>().map(|address| SocketAddr::new(address, DNS));
        address.or_else(|_| text.trim().parse::<SocketAddr>())
    };
    let servers: Result<Vec<SocketAddr>, _> = given.iter().map(address).collect();
    servers.map(Some).map_err(|wrong| section.invalid("nameserver", wrong, "the address of a name server"))
}

/// What the method is here.
fn kind(section: &mut Section<'_>, method: &str, default_servers: &[Server]) -> Result<Kind, Reported> {
    match method {
        "base" | "stub" => Ok(Kind::Static(default_servers.to_vec())),
        // Names of hosts are looked up whatever the place; nobody polls where changes are told.
        "zookeeper" | "zookeeper_poll" | "zookeeper_dns" | "zookeeper_dns_poll" => zookeeper(section),
        "dns" => {
            section.allow("check_interval");
            let servers = section.list("servers", server);
            servers.into_iter().collect::<Result<_, _>>().map(Kind::Static)
        }
        "docker" => docker(section),
        other => Err(section.invalid(
            "method",
            format_args!("discovery method {other:?} is not supported"),
            "base, zookeeper, zookeeper_poll, zookeeper_dns, zookeeper_dns_poll, dns or docker",
        )),
    }
}

fn zookeeper(section: &mut Section<'_>) -> Result<Kind, Reported> {
    for key in [
        "retry_policy",
        "discovery_jitter",
        "polling_interval_sec",
        "generator_config_path",
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

/// Synapse asks for an image without its version.
fn docker(section: &mut Section<'_>) -> Result<Kind, Reported> {
    section.allow("check_interval");
    let engines = section.list("servers", |server| {
        server.allow("name");
        let host = server.required::<Word>("host");
        let port = server.or("port", Number(DOCKER));
        let (Word(host), Number(port)) = (host?, port);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let url = format!("tcp://{host}:{port}").parse::<Url>();
        url.map_err(|wrong| server.invalid("host", wrong, "an address or a name"))
    });
    let image = section.required::<Word>("image_name");
    let port = section.required::<Number<NonZeroU16>>("container_port");
    let engines = engines.into_iter().collect::<Result<Vec<_>, _>>();
    let (engines, Word(image), Number(port)) = (engines?, image?, port?);
    if engines.is_empty() {
        return Err(section.invalid("servers", "it names no Docker", "a list of tables with `host`"));
    }
    Ok(Kind::Docker(Docker::of_image(engines, image, port)))
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
