//! The gRPC check: `grpc.health.v1.Health/Check` says that a service is serving.
//!
//! Keys: `grpc = true` for where the instance listens, or a port; `unix`; `service` (none: the server as a whole); `host` (the
//! `:authority`); `tls = true`, and those of TLS. Its two messages are so small that they are written and read here:
//! `HealthCheckRequest { string service = 1 }` and `HealthCheckResponse { ServingStatus status = 1 }`.

use async_trait::async_trait;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE, USER_AGENT};
use hyper::{Method, Request, Response, Uri};
use serde::Serialize;

use super::connect::{Target, connect, no_tls};
use super::http::{Held, Kept};
use super::wire::Fields;
use super::{Check, Liberty};
use crate::document::{Reported, Section};
use crate::http::{Connection, MAX_READ, Tls, chain};
use crate::model::{Address, ListensOn};

/// Of both messages: a field of the first number, as bytes with a length and as a number.
const STRING_1: u8 = 0x0a;
const VARINT_1: u8 = 0x08;
/// A name with a length that fits into one byte of a varint.
const LONGEST_SERVICE: usize = 127;

/// Asks a gRPC server for its health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Grpc {
    #[serde(flatten)]
    target: Target,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(flatten)]
    secured: Secured,
    #[serde(skip)]
    kept: Kept<Connection>,
}

/// With TLS, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Secured {
    tls: bool,
    #[serde(flatten)]
    how: Tls,
}

impl Grpc {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let target = Target::read(section, "grpc");
        let service = section.given::<String>("service");
        let host = section.given::<String>("host");
        let tls = section.or("tls", false);
        let how = Tls::read(section);
        let (target, service, host, how) = (target?, service?, host?, how?);
        if service.as_ref().is_some_and(|service| service.len() > LONGEST_SERVICE) {
            let expected = format!("at most {LONGEST_SERVICE} bytes");
            return Err(section.invalid("service", "the name is too long", expected));
        }
        if host.as_ref().is_some_and(|host| host.parse::<hyper::http::uri::Authority>().is_err()) {
            return Err(section.invalid("host", "it is no host name", "such as \"web.example.com\""));
        }
        if !tls && !how.is_default() {
            return Err(section.invalid(
                "tls",
                "there are keys of TLS, but it is not spoken",
                "`tls = true`",
            ));
        }
        Ok(Self { target, service, host, secured: Secured { tls, how }, kept: Kept::default() })
    }

    fn authority(&self, address: &Address) -> String {
        match (&self.host, address) {
            (Some(host), _) => host.clone(),
            (None, Address::Ip(address)) => address.to_string(),
            (None, Address::Unix(_)) => "localhost".to_owned(),
        }
    }

    async fn open(&self, address: &Address) -> Result<Connection, String> {
        let stream = connect(address).await?.boxed();
        if !self.secured.tls {
            return Connection::two(stream).await;
        }
        let stream =
            self.secured.how.connect(stream, &self.authority(address), &[b"h2"]).await.map_err(no_tls)?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err("TLS: the server does not speak HTTP/2, which gRPC needs".to_owned());
        }
        Connection::two(stream).await
    }

    fn request(&self, address: &Address) -> Result<Request<Full<Bytes>>, String> {
        let uri = Uri::builder()
            .scheme(if self.secured.tls { "https" } else { "http" })
            .authority(self.authority(address))
            .path_and_query("/grpc.health.v1.Health/Check")
            .build()
            .map_err(|error| format!("cannot be sent: {error}"))?;
        let mut request =
            Request::new(Full::new(Bytes::from(message(self.service.as_deref().unwrap_or_default()))));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(USER_AGENT, HeaderValue::from_static("plexus-check"));
        Ok(request)
    }

    async fn finish(
        &self,
        mut held: Held<Connection>,
        response: Response<Incoming>,
    ) -> Result<String, String> {
        let verdict = held.connection.run(judge(response)).await;
        self.kept.put(held);
        verdict
    }
}

#[async_trait]
impl Check for Grpc {
    fn describe(&self) -> String {
        match &self.service {
            None => self.target.to_string(),
            Some(service) => format!("{} {service}", self.target),
        }
    }

    fn liberty(&self) -> Option<Liberty> {
        self.target.liberty()
    }

    async fn probe(&self, instance: &ListensOn) -> Result<String, String> {
        let address = self.target.of(instance)?;
        if let Some(mut held) = self.kept.take() {
            // As for HTTP: what fails on a connection that was kept is tried on a new one.
            if held.connection.tidy().await
                && let Ok(response) = held.connection.send(self.request(&address)?).await
            {
                return Box::pin(self.finish(held, response)).await;
            }
        }
        let mut held = Held::new(Box::pin(self.open(&address)).await?);
        let response = held.connection.send(self.request(&address)?).await?;
        Box::pin(self.finish(held, response)).await
    }
}

async fn judge(response: Response<Incoming>) -> Result<String, String> {
    let (head, mut body) = response.into_parts();
    if !head.status.is_success() {
        return Err(format!("HTTP status {}, which is not what gRPC answers", head.status.as_u16()));
    }
    // An error may come without a body, in the head.
    failure(&head.headers)?;
    let mut read = Vec::new();
    let mut told = head.headers.contains_key("grpc-status");
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("reading the answer: {}", chain(&error)))?;
        if let Some(data) = frame.data_ref() {
            if read.len() + data.len() > MAX_READ {
                return Err(format!("an answer of more than {MAX_READ} bytes"));
            }
            read.extend_from_slice(data);
        } else if let Some(trailers) = frame.trailers_ref() {
            failure(trailers)?;
            told = trailers.contains_key("grpc-status");
        }
    }
    if !told {
        return Err("the answer ends without a grpc-status: that is no gRPC server".to_owned());
    }
    serving(&read)
}

/// What a status other than OK says.
fn failure(headers: &HeaderMap) -> Result<(), String> {
    let text = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let message = text("grpc-message").unwrap_or_default();
    match text("grpc-status").as_deref() {
        None | Some("0") => Ok(()),
        Some("5") => Err(format!("the server does not know the service (NOT_FOUND): {message}")),
        Some("12") => Err(format!("the server has no health service (UNIMPLEMENTED): {message}")),
        Some(code) => Err(format!("gRPC status {code}: {message}")),
    }
}

/// A request, with the head of five bytes that each message of gRPC has: not compressed, so long.
fn message(service: &str) -> Vec<u8> {
    let mut body = Vec::new();
    if let Ok(length @ 1..) = u8::try_from(service.len()) {
        body.extend([STRING_1, length]);
        body.extend(service.bytes());
    }
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0][..], &length, &body].concat()
}

/// What a response says. Unset is 0: proto3 leaves it out.
fn serving(answer: &[u8]) -> Result<String, String> {
    let mut fields = Fields(answer);
    let (compressed, length) = (fields.byte()?, fields.long_be()? as usize);
    let body = fields.take(length)?;
    let status = match (compressed, body) {
        (0, []) => 0,
        (0, [VARINT_1, status, ..]) => *status,
        _ => return Err("the answer is no HealthCheckResponse".to_owned()),
    };
    match status {
        0 => Err("UNKNOWN".to_owned()),
        1 => Ok("SERVING".to_owned()),
        2 => Err("NOT_SERVING".to_owned()),
        3 => Err("SERVICE_UNKNOWN".to_owned()),
        other => Err(format!("serving status {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_are_those_of_the_health_protocol() {
        assert_eq!(message(""), [0, 0, 0, 0, 0]);
        assert_eq!(message("a.B"), *b"\0\0\0\0\x05\x0a\x03a.B");
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 1]), Ok("SERVING".to_owned()));
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 2]), Err("NOT_SERVING".to_owned()));
        assert_eq!(serving(&[0, 0, 0, 0, 0]), Err("UNKNOWN".to_owned()));
        for cut in
            [&[][..], &[0, 0, 0], &[0, 0, 0, 0, 9, 8, 1], &[1, 0, 0, 0, 2, 8, 1], &[0, 255, 255, 255, 255]]
        {
            assert!(serving(cut).is_err(), "{cut:?}");
        }
    }
}
