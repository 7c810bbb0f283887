//! Messages on a stream, each behind two octets of its length (RFC 1035 section 4.2.2).

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// A message as it is sent. In one piece, so that it travels in one segment.
pub(super) fn framed(octets: &[u8]) -> Vec<u8> {
    let length = u16::try_from(octets.len()).unwrap_or(u16::MAX);
    let mut framed = Vec::with_capacity(octets.len() + 2);
    framed.extend(length.to_be_bytes());
    framed.extend(octets);
    framed
}

/// The messages that come on a stream.
#[derive(Debug)]
pub(super) struct Frames<R> {
    read: R,
    longest: usize,
    /// What was read and not yet handed out.
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    /// Of at most `longest` octets; a longer one is an error.
    pub(super) fn new(read: R, longest: usize) -> Self {
        Self { read, longest, buffer: Vec::new() }
    }

    /// The next message; `None` when the peer has closed its side. Cancel-safe: what was read stays in the buffer.
    pub(super) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some([high, low]) = self.buffer.first_chunk::<2>() {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if length > self.longest {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                if self.buffer.len() >= 2 + length {
                    let rest = self.buffer.split_off(2 + length);
                    let mut message = std::mem::replace(&mut self.buffer, rest);
                    message.drain(..2);
                    return Ok(Some(message));
                }
            }
            let mut chunk = [0; 1024];
            match self.read.read(&mut chunk).await? {
                0 => return Ok(None),
                length => self.buffer.extend_from_slice(&chunk[..length]),
            }
        }
    }
}
