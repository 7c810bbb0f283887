//! A connection to an upstream, over TCP or TLS: opened for the first question, kept while there are more, and shared by all.
//!
//! Questions are sent as they come and answered in whatever order (RFC 7766 section 6.2.1). A connection on which nothing
//! moves is closed; whoever finds that the server has closed it meanwhile asks once more on a new one. Each is driven by a
//! task of its own, with bounds on what waits in it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nerve::http::Tls;
use nerve::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::answer::Relayed;
use crate::dns::frames::{Frames, framed};
use crate::dns::metrics::{Dropped, Metrics};
use crate::dns::wire::{self, Question};

/// Questions that wait on one connection; those beyond go unanswered by this upstream.
const MOST_WAITING: usize = 512;
/// The longest message there is.
const LONGEST_ANSWER: usize = u16::MAX as usize;

/// Whom to connect to, and how.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) at: SocketAddr,
    pub(super) tls: Option<Tls>,
    /// How long connecting may take.
    pub(super) within: Duration,
    /// How long a connection without a word is kept.
    pub(super) idle: Duration,
}

/// A connection that is opened as it is needed.
#[derive(Debug)]
pub(super) struct Stream {
    dial: Arc<Dial>,
    open: Mutex<Option<mpsc::Sender<Job>>>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Job {
    question: Question,
    /// Its id is set by who sends it.
    query: Vec<u8>,
    tell: oneshot::Sender<Result<Relayed, Arc<io::Error>>>,
}

impl Stream {
    pub(super) fn new(dial: Dial, tasks: Tasks, metrics: Arc<Metrics>) -> Self {
        Self { dial: Arc::new(dial), open: Mutex::default(), tasks, metrics }
    }

    /// Is what is sent hidden from others?
    pub(super) fn is_encrypted(&self) -> bool {
        self.dial.tls.is_some()
    }

    /// Sends `query`, which asks `question`, and waits for the answer as long as it is polled.
    pub(super) async fn ask(&self, question: &Question, query: &[u8]) -> Result<Relayed, Arc<io::Error>> {
        let mut last = None;
        // A kept connection may turn out to be closed; a new one is tried once.
        for _ in 0..2 {
            let (tell, told) = oneshot::channel();
            let job = Job { question: question.clone(), query: query.to_vec(), tell };
            let (jobs, is_new) = self.connection();
            match jobs.try_send(job) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(_)) => {
                    return Err(Arc::new(io::Error::other(
                        "too many questions wait on the connection to it",
                    )));
                }
                Err(mpsc::error::TrySendError::Closed(_)) => continue,
            }
            match told.await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) if is_new => return Err(error),
                Ok(Err(error)) => last = Some(error),
                Err(_) if is_new => break,
                Err(_) => {}
            }
        }
        Err(last.unwrap_or_else(|| Arc::new(io::ErrorKind::ConnectionAborted.into())))
    }

    /// The connection is doubted: the next question opens another. What waits on it may still be answered.
    pub(super) fn forsake(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The open connection, or a new one.
    fn connection(&self) -> (mpsc::Sender<Job>, bool) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(jobs) = open.as_ref().filter(|jobs| !jobs.is_closed()) {
            return (jobs.clone(), false);
        }
        let (jobs, queue) = mpsc::channel(MOST_WAITING);
        *open = Some(jobs.clone());
        let (dial, metrics) = (Arc::clone(&self.dial), Arc::clone(&self.metrics));
        let stop = self.tasks.stop_token();
        self.tasks.spawn("dns upstream connection", async move {
            let mut queue = queue;
            let ended = match dial.connect().await {
                Ok(stream) => talk(stream, &mut queue, &dial, &metrics, &stop).await,
                Err(error) => Err(error),
            };
            // What came too late for this connection hears why; at its end in peace, it goes on to the next one.
            queue.close();
            if let Err(error) = ended {
                let error = Arc::new(error);
                while let Ok(job) = queue.try_recv() {
                    let _ = job.tell.send(Err(Arc::clone(&error)));
                }
            }
        });
        (jobs, true)
    }
}

/// What a connection can do.
trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

impl Dial {
    async fn connect(&self) -> io::Result<Box<dyn Duplex>> {
        let connected = async {
            let stream = TcpStream::connect(self.at).await?;
            // Questions are small and each is written whole: nothing to gain by holding them back.
            let _ = stream.set_nodelay(true);
            let Some(tls) = &self.tls else { return Ok(Box::new(stream) as Box<dyn Duplex>) };
            let host = self.at.ip().to_string();
            let stream = tls.over(stream, &host).await.map_err(io::Error::other)?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        };
        timeout(self.within, connected).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// What is sent, as fast as the server takes it: reading never waits for that.
#[derive(Default)]
struct Outgoing {
    octets: Vec<u8>,
    unflushed: bool,
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        self.octets.is_empty() && !self.unflushed
    }

    /// One step. Cancel-safe: nothing is sent twice.
    async fn push(&mut self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        if self.octets.is_empty() {
            stream.flush().await?;
            self.unflushed = false;
            return Ok(());
        }
        let written = stream.write(&self.octets).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.octets.drain(..written);
        self.unflushed = true;
        Ok(())
    }
}

/// Drives a connection until it is idle, or nobody wants it and nothing waits on it. An error is told to all that wait.
async fn talk(
    stream: Box<dyn Duplex>,
    queue: &mut mpsc::Receiver<Job>,
    dial: &Dial,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> io::Result<()> {
    let (read, mut write) = tokio::io::split(stream);
    let mut frames = Frames::new(read, LONGEST_ANSWER);
    let (mut outgoing, mut waiting) = (Outgoing::default(), HashMap::<u16, Job>::new());
    let (mut wanted, mut moved) = (true, Instant::now());
    let ended = loop {
        if !wanted && waiting.is_empty() {
            break Ok(());
        }
        let limit = if wanted { dial.idle } else { dial.within };
        tokio::select! {
            () = stop.cancelled(), if wanted => wanted = false,
            job = queue.recv(), if wanted && waiting.len() < MOST_WAITING => match job {
                Some(job) => {
                    // Whoever has given up waits no more.
                    waiting.retain(|_, job| !job.tell.is_closed());
                    send(job, &mut outgoing, &mut waiting);
                }
                None => wanted = false,
            },
            pushed = outgoing.push(&mut write), if !outgoing.is_empty() => if let Err(error) = pushed {
                break Err(error);
            },
            frame = frames.next() => match frame {
                Ok(Some(message)) => receive(message, &mut waiting, metrics),
                Ok(None) => break Err(io::Error::new(io::ErrorKind::ConnectionReset, "it closed the connection")),
                Err(error) => break Err(error),
            },
            // Who still waits has waited too long, or nobody does.
            () = sleep_until(moved + limit) => break Ok(()),
        }
        moved = Instant::now();
    };
    if let Err(error) = ended {
        let error = Arc::new(error);
        let kind = error.kind();
        for (_, job) in waiting {
            let _ = job.tell.send(Err(Arc::clone(&error)));
        }
        return Err(io::Error::new(kind, error.to_string()));
    }
    let _ = timeout(Duration::from_millis(100), write.shutdown()).await;
    Ok(())
}

/// Puts a question under an id of its own into what is sent.
fn send(mut job: Job, outgoing: &mut Outgoing, waiting: &mut HashMap<u16, Job>) {
    let id = loop {
        let id = rand::random();
        if !waiting.contains_key(&id) {
            break id;
        }
    };
    wire::put_u16(&mut job.query, 0, id);
    outgoing.octets.extend(framed(&job.query));
    waiting.insert(id, job);
}

/// Gives an answer to who waits for it.
fn receive(message: Vec<u8>, waiting: &mut HashMap<u16, Job>, metrics: &Metrics) {
    let id = wire::u16_at(&message, 0).unwrap_or(0);
    let is_answer = |job: &Job| wire::answers(&message, id, &job.question);
    if !waiting.get(&id).is_some_and(is_answer) {
        metrics.dropped.inc(Dropped::UpstreamMismatch);
        return;
    }
    let Some(job) = waiting.remove(&id) else { return };
    let answer = Relayed::new(message, Instant::now()).ok_or_else(|| {
        metrics.dropped.inc(Dropped::UpstreamMismatch);
        Arc::new(io::Error::new(io::ErrorKind::InvalidData, "its answer is malformed"))
    });
    // Who asked may have given up.
    let _ = job.tell.send(answer);
}
