//! The check that asks a service for its own share of the traffic, as HAProxy's agent-check does.
//!
//! Keys: `weight_from` (a port at the instance's address, on which something answers each connection with a line such as `75%`,
//! `drain`, `maint`, `up` or `down`, and closes it). What the line asks for is put in force by the registrar: a lower weight, or a
//! drain. `down` fails the probe. Where nothing can be connected to, nothing is known: that is a warning, and what was
//! told last holds on, as in HAProxy.

use std::num::NonZeroU16;

use async_trait::async_trait;
use serde::Serialize;
use tokio::io::AsyncReadExt;

use super::connect::{Target, connect};
use super::means::Of;
use super::seen::Seen;
use super::{Advice, Judge, Level};
use crate::document::{Reported, Section};

/// The longest answer, in bytes.
const MAX_ANSWER: usize = 256;

/// Asks for the weight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WeightFrom {
    weight_from: NonZeroU16,
}

impl WeightFrom {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        section.required("weight_from").map(|weight_from| Self { weight_from })
    }

    async fn ask(&self, of: &Of<'_>) -> Result<(Level, Advice, String), String> {
        let target = Target { port: Some(self.weight_from), ..Target::nearest("weight_from") };
        let mut stream = connect(&target.of(of.on)?).await?.boxed();
        let (mut answer, mut chunk) = (Vec::new(), [0; MAX_ANSWER]);
        while answer.len() < MAX_ANSWER && !answer.contains(&b'\n') {
            match stream.read(&mut chunk[..MAX_ANSWER - answer.len()]).await {
                Ok(0) => break,
                Ok(read) => answer.extend_from_slice(&chunk[..read]),
                Err(error) => return Err(format!("reading its answer: {error}")),
            }
        }
        let answer = String::from_utf8_lossy(&answer);
        let (level, advice) = Advice::read(&answer)?;
        Ok((level, advice, answer.lines().next().unwrap_or_default().to_owned()))
    }
}

#[async_trait]
impl Judge for WeightFrom {
    fn describe(&self) -> String {
        format!("weight from port {}", self.weight_from)
    }

    async fn judge(&self, of: &Of<'_>) -> Seen {
        match self.ask(of).await {
            Ok((level, advice, answer)) => Seen { advice: Some(advice), ..Seen::new(level, answer) },
            Err(error) => Seen::new(Level::Warning, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::judged;
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn what_is_answered_lowers_the_weight_and_who_cannot_be_asked_says_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let check = WeightFrom { weight_from: NonZeroU16::new(address.port()).unwrap() };
        let answers = async {
            for answer in ["40%\n", "drain", "down #disk\n", "what?\n"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let asks = async {
            let mut seen = Vec::new();
            for _ in 0..4 {
                seen.push(judged(&check, address.into()).await);
            }
            seen
        };
        let ((), seen) = tokio::join!(answers, asks);
        let advice = |percent, drain| Some(Advice { percent, drain });
        let told: Vec<_> = seen.iter().map(|seen| (seen.level, seen.advice)).collect();
        assert_eq!(
            told,
            [
                (Level::Passing, advice(40, false)),
                (Level::Passing, advice(100, true)),
                (Level::Critical, advice(100, false)),
                (Level::Warning, None)
            ]
        );
        drop(listener);
        let gone = judged(&check, address.into()).await;
        assert_eq!((gone.level, gone.advice), (Level::Warning, None));
    }
}
