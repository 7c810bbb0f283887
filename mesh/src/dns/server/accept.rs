//! Connections of clients: accepted while there is room for them, counted, with the handshake of TLS where it is spoken. What is
//! said on them is `tcp`'s business, and `https`'.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nerve::http::TlsAccept;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::certificate::Certificate;
use super::{Ended, Service, https, tcp};
use crate::dns::metrics::{Dropped, Metrics, Stream};

/// Where accepting fails for want of something (files, memory), it is tried again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How clients of a listener are spoken with.
#[derive(Debug, Clone)]
pub(super) enum Spoken {
    Tcp,
    Tls(TlsAccept, Certificate),
    Https(TlsAccept, Certificate),
}

impl Spoken {
    fn stream(&self) -> Stream {
        match self {
            Self::Tcp => Stream::Tcp,
            Self::Tls(..) => Stream::Tls,
            Self::Https(..) => Stream::Https,
        }
    }

    /// Until this is over clients wait to be accepted.
    async fn ready(&self) {
        if let Self::Tls(_, certificate) | Self::Https(_, certificate) = self {
            certificate.was_read().await;
        }
    }
}

/// Accepts connections until the stop token is cancelled.
pub(super) async fn serve(listener: Arc<TcpListener>, spoken: Spoken, service: Service) {
    let (stop, over) = (service.tasks.stop_token(), spoken.stream());
    let metrics = &service.handler.metrics;
    let mut permit = None;
    loop {
        // Taken before the connection is: whoever waits until there are none waits for this one too.
        permit = permit.or_else(|| Arc::clone(&service.open.connections).try_acquire_owned().ok());
        let next = async {
            spoken.ready().await;
            listener.accept().await
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            () = service.open.closed() => return,
            accepted = next => accepted,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                metrics.dropped.inc(Dropped::TcpAcceptFailed);
                tracing::warn!(?over, %error, "DNS: accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let late = || Arc::clone(&service.open.connections).try_acquire_owned().ok();
        let Some(permit) = permit.take().or_else(late) else {
            metrics.dropped.inc(Dropped::TcpConnectionLimit);
            continue;
        };
        let (connection, spoken) = (service.clone(), spoken.clone());
        service.tasks.spawn("dns connection", async move {
            let metrics = Arc::clone(&connection.handler.metrics);
            let open = Open::new(&metrics, over);
            if let Some(reason) = talk(stream, &spoken, client, &connection).await {
                metrics.dropped.inc(reason);
                tracing::debug!(%client, ?over, ?reason, "DNS: connection closed");
            }
            drop((open, permit));
        });
    }
}

/// Counts an open connection for as long as it lives.
struct Open<'a>(&'a Metrics, Stream);

impl<'a> Open<'a> {
    fn new(metrics: &'a Metrics, over: Stream) -> Self {
        metrics.connections(over).inc();
        Self(metrics, over)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections(self.1).dec();
    }
}

async fn talk(stream: TcpStream, spoken: &Spoken, client: SocketAddr, service: &Service) -> Ended {
    // Answers are small and each is written whole: nothing to gain by holding them back.
    let _ = stream.set_nodelay(true);
    let (Spoken::Tls(accept, _) | Spoken::Https(accept, _)) = spoken else {
        return tcp::talk(stream, Stream::Tcp, client, service).await;
    };
    let stop = service.tasks.stop_token();
    let handshake = tokio::select! {
        () = stop.cancelled() => return None,
        handshake = timeout(service.handshake, accept.handshake(stream)) => handshake,
    };
    let (stream, protocol) = match handshake {
        Ok(Ok(spoken)) => spoken,
        Ok(Err(error)) => {
            tracing::debug!(%client, %error, "DNS: no TLS with a client");
            return Some(Dropped::TlsFailed);
        }
        Err(_) => return Some(Dropped::TlsTimeout),
    };
    match spoken {
        Spoken::Https(..) => {
            https::talk(stream, protocol.as_deref() == Some(https::H2), client, service).await
        }
        Spoken::Tls(..) | Spoken::Tcp => tcp::talk(stream, Stream::Tls, client, service).await,
    }
}
