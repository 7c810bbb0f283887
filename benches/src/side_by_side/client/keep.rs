//! Requests and responses on connections that are kept, or as datagrams; and connections that fall silent after the first.
//!
//! Two system calls an exchange, and a wait for as many exchanges as are ready at once.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::super::message::{self, LENGTH};
use super::super::plan::{Load, Plan};
use super::super::poller::{Poller, Ready};
use super::{DATAGRAM_PATIENCE, LOOK, PATIENCE, Phase, Window, dial};

/// One connection.
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
    /// Nothing is asked any more.
    Silent,
}

enum Event {
    Answered,
    Connect,
    Broken,
    Closed,
    Content,
}

/// The connections, and how they are used.
struct Keep<'a> {
    plan: &'a Plan,
    datagrams: bool,
    patience: Duration,
    poller: Poller,
    slots: Vec<Slot>,
    next: u64,
}

/// Returns the connections that are left.
pub(super) fn run(plan: &Plan, window: &mut Window) -> anyhow::Result<Vec<OwnedFd>> {
    let datagrams = plan.load == Load::Datagram;
    let patience = if datagrams { DATAGRAM_PATIENCE } else { PATIENCE };
    let mut keep = Keep { plan, datagrams, patience, poller: Poller::new()?, slots: Vec::new(), next: 0 };
    keep.open_all(window)?;
    let (mut found, mut swept) = (Vec::new(), Instant::now());
    loop {
        let now = Instant::now();
        window.open = keep.slots.iter().filter(|slot| slot.socket.is_some()).count() as u64;
        if window.look(now)? == Phase::Over {
            return Ok(keep.slots.into_iter().filter_map(|slot| slot.socket).collect());
        }
        if now - swept > patience / 4 {
            swept = now;
            keep.sweep(now, window);
        }
        keep.turn(&mut found, window)?;
    }
}

impl Keep<'_> {
    /// Opens connections, few at a time where there are thousands, so that no accept queue is the measure.
    fn open_all(&mut self, window: &mut Window) -> anyhow::Result<()> {
        let mut found = Vec::new();
        for index in 0..self.plan.concurrency {
            let slot = Slot { socket: None, began: Instant::now(), number: 0, state: State::Connecting };
            self.slots.push(slot);
            self.open(index, window);
            if index % 64 == 63 {
                self.turn(&mut found, window)?;
            }
        }
        // The window waits for the last of thousands.
        let deadline = Instant::now() + PATIENCE;
        let is_opening = |slot: &Slot| slot.state != State::Silent;
        while self.plan.load == Load::Idle && self.slots.iter().any(is_opening) && Instant::now() < deadline {
            self.turn(&mut found, window)?;
        }
        window.begins = Instant::now() + self.plan.warm_up;
        Ok(())
    }

    fn open(&mut self, index: usize, window: &mut Window) {
        let target = self.plan.targets[index % self.plan.targets.len()];
        let ready = Ready::IN | Ready::OUT | Ready::ET;
        let socket = dial(target, self.datagrams).and_then(|socket| {
            self.poller.add(&socket, index, ready)?;
            Ok(socket)
        });
        window.errors.connect += u64::from(socket.is_err());
        let slot = &mut self.slots[index];
        (slot.socket, slot.began, slot.state) = (socket.ok(), Instant::now(), State::Connecting);
    }

    /// Gives up what takes too long, and opens again what was lost.
    fn sweep(&mut self, now: Instant, window: &mut Window) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if slot.socket.is_some() && slot.state != State::Silent && now - slot.began > self.patience {
                window.errors.overdue += 1;
                slot.socket = None;
            }
            if slot.socket.is_none() {
                self.open(index, window);
            }
        }
    }

    fn turn(&mut self, found: &mut Vec<(usize, Ready)>, window: &mut Window) -> anyhow::Result<()> {
        self.poller.wait(found, LOOK)?;
        for &(index, ready) in found.iter() {
            while let Some(event) = self.slots[index].step(ready) {
                let now = Instant::now();
                let slot = &mut self.slots[index];
                match event {
                    Event::Answered => {
                        window.done(now - slot.began);
                        if self.plan.load == Load::Idle {
                            slot.state = State::Silent;
                        } else {
                            self.next += 1;
                            slot.ask(self.next, now);
                        }
                        break;
                    }
                    Event::Connect => window.errors.connect += 1,
                    Event::Broken => window.errors.broken += 1,
                    Event::Closed => window.errors.closed += 1,
                    Event::Content => window.errors.content += 1,
                }
                slot.socket = None;
            }
        }
        Ok(())
    }
}

impl Slot {
    fn ask(&mut self, number: u64, now: Instant) {
        (self.number, self.began, self.state) = (number, now, State::Asked);
        let Some(socket) = &self.socket else { return };
        if send(socket, &message::request(number), SendFlags::NOSIGNAL) != Ok(LENGTH) {
            // What is wrong with it the next event tells, or its absence.
            self.state = State::Asked;
        }
    }

    fn step(&mut self, ready: Ready) -> Option<Event> {
        let socket = self.socket.as_ref()?;
        if ready.contains(Ready::ERR) {
            return Some(if self.state == State::Connecting { Event::Connect } else { Event::Broken });
        }
        if self.state == State::Connecting && ready.contains(Ready::OUT) {
            self.ask(u64::MAX, Instant::now());
            return None;
        }
        if !ready.contains(Ready::IN) {
            return None;
        }
        let mut buffer = [0; 2 * LENGTH];
        match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((_, 0)) => Some(Event::Closed),
            Ok((_, received)) => {
                let is_right =
                    self.state == State::Asked && message::is_response(&buffer[..received], self.number);
                Some(if is_right { Event::Answered } else { Event::Content })
            }
            Err(Errno::AGAIN) => None,
            Err(_) => Some(Event::Broken),
        }
    }
}
