//! One process of HAProxy's, at its stats socket: what it runs, and what it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::compare::{Command, Kind, Reload, difference};
use super::metrics::{Failure, Metrics};
use super::reload::View;
use super::render::{Added, Mark};
use super::runtime::{self, Backends, Error, Loaded, Process};
use super::server::Server;

/// From so many backends on, all of them are asked for at once.
const MANY: usize = 8;

/// A backend as it is to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) backend: &'a str,
    pub(super) servers: &'a [Server],
    pub(super) added: &'a Added,
}

/// What is known of a process. Backends go by their place in the configuration.
#[derive(Debug)]
pub(super) struct Peer {
    path: PathBuf,
    /// `None`: it does not answer.
    process: Option<Process>,
    /// The process that was told to make place for another one.
    leaving: Option<Process>,
    /// Backends that have to be compared.
    dirty: BTreeSet<usize>,
    /// Backends that are not as they are to be and cannot be told to be, and why.
    lacks: BTreeMap<usize, Reload>,
    /// Backends with servers that are not as they are to be yet, and how many.
    unsettled: BTreeMap<usize, usize>,
    /// What HAProxy refused of a backend.
    pub(super) refused: BTreeMap<usize, String>,
}

impl Peer {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            process: None,
            leaving: None,
            dirty: BTreeSet::new(),
            lacks: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// For those who decide on a reload.
    pub(super) fn view(&self) -> View {
        match &self.process {
            None => View::Silent,
            Some(process) => {
                View::Says { loaded: process.loaded, lacks: self.lacks.values().next().copied() }
            }
        }
    }

    /// It was told to reload: another process is to come.
    pub(super) fn expect_another(&mut self) {
        self.leaving.clone_from(&self.process);
    }

    /// Is the process that was expected there, and runs this?
    pub(super) fn shows(&self, mark: Mark) -> bool {
        let Some(process) = &self.process else { return false };
        let is_new = self.leaving.as_ref().is_none_or(|leaving| !process.follows(leaving));
        is_new && [Loaded::Unknown, Loaded::Made(mark)].contains(&process.loaded)
    }

    /// These backends are to be compared.
    pub(super) fn mark(&mut self, backends: impl IntoIterator<Item = usize>) {
        self.dirty.extend(backends);
    }

    /// Those are to be compared again that are not as they are to be.
    pub(super) fn mark_unsettled(&mut self) {
        let Self { dirty, lacks, unsettled, .. } = self;
        dirty.extend(lacks.keys().chain(unsettled.keys()));
    }

    /// How many servers wait for their end.
    pub(super) fn left(&self) -> usize {
        self.unsettled.values().sum()
    }

    /// Tells the process what it lacks.
    pub(super) async fn tell(
        &mut self,
        wanted: &[Option<Wanted<'_>>],
        metrics: &Metrics,
    ) -> Result<(), Error> {
        let process = match runtime::process(&self.path).await {
            Ok(process) => process,
            Err(error) => {
                self.process = None;
                return Err(error);
            }
        };
        if !self.process.as_ref().is_some_and(|before| process.follows(before)) {
            self.lacks.clear();
            self.unsettled.clear();
            self.refused.clear();
            self.dirty.extend(0..wanted.len());
        }
        let version = process.version;
        self.process = Some(process);
        let dirty: Vec<(usize, Wanted<'_>)> =
            self.dirty.iter().filter_map(|at| Some((*at, (*wanted.get(*at)?)?))).collect();
        let all = if dirty.len() > MANY { Some(runtime::all_servers(&self.path).await?) } else { None };
        for (at, wanted) in dirty {
            let asked: Backends;
            let backends = match &all {
                Some(all) => all,
                None => {
                    asked = runtime::servers(&self.path, wanted.backend).await?;
                    &asked
                }
            };
            self.lacks.remove(&at);
            self.unsettled.remove(&at);
            self.refused.remove(&at);
            // One that HAProxy does not know comes with a reload, which its mark asks for.
            if let Some(running) = backends.get(wanted.backend) {
                let told = difference(wanted.backend, wanted.servers, running, wanted.added, version);
                let (mut left, mut refused) = (told.left, false);
                self.lacks.extend(told.reload.map(|reason| (at, reason)));
                for script in told.scripts {
                    match self.say(at, script, metrics).await? {
                        None => {}
                        Some(Kind::Delete) => left += 1,
                        Some(_) => refused = true,
                    }
                }
                if left > 0 || refused {
                    self.unsettled.insert(at, left);
                }
            }
            self.dirty.remove(&at);
        }
        self.dirty.clear();
        Ok(())
    }

    /// Says it word by word, up to what HAProxy does not do.
    async fn say(
        &mut self,
        at: usize,
        script: Vec<Command>,
        metrics: &Metrics,
    ) -> Result<Option<Kind>, Error> {
        for Command { kind, line } in script {
            let answer = runtime::ask(&self.path, &line).await?;
            if kind.is_done(&answer) {
                metrics.told(kind);
                tracing::debug!(line, "told HAProxy");
                continue;
            }
            let answer = answer.split_whitespace().collect::<Vec<_>>().join(" ");
            match kind {
                // It has connections yet.
                Kind::Delete => tracing::debug!(line, answer, "HAProxy keeps a server for now"),
                Kind::Add | Kind::Weight => {
                    tracing::debug!(line, answer, "HAProxy does not do it while it runs");
                    let reason = if kind == Kind::Add { Reload::NewServer } else { Reload::Weight };
                    self.lacks.insert(at, reason);
                }
                Kind::State | Kind::Address | Kind::Check => {
                    metrics.failed(Failure::Command);
                    self.refused.insert(at, format!("{line:?}: {answer}"));
                }
            }
            return Ok(Some(kind));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use nerve::tasks::Tasks;
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::UnixListener;

    use super::super::server::State;
    use super::*;

    /// One that answers as HAProxy does, and what it was asked.
    fn pretend(path: &Path, tasks: &Tasks) -> Arc<Mutex<Vec<String>>> {
        let (listener, asked) = (UnixListener::bind(path).unwrap(), Arc::new(Mutex::new(Vec::new())));
        let heard = Arc::clone(&asked);
        tasks.spawn_while_wanted("pretend", async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (mut stream, mut line) = (BufReader::new(stream), String::new());
                stream.read_line(&mut line).await.unwrap();
                let head =
                    "1\n# be_id be_name srv_id srv_name srv_addr srv_admin_state srv_uweight srv_port\n";
                let answer = match line.trim() {
                    "show info;show env PLEXUS_LOADED" => {
                        "Version: 2.6.12\nPid: 7\n\nPLEXUS_LOADED=0000000000000001-1\n\n".to_owned()
                    }
                    "show servers state web" => {
                        format!("{head}1 web 1 old 10.0.0.1 0 1 80\n1 web 2 stays 10.0.0.2 1 1 80\n\n")
                    }
                    line if line.starts_with("show servers state") => "Can't find backend.\n".to_owned(),
                    line if line.starts_with("del") => "Server still has connections attached.\n".to_owned(),
                    line if line.starts_with("add") => "'x' is no option of dynamic servers.\n".to_owned(),
                    _ => "\n".to_owned(),
                };
                if !line.starts_with("show") {
                    heard.lock().unwrap().push(line.trim().to_owned());
                }
                stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
            }
        });
        asked
    }

    fn server(name: &str, host: u8) -> Server {
        let address = format!("10.0.0.{host}:80").parse().unwrap();
        let (name, options) = (name.to_owned(), "x".to_owned());
        Server { name, address, id: None, cookie: None, options, weight: None, state: State::Ready }
    }

    #[tokio::test]
    async fn what_haproxy_refuses_is_said_again_or_needs_a_reload() {
        let (directory, tasks, metrics) =
            (tempfile::tempdir().unwrap(), Tasks::new(), Metrics::new().unwrap());
        let path = directory.path().join("socket");
        let mut peer = Peer::new(&path);
        let servers = [server("stays", 2), server("new", 3)];
        let added = Added::default();
        let one = |backend| Some(Wanted { backend, servers: &servers, added: &added });
        let wanted = [one("web"), None, one("unknown")];
        assert!(peer.tell(&wanted, &metrics).await.is_err());
        assert_eq!(peer.view(), View::Silent);
        let asked = pretend(&path, &tasks);
        peer.tell(&wanted, &metrics).await.unwrap();
        let first = std::mem::take(&mut *asked.lock().unwrap());
        assert_eq!(
            first,
            [
                "set server web/stays state ready",
                "add server web/new 10.0.0.3:80 x",
                "set server web/old state maint",
                "del server web/old",
            ]
        );
        let loaded = Loaded::Made(Mark { lines: 1, options: 1 });
        assert_eq!((peer.view(), peer.left()), (View::Says { loaded, lacks: Some(Reload::NewServer) }, 1));
        peer.tell(&wanted, &metrics).await.unwrap();
        assert_eq!(asked.lock().unwrap().len(), 0, "nothing changed");
        peer.mark_unsettled();
        peer.tell(&wanted, &metrics).await.unwrap();
        assert_eq!(*asked.lock().unwrap(), first);
        // What runs that is not another process yet.
        assert!(peer.shows(Mark { lines: 1, options: 1 }) && !peer.shows(Mark { lines: 2, options: 1 }));
        peer.expect_another();
        assert!(!peer.shows(Mark { lines: 1, options: 1 }));
        tasks.shutdown().await;
    }
}
