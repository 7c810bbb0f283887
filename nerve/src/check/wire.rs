//! A conversation with a server in bytes and lines: what the kinds with a protocol of their own have in common.
//!
//! What the server says is bounded here, whatever it says of its own size; how long it may take is the probe's timeout.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::connect::{Target, connect};
use crate::http::Duplex;
use crate::model::{Address, ListensOn};

/// The longest line, and the longest message, in bytes.
pub(super) const MAX_MESSAGE: usize = 64 * 1024;

/// How long a server that was told goodbye may take to hang up. Whoever closes first keeps the port pair for a minute.
const FAREWELL: Duration = Duration::from_millis(50);

/// A connection to a server.
pub(super) struct Wire {
    stream: BufReader<Box<dyn Duplex>>,
    /// Is it a socket that nobody can listen in on?
    pub(super) is_local: bool,
}

impl Wire {
    /// Connects to what `target` means for `instance`.
    pub(super) async fn connect(target: &Target, instance: &ListensOn) -> Result<Self, String> {
        let address = target.of(instance)?;
        let stream = BufReader::new(connect(&address).await?.boxed());
        Ok(Self { stream, is_local: matches!(address, Address::Unix(_)) })
    }

    /// Sends all of it.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error| format!("sending: {error}"))
    }

    /// The next line, without its end.
    pub(super) async fn line(&mut self) -> Result<String, String> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(MAX_MESSAGE as u64);
        limited.read_until(b'\n', &mut line).await.map_err(|error| format!("reading: {error}"))?;
        if line.pop() != Some(b'\n') {
            return Err(if line.len() + 1 >= MAX_MESSAGE {
                format!("a line of more than {MAX_MESSAGE} bytes")
            } else {
                "the server closed the connection instead of answering".to_owned()
            });
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// The next `length` bytes.
    pub(super) async fn exactly(&mut self, length: usize) -> Result<Vec<u8>, String> {
        if length > MAX_MESSAGE {
            return Err(format!("a message of {length} bytes, which is not what such a server answers"));
        }
        let mut bytes = vec![0; length];
        match self.stream.read_exact(&mut bytes).await {
            Ok(_) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err("the server closed the connection instead of answering".to_owned())
            }
            Err(error) => Err(format!("reading: {error}")),
        }
    }

    /// Everything until the server closes, within bounds.
    pub(super) async fn rest(&mut self) -> Result<String, String> {
        let mut bytes = Vec::new();
        let mut limited = (&mut self.stream).take(MAX_MESSAGE as u64);
        limited.read_to_end(&mut bytes).await.map_err(|error| format!("reading: {error}"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Says goodbye, so that the server logs no broken connection, and lets it close first. The verdict stands already.
    pub(super) async fn part(mut self, goodbye: &[u8]) {
        if self.send(goodbye).await.is_ok() {
            let _ = tokio::time::timeout(FAREWELL, self.rest()).await;
        }
    }
}

/// Bytes of a message that were read whole, taken one after the other.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `length` bytes.
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(Self::short)?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next byte.
    pub(super) fn byte(&mut self) -> Result<u8, String> {
        self.take(1).map(|byte| byte[0])
    }

    /// The next two bytes, the high one first.
    pub(super) fn short_be(&mut self) -> Result<u16, String> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next four bytes, the high one first.
    pub(super) fn long_be(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next bytes up to a NUL, which goes as well.
    pub(super) fn until_nul(&mut self) -> Result<&'a [u8], String> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or_else(Self::short)?;
        let text = self.take(end)?;
        self.take(1)?;
        Ok(text)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| Self::short())
    }

    fn short() -> String {
        "a message that ends too early".to_owned()
    }
}
