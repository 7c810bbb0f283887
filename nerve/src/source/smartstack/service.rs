//! One service of Nerve's: what it is to us, and the registration that Nerve would make of it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use super::super::announcement::{Announcement, Limit, NodeMode, Registry};
use super::super::{Definition, Draft, Local, Located, Origin};
use super::checks::{self, Of};
use crate::check::CheckSpec;
use crate::document::{Reported, Section, Value};
use crate::model::{Tag, Weight};
use crate::smartstack::{Number, Rate, Seconds, Word, is_backup, resolve, service_name};

/// Nerve's pause between rounds of checks.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// The label that holds the name that a service has in Nerve's configuration.
const NAME_LABEL: &str = "nerve";
/// So many copies of a service may be asked for.
const MAX_CLONES: u16 = 1000;

/// Reads one service.
pub(super) fn read(
    section: &mut Section<'_>,
    name: &str,
    instance_id: &str,
    local: &Local,
) -> Result<Vec<Located>, Reported> {
    let clones = section.or_where("load_test_concurrency", 0, "at most a thousand", |n| *n <= MAX_CLONES);
    let host = section.required::<Word>("host");
    let (port, shown_port) =
        (section.required::<Number<NonZeroU16>>("port"), section.optional::<Value>("port"));
    let interval = section.or("check_interval", Seconds(CHECK_INTERVAL)).0;
    let is_mocked = section.or("check_mocked", false);
    let weight = section.given::<Number<u16>>("weight");
    let (labels, options) =
        (section.optional::<Value>("labels"), section.optional::<Value>("haproxy_server_options"));
    let limit = section.section_or_empty("rate_limiting", limit);
    let registry = registry(section);
    let (Word(host), Number(port), weight) = (host?, port?, weight?);
    let address =
        resolve(&host).map_err(|error| section.invalid("host", error, "the instance's own address"))?;
    let of = Of { address, interval };
    let read = section.list("checks", |check| checks::read(check, &of));
    let checks: Vec<CheckSpec> = read.into_iter().filter_map(Result::transpose).collect::<Result<_, _>>()?;

    let mut data = String::from("{");
    let port_as_given = shown_port.map_or_else(|| port.to_string(), |port| json(&port));
    // Cannot fail: it is a text that is written to.
    let _ = write!(data, "\"host\":{},\"port\":{port_as_given},\"name\":{}", json(&host), json(&instance_id));
    if let Some(Number(weight)) = &weight {
        let _ = write!(data, ",\"weight\":{weight}");
    }
    for (key, value) in [("haproxy_server_options", &options), ("labels", &labels)] {
        if let Some(value) = value {
            let _ = write!(data, ",\"{key}\":{}", json(value));
        }
    }
    data.push('}');
    let announced = Arc::new(Announcement { registry: registry?, name: instance_id.to_owned(), data, limit });

    let weight = weight.and_then(|Number(weight)| NonZeroU16::new(weight)).map(Weight);
    let names = match clones {
        0 => vec![name.to_owned()],
        clones => (0..clones).map(|number| format!("{name}_{number}")).collect(),
    };
    let line = section.position().map_or(0, |position| position.line);
    let origin = Origin::Nerve { file: section.file().into(), line };
    let locate = |name: String| {
        let draft = Draft {
            address: Some(address),
            labels: told_labels(&name, labels.as_ref(), options.as_ref()),
            weight: weight.unwrap_or_default(),
            backup: options.as_ref().and_then(Value::as_text).is_some_and(is_backup),
            checks: if is_mocked { Vec::new() } else { checks.clone() },
            ..Draft::new(service_name(&name, section)?, port)
        };
        let definition =
            draft.resolve(local).map_err(|error| section.invalid(error.key, error.message, ""))?;
        let definition = Definition { announced: Some(Arc::clone(&announced)), ..definition };
        Ok(Located { definition, origin: origin.clone() })
    };
    names.into_iter().map(locate).collect()
}

/// Those labels that can be one here, what HAProxy is to be told of the instance, and the name that the service has there.
fn told_labels(name: &str, labels: Option<&Value>, options: Option<&Value>) -> BTreeMap<String, String> {
    let given = labels.and_then(|labels| serde_json::to_value(labels).ok());
    let given = given.and_then(|labels| labels.as_object().cloned()).unwrap_or_default();
    let as_text = |(label, value): (String, serde_json::Value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        (Tag::new(&label).is_ok() && value.len() <= super::MAX_LABEL).then_some((label, value))
    };
    let own = (NAME_LABEL.to_owned(), name.to_owned());
    let options = options.and_then(Value::as_text).filter(|options| options.len() <= super::MAX_LABEL);
    let options = options.map(|options| ("haproxy_server_options".to_owned(), options.to_owned()));
    let given = given.into_iter().take(super::MAX_LABELS).filter_map(as_text);
    given.chain(options).chain([own]).collect()
}

fn limit(section: &mut Section<'_>) -> Limit {
    Limit {
        only_counted: section.or("shadow_mode", true),
        average_rate: section.optional::<Rate>("average_rate").map(|rate| rate.0),
        max_burst: section.optional::<Number<NonZeroU32>>("max_burst").map(|burst| burst.0),
    }
}

fn registry(section: &mut Section<'_>) -> Result<Registry, Reported> {
    let kind = section.or("reporter_type", "zookeeper".to_owned());
    let (hosts, path) = (section.given::<Vec<Word>>("zk_hosts"), section.given::<String>("zk_path"));
    let encoded = section.or("use_path_encoding", false);
    let mode = section.or("node_type", "ephemeral_sequential".to_owned());
    let renewed = section.optional::<Seconds>("ttl_seconds").map(|ttl| ttl.0);
    let (host, port) = (section.given::<Word>("etcd_host"), section.or("etcd_port", Number(4003_u16)));
    let etcd_path = section.or("etcd_path", "/".to_owned());
    let missing =
        |key: &str| section.invalid(key, "it is missing", format!("`{key}`, for reporter_type {kind:?}"));
    match kind.as_str() {
        "zookeeper" => {
            let mut hosts: Vec<String> =
                hosts?.unwrap_or_default().into_iter().map(|Word(host)| host).collect();
            hosts.sort();
            let path = path?.ok_or_else(|| missing("zk_path"))?;
            if hosts.is_empty() {
                return Err(missing("zk_hosts"));
            }
            let mode = match mode.as_str() {
                "ephemeral_sequential" => NodeMode { ephemeral: true, sequential: true },
                "ephemeral" => NodeMode { ephemeral: true, sequential: false },
                "persistent_sequential" => NodeMode { ephemeral: false, sequential: true },
                "persistent" => NodeMode { ephemeral: false, sequential: false },
                _ => {
                    let expected = "ephemeral_sequential, ephemeral, persistent_sequential or persistent";
                    return Err(section.invalid("node_type", format_args!("{mode:?} is none"), expected));
                }
            };
            let path = absolute(section, "zk_path", &path)?;
            let renewed = renewed.filter(|renewed| !mode.ephemeral && !renewed.is_zero());
            Ok(Registry::ZooKeeper { ensemble: hosts.join(","), path, mode, encoded, renewed })
        }
        "etcd" => {
            let Word(host) = host?.ok_or_else(|| missing("etcd_host"))?;
            let path = absolute(section, "etcd_path", &etcd_path)?;
            Ok(Registry::Etcd { server: format!("{host}:{}", port.0), path })
        }
        other => {
            let why = format_args!("{other:?} is a reporter that is a program of its own");
            Err(section.invalid("reporter_type", why, "zookeeper or etcd"))
        }
    }
}

/// A path without a slash at its end; the root is an empty one.
fn absolute(section: &Section<'_>, key: &str, path: &str) -> Result<String, Reported> {
    let trimmed = path.trim_end_matches('/');
    let is_clean = trimmed.split('/').skip(1).all(|part| !["", ".", ".."].contains(&part));
    if !(trimmed.is_empty() || trimmed.starts_with('/')) || !is_clean || path.contains('\0') {
        return Err(section.invalid(
            key,
            format_args!("{path:?} is no absolute path"),
            "a path such as \"/nerve/web\"",
        ));
    }
    Ok(trimmed.to_owned())
}

/// As it is written in JSON. A text always can be.
fn json(value: &(impl serde::Serialize + ?Sized)) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
