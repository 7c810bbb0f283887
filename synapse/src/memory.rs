//! The last known good on disk: what an agent serves that starts while the store is out of reach.
//!
//! One JSON file, replaced whole (written beside, synchronised, renamed), a few seconds after a change and at the end.
//! Saving takes a hundredth of a core at most: the pause grows with the time that the last one took, up to a minute. A file that
//! cannot be read is set aside, said once, and the agent starts without. It holds the store that it is of: another one's
//! addresses must never get traffic.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Seek};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nerve::model::{
    Instance, Network, NetworkName, Node, RuleRecord, ServiceName, ServiceSettings, Slot, Subnet, VipClaim,
};
use nerve::store::{Key, Revision};
use nerve::tasks::Tasks;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::Metrics;
use crate::catalog::{Catalog, Change, Freshness, Names, NetworkUpdate};
use crate::watch::Recalled;
use crate::watch::store::Handle as Watcher;
use crate::whole_file;

const FORMAT: u32 = 1;
/// The largest file that is written or read: a million instances.
const MAX_BYTES: u64 = 512 * 1024 * 1024;
/// The shortest pause between two saves.
const PAUSE: Duration = Duration::from_secs(3);
/// The pause in terms of the last save's duration.
const PAUSE_FACTOR: u32 = 100;
/// The longest: what a fleet is that takes longer to save may be that old.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    format: u32,
    store: String,
    as_of: SystemTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    doubted_until: Option<SystemTime>,
    revision: u64,
    nodes: Vec<Arc<Node>>,
    /// JSON within JSON: as it stood in the store, to the letter.
    settings: BTreeMap<ServiceName, Arc<str>>,
    /// As the settings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    vips: BTreeMap<IpAddr, Arc<str>>,
    /// As the settings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    networks: BTreeMap<NetworkName, Arc<str>>,
    /// As the settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rules: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    subnets: BTreeMap<NetworkName, BTreeMap<Slot, Arc<Subnet>>>,
    instances: Vec<Arc<Instance>>,
}

/// Reads what was saved at `file`; `None` if nothing was, or nothing that can be used.
#[must_use]
pub fn recall(file: &Path) -> Option<Recalled> {
    let started = std::time::Instant::now();
    match read(file) {
        Ok(recalled) => {
            let (records, took) = (recalled.changes.len(), started.elapsed().as_secs_f32());
            tracing::info!(file = %file.display(), records, took, "recalled the catalog of an earlier run");
            Some(recalled)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            let aside = file.with_extension("unreadable");
            let moved = fs::rename(file, &aside);
            tracing::warn!(file = %file.display(), %error, set_aside = moved.is_ok(), "the saved catalog cannot be used; starting without");
            None
        }
    }
}

/// Writes what [`keep`] saves into an open file instead, for a process that goes on. Blocks.
pub fn write_to(file: &mut File, catalog: &Catalog, watcher: &Watcher) -> io::Result<()> {
    whole_file::write_to(file, MAX_BYTES, &image(catalog, watcher))
}

/// Reads what [`write_to`] wrote, from the beginning of the file. Blocks.
pub fn recall_from(file: &mut File) -> io::Result<Recalled> {
    file.seek(io::SeekFrom::Start(0))?;
    read_image(file)
}

fn read(file: &Path) -> io::Result<Recalled> {
    read_image(&mut File::open(file)?)
}

fn read_image(file: &mut File) -> io::Result<Recalled> {
    let text = whole_file::read_from(file, MAX_BYTES)?;
    let saved = match serde_json::from_slice::<Saved>(&text) {
        Ok(saved) if saved.format == FORMAT => saved,
        read => return Err(unusable(&text, read.err())),
    };
    let mut changes = Vec::with_capacity(saved.nodes.len() + saved.settings.len() + saved.instances.len());
    if let Some(text) = &saved.rules {
        let (rules, _) = RuleRecord::read(text.as_bytes()).map_err(io::Error::other)?.understood();
        changes.push(Change::PutRules(Arc::new(rules)));
    }
    changes.extend(saved.nodes.into_iter().map(Change::PutNode));
    for (service, text) in &saved.settings {
        let (settings, _) = ServiceSettings::read(text.as_bytes())?;
        changes.push(Change::PutSettings(service.clone(), Arc::new(settings)));
    }
    for (address, text) in &saved.vips {
        let claim: VipClaim = serde_json::from_str(text)?;
        changes.push(Change::PutVip(*address, claim.service));
    }
    for (name, text) in &saved.networks {
        let network: Network = serde_json::from_str(text)?;
        changes.push(Change::Network(name.clone(), NetworkUpdate::Put(Arc::new(network))));
    }
    for (network, held) in saved.subnets {
        let put = |(slot, subnet)| Change::Network(network.clone(), NetworkUpdate::PutSubnet(slot, subnet));
        changes.extend(held.into_iter().map(put));
    }
    let mut names = Names::default();
    changes.extend(saved.instances.into_iter().map(|mut instance| {
        if let Some(instance) = Arc::get_mut(&mut instance) {
            names.share(instance);
        }
        Change::PutInstance(instance)
    }));
    Ok(Recalled {
        store: saved.store,
        changes,
        durable: (saved.settings.into_iter().map(|(service, text)| (Key::Service(service), text)))
            .chain(saved.vips.into_iter().map(|(address, text)| (Key::Vip(address), text)))
            .chain(saved.rules.map(|text| (Key::Rules, text)))
            .chain(saved.networks.into_iter().map(|(network, text)| (Key::Network(network), text)))
            .collect(),
        revision: Revision(saved.revision),
        as_of: saved.as_of,
        doubted_until: saved.doubted_until,
    })
}

/// Another version's file is said to be one, whatever else is in it.
fn unusable(text: &[u8], error: Option<serde_json::Error>) -> io::Error {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    match (serde_json::from_slice::<Head>(text), error) {
        (Ok(Head { format: FORMAT }) | Err(_), Some(error)) => error.into(),
        (Ok(Head { format }), _) => {
            io::Error::other(format!("it is of format {format}, this version reads {FORMAT}"))
        }
        (Err(error), None) => error.into(),
    }
}

/// Saves `catalog` to `file` whenever it has changed, and once more at the end.
pub fn keep(file: PathBuf, catalog: Catalog, watcher: Watcher, metrics: Metrics, tasks: &Tasks) {
    let stop = tasks.stop_token();
    tasks.spawn_restarted("memory", move || {
        let keeper = Keeper {
            file: Arc::new(file.clone()),
            catalog: catalog.clone(),
            watcher: watcher.clone(),
            metrics: metrics.clone(),
            failing: false,
        };
        keeper.run(stop.clone())
    });
}

struct Keeper {
    file: Arc<PathBuf>,
    catalog: Catalog,
    watcher: Watcher,
    metrics: Metrics,
    failing: bool,
}

impl Keeper {
    async fn run(mut self, stop: tokio_util::sync::CancellationToken) {
        let mut changes = self.watcher.changes();
        // An empty catalog that nothing has filled yet must not replace what is on disk.
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.watcher.filled() => {}
        }
        changes.mark_changed();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changed = changes.changed() => if changed.is_err() { break },
            }
            let begun = Instant::now();
            self.save().await;
            let pause = (begun.elapsed() * PAUSE_FACTOR).clamp(PAUSE, LONGEST_PAUSE);
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.save().await;
    }

    async fn save(&mut self) {
        let (file, catalog, watcher) = (Arc::clone(&self.file), self.catalog.clone(), self.watcher.clone());
        let timer = self.metrics.memory_save_seconds.start_timer();
        let saved = tokio::task::spawn_blocking(move || {
            whole_file::write(&file, MAX_BYTES, &image(&catalog, &watcher))
        })
        .await;
        timer.observe_duration();
        let result = saved.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        self.metrics.memory_saves.with_label_values(&[if result.is_ok() { "ok" } else { "failed" }]).inc();
        match result {
            Ok(()) if self.failing => {
                tracing::info!(file = %self.file.display(), "the catalog is saved again")
            }
            Err(ref error) if !self.failing => tracing::warn!(
                file = %self.file.display(), %error,
                "cannot save the catalog: after a restart while the store is out of reach, this node would know nothing; check state_dir"
            ),
            _ => {}
        }
        self.failing = result.is_err();
    }
}

fn image(catalog: &Catalog, watcher: &Watcher) -> Saved {
    let notes = watcher.notes();
    let as_of = match &*catalog.freshness() {
        Freshness::Stale { since, .. } => *since,
        Freshness::Live | Freshness::Awaiting => SystemTime::now(),
    };
    let (mut settings, mut vips, mut networks) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut rules = None;
    for (key, text) in notes.durable {
        match key {
            Key::Service(service) => drop(settings.insert(service, text)),
            Key::Vip(address) => drop(vips.insert(address, text)),
            Key::Network(network) => drop(networks.insert(network, text)),
            Key::Rules => rules = Some(text),
            Key::Instance(..) | Key::Node(_) | Key::Subnet(..) => {}
        }
    }
    let services = catalog.services();
    Saved {
        format: FORMAT,
        store: watcher.store().to_owned(),
        as_of,
        doubted_until: notes.doubted_until,
        revision: notes.revision.0,
        nodes: catalog.nodes(),
        settings,
        vips,
        networks,
        rules,
        subnets: (catalog.subnets().into_iter())
            .map(|(network, subnets)| (network, subnets.all().into_iter().collect()))
            .collect(),
        instances: services.iter().flat_map(|s| s.all_stored().map(|e| Arc::clone(&e.instance))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use proptest::prelude::*;

    use super::*;

    const NETWORK: &str = r#"{"vni":7,"pools":[{"cidr":"10.42.0.0/16","subnet_length":24}],"newer":1}"#;

    const RULES: &str = r#"{"default":"deny","newer":1}"#;

    fn blue() -> NetworkName {
        NetworkName::new("blue").unwrap()
    }

    fn subnet() -> Subnet {
        let text = r#"{"node":"a","address":"192.0.2.1","mac":"02:00:00:00:00:01","newer":[1]}"#;
        serde_json::from_str(text).unwrap()
    }

    fn saved(instances: Vec<Instance>, settings: BTreeMap<ServiceName, Arc<str>>) -> Saved {
        let node = r#"{"name":"a","address":"192.0.2.1","version":"0","draining":true}"#;
        Saved {
            format: FORMAT,
            store: "etcd://192.0.2.9:2379".to_owned(),
            as_of: SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567),
            doubted_until: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_249_567)),
            revision: 7,
            nodes: vec![serde_json::from_str(node).unwrap()],
            settings,
            vips: BTreeMap::from([("10.96.0.1".parse().unwrap(), r#"{"service":"web","newer":1}"#.into())]),
            networks: BTreeMap::from([(blue(), NETWORK.into())]),
            rules: Some(RULES.into()),
            subnets: BTreeMap::from([(blue(), BTreeMap::from([(Slot(7), Arc::new(subnet()))]))]),
            instances: instances.into_iter().map(Arc::new).collect(),
        }
    }

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).unwrap()
    }

    prop_compose! {
        fn instance()(
            service in "[a-z]{1,3}", id in "[a-z0-9:.]{1,5}x", node in "[a-z]{1,3}", address: std::net::Ipv4Addr, port in 1..u16::MAX,
            tags in proptest::collection::btree_set("[^\\p{C}]{1,5}", 0..3), label in ".{0,5}", zone in proptest::option::of("[a-z]{1,4}"),
            health in 0..3usize, reason in ".{0,8}", draining: bool,
        ) -> Instance {
            let health = ["passing", "starting", "critical"][health];
            serde_json::from_value(serde_json::json!({
                "service": service, "id": id, "node": node, "address": address, "port": port, "ports": {"http": port},
                "tags": tags, "labels": {"key": label}, "zone": zone, "health": health, "health_reason": reason,
                "draining": draining,
            })).unwrap()
        }
    }

    proptest! {
        // Each synchronises a disk.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_written_is_recalled(
            instances in proptest::collection::vec(instance(), 0..8),
            settings in proptest::collection::btree_map("[a-z]{1,3}", "[^\\p{C}:]{0,9}", 0..4),
        ) {
            let settings: BTreeMap<_, Arc<str>> = settings.into_iter().map(|(service, newer)| {
                let text = serde_json::json!({"published": [{"port": 1, "newer": newer}]}).to_string();
                (name(&service), text.replace(':', " :\n").into())
            }).collect();
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("deep/catalog.json");
            whole_file::write(&file, MAX_BYTES, &saved(instances.clone(), settings.clone())).unwrap();
            let recalled = recall(&file).unwrap();
            let mut passed = tempfile::tempfile().unwrap();
            whole_file::write_to(&passed, MAX_BYTES, &saved(instances.clone(), settings.clone())).unwrap();
            prop_assert_eq!(&recall_from(&mut passed).unwrap(), &recalled);
            prop_assert_eq!(recalled.revision, Revision(7));
            prop_assert_eq!(recalled.as_of, SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567));
            prop_assert_eq!(recalled.doubted_until, Some(recalled.as_of + Duration::from_secs(15)));
            let claim: Key = Key::Vip("10.96.0.1".parse().unwrap());
            let of_service = |(service, text): (&ServiceName, &Arc<str>)| (Key::Service(service.clone()), Arc::clone(text));
            let mut durable: BTreeMap<Key, Arc<str>> = settings.iter().map(of_service).collect();
            durable.insert(claim, r#"{"service":"web","newer":1}"#.into());
            durable.insert(Key::Network(blue()), NETWORK.into());
            durable.insert(Key::Rules, RULES.into());
            prop_assert!(matches!(&recalled.changes[0], Change::PutRules(rules) if rules.forbid_anything()));
            for update in [
                NetworkUpdate::Put(Arc::new(serde_json::from_str(NETWORK).unwrap())),
                NetworkUpdate::PutSubnet(Slot(7), Arc::new(subnet())),
            ] {
                prop_assert!(recalled.changes.contains(&Change::Network(blue(), update)));
            }
            prop_assert_eq!(&recalled.durable, &durable);
            prop_assert!(recalled.changes.iter().any(|change| matches!(change, Change::PutVip(_, service) if service.as_str() == "web")));
            let found: Vec<Instance> = recalled.changes.iter().filter_map(|change| match change {
                Change::PutInstance(instance) => Some((**instance).clone()),
                _ => None,
            }).collect();
            prop_assert_eq!(found, instances);
            prop_assert!(matches!(&recalled.changes[1], Change::PutNode(node) if node.draining));
        }

        #[test]
        fn a_file_cut_short_is_set_aside(cut in 0.0..1.0f64) {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("catalog.json");
            let image = saved(vec![], BTreeMap::from([(name("web"), "{}".into())]));
            whole_file::write(&file, MAX_BYTES, &image).unwrap();
            let length = fs::metadata(&file).unwrap().len();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred")]
            let cut = (length as f64 * cut) as u64;
            OpenOptions::new().write(true).open(&file).unwrap().set_len(cut).unwrap();
            prop_assert_eq!(recall(&file), None);
            prop_assert!(!file.exists() && file.with_extension("unreadable").exists());
        }
    }

    #[test]
    fn a_file_of_another_format_is_set_aside_and_said_to_be_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("catalog.json");
        fs::write(&file, r#"{"format":9,"something":"else"}"#).unwrap();
        assert_eq!(read(&file).unwrap_err().to_string(), "it is of format 9, this version reads 1");
        assert_eq!(recall(&file), None);
        assert!(file.with_extension("unreadable").exists());
    }

    async fn eventually(condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
    }

    #[tokio::test]
    async fn what_the_store_says_is_on_disk_soon_and_at_the_end_the_last_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("catalog.json");
        let config = nerve::store::StoreConfig::new("embedded".parse().unwrap());
        let store = nerve::store::open(&config, &nerve::store::Metrics::default()).unwrap();
        let node = |name: &str| format!(r#"{{"name":{name:?},"address":"192.0.2.1","version":"0"}}"#);
        let put = |path: &str, value: String| {
            let (store, path) = (Arc::clone(&store), nerve::store::Path::new(path).unwrap());
            async move { store.put(&path, value.into_bytes(), None).await.unwrap() }
        };
        put("nodes/a", node("a")).await;
        let web = r#"{"service":"web","id":"x","node":"a","address":"192.0.2.1","port":80}"#;
        put("instances/web/x", web.to_owned()).await;
        let (tasks, metrics) = (Tasks::new(), Metrics::new().unwrap());
        let (catalog, writer) = Catalog::new();
        // A node's own settings are its configuration's, and nobody else's.
        let own = ServiceSettings::read(br#"{"balance": {"policy": "random"}}"#).unwrap().0;
        writer.layers().settle([("web".parse().unwrap(), Arc::new(own))].into());
        let config = crate::watch::store::Config::default();
        let watcher =
            crate::watch::store::start(config, Arc::clone(&store), writer, None, metrics.clone(), &tasks);
        watcher.filled().await;
        keep(file.clone(), catalog.clone(), watcher, metrics.clone(), &tasks);
        eventually(|| metrics.memory_saves.with_label_values(&["ok"]).get() == 1).await;
        assert!(catalog.service("web").unwrap().has_node_settings());
        assert_eq!(recall(&file).unwrap().changes.len(), 2);
        // Within the pause: only the end saves it.
        let revision = put("nodes/b", node("b")).await;
        eventually(|| catalog.node_count() == 2).await;
        tasks.shutdown().await;
        let recalled = recall(&file).unwrap();
        assert_eq!((recalled.revision, recalled.changes.len()), (revision, 3));
        assert!(recalled.as_of.elapsed().unwrap() < Duration::from_secs(60));
    }
}
