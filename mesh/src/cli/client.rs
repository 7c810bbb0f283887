//! The client of the agent's admin address: one request, one connection, bounded in time and size.

use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::{Method, Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::error::{Error, Fault, Result};
use crate::api;

/// An agent on this machine answers a connect at once; one across a network within a round trip.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// So much longer than the agent's own limit on a request, so that its explanation wins.
const GRACE: Duration = Duration::from_secs(5);
/// A catalog of 100 000 endpoints is some 40 MB of JSON.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// The admin address of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Client {
    /// `host:port`, as in the `Host` header.
    authority: String,
    host: String,
    port: u16,
    /// Its first line is the token that is shown.
    token_file: Option<PathBuf>,
}

impl std::str::FromStr for Client {
    type Err = String;

    /// Reads `http://host:port`, `http://host` (port 7070) or `host:port`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = |why: &str| format!("{why}; write http://HOST:PORT, such as {}", api::DEFAULT_URL);
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = url.parse().map_err(|e| wrong(&format!("{e}")))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("the admin interface speaks http"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong("it has a path"));
        }
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(|| wrong("it has no host"))?;
        let port = uri.port_u16().unwrap_or(7070);
        let authority = format!("{host}:{port}");
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { authority, host, port, token_file: None })
    }
}

impl Client {
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

    /// As it is written in a configuration; `None`: it is where an agent is unless told otherwise.
    pub(super) fn other_url(&self) -> Option<String> {
        let url = format!("http://{}", self.authority);
        (url != api::DEFAULT_URL).then_some(url)
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
        let stream = self.connect(what).await?;
        let within = api::within(path) + GRACE;
        let answer = tokio::time::timeout(within, self.exchange(stream, bearer, (method, path), body));
        let (status, body) = match answer.await {
            Err(_) => {
                let why = format!("the agent at {} did not answer within {within:?}", self.authority);
                return Err(Error::failed(what, why).hint("look at its log").fault(Fault::Absent));
            }
            Ok(Err(error)) => {
                let why = format!("the agent at {} broke off: {}", self.authority, chain(&*error));
                return Err(Error::failed(what, why).hint("look at its log").fault(Fault::Absent));
            }
            Ok(Ok(answer)) => answer,
        };
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|e| {
                let why =
                    format!("the agent at {} answered what this version cannot read: {e}", self.authority);
                Error::failed(what, why).hint("use the command line of the agent's version")
            });
        }
        Err(match serde_json::from_slice::<api::ErrorBody>(&body) {
            Ok(body) => {
                let fault = fault_of(status);
                Error::Failed { what: what.to_owned(), why: body.error, hint: body.hint, fault }
            }
            Err(_) => Error::failed(what, format!("http://{}{path} answered {status}", self.authority))
                .hint("is that address the admin address of a Plexus agent?"),
        })
    }

    async fn connect(&self, what: &str) -> Result<TcpStream> {
        let connect = TcpStream::connect((self.host.as_str(), self.port));
        let why = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {CONNECT_TIMEOUT:?}"),
        };
        let why = format!("no agent answers at http://{}: {why}", self.authority);
        let hint = format!(
            "is the agent running? start it with `plexus agent --config FILE`, or name another with --admin or {}",
            api::URL_VARIABLE
        );
        Err(Error::failed(what, why).hint(hint).fault(Fault::Absent))
    }

    async fn exchange(
        &self,
        stream: TcpStream,
        bearer: Option<HeaderValue>,
        (method, path): (Method, &str),
        body: Bytes,
    ) -> std::result::Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
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
    fn an_admin_address_is_a_url_or_host_and_port() {
        for (text, authority, host) in [
            ("http://127.0.0.1:7070", "127.0.0.1:7070", "127.0.0.1"),
            ("http://a.example/", "a.example:7070", "a.example"),
            ("localhost:81", "localhost:81", "localhost"),
            ("http://[::1]:7070", "[::1]:7070", "::1"),
        ] {
            let client: Client = text.parse().unwrap();
            assert_eq!((client.authority.as_str(), client.host.as_str()), (authority, host), "{text}");
        }
        for bad in ["https://a:1", "http://a:1/x", "", "http://", "a b"] {
            assert!(bad.parse::<Client>().unwrap_err().contains("write http://HOST:PORT"), "{bad}");
        }
    }

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
