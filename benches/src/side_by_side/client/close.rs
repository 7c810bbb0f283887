//! Connections that live for one request, as HTTP/1.0 has them: connect, request, response, the server closes, the client
//! closes. Five system calls and one registration each; the end of the stream is learnt from the event that announces it.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::super::message::{self, LENGTH};
use super::super::plan::Plan;
use super::super::poller::{Poller, Ready};
use super::{LOOK, PATIENCE, Phase, Window, dial};

/// One of the operations under way.
struct Slot {
    socket: Option<OwnedFd>,
    began: Instant,
    number: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Asked,
    Answered,
}

/// How an operation ended.
enum End {
    Done,
    Connect,
    Broken,
    Closed,
    Content,
}

/// Returns the connections that are left.
pub(super) fn run(plan: &Plan, window: &mut Window) -> anyhow::Result<Vec<OwnedFd>> {
    let mut poller = Poller::new()?;
    let mut next = 0_u64;
    let mut slots: Vec<Slot> = Vec::with_capacity(plan.concurrency);
    for _ in 0..plan.concurrency {
        let now = Instant::now();
        slots.push(Slot { socket: None, began: now, number: 0, state: State::Connecting });
    }
    let (mut found, mut swept) = (Vec::new(), Instant::now());
    loop {
        let now = Instant::now();
        if window.look(now)? == Phase::Over {
            return Ok(slots.into_iter().filter_map(|slot| slot.socket).collect());
        }
        // At the first turn, after a connect that failed at once, and for those that take too long.
        let is_due = now - swept > Duration::from_millis(100);
        if is_due || next == 0 {
            swept = now;
            for (index, slot) in slots.iter_mut().enumerate() {
                if slot.socket.is_some() && now - slot.began > PATIENCE {
                    window.errors.overdue += 1;
                    slot.socket = None;
                }
                if slot.socket.is_none() {
                    start(slot, index, plan, &mut next, now, &poller, window);
                }
            }
        }
        poller.wait(&mut found, LOOK)?;
        for &(index, ready) in &found {
            let slot = &mut slots[index];
            let Some(end) = step(slot, ready) else { continue };
            let now = Instant::now();
            slot.socket = None;
            match end {
                End::Done => window.done(now - slot.began),
                End::Connect => window.errors.connect += 1,
                End::Broken => window.errors.broken += 1,
                End::Closed => window.errors.closed += 1,
                End::Content => window.errors.content += 1,
            }
            start(slot, index, plan, &mut next, now, &poller, window);
        }
    }
}

/// The next operation of a slot. What fails at once is tried again at the next sweep, so that it cannot spin.
fn start(
    slot: &mut Slot,
    index: usize,
    plan: &Plan,
    next: &mut u64,
    now: Instant,
    poller: &Poller,
    window: &mut Window,
) {
    let number = *next;
    *next += 1;
    let turn = usize::try_from(number).unwrap_or(0) % plan.targets.len();
    let ready = Ready::IN | Ready::OUT | Ready::RDHUP | Ready::ET;
    let socket = dial(plan.targets[turn], false).and_then(|socket| {
        poller.add(&socket, index, ready)?;
        Ok(socket)
    });
    window.errors.connect += u64::from(socket.is_err());
    (slot.socket, slot.began, slot.number, slot.state) = (socket.ok(), now, number, State::Connecting);
}

fn step(slot: &mut Slot, ready: Ready) -> Option<End> {
    let socket = slot.socket.as_ref()?;
    if ready.contains(Ready::ERR) {
        return Some(if slot.state == State::Connecting { End::Connect } else { End::Broken });
    }
    if slot.state == State::Connecting {
        if !ready.contains(Ready::OUT) {
            return None;
        }
        match send(socket, &message::request(slot.number), SendFlags::NOSIGNAL) {
            Ok(LENGTH) => slot.state = State::Asked,
            _ => return Some(End::Broken),
        }
    }
    if slot.state == State::Asked && ready.contains(Ready::IN) {
        // Room for more than a response, so that more than that is seen.
        let mut buffer = [0; 2 * LENGTH];
        match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((_, 0)) => return Some(End::Closed),
            // A response of one segment arrives whole; in pieces it would be a fault of the path.
            Ok((_, received)) if message::is_response(&buffer[..received], slot.number) => {
                slot.state = State::Answered;
            }
            Ok(_) => return Some(End::Content),
            Err(rustix::io::Errno::AGAIN) => {}
            Err(_) => return Some(End::Broken),
        }
    }
    // The response came with room to spare, so nothing is left to read before the end.
    let ended = ready.intersects(Ready::RDHUP | Ready::HUP);
    ended.then_some(if slot.state == State::Answered { End::Done } else { End::Closed })
}
