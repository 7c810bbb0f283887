//! The HTTP check: a request is answered with an expected status, and optionally with an expected text.
//!
//! Keys: `http` (the path), `method` (GET), `headers`, `host` (the `Host` header; default: the address, on a unix socket
//! `localhost`), `port` or `unix` (default: where the instance listens, its unix socket before its main port), `status` (a set such as `"200-299"` or `[200, 204]`; default 200-299), `body` (a text that the
//! first 64 KiB of the body must contain).
//!
//! Each probe is a connection of its own, closed afterwards: a server that no longer accepts must not look well through
//! a connection that it accepted earlier. It never follows a redirect: 3xx fails unless `status` says otherwise.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use async_trait::async_trait;
use futures_util::future::{Either, select};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use serde::Serialize;

use super::Check;
use super::connect::{Target, connect};
use super::status::StatusSet;
use crate::document::{Reported, Section};
use crate::model::{Address, ListensOn, UnixPath};

/// So much of a body is searched, and so long may the head of an answer be, in bytes.
const MAX_READ: usize = 64 * 1024;

/// Sends a request and judges the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "Written")]
pub struct Http {
    path: Uri,
    method: Method,
    headers: HeaderMap,
    target: Target,
    status: StatusSet,
    body: Option<String>,
}

/// As it stands in a document.
#[derive(Serialize)]
struct Written {
    http: String,
    method: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<NonZeroU16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unix: Option<UnixPath>,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

impl From<Http> for Written {
    fn from(http: Http) -> Self {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        Self {
            http: http.path.to_string(),
            method: http.method.to_string(),
            headers: http.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            port: http.target.port,
            unix: http.target.unix,
            status: http.status.to_string(),
            body: http.body,
        }
    }
}

impl Http {
    /// A GET of `path` where the instance listens that expects a status from 200 to 299.
    ///
    /// # Errors
    /// The path does not begin with `/` or has characters that a path cannot have; the text says which.
    pub fn get(path: &str) -> Result<Self, String> {
        let uri = match path.parse::<Uri>() {
            Ok(uri) if path.starts_with('/') && uri.authority().is_none() => uri,
            Ok(_) => return Err(format!("{path:?} does not begin with \"/\"")),
            Err(error) => return Err(format!("{path:?} is no path: {error}")),
        };
        Ok(Self {
            path: uri,
            method: Method::GET,
            headers: HeaderMap::new(),
            target: Target::default(),
            status: StatusSet::default(),
            body: None,
        })
    }

    /// With another method.
    ///
    /// # Errors
    /// It is no method.
    pub fn with_method(self, method: &str) -> Result<Self, String> {
        match method.parse() {
            Ok(Method::CONNECT) | Err(_) => Err(format!("{method:?} is no method that a check can use")),
            Ok(method) => Ok(Self { method, ..self }),
        }
    }

    /// With a further header.
    ///
    /// # Errors
    /// Its name or value cannot be sent.
    pub fn with_header(mut self, name: &str, value: &str) -> Result<Self, String> {
        let parsed = name.parse::<HeaderName>().map_err(|error| format!("header {name:?}: {error}"))?;
        let value =
            value.parse::<HeaderValue>().map_err(|error| format!("value of header {name:?}: {error}"))?;
        self.headers.insert(parsed, value);
        Ok(self)
    }

    /// With another port.
    #[must_use]
    pub fn on_port(self, port: NonZeroU16) -> Self {
        Self { target: Target { port: Some(port), unix: None }, ..self }
    }

    /// With another set of expected statuses.
    #[must_use]
    pub fn expecting(self, status: StatusSet) -> Self {
        Self { status, ..self }
    }

    /// With a text that the body must contain.
    #[must_use]
    pub fn containing(self, text: &str) -> Self {
        Self { body: Some(text.to_owned()), ..self }
    }

    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let path = section.required::<String>("http");
        let method = section.optional::<String>("method");
        let headers = section.or("headers", BTreeMap::<String, String>::new());
        let host = section.optional::<String>("host");
        let (port, unix) = (section.given::<NonZeroU16>("port"), section.given::<UnixPath>("unix"));
        let status = section.or("status", StatusSet::default());
        let body = section.optional::<String>("body");
        let told = |key: &'static str, expected: &'static str| {
            let section = &*section;
            move |error: String| section.invalid(key, error, expected)
        };
        let mut http = Self::get(&path?).map_err(told("http", "a path such as \"/healthz\""))?;
        if let Some(method) = method {
            http =
                http.with_method(&method).map_err(told("method", "a method such as \"GET\" or \"HEAD\""))?;
        }
        for (name, value) in headers {
            http = http
                .with_header(&name, &value)
                .map_err(told("headers", "names and values of HTTP headers"))?;
        }
        if let Some(host) = host {
            http = http.with_header("host", &host).map_err(told("host", "a host name"))?;
        }
        if http.method == Method::HEAD && body.is_some() {
            return Err(section.invalid(
                "body",
                "an answer to HEAD has no body",
                "another method, or no `body`",
            ));
        }
        let target = Target { port: port?, unix: unix? };
        if target.port.is_some() && target.unix.is_some() {
            return Err(section.invalid("unix", "there is a `port` too", "one of `port` and `unix`"));
        }
        Ok(Self { target, status, body, ..http })
    }

    fn request(&self, address: &Address) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
        let mut request =
            Request::builder().method(&self.method).uri(&self.path).body(Empty::<Bytes>::new())?;
        let headers = request.headers_mut();
        let host = match address {
            Address::Ip(address) => HeaderValue::from_str(&address.to_string())?,
            Address::Unix(_) => HeaderValue::from_static("localhost"),
        };
        headers.insert(HOST, host);
        headers.insert(USER_AGENT, HeaderValue::from_static("plexus-check"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        headers.extend(self.headers.clone());
        Ok(request)
    }

    async fn judge(&self, response: Response<Incoming>) -> Result<String, String> {
        let status = response.status().as_u16();
        if !self.status.contains(status) {
            return Err(format!("status {status}"));
        }
        let Some(wanted) = &self.body else { return Ok(format!("status {status}")) };
        let mut body = response.into_body();
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame
                .map_err(|error| format!("status {status}, then reading the body: {}", chain(&error)))?;
            if let Some(data) = frame.data_ref() {
                read.extend_from_slice(&data[..data.len().min(MAX_READ - read.len())]);
            }
            if contains(&read, wanted.as_bytes()) {
                return Ok(format!("status {status}, body as expected"));
            }
            if read.len() == MAX_READ {
                return Err(format!(
                    "status {status}, but the first {MAX_READ} bytes of the body lack {wanted:?}"
                ));
            }
        }
        Err(format!("status {status}, but the body lacks {wanted:?}"))
    }
}

#[async_trait]
impl Check for Http {
    fn describe(&self) -> String {
        let Self { method, path, target, .. } = self;
        match target {
            Target { unix: Some(unix), .. } => format!("http {method} unix:{unix} {path}"),
            Target { port: Some(port), .. } => format!("http {method} :{port}{path}"),
            Target { port: None, unix: None } => format!("http {method} {path}"),
        }
    }

    async fn probe(&self, instance: &ListensOn) -> Result<String, String> {
        let address = self.target.of(instance)?;
        let stream = connect(&address).await?.boxed();
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MAX_READ)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| chain(&error))?;
        let request = self.request(&address).map_err(|error| format!("cannot be sent: {error}"))?;
        let exchange = Box::pin(async move {
            let response = sender.send_request(request).await.map_err(|error| chain(&error))?;
            self.judge(response).await
        });
        match select(exchange, Box::pin(connection)).await {
            Either::Left((verdict, _)) => verdict,
            // The connection has ended; what it delivered before is still to be judged.
            Either::Right((_, exchange)) => exchange.await,
        }
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|window| window == needle)
}

/// An error with its causes: hyper's own texts end where it gets interesting.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::document::Document;

    fn read(text: &str) -> Result<Http, String> {
        Document::parse("x", text).unwrap().decode(Http::read).map_err(|errors| errors.to_string())
    }

    /// Answers one connection with `answer` and returns the request's head.
    async fn exchange(check: &Http, answer: Vec<u8>) -> (Result<String, String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let instance = listener.local_addr().unwrap().into();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            // The check may hang up before the end of an overlong answer.
            let _ = stream.write_all(&answer).await;
            String::from_utf8(head).unwrap()
        };
        tokio::join!(check.probe(&instance), server)
    }

    fn answer(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[tokio::test]
    async fn it_asks_as_told_and_accepts_an_expected_status() {
        let check = read(
            "http = \"/a?b=c\"\nmethod = \"POST\"\nheaders = { X-Why = \"check\" }\nhost = \"web.test\"",
        )
        .unwrap();
        let (verdict, head) = exchange(&check, answer("204 No Content", "")).await;
        assert_eq!(verdict, Ok("status 204".to_owned()));
        assert!(head.starts_with("POST /a?b=c HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("host: web.test\r\n") && head.contains("x-why: check\r\n"), "{head}");
        assert_eq!(check.describe(), "http POST /a?b=c");
    }

    #[tokio::test]
    async fn it_asks_a_unix_socket_as_it_asks_a_port() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let check = read(&format!("http = \"/x\"\nunix = \"{}\"", path.display())).unwrap();
        assert_eq!(check.describe(), format!("http GET unix:{} /x", path.display()));
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(&answer("200 OK", "")).await.unwrap();
            String::from_utf8(head).unwrap()
        };
        let elsewhere = "127.0.0.1:1".parse::<std::net::SocketAddr>().unwrap().into();
        let (verdict, head) = tokio::join!(check.probe(&elsewhere), server);
        assert_eq!(verdict, Ok("status 200".to_owned()));
        assert!(head.contains("host: localhost\r\n"), "{head}");
    }

    #[tokio::test]
    async fn it_refuses_other_statuses_and_redirects() {
        let check = Http::get("/").unwrap();
        for (status, shown) in [("503 Busy", "status 503"), ("302 Found", "status 302")] {
            assert_eq!(exchange(&check, answer(status, "")).await.0, Err(shown.to_owned()));
        }
        let check = check.expecting("302".parse().unwrap());
        assert!(exchange(&check, answer("302 Found", "")).await.0.is_ok());
    }

    #[tokio::test]
    async fn it_looks_for_the_text_in_a_bounded_part_of_the_body() {
        let check = Http::get("/").unwrap().containing("ready");
        assert!(exchange(&check, answer("200 OK", "all is ready now")).await.0.is_ok());
        let missing = exchange(&check, answer("200 OK", "red")).await.0.unwrap_err();
        assert_eq!(missing, "status 200, but the body lacks \"ready\"");
        let late = answer("200 OK", &format!("{}ready", "x".repeat(MAX_READ)));
        let missing = exchange(&check, late).await.0.unwrap_err();
        assert!(missing.contains("first 65536 bytes"), "{missing}");
    }

    #[tokio::test]
    async fn what_is_no_http_or_is_endless_is_a_failure_not_a_hazard() {
        let check = Http::get("/").unwrap();
        let failure = exchange(&check, b"SSH-2.0-OpenSSH_9\r\n\r\n".to_vec()).await.0.unwrap_err();
        assert!(failure.contains("invalid HTTP version"), "{failure}");
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(4 * MAX_READ)).into_bytes();
        let failure = exchange(&check, endless).await.0.unwrap_err();
        assert!(failure.contains("too large"), "{failure}");
        let nothing = exchange(&check, Vec::new()).await.0.unwrap_err();
        assert!(nothing.contains("connection closed"), "{nothing}");
    }

    #[test]
    fn what_cannot_be_sent_is_refused_with_its_key() {
        for (text, expected) in [
            ("http = \"healthz\"", "x:1:8: http: \"healthz\" does not begin with \"/\""),
            ("http = \"/a b\"", "x:1:8: http: \"/a b\" is no path"),
            ("http = \"/\"\nmethod = \"G T\"", "x:2:10: method:"),
            ("http = \"/\"\nheaders = { \"a b\" = \"c\" }", "x:2:11: headers:"),
            ("http = \"/\"\nstatus = \"299-200\"", "x:2:10: status:"),
            ("http = \"/\"\nmethod = \"HEAD\"\nbody = \"x\"", "x:3:8: body: an answer to HEAD has no body"),
            ("http = \"/\"\nport = 0", "x:2:8: port: 0 is out of range"),
            ("http = \"/\"\nport = 1\nunix = \"/x\"", "x:3:8: unix: there is a `port` too"),
        ] {
            let shown = read(text).unwrap_err();
            assert!(shown.starts_with(expected), "{text}: {shown}");
        }
    }
}
