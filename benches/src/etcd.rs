//! A real etcd of one member, gone with the value that stands for it.

use std::fs::File;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::{StreamExt, TryStreamExt};
use nerve::model::Instance;
use nerve::store::{self, DEFAULT_PREFIX, Key, Path, Store, StoreConfig};
use plexus_tests::Namespace;

/// A running server with its data in a directory of its own.
#[derive(Debug)]
pub struct Etcd {
    process: Child,
    url: String,
    directory: tempfile::TempDir,
}

impl Etcd {
    /// Starts `etcd`, which must be in the path.
    pub fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let [client, peer] = [free_port()?, free_port()?].map(|port| format!("http://127.0.0.1:{port}"));
        let log = File::create(directory.path().join("log"))?;
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("start etcd; on Debian: apt install etcd-server")?;
        Ok(Self { process, url: client.replace("http", "etcd"), directory })
    }

    /// The store's URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until it answers.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let store = open(&self.url, "/ready")?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = store.get(&Path::new("ready")?).await {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
                bail!("etcd does not answer: {error}\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        store.shutdown().await;
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // An error means that it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The store at `url` below `prefix`.
pub fn open(url: &str, prefix: &str) -> anyhow::Result<Arc<dyn Store>> {
    let config = StoreConfig { prefix: Some(prefix.to_owned()), ..StoreConfig::new(url.parse()?) };
    Ok(store::open(&config, &store::Metrics::default())?)
}

/// Runs something with the store at `url`, as agents have it, on a thread that stands in this namespace.
pub fn inside<T: Send + 'static, F: Future<Output = anyhow::Result<T>>>(
    namespace: &Namespace,
    url: &str,
    work: impl FnOnce(Arc<dyn Store>) -> F + Send + 'static,
) -> anyhow::Result<JoinHandle<anyhow::Result<T>>> {
    let url = url.to_owned();
    namespace.enter(move || {
        // A thread stands where the one does that made it; it has the usual stack.
        let inside = std::thread::Builder::new().spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { work(open(&url, DEFAULT_PREFIX)?).await })
        });
        inside.context("a thread")
    })
}

/// Writes an instance; durable, so that no lease ends meanwhile.
pub async fn put(store: &Arc<dyn Store>, instance: &Instance) -> anyhow::Result<()> {
    let path = Key::Instance(instance.service.clone(), instance.id.clone()).path();
    store.put(&path, serde_json::to_vec(instance)?, None).await?;
    Ok(())
}

/// Writes a fleet.
pub async fn register(url: &str, prefix: &str, fleet: Vec<Instance>) -> anyhow::Result<Duration> {
    let store = open(url, prefix)?;
    let started = Instant::now();
    let writes = fleet.iter().map(|instance| put(&store, instance));
    futures_util::stream::iter(writes).buffer_unordered(128).try_collect::<()>().await?;
    store.shutdown().await;
    Ok(started.elapsed())
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
