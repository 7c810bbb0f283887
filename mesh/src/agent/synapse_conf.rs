//! A configuration of Synapse's beside the agent's own: what rooms are told by both.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nerve::model::{Address, ServiceName, ServiceSettings};
use synapse::output::{Target, haproxy};
use synapse::smartstack::{Configuration, InForce, Wrong};
use synapse::watch::{self, Data};
use tokio::sync::watch as signal;

use crate::config::{Config, OutputFiles, Synapse};
use crate::ingress;
use crate::socket_file::Access;

/// The configuration, if there is one, and what is in force of it. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct SynapseConf {
    configuration: Option<Arc<Mutex<Configuration>>>,
    in_force: Arc<Mutex<Arc<InForce>>>,
    /// Nodes of ZooKeeper in which sections may stand.
    data: Option<Data>,
}

impl SynapseConf {
    /// Reads it for the first time.
    pub(super) async fn read(config: &Config) -> Self {
        let configuration = config.sources.synapse.clone();
        let configuration = configuration.map(|Synapse { file, haproxy }| Configuration::of(file, haproxy));
        let configuration = configuration.map(|configuration| Arc::new(Mutex::new(configuration)));
        let conf = Self { configuration, in_force: Arc::default(), data: None };
        conf.read_again().await;
        conf
    }

    /// The same, which follows from now on what stands in ZooKeeper of it.
    pub(super) fn following(self, data: Data) -> Self {
        data.follow(&self.in_force().sections_at);
        Self { data: Some(data), ..self }
    }

    /// Waits until what stands in ZooKeeper was heard, and takes it; for at most so long.
    pub(super) async fn first_words(&self, within: Duration) {
        if let Some(data) = &self.data {
            data.first_words(within).await;
            self.heed().await;
        }
    }

    /// Completes when [`SynapseConf::heed`] is worth calling.
    pub(super) fn changes(&self) -> impl AsyncFnMut() + use<> {
        let mut changes = self.data.as_ref().map(Data::changes);
        // What came before is looked at once.
        changes.iter_mut().for_each(signal::Receiver::mark_changed);
        async move || {
            let ended = match &mut changes {
                Some(changes) => changes.changed().await.is_err(),
                None => true,
            };
            if ended {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Reads it again. What is wrong stays as it was.
    pub(super) async fn read_again(&self) {
        if self.take(Configuration::load).await.is_some() {
            let services = self.in_force().services.len();
            tracing::info!(services, "Synapse's configuration is read");
        }
        if let Some(data) = &self.data {
            data.follow(&self.in_force().sections_at);
        }
    }

    /// Takes what stands in ZooKeeper now. Is anything else in force since?
    pub(super) async fn heed(&self) -> bool {
        let Some(data) = &self.data else { return false };
        let texts = data.texts();
        let Some(before) = self.take(move |configuration| configuration.heed(texts)).await else {
            return false;
        };
        let now = self.in_force();
        for Wrong { place, message } in now.wrong.iter().filter(|wrong| !before.wrong.contains(wrong)) {
            tracing::warn!(place, problem = message, "sections of Synapse's configuration");
        }
        let is_other = before.services != now.services || before.haproxy != now.haproxy;
        if is_other {
            tracing::info!("sections of Synapse's configuration are taken from ZooKeeper");
        }
        is_other
    }

    /// Puts into force what is told, and returns what was. `None`: it is what it was.
    async fn take(
        &self,
        told: impl FnOnce(&mut Configuration) -> InForce + Send + 'static,
    ) -> Option<Arc<InForce>> {
        let configuration = self.configuration.clone()?;
        // Off the control thread: names are looked up, and files may be on a network.
        let read = tokio::task::spawn_blocking(move || told(&mut lock(&configuration))).await;
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%error, "reading Synapse's configuration failed; what was read before stays");
                return None;
            }
        };
        let before = std::mem::replace(&mut *lock(&self.in_force), Arc::new(read));
        let now = self.in_force();
        for lack in now.lacks.iter().filter(|lack| !before.lacks.contains(lack)) {
            tracing::warn!("of Synapse's configuration: {lack}");
        }
        Some(before)
    }

    /// What is wrong with it, and with what stands in ZooKeeper of it.
    pub(super) fn wrong(&self) -> Vec<Wrong> {
        let failures = self.data.iter().flat_map(Data::failures);
        let failures = failures.map(|(node, error)| Wrong {
            place: node.to_string(),
            message: format!("sections cannot be read: {error}; what it said before stays in force"),
        });
        self.in_force().wrong.iter().cloned().chain(failures).collect()
    }

    pub(super) fn in_force(&self) -> Arc<InForce> {
        Arc::clone(&lock(&self.in_force))
    }

    /// What this node alone holds of settings.
    pub(super) fn settings(&self) -> HashMap<ServiceName, Arc<ServiceSettings>> {
        self.in_force().settings()
    }

    /// What is watched: what our own configuration says goes first.
    pub(super) fn watchers(&self, config: &Config) -> Vec<watch::Config> {
        let in_force = self.in_force();
        let theirs = in_force.services.iter().map(|service| service.watcher.clone());
        config.watchers.iter().cloned().chain(theirs).collect()
    }

    /// Where is listened.
    pub(super) fn ingress(&self, config: &Config) -> ingress::Config {
        let in_force = self.in_force();
        let theirs = in_force.services.iter().filter_map(|service| {
            let listen = match service.listen.clone()? {
                Address::Ip(address) => ingress::LocalListen::Ip(address),
                Address::Unix(path) => ingress::LocalListen::Unix(path, Access::default()),
            };
            Some(ingress::LocalPort { service: service.name.clone(), listen, target: None })
        });
        let mut all = config.ingress();
        all.localhost.extend(theirs);
        all
    }

    /// What HAProxy is told. What holds for all services is ours where we say so; Synapse's where we do not.
    pub(super) fn haproxy(&self, config: &Config) -> Option<haproxy::Config> {
        let (ours, theirs) = (config.output.haproxy.clone(), self.in_force().haproxy.clone());
        match (ours, theirs) {
            (Some(ours), Some(theirs)) => {
                let services = ours.services.into_iter().chain(theirs.services).collect();
                Some(haproxy::Config { services, ..ours })
            }
            (ours, theirs) => ours.or(theirs),
        }
    }

    /// What is written for other programs. A directory belongs to whom our own configuration gives it.
    pub(super) fn targets(&self, config: &Config) -> Vec<Target> {
        let ours = config.output.files.as_ref().map(OutputFiles::target);
        let theirs = self.in_force().target();
        let is_taken = |theirs: &Target| ours.as_ref().is_some_and(|ours| ours.directory == theirs.directory);
        if theirs.as_ref().is_some_and(is_taken) {
            tracing::warn!("Synapse's file_output is left out: [output.files] has its directory");
        }
        let theirs = theirs.filter(|theirs| !is_taken(theirs));
        ours.iter().cloned().chain(theirs).collect()
    }
}

/// Nothing is left half-done behind it by a panic that the next reading does not do anew.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Machine;

    #[tokio::test]
    async fn what_our_own_configuration_says_goes_first() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let theirs = format!(
            "services:\n  web_1: {{discovery: {{method: base}}, haproxy: {{port: 3213, bind_address: 0.0.0.0}}}}\n\
             file_output: {{output_directory: {}}}\n",
            at("files").display()
        );
        fs::write(at("synapse.yaml"), theirs).unwrap();
        let read = |files: &str| {
            let ours = format!(
                "state_dir = \"state\"\nnode = {{ name = \"a\", address = \"192.0.2.1\" }}\nstore.url = \"embedded\"\n\
                 source.synapse.file = \"synapse.yaml\"\n{files}\n[[watch]]\nservice = \"web-1\"\nstatic = []\n\
                 [[ingress.localhost]]\nservice = \"web-1\"\nport = 3214\n"
            );
            fs::write(at("plexus.toml"), ours).unwrap();
            Config::load(&at("plexus.toml"), &Machine::this()).unwrap()
        };
        let config = read("");
        let conf = SynapseConf::read(&config).await;
        let names: Vec<String> = conf.watchers(&config).into_iter().map(|watcher| watcher.name).collect();
        assert_eq!(names, ["web-1-static", "synapse:web-1"]);
        let local: Vec<_> = conf.ingress(&config).localhost.into_iter().map(|port| port.listen).collect();
        let ip = |text: &str| ingress::LocalListen::Ip(text.parse().unwrap());
        assert_eq!(local, [ip("127.0.0.1:3214"), ip("0.0.0.0:3213")]);
        let files = |config: &Config| -> Vec<bool> {
            conf.targets(config).iter().map(|target| target.services.is_some()).collect()
        };
        assert_eq!(files(&config), [true]);
        assert_eq!(files(&read("output.files.directory = \"other\"")), [false, true]);
        assert_eq!(files(&read("output.files.directory = \"files\"")), [false]);
        assert_eq!(conf.haproxy(&config), None);
    }
}
