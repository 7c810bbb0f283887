//! The client of the agent's admin interface: one request, one connection, bounded in time and size.

use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use zeroize::Zeroizing;

use super::error::{Error, Fault, Result};
use super::place::{Place, Reached};
use crate::api;

/// So much longer than the agent's own limit on a request, so that its explanation wins.
const GRACE: Duration = Duration::from_secs(5);
/// A catalog of 100 000 endpoints is some 40 MB of JSON.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// The admin interface of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Client {
    place: Place,
    /// Its first line is the token that is shown.
    token_file: Option<PathBuf>,
}

impl std::str::FromStr for Client {
    type Err = String;

    /// Reads what a [`Place`] is written as.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Ok(Self { place: text.parse()?, token_file: None })
    }
}

impl Client {
    /// Asks the agent of this machine where it is unless told otherwise.
    pub(super) fn usual() -> Self {
        Self { place: Place::usual(), token_file: None }
    }

    /// Shows the token in this file, if there is one.
    pub(super) fn with_token(self, token_file: Option<PathBuf>) -> Self {
        Self { token_file, ..self }
    }

    /// What is shown, as a header has it.
    async fn bearer(&self, what: &str) -> Result<Option<HeaderValue>> {
        let Some(file) = &self.token_file else { return Ok(None) };
        let wrong = |why: &dyn std::fmt::Display| {
            Error::failed(what, format!("the token in {} cannot be shown: {why}", file.display()))
        };
        let text = Zeroizing::new(tokio::fs::read_to_string(file).await.map_err(|error| wrong(&error))?);
        let token = text.lines().next().unwrap_or_default().trim();
        if token.is_empty() {
            return Err(wrong(&"its first line is empty"));
        }
        let header = Zeroizing::new(format!("Bearer {token}"));
        let mut header = HeaderValue::from_str(&header).map_err(|error| wrong(&error))?;
        header.set_sensitive(true);
        Ok(Some(header))
    }

    /// Where it is, as it is written in a configuration; `None`: nobody has said.
    pub(super) fn written(&self) -> Option<String> {
        self.place.written()
    }

    /// Asks for `path`; `what` says in words what is tried, for the error.
    pub(super) async fn get<T: DeserializeOwned>(&self, what: &str, path: &str) -> Result<T> {
        self.request(what, Method::GET, path, Bytes::new()).await
    }

    /// Asks for a change, with a body.
    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        what: &str,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(|e| Error::failed(what, e))?;
        self.request(what, method, path, body.into()).await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        what: &str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T> {
        let bearer = self.bearer(what).await?;
        let Reached { stream, name, host, passed_over } = self.connect(what).await?;
        let within = api::within(path) + GRACE;
        let answer = tokio::time::timeout(within, exchange((stream, &host), bearer, (method, path), body));
        let (status, body) = match answer.await {
            Err(_) => {
                let why = format!("the agent at {name} did not answer within {within:?}");
                return Err(Error::failed(what, why).hint("look at its log").fault(Fault::Absent));
            }
            Ok(Err(error)) => {
                let why = format!("the agent at {name} broke off: {}", chain(&*error));
                return Err(Error::failed(what, why).hint("look at its log").fault(Fault::Absent));
            }
            Ok(Ok(answer)) => answer,
        };
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|e| {
                let why = format!("the agent at {name} answered what this version cannot read: {e}");
                Error::failed(what, why).hint("use the command line of the agent's version")
            });
        }
        Err(match serde_json::from_slice::<api::ErrorBody>(&body) {
            Ok(body) => {
                let (fault, mut hint) = (fault_of(status), body.hint);
                // Who may do more by a socket is to know why it was not asked there.
                if status == StatusCode::FORBIDDEN && !passed_over.is_empty() {
                    let before = hint.map(|hint| hint + "; ").unwrap_or_default();
                    hint = Some(format!("{before}it was asked at {name}, and not at {passed_over}"));
                }
                Error::Failed { what: what.to_owned(), why: body.error, hint, fault }
            }
            Err(_) => Error::failed(what, format!("{name} answered {status} to {path}"))
                .hint("is that address the admin address of a Plexus agent?"),
        })
    }

    async fn connect(&self, what: &str) -> Result<Reached> {
        self.place.connect().await.map_err(|why| {
            let hint = format!(
                "is the agent running? start it with `plexus agent --config FILE`, or name another with --admin or {}",
                api::URL_VARIABLE
            );
            Error::failed(what, why).hint(hint).fault(Fault::Absent)
        })
    }
}

async fn exchange(
    (stream, host): (impl AsyncRead + AsyncWrite + Unpin, &str),
    bearer: Option<HeaderValue>,
    (method, path): (Method, &str),
    body: Bytes,
) -> std::result::Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, concat!("plexus/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(body))?;
    if let Some(bearer) = bearer {
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
    }
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await?.to_bytes();
        Ok((status, body))
    };
    // The connection is driven here, not by a task: it ends with the exchange.
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}

fn fault_of(status: StatusCode) -> Fault {
    match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => Fault::Absent,
        StatusCode::NOT_FOUND => Fault::Unknown,
        _ => Fault::Other,
    }
}

/// An error and what lies beneath it, without saying a thing twice.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// `text` as one value of a query string (RFC 3986 section 2.3: what is not unreserved is escaped).
pub(super) fn escape(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_read_as_syntax_is_escaped() {
        assert_eq!(escape("_http._tcp.web&x=ä"), "_http._tcp.web%26x%3D%C3%A4");
    }

    #[tokio::test]
    async fn an_agent_that_is_not_there_is_named_with_what_to_do() {
        // Bound and never listening: the port is ours, and connecting to it is refused.
        let held = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        held.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        let port = held.local_addr().unwrap().as_socket().unwrap().port();
        let client: Client = format!("127.0.0.1:{port}").parse().unwrap();
        let error =
            client.get::<api::Services>("listing the services", api::path::SERVICES).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("listing the services: no agent answers at http://127.0.0.1:{port}: "))
        );
        assert!(text.contains("is the agent running?") && text.contains("--admin"), "{text}");
        assert_eq!(error.exit_code(), 1);
    }
}
