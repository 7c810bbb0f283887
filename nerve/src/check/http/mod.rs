//! The HTTP and HTTPS checks: a request is answered with an expected status, and optionally with an expected body.
//!
//! Keys: `http` or `https` (the path), `method` (GET), `headers`, `host` (the `Host` header; default: the address, on a unix
//! socket `localhost`), `send` (the request's body), `port` or `unix` (default: where the instance listens, its unix socket
//! before its main port), `address` (default: the instance's), `status` (a set such as `"200-299"` or `[200, 204]`; default 200-299), `contains` and `matches` (a
//! text and a pattern that the first 64 KiB of the body must have), `keep_alive`; and those of TLS.
//!
//! It never follows a redirect: 3xx fails unless `status` says otherwise. HTTPS speaks HTTP/2 where the server does.

mod expect;
mod kept;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use async_trait::async_trait;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::http::uri::{PathAndQuery, Scheme};
use hyper::{Method, Request, Response, Uri};
use serde::Serialize;

use self::expect::{Expected, Pattern};
use super::connect::{Target, connect, no_tls};
use super::{Check, Liberty};
use crate::document::{Reported, Section};
use crate::http::{Connection, Tls};
use crate::model::{Address, ListensOn, UnixPath};

pub(super) use self::kept::{Held, Kept};

/// Headers whose values let somebody in.
const SECRET: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];

/// Sends a request and judges the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "Written")]
pub struct Http {
    path: PathAndQuery,
    method: Method,
    headers: HeaderMap,
    send: Option<String>,
    target: Target,
    /// `None`: without TLS.
    tls: Option<Tls>,
    expected: Expected,
    keep_alive: bool,
    kept: Kept<Connection>,
}

/// The same by TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Https(Http);

/// As it stands in a document.
#[derive(Serialize)]
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    https: Option<String>,
    method: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    send: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<NonZeroU16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unix: Option<UnixPath>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    contains: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    matches: Option<Pattern>,
    keep_alive: bool,
    #[serde(flatten)]
    tls: Option<Tls>,
}

impl From<Http> for Written {
    fn from(http: Http) -> Self {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let path = Some(http.path.to_string());
        let (plain, secure) = if http.tls.is_none() { (path, None) } else { (None, path) };
        Self {
            http: plain,
            https: secure,
            method: http.method.to_string(),
            headers: http.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            send: http.send,
            port: http.target.port,
            unix: http.target.unix,
            address: http.target.address,
            status: http.expected.status.to_string(),
            contains: http.expected.contains,
            matches: http.expected.matches,
            keep_alive: http.keep_alive,
            tls: http.tls,
        }
    }
}

impl Http {
    /// A GET of `path` where the instance listens that expects a status from 200 to 299.
    ///
    /// # Errors
    /// The path does not begin with `/` or has characters that a path cannot have; the text says which.
    pub fn get(path: &str) -> Result<Self, String> {
        if !path.starts_with('/') {
            return Err(format!("{path:?} does not begin with \"/\""));
        }
        let path: PathAndQuery = path.parse().map_err(|error| format!("{path:?} is no path: {error}"))?;
        Ok(Self {
            path,
            method: Method::GET,
            headers: HeaderMap::new(),
            send: None,
            target: Target::nearest("http"),
            tls: None,
            expected: Expected::default(),
            keep_alive: true,
            kept: Kept::default(),
        })
    }

    /// With another method.
    fn with_method(self, method: &str) -> Result<Self, String> {
        match method.parse() {
            Ok(Method::CONNECT) | Err(_) => Err(format!("{method:?} is no method that a check can use")),
            Ok(method) => Ok(Self { method, ..self }),
        }
    }

    /// With a further header.
    fn with_header(mut self, name: &str, value: &str) -> Result<Self, String> {
        let parsed = name.parse::<HeaderName>().map_err(|error| format!("header {name:?}: {error}"))?;
        let mut value =
            value.parse::<HeaderValue>().map_err(|error| format!("value of header {name:?}: {error}"))?;
        value.set_sensitive(SECRET.contains(&parsed.as_str()));
        self.headers.insert(parsed, value);
        Ok(self)
    }

    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        Self::read_as(section, "http")
    }

    fn read_as(section: &mut Section<'_>, kind: &'static str) -> Result<Self, Reported> {
        let path = section.required::<String>(kind);
        let method = section.optional::<String>("method");
        let headers = section.or("headers", BTreeMap::<String, String>::new());
        let host = section.optional::<String>("host");
        let send = section.given::<String>("send");
        let port = section.given::<NonZeroU16>("port");
        let target = port.and_then(|port| Target::with_port(section, kind, port, "port"));
        let expected = Expected::read(section);
        let keep_alive = section.or("keep_alive", true);
        let told = |key: &'static str, expected: &'static str| {
            let section = &*section;
            move |error: String| section.invalid(key, error, expected)
        };
        let mut http = Self::get(&path?).map_err(told(kind, "a path such as \"/healthz\""))?;
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
            if host.parse::<hyper::http::uri::Authority>().is_err() {
                return Err(section.invalid("host", format_args!("{host:?} is no host name"), "a host name"));
            }
            http = http.with_header("host", &host).map_err(told("host", "a host name"))?;
        }
        let expected = expected?;
        if let (&Method::HEAD, Some(key)) = (&http.method, expected.of_the_body()) {
            let otherwise = format!("another method, or no `{key}`");
            return Err(section.invalid(key, "an answer to HEAD has no body", otherwise));
        }
        Ok(Self { target: target?, send: send?, expected, keep_alive, ..http })
    }

    /// What the server is asked for: the `Host` header or, without one, its address.
    fn host(&self, address: &Address) -> Result<HeaderValue, String> {
        match (self.headers.get(HOST), address) {
            (Some(host), _) => Ok(host.clone()),
            (None, Address::Unix(_)) => Ok(HeaderValue::from_static("localhost")),
            (None, Address::Ip(address)) => {
                HeaderValue::from_str(&address.to_string()).map_err(|error| error.to_string())
            }
        }
    }

    fn request(&self, connection: &Connection, host: HeaderValue) -> Result<Request<Full<Bytes>>, String> {
        let wrong = |error: hyper::http::Error| format!("cannot be sent: {error}");
        let body = Full::new(Bytes::from(self.send.clone().unwrap_or_default()));
        let mut request = Request::new(body);
        request.method_mut().clone_from(&self.method);
        let uri = Uri::builder().path_and_query(self.path.clone());
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static("plexus-check"));
        headers.extend(self.headers.clone());
        let uri = if connection.is_two() {
            // RFC 9113 section 8.3.1: the authority takes the place of the header.
            headers.remove(HOST);
            uri.scheme(Scheme::HTTPS).authority(host.as_bytes())
        } else {
            headers.insert(HOST, host);
            if !self.keep_alive {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            uri
        };
        *request.uri_mut() = uri.build().map_err(wrong)?;
        Ok(request)
    }

    async fn open(&self, address: &Address, host: &HeaderValue) -> Result<Connection, String> {
        let stream = connect(address).await?.boxed();
        let Some(tls) = &self.tls else { return Connection::one(stream).await };
        let host = host.to_str().map_err(|error| format!("host: {error}"))?;
        let stream = tls.connect(stream, host, &[b"h2", b"http/1.1"]).await.map_err(no_tls)?;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            Connection::two(stream).await
        } else {
            Connection::one(stream).await
        }
    }

    /// Judges the answer, and keeps the connection for the next probe.
    async fn finish(
        &self,
        mut held: Held<Connection>,
        response: Response<Incoming>,
    ) -> Result<String, String> {
        let (verdict, body) = held.connection.run(self.expected.judge(response)).await;
        if self.keep_alive {
            if let Some(body) = body {
                held.connection.leave(body);
            }
            self.kept.put(held);
        }
        verdict
    }
}

impl Https {
    /// Reads the keys of this kind.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let tls = Tls::read(section);
        let http = Http::read_as(section, "https")?;
        Ok(Self(Http { tls: Some(tls?), ..http }))
    }
}

#[async_trait]
impl Check for Http {
    fn describe(&self) -> String {
        let Self { method, path, target, .. } = self;
        let kind = target.kind;
        match target {
            Target { unix: Some(unix), .. } => format!("{kind} {method} unix:{unix} {path}"),
            Target { port, address, .. } => {
                let place = match (address, port) {
                    (None, None) => String::new(),
                    (None, Some(port)) => format!(":{port}"),
                    (Some(address), None) => format!("{address} "),
                    (Some(address), Some(port)) => SocketAddr::new(*address, port.get()).to_string(),
                };
                format!("{kind} {method} {place}{path}")
            }
        }
    }

    fn hide_secrets(&mut self) {
        for value in self.headers.values_mut().filter(|value| value.is_sensitive()) {
            *value = HeaderValue::from_static("(hidden)");
        }
    }

    fn liberty(&self) -> Option<Liberty> {
        self.target.liberty()
    }

    async fn probe(&self, instance: &ListensOn) -> Result<String, String> {
        let address = self.target.of(instance)?;
        let host = self.host(&address)?;
        if let Some(mut held) = self.kept.take() {
            // A server may close a connection that nothing goes on on at any time: what fails on it is tried on a new one.
            if held.connection.tidy().await {
                let request = self.request(&held.connection, host.clone())?;
                if let Ok(response) = held.connection.send(request).await {
                    return Box::pin(self.finish(held, response)).await;
                }
            }
        }
        let mut held = Held::new(Box::pin(self.open(&address, &host)).await?);
        let request = self.request(&held.connection, host)?;
        let response = held.connection.send(request).await?;
        Box::pin(self.finish(held, response)).await
    }
}

#[async_trait]
impl Check for Https {
    fn describe(&self) -> String {
        self.0.describe()
    }

    fn hide_secrets(&mut self) {
        self.0.hide_secrets();
    }

    async fn probe(&self, instance: &ListensOn) -> Result<String, String> {
        self.0.probe(instance).await
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::document::Document;
    use crate::http::MAX_READ;

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
        let elsewhere = "127.0.0.1:1".parse::<SocketAddr>().unwrap().into();
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
        let check = read("http = \"/\"\nstatus = 302").unwrap();
        assert!(exchange(&check, answer("302 Found", "")).await.0.is_ok());
    }

    #[tokio::test]
    async fn it_looks_for_the_text_in_a_bounded_part_of_the_body() {
        let check = read("http = \"/\"\ncontains = \"ready\"").unwrap();
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
            (
                "http = \"/\"\nmethod = \"HEAD\"\ncontains = \"x\"",
                "x:3:12: contains: an answer to HEAD has no body",
            ),
            ("http = \"/\"\nbody = \"x\"", "x:2:1: body: this key is now called `contains`"),
            ("http = \"/\"\nmatches = \"(\"", "x:2:11: matches: \"(\": unclosed group"),
            ("http = \"/\"\nhost = \"a b\"", "x:2:8: host: \"a b\" is no host name"),
            ("http = \"/\"\nca_file = \"/x\"", "x:2:1: ca_file: unknown key"),
            ("http = \"/\"\nport = 0", "x:2:8: port: 0 is out of range"),
            ("http = \"/\"\nport = 1\nunix = \"/x\"", "x:3:8: unix: `port` names a port"),
        ] {
            let shown = read(text).unwrap_err();
            assert!(shown.starts_with(expected), "{text}: {shown}");
        }
    }
}
