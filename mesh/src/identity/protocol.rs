//! What is said where certificates are given: one question and one answer a connection, each its length in four octets and
//! JSON, over TLS.

use std::io;

use nerve::model::NodeName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

/// What both sides agree on before they speak (RFC 7301).
pub(super) const PROTOCOL: &[u8] = b"plexus-join/1";
/// The longest message, in octets.
const LONGEST: u32 = 64 * 1024;

/// A node asks to be certified.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Who it is to be.
    pub node: NodeName,
    /// A PKCS #10 request (RFC 2986), in DER, with its key.
    pub request: Der,
    /// What lets it in; nothing where it shows a certificate that holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}

/// What it is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Here it is.
    Certified {
        /// The node's certificate first.
        chain: Vec<Der>,
        /// Whom it may believe.
        roots: Vec<Der>,
    },
    /// It is not.
    Refused {
        /// For programs.
        reason: String,
        /// For people: why, and what to do.
        message: String,
    },
}

/// Octets that stand in base64.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Der(pub Vec<u8>);

/// What is not shown.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub Zeroizing<String>);

impl TryFrom<String> for Der {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.decode(text).map(Self)
    }
}

impl From<Der> for String {
    fn from(der: Der) -> Self {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(der.0)
    }
}

impl std::fmt::Debug for Der {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} octets", self.0.len())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[not shown]")
    }
}

/// Reads a message, and nothing behind it.
///
/// # Errors
/// It is too long, breaks off, or is none.
pub async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = stream.read_u32().await?;
    if length > LONGEST {
        let error = format!("a message of {length} octets; {LONGEST} are the most");
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    // As much as comes is held, not as much as is announced.
    let mut octets = Zeroizing::new(Vec::new());
    let count = stream.take(length.into()).read_to_end(&mut octets).await?;
    if count < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    decode(&octets)
}

/// What a message says.
pub(super) fn decode<T: DeserializeOwned>(octets: &[u8]) -> io::Result<T> {
    serde_json::from_slice(octets).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Writes a message.
///
/// # Errors
/// It cannot be written.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let octets = Zeroizing::new(serde_json::to_vec(message)?);
    let length = u32::try_from(octets.len()).unwrap_or(u32::MAX);
    stream.write_all(&[&length.to_be_bytes()[..], &octets].concat()).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_is_read_as_it_was_written_and_a_token_is_not_shown() {
        let request = Request {
            node: NodeName::new("a").unwrap(),
            request: Der(vec![1, 2, 3]),
            token: Some(Secret(Zeroizing::new("plexus-join-x".to_owned()))),
        };
        assert!(!format!("{request:?}").contains("plexus-join"));
        let mut octets = Vec::new();
        write(&mut octets, &request).await.unwrap();
        let read: Request = read(&mut &octets[..]).await.unwrap();
        assert_eq!((read.node, read.request.0), (request.node, vec![1, 2, 3]));
        assert_eq!(*read.token.unwrap().0, "plexus-join-x");
    }

    #[tokio::test]
    async fn what_is_too_long_or_broken_off_is_refused() {
        let long = [&(LONGEST + 1).to_be_bytes()[..], b"{}"].concat();
        for octets in [&long[..], &[0, 0, 0, 9, b'{'], &[0, 0], &[0, 0, 0, 2, b'{', b'}'], &[0, 0, 0, 0]] {
            assert!(read::<Request>(&mut &octets[..]).await.is_err(), "{octets:?}");
        }
    }
}
