//! How the admin server ends: who has come is answered.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

#[tokio::test]
async fn who_has_connected_before_the_end_may_still_ask() {
    let world = World::filled().await;
    let mut waiting = TcpStream::connect(world.address).await.unwrap();
    // Accepted in the order in which they come: so the first one is waited for as well.
    assert_eq!(raw(world.address, "GET", "/healthz", "").await.0, 200);
    let asks = async {
        while TcpStream::connect(world.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        waiting.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        waiting.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (drained, answer) = tokio::join!(world.drain.drain(Duration::from_secs(10)), asks);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(drained, drain::Drained::Completely);
}

#[tokio::test]
async fn who_asks_nothing_keeps_nobody_waiting() {
    let world = World::filled().await;
    let _silent = TcpStream::connect(world.address).await.unwrap();
    assert_eq!(raw(world.address, "GET", "/healthz", "").await.0, 200);
    let within = Duration::from_secs(2);
    assert_eq!(world.drain.drain(within).await, drain::Drained::Completely);
}
