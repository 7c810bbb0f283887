//! Asking: one probe to one address, and how large one may be.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;

use super::{HEAD, Kind, Message, UDP_HEADER, ip_header};
use crate::sys::sockopt::set_no_checksum;

/// A probe is sent this often before it counts as lost: on a healthy network one in a thousand may be.
const TRIES: u32 = 3;
/// From one to the next, and from the last one to giving up: longer than a packet takes around the world.
const PAUSE: Duration = Duration::from_millis(350);
/// So many sizes are tried at once in a search.
const STEPS: u32 = 16;

/// What became of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It came back, after so long.
    Answered(Duration),
    /// The node is there, and nothing on it answers probes.
    Refused,
    /// It is larger than what this node's own link takes.
    TooLarge,
    /// It did not come back.
    Lost,
    /// The kernel did not send it, or was told that it did not arrive: why.
    Failed(String),
}

/// One to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe {
    pub(super) from: IpAddr,
    pub(super) to: SocketAddr,
    /// Of the whole IP packet, which is not to be cut into fragments.
    pub(super) size: u32,
    /// With UDP's checksum?
    pub(super) checksum: bool,
}

impl Outcome {
    /// Did something of the other node come back?
    #[must_use]
    pub fn passed(&self) -> bool {
        matches!(self, Self::Answered(_) | Self::Refused)
    }
}

/// Sends one and waits for what becomes of it: a second at most.
pub(super) async fn ask(probe: Probe) -> Outcome {
    ask_by(probe, token()).await
}

/// The same under a token that is known.
pub(super) async fn ask_by(probe: Probe, token: u64) -> Outcome {
    let kind = if probe.checksum { Kind::Question } else { Kind::BareQuestion };
    match exchange(probe, Message { kind, token }).await {
        Ok(Some((_, after))) => Outcome::Answered(after),
        Ok(None) => Outcome::Lost,
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Outcome::Refused,
            // EMSGSIZE has no kind of its own.
            _ if error.raw_os_error() == Some(EMSGSIZE) => Outcome::TooLarge,
            _ => Outcome::Failed(error.to_string()),
        },
    }
}

/// Has the question with this token come to the other node? `None`: it does not say.
pub(super) async fn heard(by: Probe, token: u64) -> Option<bool> {
    let told = exchange(by, Message { kind: Kind::Inquiry, token }).await.ok()??;
    Some(told.0 == Kind::Answer)
}

/// A number that nobody else has: an answer that is late is not taken for another one's, also after a restart.
pub(super) fn token() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// `EMSGSIZE` of Linux, everywhere but on MIPS and SPARC.
const EMSGSIZE: i32 = 90;

/// What came back for a message, and after how long; `None`: nothing.
async fn exchange(probe: Probe, message: Message) -> io::Result<Option<(Kind, Duration)>> {
    let Probe { from, to, size, checksum } = probe;
    let socket = std::net::UdpSocket::bind((from, 0))?;
    socket.set_nonblocking(true)?;
    // Never in fragments, and at its size whatever the kernel believes of the path.
    if to.is_ipv4() {
        sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
    } else {
        sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?;
    }
    set_no_checksum(&socket, !checksum)?;
    let socket = UdpSocket::from_std(socket)?;
    // Connected, so that errors of its packets are this socket's.
    socket.connect(to).await?;
    let payload = size.saturating_sub(ip_header(to.ip()) + UDP_HEADER) as usize;
    let mut question = vec![0; payload.max(HEAD)];
    message.write(&mut question);
    let begun = Instant::now();
    let mut answer = vec![0; question.len()];
    for _ in 0..TRIES {
        socket.send(&question).await?;
        let until = Instant::now() + PAUSE;
        while let Ok(received) = tokio::time::timeout_at(until, socket.recv(&mut answer)).await {
            let length = received?;
            let Some(Message { kind, token }) = Message::read(&answer[..length]) else { continue };
            let is_answer = matches!(kind, Kind::Answer | Kind::NotHeard);
            if is_answer && token == message.token && length == question.len() {
                return Ok(Some((kind, begun.elapsed())));
            }
        }
    }
    Ok(None)
}

/// The largest packet of `least` to `most` bytes that comes back, where one of `least` does and one of `most` does not.
pub(super) async fn largest(probe: Probe, mut least: u32, mut most: u32) -> u32 {
    // A range shrinks to a sixteenth each time: four times are enough for every size that a packet can have.
    while most - least > 1 {
        let step = (most - least).div_ceil(STEPS).max(1);
        let sizes: Vec<u32> = (1..STEPS).map(|n| least + n * step).take_while(|size| *size < most).collect();
        let outcomes = join_all(sizes.iter().map(|size| ask(Probe { size: *size, ..probe }))).await;
        let mut asked = sizes.iter().zip(&outcomes);
        let first_lost = asked.find(|(_, outcome)| !outcome.passed()).map(|(size, _)| *size);
        most = first_lost.unwrap_or(most);
        least = sizes.iter().copied().filter(|size| *size < most).max().unwrap_or(least);
    }
    least
}

/// Does anything at all of a node answer: a connection that is taken, or one that is refused?
pub(super) async fn answers(to: SocketAddr) -> bool {
    match tokio::time::timeout(PAUSE * TRIES, TcpStream::connect(to)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}
