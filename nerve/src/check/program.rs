//! A program that is started once and asked many times: it answers for every `external` check that names it.
//!
//! A line of JSON goes in for each probe and one comes back, in any order. When it ends it is started again, after a pause that
//! grows while it does not last; so it is when it has not answered for a while. What it prints is bounded.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::process::{Argv, Group};
use super::{Level, bounded};
use crate::tasks::Tasks;

/// The longest line, and the most that waits to be read by the program, in bytes.
const MAX_LINE: usize = 64 * 1024;
/// So many requests wait for a program that is being started or does not read.
const MAX_WAITING: usize = 256;
/// So many unanswered requests in a row, and the program hangs.
const MAX_SILENT: usize = 10;
/// The pause before it is started again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Whoever ran for so long is started again without a longer pause.
const LASTED: Duration = Duration::from_secs(60);
/// How long it has after the end of its input.
const GRACE: Duration = Duration::from_secs(1);
/// What one that has ended has written by then is read within this.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The programs of a node's checks. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    tasks: Tasks,
    running: Arc<Mutex<HashMap<Argv, Weak<Program>>>>,
}

/// A program that runs for as long as somebody has this.
#[derive(Debug)]
pub(super) struct Program {
    ask: mpsc::Sender<Asked>,
    /// Why it does not answer at the moment.
    trouble: Arc<Mutex<Option<String>>>,
    _stop: DropGuard,
}

/// What is asked, without the number.
pub(super) type Question = serde_json::Map<String, serde_json::Value>;

/// What it answers.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    id: u64,
    pub(super) status: Level,
    #[serde(default)]
    pub(super) output: String,
}

#[derive(Debug)]
struct Asked {
    question: Question,
    answer: oneshot::Sender<Answer>,
}

#[derive(Serialize)]
struct Line<'a> {
    id: u64,
    #[serde(flatten)]
    question: &'a Question,
}

impl Programs {
    pub(super) fn new(tasks: Tasks) -> Self {
        Self { tasks, running: Arc::default() }
    }

    /// The program of this command, started if it does not run.
    pub(super) fn of(&self, argv: &Argv) -> Arc<Program> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, program| program.strong_count() > 0);
        if let Some(program) = running.get(argv).and_then(Weak::upgrade) {
            return program;
        }
        let (ask, asked) = mpsc::channel(MAX_WAITING);
        let (stop, owner) = (CancellationToken::new(), self.tasks.stop_token());
        let trouble = Arc::new(Mutex::new(None));
        let keeper = Keeper { argv: argv.clone(), asked, trouble: Arc::clone(&trouble) };
        let stopped = stop.clone();
        self.tasks.spawn("check program", async move {
            tokio::select! {
                () = owner.cancelled() => {}
                () = keeper.run(stopped) => {}
            }
        });
        let program = Arc::new(Program { ask, trouble, _stop: stop.drop_guard() });
        running.insert(argv.clone(), Arc::downgrade(&program));
        program
    }
}

impl Program {
    /// Asks it. Takes as long as it takes: the probe's timeout ends it.
    ///
    /// # Errors
    /// It does not run, and why.
    pub(super) async fn ask(&self, question: Question) -> Result<Answer, String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        let (answer, answered) = oneshot::channel();
        let ended = || "the program ended before it answered".to_owned();
        self.ask.send(Asked { question, answer }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| {
            self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_else(ended)
        })
    }
}

/// What keeps one program running.
struct Keeper {
    argv: Argv,
    asked: mpsc::Receiver<Asked>,
    trouble: Arc<Mutex<Option<String>>>,
}

/// Who waits for an answer, by the number of the request.
type Waiting = HashMap<u64, oneshot::Sender<Answer>>;

/// One life of it.
struct Life {
    child: Child,
    _group: Group,
    stdin: Option<ChildStdin>,
    /// What is still to be written.
    unsent: Vec<u8>,
    waiting: Waiting,
    number: u64,
    silent: usize,
    /// What it said last of errors.
    last_words: String,
}

impl Keeper {
    async fn run(mut self, stop: CancellationToken) {
        let mut pause = PAUSES.0;
        loop {
            let began = Instant::now();
            let Some((end, waiting)) = self.live(&stop).await else { return };
            let lasted = began.elapsed() >= LASTED;
            pause = if lasted { PAUSES.0 } else { pause };
            let name = self.argv.name();
            let shown = humantime::format_duration(pause);
            let trouble = bounded(&format!("{name} {end}; it is started again in {shown}"));
            tracing::warn!(program = name, end, ?pause, "program of a check is started again");
            self.tell(Some(trouble));
            // Whoever has asked is told so, by the end of the channel that it waits on.
            drop(waiting);
            while self.asked.try_recv().is_ok() {}
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSES.1);
            self.tell(None);
        }
    }

    fn tell(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Runs it until it ends: how, and who still waits for answers. `None`: nobody wants it any more.
    async fn live(&mut self, stop: &CancellationToken) -> Option<(String, Waiting)> {
        let (mut child, group) = match self.argv.start(&[], Stdio::piped()) {
            Ok(started) => started,
            Err(error) => return Some((format!("cannot be started: {error}"), Waiting::new())),
        };
        let (out, err) = (Lines::new(child.stdout.take()), Lines::new(child.stderr.take()));
        let mut life = Life {
            stdin: child.stdin.take(),
            child,
            _group: group,
            unsent: Vec::new(),
            waiting: Waiting::new(),
            number: 0,
            silent: 0,
            last_words: String::new(),
        };
        let end = self.serve(&mut life, out, err, stop).await;
        if end.is_none() {
            drop(life.stdin.take());
            let _ = timeout(GRACE, life.child.wait()).await;
        }
        end.map(|end| (end, std::mem::take(&mut life.waiting)))
    }

    async fn serve(
        &mut self,
        life: &mut Life,
        mut out: Lines<ChildStdout>,
        mut err: Lines<ChildStderr>,
        stop: &CancellationToken,
    ) -> Option<String> {
        while life.silent < MAX_SILENT {
            let room = life.unsent.len() < MAX_LINE;
            tokio::select! {
                () = stop.cancelled() => return None,
                asked = self.asked.recv(), if room => life.take(asked?),
                written = write(life.stdin.as_mut(), &life.unsent), if !life.unsent.is_empty() => match written {
                    Ok(written) => drop(life.unsent.drain(..written)),
                    Err(error) => return Some(life.ended(&format!("no longer reads: {error}"), &mut err).await),
                },
                line = out.next() => match line {
                    Some(Ok(line)) => if let Err(wrong) = life.answered(&line) {
                        tracing::warn!(program = self.argv.name(), wrong, "an answer that means nothing");
                    },
                    Some(Err(TooLong)) => return Some(format!("answers with a line of more than {MAX_LINE} bytes")),
                    None => return Some(life.ended("has closed its output", &mut err).await),
                },
                Some(line) = err.next() => life.said(line),
            }
        }
        Some(format!("has not answered {MAX_SILENT} times in a row"))
    }
}

impl Life {
    fn take(&mut self, asked: Asked) {
        // Whose time is over has gone away.
        let before = self.waiting.len();
        self.waiting.retain(|_, waiting| !waiting.is_closed());
        self.silent += before - self.waiting.len();
        self.number += 1;
        let line = Line { id: self.number, question: &asked.question };
        if serde_json::to_writer(&mut self.unsent, &line).is_ok() {
            self.unsent.push(b'\n');
            self.waiting.insert(self.number, asked.answer);
        }
    }

    fn answered(&mut self, line: &str) -> Result<(), String> {
        if line.trim().is_empty() {
            return Ok(());
        }
        let answer: Answer =
            serde_json::from_str(line).map_err(|error| format!("{}: {error}", bounded(line)))?;
        self.silent = 0;
        if let Some(waiting) = self.waiting.remove(&answer.id) {
            // Nobody waits for one that comes too late.
            let _ = waiting.send(answer);
        }
        Ok(())
    }

    fn said(&mut self, line: Result<String, TooLong>) {
        self.last_words = line.map_or_else(|TooLong| String::new(), |line| bounded(&line));
    }

    /// How it ended, in words.
    async fn ended(&mut self, seen: &str, err: &mut Lines<ChildStderr>) -> String {
        let how = match timeout(GRACE, self.child.wait()).await {
            Ok(Ok(status)) => format!("ended with {status}"),
            _ => seen.to_owned(),
        };
        // What it has left behind may go on to write.
        let rest = async {
            while let Some(line) = err.next().await {
                self.said(line);
            }
        };
        let _ = timeout(LAST_WORDS, rest).await;
        if self.last_words.is_empty() { how } else { format!("{how} ({})", self.last_words) }
    }
}

/// Writes some of it. Cancel-safe.
async fn write(stdin: Option<&mut ChildStdin>, bytes: &[u8]) -> std::io::Result<usize> {
    match stdin {
        Some(stdin) => stdin.write(bytes).await,
        None => std::future::pending().await,
    }
}

/// A line was.
struct TooLong;

/// Lines of a stream, each of at most [`MAX_LINE`] bytes.
struct Lines<R> {
    stream: Option<R>,
    read: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(stream: Option<R>) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// The next one; `None` at the end; an error where it is too long. Cancel-safe.
    async fn next(&mut self) -> Option<Result<String, TooLong>> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Some(Ok(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            if self.read.len() > MAX_LINE {
                self.read.clear();
                return Some(Err(TooLong));
            }
            match self.stream.as_mut()?.read(&mut chunk).await {
                Ok(read @ 1..) => self.read.extend_from_slice(&chunk[..read]),
                Ok(0) | Err(_) => self.stream = None,
            }
        }
    }
}
