//! The UDP check: a datagram is answered as expected, or at least not refused.
//!
//! Keys: `udp = true` for the instance's main port, or a port; `send` (a text) or `send_hex`, without them an empty datagram;
//! `expect` or `expect_hex`, bytes that an answer must contain. Without something to expect, silence is well: UDP tells of
//! nobody there only by ICMP, which a kernel sends when it likes and a packet filter may keep back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use tokio::net::UdpSocket;

use super::connect::{Port, Target};
use super::{Check, Liberty, host};
use crate::document::{FromValue, Mismatch, Reported, Section, Value};
use crate::model::ListensOn;

/// How long a refusal may take. That of this machine comes before `send` returns, that of a container on it hardly later.
const REFUSAL: Duration = Duration::from_millis(30);
/// So long may what is sent be, and so much of an answer is looked at, in bytes: what fits into a packet everywhere.
const MAX_DATAGRAM: usize = 1200;

/// Sends a datagram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Udp {
    #[serde(flatten)]
    target: Target,
    #[serde(skip_serializing_if = "Option::is_none")]
    send: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    send_hex: Option<Hex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expect: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expect_hex: Option<Hex>,
}

/// Bytes, in a document as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hex(Vec<u8>);

impl Udp {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let (port, address) = (section.required::<Port>("udp"), section.given::<IpAddr>("address"));
        let (send, send_hex) = (section.given::<String>("send"), section.given::<Hex>("send_hex"));
        let (expect, expect_hex) = (section.given::<String>("expect"), section.given::<Hex>("expect_hex"));
        let target = Target { port: port?.0, address: address?, ..Target::nearest("udp") };
        let udp = Self { target, send: send?, send_hex: send_hex?, expect: expect?, expect_hex: expect_hex? };
        for (text, hex, one, other) in [
            (&udp.send, &udp.send_hex, "send", "send_hex"),
            (&udp.expect, &udp.expect_hex, "expect", "expect_hex"),
        ] {
            if text.is_some() && hex.is_some() {
                return Err(section.invalid(other, format_args!("`{one}` is given too"), "one of them"));
            }
            let key = if text.is_some() { one } else { other };
            match bytes(text.as_ref(), hex.as_ref()) {
                Some([]) if one == "expect" => {
                    return Err(section.invalid(
                        key,
                        "it is empty: every answer contains that",
                        "some bytes",
                    ));
                }
                Some(bytes) if bytes.len() > MAX_DATAGRAM => {
                    return Err(section.invalid(
                        key,
                        "it is too long",
                        format!("at most {MAX_DATAGRAM} bytes"),
                    ));
                }
                _ => {}
            }
        }
        Ok(udp)
    }

    fn address(&self, instance: &ListensOn) -> Result<SocketAddr, String> {
        let port = self.target.port.or(instance.port).map(NonZeroU16::get);
        let port = port.ok_or("the instance has no port")?;
        Ok((instance.address, port).into())
    }
}

#[async_trait]
impl Check for Udp {
    fn describe(&self) -> String {
        self.target.to_string()
    }

    fn liberty(&self) -> Option<Liberty> {
        self.target.liberty()
    }

    async fn probe(&self, instance: &ListensOn) -> Result<String, String> {
        let address = self.address(instance)?;
        let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let failed = |error: std::io::Error| format!("udp to {address}: {error}");
        let socket =
            UdpSocket::bind(SocketAddr::new(any, 0)).await.inspect_err(host::note).map_err(failed)?;
        // Connected, so that the kernel tells of refusals, and takes nobody else's datagrams for answers.
        socket.connect(address).await.inspect_err(host::note).map_err(failed)?;
        socket
            .send(bytes(self.send.as_ref(), self.send_hex.as_ref()).unwrap_or_default())
            .await
            .map_err(failed)?;
        let mut answer = [0; MAX_DATAGRAM];
        let Some(wanted) = bytes(self.expect.as_ref(), self.expect_hex.as_ref()) else {
            return match tokio::time::timeout(REFUSAL, socket.recv(&mut answer)).await {
                Err(_) => Ok("not refused".to_owned()),
                Ok(Ok(length)) => Ok(format!("{length} bytes")),
                Ok(Err(error)) => Err(failed(error)),
            };
        };
        let length = socket.recv(&mut answer).await.map_err(failed)?;
        if answer[..length].windows(wanted.len()).any(|window| window == wanted) {
            Ok(format!("{length} bytes, as expected"))
        } else {
            let shown: String = answer[..length.min(16)].escape_ascii().to_string();
            Err(format!("{length} bytes that are not as expected: {shown}"))
        }
    }
}

fn bytes<'a>(text: Option<&'a String>, hex: Option<&'a Hex>) -> Option<&'a [u8]> {
    text.map(String::as_bytes).or(hex.map(|hex| hex.0.as_slice()))
}

impl FromValue for Hex {
    fn expected() -> String {
        "hexadecimal digits, two a byte, such as \"00 ff 1b\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        let text = value.as_text().ok_or_else(|| value.wrong_kind(Self::expected()))?;
        let digits: Option<Vec<u8>> = text
            .chars()
            .filter(|character| !character.is_whitespace())
            .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect();
        match digits {
            Some(digits) if digits.len().is_multiple_of(2) => {
                Ok(Self(digits.chunks(2).map(|pair| (pair[0] << 4) | pair[1]).collect()))
            }
            _ => Err(value.mismatch(format_args!("{text:?} is not that"), Self::expected())),
        }
    }
}

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits: Vec<String> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&digits.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn read(text: &str) -> Result<Udp, String> {
        Document::parse("x", text).unwrap().decode(Udp::read).map_err(|errors| errors.to_string())
    }

    #[test]
    fn what_cannot_be_sent_or_expected_is_refused_with_its_key() {
        for (text, expected) in [
            ("udp = true\nsend = \"a\"\nsend_hex = \"00\"", "x:3:12: send_hex: `send` is given too"),
            ("udp = true\nsend_hex = \"0\"", "x:2:12: send_hex:"),
            ("udp = true\nexpect_hex = \"0g\"", "x:2:14: expect_hex:"),
            ("udp = true\nexpect = \"\"", "x:2:10: expect: it is empty"),
        ] {
            let shown = read(text).unwrap_err();
            assert!(shown.starts_with(expected), "{text}: {shown}");
        }
        let long = read(&format!("udp = true\nsend = \"{}\"", "x".repeat(1201))).unwrap_err();
        assert!(long.contains("at most 1200 bytes"), "{long}");
    }

    #[tokio::test]
    async fn an_answer_of_somebody_else_is_none() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let check = read("udp = true\nsend_hex = \"00 FF\"\nexpect = \"yes\"").unwrap();
        let instance = server.local_addr().unwrap().into();
        let answering = async {
            let mut asked = [0; 8];
            let (length, client) = server.recv_from(&mut asked).await.unwrap();
            assert_eq!(asked[..length], [0, 0xff]);
            stranger.send_to(b"yes", client).await.unwrap();
            server.send_to(b"no", client).await.unwrap();
        };
        let (verdict, ()) = tokio::join!(check.probe(&instance), answering);
        assert_eq!(verdict, Err("2 bytes that are not as expected: no".to_owned()));
    }
}
