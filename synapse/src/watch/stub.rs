//! For tests of kinds: a server that answers as an API is published, and somebody to tell.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::pace::Pace;
use super::place::{Refused, Tell};
use super::server::Server;

/// Writes down what it is told: servers, and how many are refused.
#[derive(Debug, Default)]
pub(super) struct Written(Mutex<Vec<String>>);

impl Written {
    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl Tell for Written {
    async fn found(&self, found: Vec<Server>, refused: Vec<Refused>) {
        let servers: Vec<String> = found.iter().map(ToString::to_string).collect();
        self.0.lock().unwrap().push(format!("{} {}", servers.join(" "), refused.len()));
    }

    async fn failed(&self, error: String) {
        self.0.lock().unwrap().push(error);
    }

    fn pace(&self) -> Pace {
        Pace::default()
    }
}

/// A request comes within this.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a server is that answers a request after the other with these: a status line and headers, each with its end, and a body. What was
/// asked for is returned with the last of them, each with its body. An answer whose headers say another length goes on until then.
pub(super) async fn api(answers: Vec<(String, String)>) -> (String, impl Future<Output = Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serve = async move {
        let (mut asked, mut open) = (Vec::new(), Vec::new());
        for (head, body) in answers {
            let accepted = timeout(PATIENCE, listener.accept()).await.expect("another request");
            let (mut stream, _) = accepted.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let asks = String::from_utf8_lossy(&request).to_lowercase();
            let length = asks.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
            let mut sent = vec![0; length.map_or(0, |length| length.parse().unwrap())];
            stream.read_exact(&mut sent).await.unwrap();
            request.extend(sent);
            asked.push(String::from_utf8(request).unwrap());
            let length = match head.contains("content-length") {
                true => String::new(),
                false => format!("content-length: {}\r\n", body.len()),
            };
            stream.write_all(format!("HTTP/1.1 {head}{length}\r\n{body}").as_bytes()).await.unwrap();
            open.push(stream);
        }
        asked
    };
    (url, serve)
}
