//! A question to name servers, one after the other until one knows: over UDP, and over TCP where the answer does not fit.
//!
//! Against forgery (RFC 5452): a socket of its own each time, so that the kernel picks a random port and lets in datagrams of that server
//! alone; a random id; and the question must stand in the answer.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

pub(super) const PORT: u16 = 53;
/// How long one server may take.
const WITHIN: Duration = Duration::from_secs(2);
/// All of them are asked so often before it is given up.
const ROUNDS: usize = 2;
/// What we say that a datagram may hold (as DNS flag day 2020 has it).
const PAYLOAD: u16 = 1232;

/// What was answered.
#[derive(Debug)]
pub(super) struct Asked {
    /// Records of the kind that was asked for, under whatever aliases the name has.
    pub(super) records: Vec<RData>,
    /// For how long that holds; of nothing, for how long nothing does (RFC 2308).
    pub(super) ttl: Option<Duration>,
}

impl Asked {
    pub(super) fn none() -> Self {
        Self { records: Vec::new(), ttl: None }
    }
}

/// Asks them in turn. A name that does not exist has no records; an error is that nobody knew.
pub(super) async fn ask(servers: &[SocketAddr], name: &Name, kind: RecordType) -> Result<Asked, String> {
    let mut why = "no name server is known".to_owned();
    for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
        let answer = timeout(WITHIN, Box::pin(exchange(*server, name, kind))).await;
        match answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(answer) => match answer.metadata.response_code {
                ResponseCode::NoError | ResponseCode::NXDomain => return Ok(read(&answer, kind)),
                code => why = format!("{server} answers {kind} {name} with {code}"),
            },
            Err(error) => why = format!("{server} asked for {kind} {name}: {error}"),
        }
    }
    Err(why)
}

fn read(answer: &Message, kind: RecordType) -> Asked {
    let wanted = answer.answers.iter().filter(|record| record.record_type() == kind);
    let records: Vec<RData> = wanted.map(|record| record.data.clone()).collect();
    // An alias on the way may change sooner than what it leads to.
    let answers = answer.answers.iter().map(|record| record.ttl);
    let negative = answer.authorities.iter().filter_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    });
    let ttl = if records.is_empty() { negative.min() } else { answers.min() };
    Asked { records, ttl: ttl.map(|ttl| Duration::from_secs(ttl.into())) }
}

async fn exchange(server: SocketAddr, name: &Name, kind: RecordType) -> io::Result<Message> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    message.set_edns(edns);
    let octets = message.to_vec().map_err(io::Error::other)?;
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(&octets).await?;
    let mut buffer = vec![0; usize::from(PAYLOAD)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What is no answer to this may be forged: the right one may still come.
        let Some(answer) = buffer.get(..length).and_then(|octets| answer_to(&message, octets)) else {
            continue;
        };
        if answer.metadata.truncation {
            return over_tcp(server, &message, &octets).await;
        }
        return Ok(answer);
    }
}

async fn over_tcp(server: SocketAddr, message: &Message, octets: &[u8]) -> io::Result<Message> {
    let length = u16::try_from(octets.len()).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&[&length.to_be_bytes()[..], octets].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    answer_to(message, &answer).ok_or_else(|| io::Error::other("its answer over TCP is none to the question"))
}

fn answer_to(asked: &Message, octets: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(octets).ok()?;
    let fits = answer.metadata.id == asked.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == asked.queries;
    fits.then_some(answer)
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::A;

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    /// Where a server is that answers each question with what is made of it, while it is polled.
    async fn server(answer: impl Fn(Message) -> Vec<Vec<u8>>) -> (SocketAddr, impl Future<Output = ()>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let serve = async move {
            let mut buffer = vec![0; 2048];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                for octets in answer(Message::from_vec(&buffer[..length]).unwrap()) {
                    socket.send_to(&octets, from).await.unwrap();
                }
            }
        };
        (address, serve)
    }

    /// Asks while servers are there.
    async fn asked(servers: &[SocketAddr], serve: impl Future) -> Result<Asked, String> {
        let name = name("a.example.");
        tokio::select! {
            asked = ask(servers, &name, RecordType::A) => asked,
            _ = serve => unreachable!("they go on"),
        }
    }

    fn addressed(asked: Message, octet: u8) -> Message {
        let owner = asked.queries[0].name().clone();
        let mut answer = asked.into_response();
        answer.add_answer(Record::from_rdata(owner, 7, RData::A(A::new(192, 0, 2, octet))));
        answer
    }

    #[tokio::test]
    async fn the_next_server_is_asked_where_one_does_not_know() {
        let (fails, failing) = server(|asked| {
            let mut answer = asked.into_response();
            answer.metadata.response_code = ResponseCode::ServFail;
            vec![answer.to_vec().unwrap()]
        })
        .await;
        let (knows, knowing) = server(|asked| vec![addressed(asked, 1).to_vec().unwrap()]).await;
        let serve = futures_util::future::join(failing, knowing);
        let mut serve = std::pin::pin!(serve);
        let found = asked(&[fails, knows], serve.as_mut()).await.unwrap();
        assert_eq!((found.records.len(), found.ttl), (1, Some(Duration::from_secs(7))));
        let error = asked(&[fails], serve).await.unwrap_err();
        assert!(error.contains(&fails.to_string()) && error.contains("a.example"), "{error}");
    }

    #[tokio::test]
    async fn what_does_not_answer_the_question_is_waited_past() {
        let (forged, serve) = server(|asked| {
            let mut another = addressed(asked.clone(), 66);
            another.metadata.id ^= 1;
            let mut elsewhere = addressed(asked.clone(), 66);
            elsewhere.queries[0].set_name(name("b.example."));
            let [another, elsewhere, right] =
                [another, elsewhere, addressed(asked, 1)].map(|one| one.to_vec().unwrap());
            vec![another, elsewhere, vec![1, 2, 3], right]
        })
        .await;
        let found = asked(&[forged], serve).await.unwrap();
        assert_eq!(found.records, [RData::A(A::new(192, 0, 2, 1))]);
    }
}
