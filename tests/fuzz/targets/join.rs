//! Whatever somebody says who asks to be certified, or who answers: a message is read as it was meant, waited for or refused, never
//! beyond its end and never differently for arriving in pieces; a token is what its text says; and nobody is certified to be more
//! than they were let in as, whatever their request asks for.

#![no_main]

use std::sync::OnceLock;
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mesh::identity::protocol::{Answer, Request, read, write};
use mesh::identity::{Authorities, Certified, Subject, Token, TrustDomain};
use nerve::model::NodeName;
use tokio::runtime::Runtime;

#[derive(Debug, Arbitrary)]
enum Said {
    /// Octets on a connection.
    Message(Vec<u8>),
    /// A message of this length, at least as it says.
    Framed { body: Vec<u8>, more: Vec<u8> },
    /// A certificate request, good but for a few octets.
    Asked { changes: Vec<(u16, u8)>, cut: Option<u16> },
    Token(String),
}

struct World {
    runtime: Runtime,
    authorities: Authorities,
    /// What an agent would send.
    request: Vec<u8>,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let directory = std::env::temp_dir().join(format!("plexus-fuzz-join-{}", std::process::id()));
        let authorities = Authorities::create(&directory, &TrustDomain::default()).expect("an authority");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (_, request) = mesh::identity::request().expect("a key");
        World { runtime, authorities, request }
    })
}

fn message(octets: &[u8]) {
    let runtime = &world().runtime;
    let mut rest = octets;
    let request = runtime.block_on(read::<Request>(&mut rest));
    let length = octets.first_chunk().map(|length| u32::from_be_bytes(*length) as usize);
    if let (Ok(request), Some(length)) = (&request, length) {
        assert_eq!(octets.len() - rest.len(), 4 + length, "what follows is not looked at");
        for cut in [0, 3, 4, 3 + length] {
            assert!(runtime.block_on(read::<Request>(&mut &octets[..cut])).is_err(), "{cut} octets are no message");
        }
        let mut written = Vec::new();
        runtime.block_on(write(&mut written, request)).expect("memory takes it");
        let again: Request = runtime.block_on(read(&mut &written[..])).expect("what was written is read");
        assert_eq!((&again.node, &again.request.0), (&request.node, &request.request.0));
        certify(&request.request.0);
    }
    let _ = runtime.block_on(read::<Answer>(&mut &octets[..]));
}

fn certify(request: &[u8]) {
    let subject = Subject::Node(NodeName::new("a").expect("a name"));
    let life = Duration::from_secs(60);
    if let Ok(certificate) = world().authorities.root().certify(request, subject.clone(), life, None) {
        let certified = Certified::read(&certificate).expect("what was made is read");
        assert_eq!(certified.id.subject, subject, "of what it asks for, nothing is believed");
        assert!(certified.not_after <= std::time::SystemTime::now() + life);
    }
}

fuzz_target!(|said: Said| {
    match said {
        Said::Message(octets) => message(&octets),
        Said::Framed { body, more } => {
            let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
            message(&[&length[..], &body, &more].concat());
        }
        Said::Asked { changes, cut } => {
            let mut request = world().request.clone();
            for (at, octet) in changes {
                let at = usize::from(at) % request.len();
                request[at] = octet;
            }
            request.truncate(cut.map_or(usize::MAX, usize::from));
            certify(&request);
        }
        Said::Token(text) => {
            for text in [&text, &format!("plexus-join-{text}")] {
                if let Ok(token) = text.parse::<Token>() {
                    assert_eq!(token.text(), text.trim());
                    assert_eq!(token.text().parse::<Token>().as_ref(), Ok(&token));
                }
            }
        }
    }
});
