//! What an entry of a watched path says (pure): a registration of Nerve's, or a member of a server set.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use nerve::model::{Health, Weight};
use nerve::smartstack::is_backup;
use serde::Deserialize;
use serde_json::Value;

use super::server::Server;

/// What Nerve writes: `{"host": …, "port": …, "name": …}`, with more where it is configured.
#[derive(Debug, Deserialize)]
struct Registration {
    host: String,
    port: Value,
    name: Option<String>,
    weight: Option<Value>,
    haproxy_server_options: Option<String>,
    labels: Option<BTreeMap<String, Value>>,
}

/// What Finagle writes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    service_endpoint: Endpoint,
    #[serde(default)]
    additional_endpoints: BTreeMap<String, Endpoint>,
    status: Option<String>,
    shard: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    host: String,
    port: Value,
}

/// The data that a child's name holds (`base64_<length>_<data>_<number>`); `None`: it holds none.
pub(super) fn of_name(child: &str) -> Option<Result<Vec<u8>, String>> {
    let (length, rest) = child.strip_prefix("base64_")?.split_once('_')?;
    let data = rest.get(..length.parse().ok()?)?;
    Some(URL_SAFE.decode(data).map_err(|error| format!("its name is no base64: {error}")))
}

/// The number that ZooKeeper has put at the end of a child's name, if it has.
pub(super) fn number_of(child: &str) -> Option<u64> {
    child.rsplit('_').next()?.parse().ok()
}

/// A registration of Nerve's.
pub(super) fn nerve(data: &[u8]) -> Result<Server, String> {
    let read: Registration = json(data)?;
    let mut server = Server::at(read.host.parse()?, port(&read.port)?);
    server.name = read.name;
    // 0, which is none here, counts as the default.
    let weight = read.weight.as_ref().and_then(number).map(|weight| weight.min(u64::from(u16::MAX)));
    let weight = weight.and_then(|weight| NonZeroU16::new(u16::try_from(weight).ok()?));
    server.weight = weight.map_or_else(Weight::default, Weight);
    let text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    server.labels = read.labels.into_iter().flatten().map(|(key, value)| (key, text(value))).collect();
    server.backup = read.haproxy_server_options.as_deref().is_some_and(is_backup);
    let options = read.haproxy_server_options.map(|options| ("haproxy_server_options".to_owned(), options));
    server.labels.extend(options);
    Ok(server)
}

/// A member of a server set, by its main endpoint or by one of this name; `None`: it is one that serves nobody.
pub(super) fn serverset(data: &[u8], endpoint: Option<&str>) -> Result<Option<Server>, String> {
    let read: Member = json(data)?;
    let at = match endpoint {
        None => &read.service_endpoint,
        Some(name) => {
            let named = read.additional_endpoints.get(name);
            named.ok_or_else(|| format!("it has no endpoint {name:?}"))?
        }
    };
    let mut server = Server::at(at.host.parse()?, port(&at.port)?);
    match read.status.as_deref() {
        None | Some("ALIVE") => {}
        Some("STARTING") => server.health = Health::Starting,
        Some(_) => return Ok(None),
    }
    server.name = read.shard.map(|shard| shard.to_string());
    Ok(Some(server))
}

fn json<'a, T: Deserialize<'a>>(data: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(data).map_err(|error| format!("its data is not what is expected: {error}"))
}

/// As a number, or as a text, as some have written it.
fn port(value: &Value) -> Result<NonZeroU16, String> {
    let read = number(value).and_then(|port| NonZeroU16::new(u16::try_from(port).ok()?));
    read.ok_or_else(|| format!("{value} is no port"))
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_of_nerve_s_is_read_from_data_or_name() {
        let data = br#"{"host":"192.0.2.7","port":8080,"name":"web-07","weight":10,"haproxy_server_options":"backup","labels":{"az":"a","n":1}}"#;
        let server = nerve(data).unwrap();
        assert_eq!(
            (server.to_string(), server.name.as_deref()),
            ("192.0.2.7:8080".to_owned(), Some("web-07"))
        );
        let labels: Vec<String> = server.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(labels, ["az=a", "haproxy_server_options=backup", "n=1"]);
        assert_eq!(server.weight.0.get(), 10);
        let name = format!("base64_{}_{}_0000000001", URL_SAFE.encode(data).len(), URL_SAFE.encode(data));
        assert_eq!(nerve(&of_name(&name).unwrap().unwrap()).unwrap(), server);
        // What Nerve gives as an example.
        let own =
            "base64_72_eyJob3N0IjoiMTI3LjAuMC4xIiwicG9ydCI6NjAwNywibmFtZSI6Im1hY2Jvb2stcHJvIn0=_0000000002";
        assert_eq!(nerve(&of_name(own).unwrap().unwrap()).unwrap().to_string(), "127.0.0.1:6007");
        assert_eq!(
            (number_of("web_07_0000000012"), number_of("web_"), number_of(own)),
            (Some(12), None, Some(2))
        );
        assert!(of_name("web-07_0000000001").is_none() && of_name("base64_9_x_1").is_none());
        assert!(of_name("base64_2_!!_1").unwrap().is_err());
        assert_eq!(
            nerve(br#"{"host":"a.example","port":"81","weight":0}"#).unwrap().weight,
            Weight::default()
        );
        for bad in [
            "{}",
            "x",
            r#"{"host":"192.0.2.7"}"#,
            r#"{"host":"192.0.2.7","port":0}"#,
            r#"{"host":"","port":1}"#,
        ] {
            assert!(nerve(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_member_of_a_server_set_is_its_endpoint_while_it_is_alive() {
        let data = |status: &str| {
            format!(
                r#"{{"serviceEndpoint":{{"host":"192.0.2.7","port":31943}},"additionalEndpoints":{{"http":{{"host":"192.0.2.7","port":31944}}}},"status":"{status}","shard":3}}"#
            )
        };
        let alive = data("ALIVE");
        let read = |endpoint| serverset(alive.as_bytes(), endpoint).map(|server| server.unwrap().to_string());
        assert_eq!(
            (read(None).unwrap().as_str(), read(Some("http")).unwrap().as_str()),
            ("192.0.2.7:31943", "192.0.2.7:31944")
        );
        assert!(read(Some("admin")).is_err());
        assert_eq!(serverset(data("STOPPED").as_bytes(), None).unwrap(), None);
        let starting = serverset(data("STARTING").as_bytes(), None).unwrap().unwrap();
        assert_eq!((starting.health, starting.name.as_deref()), (Health::Starting, Some("3")));
    }
}
