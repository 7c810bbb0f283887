//! `discovery` of a service: which place is followed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use nerve::document::{FromValue, Reported, Section};
use nerve::http::{Tls, Url};
use nerve::period::Period;
use nerve::smartstack::{Number, Seconds, Several, Word};

use super::server::server;
use crate::watch::{
    Access, Condition, Decode, Docker, Ec2, Kind, LabelFilter, Marathon, Multi, Object, ObjectName, Pace,
    Part, Region, Retry, Secret, Server, Toggle, Which, Znode, ZooKeeper,
};

/// The port of DNS.
const DNS: u16 = 53;
/// Where Synapse takes Docker to be.
const DOCKER: u16 = 4243;
/// Where its client of AWS takes instances to be.
const AWS_REGION: &str = "us-east-1";
/// Where its S3 is, if it is not AWS'.
const ENDPOINT: &str = "AWS_ENDPOINT_URL";
/// What `discovery` is called among others.
const PRIMARY: &str = "primary";
/// Of `generator_config_path`: sections are those of the configuration alone.
const NEVER: &str = "disabled";
/// Synapse's retries of ZooKeeper.
const BASE_INTERVAL: Duration = Duration::from_millis(500);
const MAX_INTERVAL: Duration = Duration::from_secs(60);
const MAX_JITTER: Duration = Duration::from_secs(120);
/// AWS is asked no more often, whatever is said.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);

/// What the service says beside its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beside<'a> {
    pub(super) default_servers: &'a [Server],
    /// Of all servers, whatever the place says.
    pub(super) port: Option<NonZeroU16>,
}

/// The place, and which of the servers there count.
pub(super) struct Discovery {
    pub(super) kind: Kind,
    pub(super) label_filters: Vec<LabelFilter>,
    /// Who is asked for the names of servers, if it is not this machine's resolver.
    pub(super) resolvers: Option<Vec<SocketAddr>>,
    /// How soon the place is looked at again.
    pub(super) pace: Pace,
    /// Where sections may stand that replace those of the service: of several the first that has any.
    pub(super) sections_at: Vec<Znode>,
}

/// What a place is.
struct Found {
    kind: Kind,
    /// Of its parts, if it has some.
    pace: Pace,
    sections_at: Vec<Znode>,
}

impl From<Kind> for Found {
    fn from(kind: Kind) -> Self {
        Self { kind, pace: Pace::default(), sections_at: Vec::new() }
    }
}

/// Reads the section.
pub(super) fn read(section: &mut Section<'_>, beside: Beside<'_>) -> Result<Discovery, Reported> {
    let method = section.required::<Word>("method");
    let mut label_filters = section.list("label_filters", label_filter);
    label_filters.extend(section.list("label_filter", label_filter));
    let Word(method) = method?;
    // Reads the section's other keys, so it comes before anything is given up.
    let pace = pace(section);
    let found = found(section, &method, beside);
    let resolvers = resolvers(section, &method);
    let label_filters = label_filters.into_iter().collect::<Result<_, _>>();
    let Found { kind, pace: of_parts, sections_at } = found?;
    let (label_filters, resolvers, pace) = (label_filters?, resolvers?, pace?.or(of_parts));
    Ok(Discovery { kind, label_filters, resolvers, pace, sections_at })
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

/// How soon it is looked at again. That a place is given up on is not done: it is tried for as long as the agent runs.
fn pace(section: &mut Section<'_>) -> Result<Pace, Reported> {
    let jitter = section.given::<Seconds>("discovery_jitter");
    let retry = section.section("retry_policy", |policy| {
        for key in ["max_attempts", "max_delay"] {
            policy.allow(key);
        }
        let [base, longest] = [("base_interval", BASE_INTERVAL), ("max_interval", MAX_INTERVAL)]
            .map(|(key, usual)| policy.or(key, Seconds(usual)))
            .map(|Seconds(interval)| Period::new(interval.max(Period::MIN)));
        let retry = base.and_then(|base| Ok((base, longest?))).map_err(|wrong| wrong.to_string());
        retry
            .and_then(|(base, longest)| Retry::new(base, longest))
            .map_err(|wrong| policy.refuse(wrong, "a `base_interval` that is not longer than `max_interval`"))
    });
    // None of 0 s, and Synapse takes none that is longer than two minutes.
    let jitter = jitter?.map(|Seconds(jitter)| jitter).filter(|jitter| *jitter <= MAX_JITTER);
    let discovery_jitter = jitter.and_then(|jitter| Period::new(jitter).ok());
    Ok(Pace { discovery_jitter, retry: retry.transpose()? })
}

/// What the method is here.
fn found(section: &mut Section<'_>, method: &str, beside: Beside<'_>) -> Result<Found, Reported> {
    let kind = match method {
        "base" | "stub" => Ok(Kind::Static(beside.default_servers.to_vec())),
        // Names of hosts are looked up whatever the place; nobody polls where changes are told.
        "zookeeper" | "zookeeper_poll" | "zookeeper_dns" | "zookeeper_dns_poll" => return zookeeper(section),
        "dns" => {
            section.allow("check_interval");
            let servers = section.list("servers", server);
            servers.into_iter().collect::<Result<_, _>>().map(Kind::Static)
        }
        "docker" => docker(section),
        "marathon" => marathon(section),
        // Its documentation has the one, and its code the other.
        "ec2tag" | "awstag" => ec2tag(section, beside.port),
        "multi" => return multi(section, None, beside),
        other => Err(section.invalid(
            "method",
            format_args!("discovery method {other:?} is not supported"),
            "base, zookeeper, zookeeper_poll, zookeeper_dns, zookeeper_dns_poll, dns, docker, ec2tag, marathon or multi",
        )),
    };
    kind.map(Found::from)
}

fn zookeeper(section: &mut Section<'_>) -> Result<Found, Reported> {
    for key in ["polling_interval_sec", "check_interval"] {
        section.allow(key);
    }
    let sections_at = section.given::<String>("generator_config_path");
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
    let place = ZooKeeper::new(hosts, node_path(&path), decode, endpoint_name).map_err(|wrong| {
        section.invalid(
            if wrong.key == "zookeeper" { "hosts" } else { wrong.key },
            wrong.message,
            wrong.expected,
        )
    })?;
    let sections_at = match sections_at? {
        Some(never) if never == NEVER => None,
        elsewhere => Some(Znode::beside(&place, elsewhere.as_deref().map(node_path)).map_err(|wrong| {
            section.invalid("generator_config_path", wrong.message, "\"disabled\", or a path of ZooKeeper")
        })?),
    };
    Ok(Found { sections_at: sections_at.into_iter().collect(), ..Kind::ZooKeeper(place).into() })
}

/// As people write it.
fn node_path(path: &str) -> String {
    match path.trim_end_matches('/') {
        trimmed if trimmed.starts_with('/') => trimmed.to_owned(),
        trimmed => format!("/{trimmed}"),
    }
}

fn marathon(section: &mut Section<'_>) -> Result<Kind, Reported> {
    section.allow("check_interval");
    let url = section.required::<Word>("marathon_api_url");
    let app = section.required::<Word>("application_name");
    let Number(index) = section.or("port_index", Number(0_u16));
    let path = section.or("marathon_api_path", Word("/v2/apps/%{app}/tasks".to_owned()));
    let (Word(url), Word(app), Word(path)) = (url?, app?, path);
    if !path.starts_with("/v2/apps/") {
        return Err(section.invalid("marathon_api_path", "it is no path of Marathon's own API", "nothing"));
    }
    let url = url.trim_end_matches('/').parse::<Url>();
    let url = url.map_err(|wrong| section.invalid("marathon_api_url", wrong, "an http:// URL"))?;
    let marathon = Marathon::new(vec![url], &app, index.into(), Tls::default());
    marathon
        .map(Kind::Marathon)
        .map_err(|(_, why)| section.invalid("application_name", why, "an app of Marathon"))
}

/// Instances by a tag; which port they listen on stands elsewhere.
fn ec2tag(section: &mut Section<'_>, port: Option<NonZeroU16>) -> Result<Kind, Reported> {
    let tag_name = section.required::<Word>("tag_name");
    let tag_value = section.required::<Word>("tag_value");
    let [region, id, secret] =
        ["aws_region", "aws_access_key_id", "aws_secret_access_key"].map(|key| section.given::<Word>(key));
    let interval = section.given::<Seconds>("check_interval");
    let (Word(tag_name), Word(tag_value), interval) = (tag_name?, tag_value?, interval?);
    // A template may have nothing to put there.
    let given = |word: Option<Word>| word.map(|Word(text)| text).filter(|text| !text.trim().is_empty());
    let (region, id, secret) = (given(region?), given(id?), given(secret?));
    let region =
        aws_region(region).map_err(|wrong| section.invalid("aws_region", wrong, Region::expected()))?;
    let port = port.ok_or_else(|| {
        section
            .refuse("nobody says which port its servers have", "`backend_port_override` beside `discovery`")
    })?;
    let access = match id.zip(secret) {
        Some((id, secret)) => Access::of_keys(id, Secret::new(secret))
            .map_err(|wrong| section.invalid("aws_access_key_id", wrong, "the id of a key"))?,
        None => Access::default(),
    };
    let ec2 = Ec2::new(region, tag_name, tag_value, port, access)
        .map_err(|(key, why)| section.invalid(key, why, "as EC2 has it"))?;
    let interval = interval.map(|Seconds(interval)| Period::new(interval.max(LEAST_INTERVAL)));
    let interval =
        interval.transpose().map_err(|wrong| section.invalid("check_interval", wrong, "seconds"))?;
    let ec2 = match interval {
        Some(interval) => ec2.every(interval),
        None => ec2,
    };
    Ok(Kind::Ec2(Box::new(ec2)))
}

/// Reads `discovery_multi`, of which `discovery` is the part that is called `primary`.
pub(super) fn read_multi(
    section: &mut Section<'_>,
    primary: Discovery,
    beside: Beside<'_>,
) -> Result<Discovery, Reported> {
    let Discovery { kind, label_filters, resolvers, pace, mut sections_at } = primary;
    let found = multi(section, Some(kind), beside)?;
    sections_at.extend(found.sections_at);
    Ok(Discovery { kind: found.kind, label_filters, resolvers, pace: pace.or(found.pace), sections_at })
}

/// Several places, by what Synapse calls resolvers. Which servers count holds for all of them together.
fn multi(section: &mut Section<'_>, primary: Option<Kind>, beside: Beside<'_>) -> Result<Found, Reported> {
    section.allow("method");
    let parts = section.tables("watchers", |name, part| {
        let Discovery { kind, label_filters, resolvers, pace, sections_at } = read(part, beside)?;
        if !label_filters.is_empty() || resolvers.is_some_and(|servers| !servers.is_empty()) {
            return Err(part
                .refuse("filters and name servers are those of the whole service here", "none of its own"));
        }
        if matches!(kind, Kind::Multi(_)) {
            return Err(part.invalid("method", "it is a part of several places itself", "one place"));
        }
        Ok((Part { name: name.to_owned(), kind }, pace, sections_at))
    });
    let how = section.section("resolver", |resolver| {
        let method = resolver.required::<Word>("method");
        let order = resolver.or("sequential_order", Several(Vec::<Word>::new()));
        let Word(method) = method?;
        match method.as_str() {
            "union" => Ok((Which::Union, Vec::new())),
            "sequential" => Ok((Which::Sequential, order.0)),
            // Which begins with `primary`, and so does what is made of it here: with the first.
            "s3_toggle" => {
                s3_toggle(resolver).map(|toggle| (Which::Toggle(toggle), vec![Word(PRIMARY.to_owned())]))
            }
            other => Err(resolver.invalid(
                "method",
                format_args!("{other:?} is not supported"),
                "union, sequential or s3_toggle",
            )),
        }
    });
    let parts = parts.into_iter().collect::<Result<Vec<_>, _>>()?;
    // Of several that say it the first.
    let pace = parts.iter().fold(Pace::default(), |pace, (_, part, _)| pace.or(*part));
    let sections_at = parts.iter().flat_map(|(_, _, sections_at)| sections_at.clone()).collect();
    let primary = primary.map(|kind| Part { name: PRIMARY.to_owned(), kind });
    let mut parts: Vec<Part> = primary.into_iter().chain(parts.into_iter().map(|(part, ..)| part)).collect();
    let (which, order) =
        how.ok_or_else(|| section.invalid("resolver", "it is missing", "a table with a `method`"))??;
    if which == Which::Sequential {
        let mut ordered = Vec::with_capacity(parts.len());
        for Word(name) in &order {
            let Some(at) = parts.iter().position(|part| part.name == *name) else {
                let why = format_args!("{name:?} is none of the watchers, or is named twice");
                return Err(section.invalid("resolver", why, "each watcher once in `sequential_order`"));
            };
            ordered.push(parts.remove(at));
        }
        // What it does not name counts for nobody, as there.
        parts = ordered;
    } else {
        parts.sort_by_key(|part| order.iter().all(|Word(name)| part.name != *name));
    }
    if parts.is_empty() {
        return Err(section.invalid("watchers", "there is none", "a table for each place"));
    }
    Ok(Found { kind: Kind::Multi(Multi { which, parts }), pace, sections_at })
}

/// Weights in an object of S3, which is asked for with what this machine has of AWS.
fn s3_toggle(section: &mut Section<'_>) -> Result<Toggle, Reported> {
    let url = section.required::<Word>("s3_url");
    let interval = section.required::<Seconds>("s3_polling_interval_seconds");
    let (Word(url), Seconds(interval)) = (url?, interval?);
    let name = url.parse::<ObjectName>();
    let name = name.map_err(|wrong| section.invalid("s3_url", wrong, ObjectName::expected()))?;
    let interval = Period::new(interval.max(LEAST_INTERVAL));
    let interval =
        interval.map_err(|wrong| section.invalid("s3_polling_interval_seconds", wrong, "seconds"))?;
    let access = match std::env::var(ENDPOINT) {
        Ok(endpoint) => endpoint.parse().and_then(Access::at),
        Err(_) => Ok(Access::default()),
    };
    let object = access.and_then(|access| Object::new(name, aws_region(None)?, interval, access));
    let object = object.map_err(|wrong| {
        section.refuse(wrong, "AWS_REGION and AWS_ENDPOINT_URL of the environment as AWS has them")
    });
    object.map(|object| Toggle::Object(Box::new(object)))
}

/// Where AWS is asked, unless it is said: where its client would.
fn aws_region(given: Option<String>) -> Result<Region, String> {
    given.or_else(|| std::env::var("AWS_REGION").ok()).unwrap_or_else(|| AWS_REGION.to_owned()).parse()
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
