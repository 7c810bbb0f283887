//! HAProxy's runtime interface: a line is asked at the stats socket, the answer ends with the connection.
//!
//! Bounded in time and size, and nothing is kept open: a reload may put another process behind the socket at any moment.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::render::Mark;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(5);
/// The longest answer: some hundred thousand servers.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;
/// The longest question: HAProxy's buffer, with its own reserve.
pub(super) const MAX_QUESTION: usize = 8 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("nothing answers at {path}: {source}")]
    Unreachable { path: String, source: io::Error },
    #[error("{path} does not answer within {WITHIN:?}")]
    Silent { path: String },
    #[error("{path} answers more than {MAX_ANSWER} bytes")]
    Endless { path: String },
    #[error("{path} permits too little: `stats socket` needs `level admin`")]
    Forbidden { path: String },
}

/// The process behind a socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Process {
    pub(super) pid: u64,
    /// For how long it runs, in seconds.
    pub(super) uptime: u64,
    /// Major and minor.
    pub(super) version: (u32, u32),
    /// Whether it can say which file it runs, and which.
    pub(super) loaded: Loaded,
}

impl Process {
    /// Is it the same one, later? In a container each process may have the same number.
    pub(super) fn follows(&self, before: &Self) -> bool {
        self.pid == before.pid && self.uptime >= before.uptime
    }
}

/// Which file a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Loaded {
    /// Too old a version cannot say.
    #[default]
    Unknown,
    /// One that was not written by this program.
    Foreign,
    /// One that was made from this.
    Made(Mark),
}

/// A server as HAProxy runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Running {
    pub(super) address: String,
    pub(super) port: u16,
    /// `SRV_ADMF_…`.
    pub(super) admin: u32,
    pub(super) weight: u32,
}

/// The servers of each backend.
pub(super) type Backends = BTreeMap<String, BTreeMap<String, Running>>;

/// Asks one line.
pub(super) async fn ask(socket: &Path, question: &str) -> Result<String, Error> {
    let path = || socket.display().to_string();
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("{question}\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER + 1).read_to_end(&mut answer).await?;
        Ok(answer)
    };
    match tokio::time::timeout(WITHIN, asked).await {
        Err(_) => Err(Error::Silent { path: path() }),
        Ok(Err(source)) => Err(Error::Unreachable { path: path(), source }),
        Ok(Ok(answer)) if answer.len() as u64 > MAX_ANSWER => Err(Error::Endless { path: path() }),
        Ok(Ok(answer)) => Ok(String::from_utf8_lossy(&answer).into_owned()),
    }
}

/// Who is there?
pub(super) async fn process(socket: &Path) -> Result<Process, Error> {
    let answer = ask(socket, &format!("show info;show env {}", Mark::VARIABLE)).await?;
    if answer.lines().any(|line| line.trim() == "Permission denied") {
        return Err(Error::Forbidden { path: socket.display().to_string() });
    }
    Ok(read_process(&answer))
}

fn read_process(answer: &str) -> Process {
    let mut process = Process { loaded: Loaded::Foreign, ..Process::default() };
    for line in answer.lines() {
        if line.starts_with("Unknown command") {
            process.loaded = Loaded::Unknown;
        } else if let Some((key, value)) = line.split_once(": ") {
            match key {
                "Pid" => process.pid = value.trim().parse().unwrap_or(0),
                "Uptime_sec" => process.uptime = value.trim().parse().unwrap_or(0),
                "Version" => process.version = version(value),
                _ => {}
            }
        } else if let Some(mark) = line.strip_prefix(Mark::VARIABLE).and_then(|rest| rest.strip_prefix('=')) {
            process.loaded = mark.trim().parse().map_or(Loaded::Foreign, Loaded::Made);
        }
    }
    process
}

/// `2.6.12-1+deb12u4` → 2.6.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The servers of one backend; without an entry, HAProxy does not know it.
pub(super) async fn servers(socket: &Path, backend: &str) -> Result<Backends, Error> {
    let answer = ask(socket, &format!("show servers state {backend}")).await?;
    let mut backends = read_servers(&answer);
    // One without servers has a head and nothing below it.
    if answer.lines().any(|line| line.starts_with('#')) {
        backends.entry(backend.to_owned()).or_default();
    }
    Ok(backends)
}

/// The servers of every backend.
pub(super) async fn all_servers(socket: &Path) -> Result<Backends, Error> {
    let mut backends = read_servers(&ask(socket, "show servers state").await?);
    // Those without servers are there too.
    for name in read_backends(&ask(socket, "show stat -1 2 -1").await?) {
        backends.entry(name).or_default();
    }
    Ok(backends)
}

fn read_backends(answer: &str) -> Vec<String> {
    let name = |line: &str| {
        let mut columns = line.split(',');
        let name = columns.next()?.to_owned();
        (columns.next()? == "BACKEND").then_some(name)
    };
    answer.lines().filter_map(name).collect()
}

/// Columns are found by their names: their number has grown.
fn read_servers(answer: &str) -> Backends {
    let mut backends = Backends::new();
    let mut columns: Vec<&str> = Vec::new();
    for line in answer.lines() {
        if let Some(head) = line.strip_prefix('#') {
            columns = head.split_whitespace().collect();
            continue;
        }
        let values: Vec<&str> = line.split_whitespace().collect();
        let value = |name: &str| {
            columns.iter().position(|column| *column == name).and_then(|at| values.get(at).copied())
        };
        let running = || {
            Some(Running {
                address: value("srv_addr")?.to_owned(),
                port: value("srv_port")?.parse().ok()?,
                admin: value("srv_admin_state")?.parse().ok()?,
                weight: value("srv_uweight")?.parse().ok()?,
            })
        };
        if let (Some(backend), Some(server), Some(running)) = (value("be_name"), value("srv_name"), running())
        {
            backends.entry(backend.to_owned()).or_default().insert(server.to_owned(), running);
        }
    }
    backends
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    const SERVERS: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
        srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state \
        bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n\
        3 web 1 a_10.0.0.1:80 10.0.0.1 2 0 1 1 64 1 0 0 0 0 0 0 - 80 - 0 0 - - 0\n\
        3 web 2 b ::1 0 5 7 1 64 1 0 0 0 0 0 0 - 81 - 0 0 - - 0\nnonsense\n\n";

    #[test]
    fn answers_are_read_by_the_names_of_their_columns() {
        let backends = read_servers(SERVERS);
        let web = &backends["web"];
        assert_eq!(web.len(), 2);
        assert_eq!(
            web["a_10.0.0.1:80"],
            Running { address: "10.0.0.1".to_owned(), port: 80, admin: 0, weight: 1 }
        );
        assert_eq!((web["b"].admin, web["b"].weight, web["b"].address.as_str()), (5, 7, "::1"));
        assert!(read_servers("Can't find backend.\n").is_empty());
        assert_eq!(read_backends("# pxname,svname,\nweb,BACKEND,0\nweb,FRONTEND,0\n\n"), ["web"]);
    }

    #[test]
    fn a_process_says_what_it_runs() {
        let info =
            "Name: HAProxy\nVersion: 2.6.12-1+deb12u4\nPid: 77\nUptime: 0d 0h00m09s\nUptime_sec: 9\n\n";
        let read = read_process(&format!("{info}PLEXUS_LOADED=00000000000000ff-3\n"));
        let mark = Mark { lines: 255, options: 3 };
        assert_eq!(read, Process { pid: 77, uptime: 9, version: (2, 6), loaded: Loaded::Made(mark) });
        assert_eq!(read_process(&format!("{info}Variable not found\n")).loaded, Loaded::Foreign);
        assert_eq!(read_process(&format!("{info}Unknown command: 'show env'\n")).loaded, Loaded::Unknown);
        assert_eq!((version("3.0-dev1"), version("1.5.18"), version("")), ((3, 0), (1, 5), (0, 0)));
    }

    #[tokio::test]
    async fn an_answer_ends_with_the_connection_and_nobody_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert!(matches!(ask(&path, "x").await, Err(Error::Unreachable { .. })));
        let listener = UnixListener::bind(&path).unwrap();
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 10];
            stream.read_exact(&mut asked).await.unwrap();
            stream.write_all(SERVERS.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked).into_owned()
        };
        let (asked, answered) = tokio::join!(answer, ask(&path, "show this"));
        assert_eq!((asked.as_str(), answered.unwrap().as_str()), ("show this\n", SERVERS));
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(ask(&path, "x").await, Err(Error::Silent { .. })));
    }
}
