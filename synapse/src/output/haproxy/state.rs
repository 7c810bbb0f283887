//! The state file, in the form of Synapse's: servers that were there, by services.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::file;
use super::roster::{Known, Roster};
use super::server::State;

/// The largest one that is read.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// One server.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    timestamp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    haproxy_server_id: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    host: IpAddr,
    port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    haproxy_server_options: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, Value>,
}

/// What is remembered, by the names of services. A file that is not there, or cannot be understood, remembers nothing, and so does a
/// record of it.
pub(super) async fn recall(path: &Path) -> BTreeMap<String, Roster> {
    match file::read(path, MAX_BYTES).await.map(|text| serde_json::from_str(&text)) {
        Ok(Ok(saved)) => rosters(saved),
        Ok(Err(error)) => {
            tracing::warn!(file = %path.display(), %error, "the state file is not one; it is written anew");
            BTreeMap::new()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "the state file cannot be read; it is written anew");
            BTreeMap::new()
        }
    }
}

fn rosters(saved: BTreeMap<String, BTreeMap<String, Value>>) -> BTreeMap<String, Roster> {
    let roster = |records: BTreeMap<String, Value>| {
        let mut roster = Roster::default();
        for (server, record) in records {
            // Among the servers stands what Synapse was told of the service.
            let Ok(record) = serde_json::from_value::<Record>(record) else { continue };
            let text = |value: Value| match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            let known = Known {
                name: record.name,
                address: SocketAddr::new(record.host, record.port),
                id: record.haproxy_server_id,
                options: Some(record.haproxy_server_options.unwrap_or_default()),
                weight: record.weight,
                labels: record.labels.into_iter().map(|(key, value)| (key, text(value))).collect(),
                gone: Some(UNIX_EPOCH + Duration::from_secs(record.timestamp)),
                state: State::Maint,
            };
            if super::server::can_stand(&server, known.options.as_deref().unwrap_or_default()) {
                roster.servers.insert(server, known);
            }
        }
        roster
    };
    saved.into_iter().map(|(service, records)| (service, roster(records))).collect()
}

/// Writes what is known of the services.
pub(super) async fn save<'a>(
    path: &Path,
    rosters: impl Iterator<Item = (&'a str, &'a Roster)>,
) -> io::Result<()> {
    let now = SystemTime::now();
    let record = |known: &Known| Record {
        timestamp: known.gone.unwrap_or(now).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        haproxy_server_id: known.id,
        name: known.name.clone(),
        host: known.address.ip(),
        port: known.address.port(),
        weight: known.weight,
        haproxy_server_options: known.options.clone().filter(|options| !options.is_empty()),
        labels: known.labels.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect(),
    };
    let records = |roster: &Roster| -> BTreeMap<String, Record> {
        roster.servers.iter().map(|(server, known)| (server.clone(), record(known))).collect()
    };
    let saved: BTreeMap<&str, _> = rosters.map(|(service, roster)| (service, records(roster))).collect();
    file::replace(path, &serde_json::to_string_pretty(&saved)?).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read_and_what_synapse_wrote_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let text = r#"{"web": {"watcher_config_for_generator": {"port": 80}, "bad": {"host": "x"},
            "evil\nname": {"timestamp": 1, "host": "10.0.0.1", "port": 80},
            "evil": {"timestamp": 1, "host": "10.0.0.1", "port": 80, "haproxy_server_options": "a\nb"},
            "a_10.0.0.1:80": {"timestamp": 1000, "haproxy_server_id": 3, "name": "a", "host": "10.0.0.1", "port": 80, "id": 17,
                "weight": 5, "haproxy_server_options": "backup", "labels": {"az": "a", "n": 1}}}}"#;
        std::fs::write(&path, text).unwrap();
        let read = recall(&path).await;
        assert_eq!(read["web"].servers.keys().collect::<Vec<_>>(), ["a_10.0.0.1:80"]);
        let known = &read["web"].servers["a_10.0.0.1:80"];
        assert_eq!((known.id, known.weight, known.options.as_deref()), (Some(3), Some(5), Some("backup")));
        save(&path, read.iter().map(|(name, roster)| (name.as_str(), roster))).await.unwrap();
        assert_eq!(recall(&path).await["web"].servers["a_10.0.0.1:80"], *known);
        std::fs::write(&path, "{").unwrap();
        assert!(recall(&path).await.is_empty());
        assert!(recall(&directory.path().join("none")).await.is_empty());
    }
}
