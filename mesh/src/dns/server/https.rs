//! DNS over HTTPS (RFC 8484): a message in the URL of a GET, or in the body of a POST, and its answer as a body, over HTTP/2 or
//! HTTP/1.1. What a client can cost is bounded: streams, heads, bodies, and time without a word.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Buf, Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nerve::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};

use super::asked::{Asked, LONGEST_QUERY};
use super::{Ended, Service};
use crate::dns::metrics::{Dropped, HttpRefusal, Transport};
use crate::dns::wire;

/// The names of its protocols (RFC 7301).
pub(super) const H2: &[u8] = b"h2";
pub(super) const HTTP1: &[u8] = b"http/1.1";
/// Where it is asked, which is what clients and discovery (RFC 9461) take for granted.
const PATH: &str = "/dns-query";
const MESSAGE: &str = "application/dns-message";
/// Requests of one connection at the same time; RFC 9113 section 6.5.2 advises against fewer.
const MOST_STREAMS: u32 = 100;
/// The longest head: that of a GET has the longest query in it.
const LONGEST_HEAD: usize = 16 * 1024;
/// Octets of a body that are read, although a query has fewer.
const MOST_READ: usize = 64 * 1024;
/// What a client may send before it is read, and what waits to be read by it.
const WINDOW: u32 = 16 * 1024;
const SEND_BUFFER: usize = 64 * 1024;

/// Answers the requests of one client.
#[derive(Clone)]
struct Exchange {
    service: Service,
    client: SocketAddr,
    activity: Arc<Activity>,
}

/// When something was asked.
struct Activity(Mutex<(usize, Instant)>);

/// A request that is open.
struct Busy(Arc<Activity>);

/// Runs what an HTTP/2 connection does besides.
#[derive(Clone)]
struct Streams(Tasks);

/// A connection that can be told that it is to end.
trait Connection: Future<Output = hyper::Result<()>> {
    fn finish(self: Pin<&mut Self>);
}

type Answer = Response<Full<Bytes>>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Activity {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new((0, Instant::now()))))
    }

    fn change(&self, open: impl FnOnce(usize) -> usize) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (open(state.0), Instant::now());
    }

    /// Completes when nothing was asked for so long, and nothing is open.
    async fn idle(&self, within: Duration) {
        loop {
            let (open, last) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let since = if open > 0 { Instant::now() } else { last };
            if since + within <= Instant::now() {
                return;
            }
            sleep_until(since + within).await;
        }
    }
}

impl Busy {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.change(|open| open + 1);
        Self(Arc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.change(|open| open.saturating_sub(1));
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.0.spawn("dns https stream", stream);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Connection
    for http1::Connection<TokioIo<S>, Exchange>
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Connection
    for http2::Connection<TokioIo<S>, Exchange, Streams>
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Until the client has what it wants, or is too slow.
pub(super) async fn talk<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    is_h2: bool,
    client: SocketAddr,
    service: &Service,
) -> Ended {
    let activity = Activity::new();
    let exchange = Exchange { service: service.clone(), client, activity: Arc::clone(&activity) };
    let stream = TokioIo::new(stream);
    if is_h2 {
        let connection = http2::Builder::new(Streams(service.tasks.clone()))
            .timer(TokioTimer::new())
            .max_concurrent_streams(MOST_STREAMS)
            .max_header_list_size(u32::try_from(LONGEST_HEAD).unwrap_or(u32::MAX))
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW * 4)
            .max_send_buf_size(SEND_BUFFER)
            .serve_connection(stream, exchange);
        drive(connection, &activity, service).await
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(service.idle)
            .max_buf_size(LONGEST_HEAD)
            .serve_connection(stream, exchange);
        drive(connection, &activity, service).await
    }
}

/// A connection ends when its client ends it, when it is idle, and when this agent stops: unlike other clients of a connection, those
/// of HTTP can be told to open another.
async fn drive(connection: impl Connection, activity: &Activity, service: &Service) -> Ended {
    let stop = service.tasks.stop_token();
    tokio::pin!(connection);
    let idle = tokio::select! {
        ended = connection.as_mut() => return why(ended),
        () = stop.cancelled() => None,
        () = service.open.closed() => None,
        () = activity.idle(service.idle) => Some(Dropped::TcpIdle),
    };
    connection.as_mut().finish();
    match timeout(service.idle, connection).await {
        Ok(ended) => idle.or_else(|| why(ended)),
        Err(_) => Some(Dropped::TcpSlowReader),
    }
}

fn why(ended: hyper::Result<()>) -> Ended {
    let error = ended.err()?;
    // Whoever leaves without a word leaves all the same.
    let mut source: Option<&dyn std::error::Error> = Some(&error);
    while let Some(cause) = source {
        if cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::UnexpectedEof) {
            return None;
        }
        source = cause.source();
    }
    tracing::debug!(%error, "DNS over HTTPS: connection broke off");
    Some(if error.is_timeout() { Dropped::TcpIdle } else { Dropped::HttpsFailed })
}

impl hyper::service::Service<Request<Incoming>> for Exchange {
    type Response = Answer;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, hyper::Result<Answer>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (exchange, busy) = (self.clone(), Busy::new(&self.activity));
        async move {
            let answer = exchange.answer(request).await;
            drop(busy);
            Ok(answer)
        }
        .boxed()
    }
}

impl Exchange {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let message = match message(request, self.service.idle).await {
            Ok(message) => message,
            Err(refusal) => return self.refuse(refusal),
        };
        let octets = match self.service.ask(&message, self.client, Transport::Https) {
            Asked::Now(octets) => octets,
            Asked::Later(later) => later.await,
            Asked::Drop(Dropped::Panic) => {
                self.service.handler.metrics.dropped.inc(Dropped::Panic);
                return status(StatusCode::INTERNAL_SERVER_ERROR, "the query could not be handled");
            }
            Asked::Drop(_) => return self.refuse(HttpRefusal::Malformed),
        };
        let age = HeaderValue::from_str(&format!("max-age={}", freshness(&octets)));
        let mut answer = Response::new(Full::new(Bytes::from(octets)));
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(MESSAGE));
        // Digits always make a value.
        headers.extend(age.ok().map(|age| (CACHE_CONTROL, age)));
        answer
    }

    fn refuse(&self, refusal: HttpRefusal) -> Answer {
        self.service.handler.metrics.https_refused.inc(refusal);
        let (code, text) = match refusal {
            HttpRefusal::NoSuchPath => (StatusCode::NOT_FOUND, "names are asked for at /dns-query"),
            HttpRefusal::Method => (StatusCode::METHOD_NOT_ALLOWED, "GET and POST are understood"),
            HttpRefusal::MediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "a query is application/dns-message")
            }
            HttpRefusal::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, "a query has at most 4096 octets"),
            HttpRefusal::Malformed => (
                StatusCode::BAD_REQUEST,
                "there is no query: ?dns= is to be one in base64url, without padding",
            ),
            HttpRefusal::Slow => (StatusCode::REQUEST_TIMEOUT, "the query took too long to arrive"),
        };
        let mut answer = status(code, text);
        if refusal == HttpRefusal::Method {
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
        }
        answer
    }
}

fn status(code: StatusCode, text: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// The query in a request.
async fn message<B: Body<Error: Into<BoxError>>>(
    request: Request<B>,
    within: Duration,
) -> Result<Vec<u8>, HttpRefusal> {
    if request.uri().path() != PATH {
        return Err(HttpRefusal::NoSuchPath);
    }
    match *request.method() {
        Method::GET => in_url(request.uri().query().unwrap_or_default()),
        Method::POST => {
            let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
            let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
            let is_message = kind.trim().eq_ignore_ascii_case(MESSAGE);
            let body = timeout(within, in_body(request.into_body())).await;
            let octets = body.map_err(|_| HttpRefusal::Slow)??;
            if is_message { Ok(octets) } else { Err(HttpRefusal::MediaType) }
        }
        _ => Err(HttpRefusal::Method),
    }
}

/// Also what is refused is read, unless it says that it is too long: whoever is still sending when the connection ends may never see
/// why.
async fn in_body<B: Body<Error: Into<BoxError>>>(body: B) -> Result<Vec<u8>, HttpRefusal> {
    if body.size_hint().lower() > LONGEST_QUERY as u64 {
        return Err(HttpRefusal::TooLong);
    }
    let (mut octets, mut length) = (Vec::new(), 0);
    tokio::pin!(body);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| HttpRefusal::Malformed)?.into_data() else { continue };
        let mut data = data;
        length += data.remaining();
        if length > MOST_READ {
            break;
        }
        if length <= LONGEST_QUERY {
            octets.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
    }
    if length > LONGEST_QUERY { Err(HttpRefusal::TooLong) } else { Ok(octets) }
}

fn in_url(query: &str) -> Result<Vec<u8>, HttpRefusal> {
    let dns = query.split('&').find_map(|part| part.strip_prefix("dns=")).ok_or(HttpRefusal::Malformed)?;
    if dns.len() > LONGEST_QUERY.div_ceil(3) * 4 {
        return Err(HttpRefusal::TooLong);
    }
    let octets = URL_SAFE_NO_PAD.decode(dns).map_err(|_| HttpRefusal::Malformed)?;
    if octets.len() > LONGEST_QUERY { Err(HttpRefusal::TooLong) } else { Ok(octets) }
}

/// How long an answer may be kept, in seconds: as long as what is in it (RFC 8484 section 5.1).
fn freshness(answer: &[u8]) -> u32 {
    let Some(scan) = wire::scan(answer) else { return 0 };
    let least = scan.least_ttl.unwrap_or(0);
    scan.negative_ttl.map_or(least, |negative| negative.min(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str, kind: &str, body: Vec<u8>) -> Request<Full<Bytes>> {
        let request = Request::builder().method(method).uri(uri).header(CONTENT_TYPE, kind);
        request.body(Full::new(Bytes::from(body))).unwrap()
    }

    #[tokio::test]
    async fn a_query_is_in_the_url_or_in_the_body_and_nothing_else_is_taken_for_one() {
        let too_long = format!("/dns-query?dns={}", "A".repeat(6000));
        for (method, uri, kind, body, expected) in [
            ("GET", "/dns-query?dns=AAE_-w", "", 0, Ok(vec![0, 1, 0x3f, 0xfb])),
            ("GET", "/dns-query?x=1&dns=AAE", "", 0, Ok(vec![0, 1])),
            ("GET", "/dns-query?dns=AAE=", "", 0, Err(HttpRefusal::Malformed)),
            ("GET", "/dns-query?dns=AA+E", "", 0, Err(HttpRefusal::Malformed)),
            ("GET", "/dns-query", "", 0, Err(HttpRefusal::Malformed)),
            ("GET", &too_long, "", 0, Err(HttpRefusal::TooLong)),
            ("GET", "/", "", 0, Err(HttpRefusal::NoSuchPath)),
            ("PUT", "/dns-query", MESSAGE, 3, Err(HttpRefusal::Method)),
            ("POST", "/dns-query", "Application/DNS-Message; x=y", 3, Ok(vec![0; 3])),
            ("POST", "/dns-query", "application/json", 3, Err(HttpRefusal::MediaType)),
            ("POST", "/dns-query", MESSAGE, LONGEST_QUERY, Ok(vec![0; LONGEST_QUERY])),
            ("POST", "/dns-query", MESSAGE, LONGEST_QUERY + 1, Err(HttpRefusal::TooLong)),
        ] {
            let told = message(request(method, uri, kind, vec![0; body]), Duration::from_secs(1)).await;
            assert_eq!(told, expected, "{method} {uri} {kind}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_when_nothing_is_open_for_long_enough() {
        let (activity, within) = (Activity::new(), Duration::from_secs(10));
        let busy = Busy::new(&activity);
        assert!(timeout(within * 5, activity.idle(within)).await.is_err());
        drop(busy);
        let began = Instant::now();
        activity.idle(within).await;
        assert_eq!(began.elapsed().as_secs(), 10);
    }
}
