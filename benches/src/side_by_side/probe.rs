//! Is a balancer ready? One request through it says so.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{bail, ensure};
use plexus_tests::wait_until;

use super::backend::Role;
use super::balancer::Balancer;
use super::interrupt;
use super::lab::Lab;
use super::message::{self, LENGTH};

/// How long a balancer may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until a client is answered through the balancer, so that nothing of its start is measured.
pub(crate) fn await_answer(
    lab: &Lab,
    balancer: &mut Balancer,
    role: Role,
    datagrams: bool,
) -> anyhow::Result<()> {
    let Some(&target) = balancer.targets.last() else { bail!("no targets") };
    let answered = wait_until(
        PATIENCE,
        || {
            interrupt::check()?;
            balancer.check()?;
            Ok(lab.client.enter(move || {
                let answer = if datagrams { ask(target) } else { probe(target, role) };
                answer.map_err(|error| error.to_string())
            }))
        },
        |outcome: &anyhow::Result<Result<(), String>>| !matches!(outcome, Ok(Err(_))),
    );
    match answered {
        Ok(outcome) => outcome?.map_err(anyhow::Error::msg),
        Err(Ok(Err(problem))) => bail!("no answer through {target}: {problem}"),
        Err(_) => bail!("no answer through {target}"),
    }
}

fn probe(target: SocketAddrV4, role: Role) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(target), Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    match role {
        Role::Close | Role::Keep => {
            stream.write_all(&message::request(0))?;
            let mut response = [0; LENGTH];
            stream.read_exact(&mut response)?;
            ensure!(message::is_response(&response, 0), "not the response");
        }
        Role::Source => stream.read_exact(&mut [0])?,
        Role::Sink => {
            // The end comes back when it has arrived there.
            stream.shutdown(Shutdown::Write)?;
            ensure!(stream.read(&mut [0])? == 0, "a sink that speaks");
        }
    }
    Ok(())
}

/// One exchange of datagrams.
fn ask(target: SocketAddrV4) -> anyhow::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(target)?;
    socket.send(&message::request(0))?;
    let mut response = [0; 2 * LENGTH];
    let length = socket.recv(&mut response)?;
    ensure!(message::is_response(&response[..length], 0), "not the response");
    Ok(())
}
