//! A client of an API over HTTP/1.1: an answer, or lines that go on until somebody hangs up.

use std::fmt;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response};
use serde::de::DeserializeOwned;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::connection::{Connection, chain};
use super::url::{At, Url};
use super::{Duplex, Tls};

/// How long a connection may take to be there.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// The largest answer, in bytes: a list of thousands of what is listed.
const MOST: usize = 32 * 1024 * 1024;
/// The longest line.
const MOST_LINE: usize = 1024 * 1024;

/// A client of one API.
#[derive(Debug, Clone)]
pub struct Client {
    url: Url,
    tls: Tls,
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    /// Its status code.
    pub status: u16,
    headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Lines that are told one after the other.
pub struct Lines {
    connection: Connection,
    body: Incoming,
    read: Vec<u8>,
    /// So much of what was read holds no end of a line.
    searched: usize,
}

impl Client {
    /// A client of the API at `url`.
    #[must_use]
    pub fn new(url: Url, tls: Tls) -> Self {
        Self { url, tls }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Asks for `path`, with these headers; all of it is to be there in time.
    ///
    /// # Errors
    /// There was no answer, or one that is too large. An answer with a status that tells of an error is none.
    pub async fn get(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        within: Duration,
    ) -> Result<Answer, String> {
        self.exchange(Method::GET, path, headers, Bytes::new(), within).await
    }

    /// Puts nothing to `path`; as [`Client::get`] otherwise.
    ///
    /// # Errors
    /// As those of [`Client::get`].
    pub async fn put(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        within: Duration,
    ) -> Result<Answer, String> {
        self.exchange(Method::PUT, path, headers, Bytes::new(), within).await
    }

    /// Posts `body` to `path`; as [`Client::get`] otherwise.
    ///
    /// # Errors
    /// As those of [`Client::get`].
    pub async fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
        within: Duration,
    ) -> Result<Answer, String> {
        self.exchange(Method::POST, path, headers, body.into(), within).await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
        within: Duration,
    ) -> Result<Answer, String> {
        let exchange = async {
            let (mut connection, response) = self.ask(method, path, headers, body).await?;
            let (head, body) = response.into_parts();
            let read = connection.run(Limited::new(body, MOST).collect()).await;
            let body = read
                .map_err(|error| format!("its answer to {} breaks off: {error}", shown(path)))?
                .to_bytes();
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        timeout(within, Box::pin(exchange)).await.unwrap_or_else(|_| Err(late(path, within)))
    }

    /// Asks for `path` and reads what is told line by line; the beginning is to be there in time.
    ///
    /// # Errors
    /// There was no answer, or another one than 200.
    pub async fn lines(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        within: Duration,
    ) -> Result<Lines, String> {
        let open = async {
            let (connection, response) = self.ask(Method::GET, path, headers, Bytes::new()).await?;
            match response.status().as_u16() {
                200 => Ok(Lines { connection, body: response.into_body(), read: Vec::new(), searched: 0 }),
                status => Err(format!("it answers {} with status {status}", shown(path))),
            }
        };
        timeout(within, Box::pin(open)).await.unwrap_or_else(|_| Err(late(path, within)))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(Connection, Response<Incoming>), String> {
        let request = self.request(method, path, headers, body)?;
        let stream = self.connect().await?;
        let mut connection = Connection::one(stream).await?;
        let response = connection.send(request).await?;
        Ok((connection, response))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, String> {
        let wrong = |what: &dyn fmt::Display| format!("{} cannot be asked for: {what}", shown(path));
        // Of what has no body it would not be said, and some insist on it.
        let length = (method != Method::GET).then_some(body.len());
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url.base));
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).map_err(|error| wrong(&error))?;
            // Not even an error shows it: it may be what lets us in.
            let value = HeaderValue::try_from(*value)
                .map_err(|_| wrong(&format_args!("{name} has a value that no header can have")))?;
            request = request.header(name, value);
        }
        request = request.header(HOST, self.url.authority()).header(USER_AGENT, "plexus");
        if let Some(length) = length {
            request = request.header(CONTENT_LENGTH, length);
        }
        if request.headers_ref().is_some_and(|headers| !headers.contains_key(ACCEPT)) {
            request = request.header(ACCEPT, "application/json");
        }
        request.body(Full::new(body)).map_err(|error| wrong(&error))
    }

    async fn connect(&self) -> Result<Box<dyn Duplex>, String> {
        match timeout(CONNECT_WITHIN, Box::pin(self.stream())).await {
            Ok(connected) => connected.map_err(|error| format!("connect to {}: {error}", self.url)),
            Err(_) => Err(format!("connect to {}: not within {CONNECT_WITHIN:?}", self.url)),
        }
    }

    async fn stream(&self) -> Result<Box<dyn Duplex>, String> {
        let refused = |error: std::io::Error| error.to_string();
        match &self.url.at {
            At::Unix(path) => Ok(Box::new(UnixStream::connect(path.as_path()).await.map_err(refused)?)),
            At::Host { host, port, tls } => {
                let stream = TcpStream::connect((host.as_str(), port.get())).await.map_err(refused)?;
                let _ = stream.set_nodelay(true);
                if !tls {
                    return Ok(Box::new(stream));
                }
                let stream = self.tls.connect(Box::new(stream), host, &[b"http/1.1"]).await;
                Ok(Box::new(stream.map_err(|error| error.to_string())?))
            }
        }
    }
}

impl Answer {
    /// A header, where it is a text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What it says as JSON.
    ///
    /// # Errors
    /// It is another status than 200, or no such JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, String> {
        if self.status != 200 {
            let said = String::from_utf8_lossy(&self.body);
            let said: String = said.trim().chars().take(200).filter(|c| !c.is_control()).collect();
            return Err(format!("status {}: {said}", self.status));
        }
        serde_json::from_slice(&self.body).map_err(|error| format!("it cannot be read: {error}"))
    }
}

impl Lines {
    /// The next one, without its end. Cancel-safe.
    ///
    /// # Errors
    /// There will be no other, or it is too long.
    pub async fn next(&mut self) -> Result<Vec<u8>, String> {
        loop {
            if let Some(end) = self.read[self.searched..].iter().position(|byte| *byte == b'\n') {
                let end = self.searched + end;
                let mut line: Vec<u8> = self.read.drain(..=end).collect();
                self.searched = 0;
                line.truncate(end);
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(line);
            }
            self.searched = self.read.len();
            if self.read.len() > MOST_LINE {
                return Err(format!("it tells a line of more than {MOST_LINE} bytes"));
            }
            let Self { connection, body, .. } = self;
            match connection.run(body.frame()).await {
                Some(Ok(frame)) => self.read.extend(frame.data_ref().into_iter().flatten()),
                Some(Err(error)) => return Err(format!("it tells no more: {}", chain(&error))),
                None => return Err("it tells no more".to_owned()),
            }
        }
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("read", &self.read.len()).finish_non_exhaustive()
    }
}

/// Without what is asked of it: there may be a token in that.
fn shown(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

fn late(path: &str, within: Duration) -> String {
    format!("it did not answer {} within {within:?}", shown(path))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// A client of a server that answers one request so, and that request.
    async fn against<T>(answer: &str, asks: impl AsyncFnOnce(Client) -> T) -> (T, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(
            format!("http://{}/base", listener.local_addr().unwrap()).parse().unwrap(),
            Tls::default(),
        );
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            // The client may have read enough.
            let _ = stream.write_all(answer.as_bytes()).await;
            String::from_utf8(head).unwrap()
        };
        tokio::join!(asks(client), server)
    }

    #[tokio::test]
    async fn an_answer_is_read_whole_and_asked_for_below_the_base() {
        let answer = "HTTP/1.1 200 OK\r\nX-Index: 7\r\ncontent-length: 7\r\n\r\n[1,2,3]";
        let (answer, asked) =
            against(answer, async |client| client.get("/x?a=b", &[("x-token", "t")], SOON).await).await;
        let answer = answer.unwrap();
        assert_eq!((answer.header("x-index"), answer.json::<Vec<u8>>().unwrap()), (Some("7"), vec![1, 2, 3]));
        assert!(
            asked.starts_with("GET /base/x?a=b HTTP/1.1\r\n") && asked.contains("x-token: t\r\n"),
            "{asked}"
        );
    }

    #[tokio::test]
    async fn what_is_posted_has_its_length_and_nothing_is_put_as_nothing() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let post = async |client: Client| client.post("/x", &[], "a=b".to_owned(), SOON).await;
        let (_, asked) = against(answer, post).await;
        assert!(asked.starts_with("POST /base/x ") && asked.contains("content-length: 3\r\n"), "{asked}");
        let (_, asked) = against(answer, async |client| client.put("/x", &[], SOON).await).await;
        assert!(asked.starts_with("PUT /base/x ") && asked.contains("content-length: 0\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn what_is_no_answer_says_so_without_what_was_secret() {
        let refused = "HTTP/1.1 403 Forbidden\r\ncontent-length: 3\r\n\r\nno\n";
        let (answer, _) = against(refused, async |client| client.get("/x", &[], SOON).await).await;
        assert_eq!(answer.unwrap().json::<Vec<u8>>().unwrap_err(), "status 403: no");
        let cut = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nno";
        let (answer, _) = against(cut, async |client| client.get("/x?token=s3cret", &[], SOON).await).await;
        let error = answer.unwrap_err();
        assert!(error.contains("/x breaks off") && !error.contains("s3cret"), "{error}");
        let client = Client::new("http://127.0.0.1:1".parse().unwrap(), Tls::default());
        let error = client.get("/x", &[("x-token", "s3cret\n")], SOON).await.unwrap_err();
        assert!(error.contains("x-token") && !error.contains("s3cret"), "{error}");
        let error = client.get("/x", &[], SOON).await.unwrap_err();
        assert!(error.contains("http://127.0.0.1:1"), "{error}");
    }

    #[tokio::test]
    async fn lines_come_one_by_one_and_their_end_is_told() {
        let told = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\none\r\n\ntwo\nhalf";
        let (lines, _) = against(told, async |client| {
            let mut lines = client.lines("/events", &[], SOON).await.unwrap();
            let mut told = Vec::new();
            loop {
                match lines.next().await {
                    Ok(line) => told.push(String::from_utf8(line).unwrap()),
                    Err(error) => return (told, error),
                }
            }
        })
        .await;
        assert_eq!(lines.0, ["one", "", "two"]);
        assert!(lines.1.contains("tells no more"), "{}", lines.1);
    }
}
