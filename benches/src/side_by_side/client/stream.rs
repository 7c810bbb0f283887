//! Streams without end, one way. What arrives is counted where it arrives: here for `Down`, at the backend for `Up`.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use super::super::pattern::{Pattern, Position, Step};
use super::super::plan::{Load, Plan};
use super::super::poller::{Poller, Ready};
use super::{LOOK, Phase, Window, dial};

/// Steps of one stream before the others have their turn.
const TURN: usize = 4;

/// One stream.
struct Stream {
    socket: Option<OwnedFd>,
    position: Position,
}

/// Returns the connections that are left.
pub(super) fn run(plan: &Plan, window: &mut Window) -> anyhow::Result<Vec<OwnedFd>> {
    let (mut pattern, mut poller) = (Pattern::new()?, Poller::new()?);
    let (up, ready) = if plan.load == Load::Up { (true, Ready::OUT) } else { (false, Ready::IN) };
    let mut streams = Vec::with_capacity(plan.concurrency);
    for index in 0..plan.concurrency {
        let socket = dial(plan.targets[index % plan.targets.len()], false)?;
        poller.add(&socket, index, ready)?;
        streams.push(Stream { socket: Some(socket), position: Position::default() });
    }
    let mut found = Vec::new();
    loop {
        if window.look(Instant::now())? == Phase::Over {
            return Ok(streams.into_iter().filter_map(|stream| stream.socket).collect());
        }
        poller.wait(&mut found, LOOK)?;
        for &(index, _) in &found {
            let stream = &mut streams[index];
            for _ in 0..TURN {
                let Some(socket) = &stream.socket else { break };
                let step = if up {
                    pattern.send(socket, &mut stream.position)
                } else {
                    pattern.receive(socket.as_fd(), &mut stream.position)
                };
                match step {
                    Step::Moved(bytes) if !up => window.bytes += bytes as u64,
                    Step::Moved(_) => {}
                    Step::Blocked => break,
                    Step::Ended => window.errors.closed += 1,
                    Step::Broken => window.errors.broken += 1,
                    Step::Wrong => window.errors.content += 1,
                }
                if matches!(step, Step::Ended | Step::Broken | Step::Wrong) {
                    // A stream that failed is not begun again: what is missing shows in the throughput as well.
                    stream.socket = None;
                }
            }
        }
    }
}
