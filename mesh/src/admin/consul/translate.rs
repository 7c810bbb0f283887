//! From Consul's registrations to ours (pure).
//!
//! An id of Consul's is unique on its node, one of ours in its service all over the fleet: so the node's name is part of it here.

use std::time::Duration;

use nerve::check::default_id;
use nerve::document::Document;
use nerve::model::{InstanceId, NodeName};
use nerve::source::Draft;
use serde_json::{Map, Value, json};

use super::super::refusal::Refusal;
use super::duration;
use crate::api::{ConsulCheck, ConsulService};

/// What an instance is called here that Consul's clients call `id`.
pub(super) fn instance_id(id: &str, node: &NodeName) -> Result<InstanceId, Refusal> {
    InstanceId::new(&format!("{id}@{node}")).map_err(Refusal::bad_request)
}

/// What Consul's clients call an instance of this node.
pub(super) fn consul_id<'a>(id: &'a InstanceId, node: &NodeName) -> &'a str {
    id.as_str().strip_suffix(node.as_str()).and_then(|id| id.strip_suffix('@')).unwrap_or(id.as_str())
}

/// What a registration means here.
pub(super) fn draft(service: &ConsulService, node: &NodeName) -> Result<Draft, Refusal> {
    let refuse = |key: &str, why: String| Refusal::bad_request(format!("{key}: {why}"));
    if let Some(kind) = service.kind.as_deref().filter(|kind| !kind.is_empty()) {
        return Err(refuse("Kind", format!("{kind:?} is a proxy of Consul's own mesh, which is not here")));
    }
    let id = service.id.as_deref().filter(|id| !id.is_empty()).unwrap_or(&service.name);
    let mut written = Map::new();
    written.insert("name".to_owned(), service.name.clone().into());
    written.insert("id".to_owned(), instance_id(id, node)?.as_str().into());
    if let Some(address) = service.address.as_ref().filter(|address| !address.is_empty()) {
        written.insert("address".to_owned(), address.clone().into());
    }
    if let Some(port) = service.port {
        written.insert("port".to_owned(), port.into());
    }
    written.insert("tags".to_owned(), json!(service.tags.clone().unwrap_or_default()));
    written.insert("labels".to_owned(), json!(service.meta.clone().unwrap_or_default()));
    if let Some(weights) = service.weights {
        written.insert("weight".to_owned(), weights.passing.max(1).into());
    }
    let all: Vec<&ConsulCheck> = service.check.iter().chain(service.checks.iter().flatten()).collect();
    let read = |(place, check): (usize, &&ConsulCheck)| {
        self::check(check, &default_id(id, place, all.len()))
            .map_err(|why| refuse(&format!("Checks[{place}]"), why))
    };
    let written_checks: Vec<Value> = all.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    written.insert("check".to_owned(), written_checks.into());
    let lapses = all.iter().filter_map(|check| check.deregister_critical_service_after.as_ref());
    let lapses = lapses.filter(|after| !after.is_empty()).map(|after| duration::parse(after));
    let lapses: Vec<Duration> =
        lapses.collect::<Result<_, _>>().map_err(|why| refuse("DeregisterCriticalServiceAfter", why))?;
    if let Some(after) = lapses.into_iter().filter(|after| !after.is_zero()).min() {
        let after = humantime::format_duration(after).to_string();
        written.insert("deregister_critical_after".to_owned(), after.into());
    }
    let text = Value::Object(written).to_string();
    Document::parse_json("request", &text)
        .and_then(|document| document.decode(Draft::read))
        .map_err(|errors| Refusal::bad_request(errors.to_string().replace('\n', "; ")))
}

/// What a check means here, as it would stand in a file.
pub(super) fn check(check: &ConsulCheck, default_id: &str) -> Result<Value, String> {
    let mut written = Map::new();
    let id = check.check_id.as_ref().or(check.id.as_ref()).filter(|id| !id.is_empty());
    let id = id.map_or(default_id, String::as_str);
    if let Some(ttl) = &check.ttl {
        written.insert("ttl".to_owned(), shown(ttl)?.into());
        written.insert("id".to_owned(), id.into());
        return Ok(written.into());
    }
    if let Some(url) = &check.http {
        http(check, url, &mut written)?;
    } else if let Some(target) = &check.tcp {
        connects("tcp", target, &mut written)?;
    } else if let Some(target) = &check.udp {
        connects("udp", target, &mut written)?;
    } else if let Some(target) = &check.grpc {
        let (target, service) = target.split_once('/').unwrap_or((target, ""));
        connects("grpc", target, &mut written)?;
        if !service.is_empty() {
            written.insert("service".to_owned(), service.into());
        }
        if check.grpc_use_tls {
            written.insert("tls".to_owned(), true.into());
            tls(check, &mut written);
        }
    } else if check.args.is_some() || check.script.is_some() || check.docker_container_id.is_some() {
        return Err(
            "it runs a program, and only the node's own files may say which; define it in services.d"
                .to_owned(),
        );
    } else {
        return Err("it is of no kind that is known here: HTTP, TCP, UDP, GRPC or TTL".to_owned());
    }
    timing(check, &mut written)?;
    Ok(written.into())
}

fn timing(check: &ConsulCheck, written: &mut Map<String, Value>) -> Result<(), String> {
    let Some(interval) = &check.interval else {
        return Err("Interval: it is missing".to_owned());
    };
    let interval = duration::parse(interval)?;
    written.insert("interval".to_owned(), humantime::format_duration(interval).to_string().into());
    if let Some(timeout) = check.timeout.as_ref().filter(|timeout| !timeout.is_empty()) {
        // Consul lets probes overlap.
        let timeout = duration::parse(timeout)?.min(interval);
        written.insert("timeout".to_owned(), humantime::format_duration(timeout).to_string().into());
    }
    written.insert("rise".to_owned(), check.success_before_passing.unwrap_or(1).max(1).into());
    written.insert("fall".to_owned(), check.failures_before_critical.unwrap_or(1).max(1).into());
    Ok(())
}

fn http(check: &ConsulCheck, url: &str, written: &mut Map<String, Value>) -> Result<(), String> {
    let uri: hyper::Uri = url.parse().map_err(|error| format!("HTTP: {url:?} is no URL: {error}"))?;
    let (kind, port) = match uri.scheme_str() {
        Some("http") => ("http", 80),
        Some("https") => ("https", 443),
        _ => return Err(format!("HTTP: {url:?} begins with neither http:// nor https://")),
    };
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    written.insert(kind.to_owned(), path.into());
    written.insert("port".to_owned(), uri.port_u16().unwrap_or(port).into());
    written.insert("address".to_owned(), address(uri.host().unwrap_or_default())?.into());
    if kind == "https" {
        tls(check, written);
    }
    if let Some(method) = check.method.as_ref().filter(|method| !method.is_empty()) {
        written.insert("method".to_owned(), method.clone().into());
    }
    if let Some(body) = check.body.as_ref().filter(|body| !body.is_empty()) {
        written.insert("send".to_owned(), body.clone().into());
    }
    let headers = check.header.iter().flatten().filter_map(|(name, values)| Some((name, values.first()?)));
    let (mut others, mut host) = (Map::new(), None);
    for (name, value) in headers {
        if name.eq_ignore_ascii_case("host") {
            host = Some(value.clone());
        } else {
            others.insert(name.clone(), value.clone().into());
        }
    }
    if let Some(host) = host {
        written.insert("host".to_owned(), host.into());
    }
    if !others.is_empty() {
        written.insert("headers".to_owned(), others.into());
    }
    Ok(())
}

fn tls(check: &ConsulCheck, written: &mut Map<String, Value>) {
    if check.tls_skip_verify {
        written.insert("insecure".to_owned(), true.into());
    }
    if let Some(name) = check.tls_server_name.as_ref().filter(|name| !name.is_empty()) {
        written.insert("server_name".to_owned(), name.clone().into());
    }
}

/// `host:port` as the keys of a kind.
fn connects(kind: &str, target: &str, written: &mut Map<String, Value>) -> Result<(), String> {
    let (host, port) = target.rsplit_once(':').ok_or_else(|| format!("{target:?} is no host:port"))?;
    let port: u16 = port.parse().map_err(|_| format!("{target:?} is no host:port"))?;
    written.insert(kind.to_owned(), port.into());
    written.insert("address".to_owned(), address(host)?.into());
    Ok(())
}

/// Checks look up no names, but for the one that is the same everywhere.
fn address(host: &str) -> Result<String, String> {
    let host = host.trim_matches(['[', ']']);
    if host.eq_ignore_ascii_case("localhost") {
        return Ok("127.0.0.1".to_owned());
    }
    match host.parse::<std::net::IpAddr>() {
        Ok(address) => Ok(address.to_string()),
        Err(_) => Err(format!("{host:?} is no IP address, and checks look up no names")),
    }
}

fn shown(text: &str) -> Result<String, String> {
    Ok(humantime::format_duration(duration::parse(text)?).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::folded;

    fn read(text: Value) -> Result<Draft, String> {
        let service: ConsulService = serde_json::from_value(folded(text)).unwrap();
        let refused = |refusal: Refusal| format!("{refusal:?}");
        draft(&service, &"a".parse().unwrap()).map_err(refused)
    }

    #[test]
    fn every_kind_of_check_has_its_counterpart_and_ids_have_the_node_in_them() {
        let draft = read(json!({
            "Name": "web", "Port": 80, "Meta": {"Team_A": "x"}, "Weights": {"Passing": 7}, "EnableTagOverride": true,
            "Checks": [
                {"HTTP": "http://localhost:81/a?b=c", "Interval": "10s", "Timeout": "1m", "Header": {"X-A": ["1"], "Host": ["w.test"]}},
                {"http": "https://[::1]/", "interval": "1m30s", "tls_skip_verify": true, "SuccessBeforePassing": 3},
                {"TCP": "192.0.2.1:82", "Interval": "1.5s", "FailuresBeforeCritical": 2},
                {"UDP": "127.0.0.1:83", "Interval": "1s"},
                {"GRPC": "127.0.0.1:84/shop.Orders", "GRPCUseTLS": true, "Interval": "1s"},
                {"TTL": "15s", "DeregisterCriticalServiceAfter": "1h30m"},
            ],
        }))
        .unwrap();
        assert_eq!(draft.id.unwrap().as_str(), "web@a");
        assert_eq!(draft.deregister_critical_after.unwrap().get().as_secs(), 5400);
        assert_eq!((draft.weight.0.get(), draft.labels["Team_A"].as_str()), (7, "x"));
        let written: Vec<Value> =
            draft.checks.iter().map(|check| serde_json::to_value(check).unwrap()).collect();
        for (place, key, expected) in [
            (0, "http", json!("/a?b=c")),
            (0, "address", json!("127.0.0.1")),
            (0, "port", json!(81)),
            (0, "timeout", json!("10s")),
            (0, "headers", json!({"x-a": "1", "host": "w.test"})),
            (1, "https", json!("/")),
            (1, "address", json!("::1")),
            (1, "port", json!(443)),
            (1, "insecure", json!(true)),
            (1, "rise", json!(3)),
            (2, "tcp", json!(82)),
            (2, "interval", json!("1s 500ms")),
            (2, "fall", json!(2)),
            (3, "udp", json!(83)),
            (4, "grpc", json!(84)),
            (4, "service", json!("shop.Orders")),
            (4, "tls", json!(true)),
            (5, "ttl", json!("15s")),
            (5, "id", json!("service:web:6")),
        ] {
            assert_eq!(written[place][key], expected, "{place} {key}: {}", written[place]);
        }
        let (id, node) = (InstanceId::new("web@a").unwrap(), "a".parse().unwrap());
        assert_eq!((consul_id(&id, &node), instance_id("web", &node).unwrap()), ("web", id.clone()));
        assert_eq!(consul_id(&InstanceId::new("web-a").unwrap(), &node), "web-a");
    }

    #[test]
    fn what_has_no_meaning_here_is_refused_with_its_key() {
        let with = |check: Value| json!({"Name": "web", "Port": 80, "Check": check});
        for (text, expected) in [
            (json!({"Name": "my_web", "Port": 80}), "is no service name"),
            (json!({"Name": "web"}), "port: it is missing"),
            (json!({"Name": "web", "Port": 80, "Kind": "connect-proxy"}), "Kind: "),
            (json!({"Name": "web", "Port": 80, "Address": "web.example"}), "address"),
            (json!({"Name": "web", "Port": 80, "ID": "a/b"}), "allowed are letters"),
            (with(json!({"Args": ["/bin/true"], "Interval": "1s"})), "services.d"),
            (with(json!({"HTTP": "http://web.example/", "Interval": "1s"})), "look up no names"),
            (with(json!({"HTTP": "ftp://127.0.0.1/", "Interval": "1s"})), "neither http:// nor https://"),
            (with(json!({"TCP": "127.0.0.1", "Interval": "1s"})), "is no host:port"),
            (with(json!({"TCP": "127.0.0.1:80"})), "Interval: it is missing"),
            (with(json!({"TCP": "127.0.0.1:80", "Interval": "soon"})), "is no duration"),
            (with(json!({"AliasService": "x"})), "of no kind that is known"),
        ] {
            let refused = read(text.clone()).unwrap_err();
            assert!(refused.contains(expected), "{text}: {refused}");
        }
    }
}
