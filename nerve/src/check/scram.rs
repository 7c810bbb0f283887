//! SCRAM-SHA-256 (RFC 5802, RFC 7677) and the older ways to prove a password: what PostgreSQL and MySQL ask for.
//!
//! Pure, but for the nonce. A password with characters beyond ASCII is taken as its bytes, without SASLprep.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};

/// So many rounds may a server ask for; PostgreSQL has 4096 unless told otherwise.
const MAX_ITERATIONS: u32 = 200_000;

/// A login under way: the client's first message was made.
pub(super) struct Scram {
    nonce: String,
}

/// What is sent last, and what the server then has to know.
pub(super) struct Proof {
    /// The client's final message.
    pub(super) message: String,
    /// The server's final message, if it has the password too.
    pub(super) answer: String,
}

impl Scram {
    /// A login with a nonce that nobody knows.
    pub(super) fn begin() -> Result<Self, String> {
        let mut bytes = [0; 18];
        let filled = SystemRandom::new().fill(&mut bytes);
        filled.map_err(|_| "this machine gives no random numbers".to_owned())?;
        Ok(Self { nonce: STANDARD.encode(bytes) })
    }

    /// The client's first message. The user is the one of the startup message.
    pub(super) fn first(&self) -> String {
        format!("n,,{}", self.first_bare())
    }

    fn first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// What follows from the server's first message. Takes milliseconds of a processor.
    pub(super) fn prove(&self, server_first: &str, password: &str) -> Result<Proof, String> {
        let field = |name: &str| {
            let found = server_first.split(',').find_map(|field| field.strip_prefix(name));
            found.ok_or_else(|| format!("SCRAM: the server's challenge has no `{name}`"))
        };
        let (nonce, salt, iterations) = (field("r=")?, field("s=")?, field("i=")?);
        if !nonce.starts_with(&self.nonce) {
            return Err("SCRAM: the server's challenge is for another login".to_owned());
        }
        let salt = STANDARD.decode(salt).map_err(|error| format!("SCRAM: the server's salt: {error}"))?;
        let iterations = iterations.parse::<NonZeroU32>().ok().filter(|n| n.get() <= MAX_ITERATIONS);
        let iterations =
            iterations.ok_or_else(|| format!("SCRAM: not from 1 to {MAX_ITERATIONS} iterations"))?;
        let mut salted = [0; digest::SHA256_OUTPUT_LEN];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, password.as_bytes(), &mut salted);
        let client_key = sign(&salted, b"Client Key");
        let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
        let unproven = format!("c=biws,r={nonce}");
        let signed = format!("{},{server_first},{unproven}", self.first_bare());
        let signature = sign(stored_key.as_ref(), signed.as_bytes());
        let proof = STANDARD.encode(xor(client_key.as_ref(), signature.as_ref()));
        let server_key = sign(&salted, b"Server Key");
        let answer = sign(server_key.as_ref(), signed.as_bytes());
        Ok(Proof {
            message: format!("{unproven},p={proof}"),
            answer: format!("v={}", STANDARD.encode(answer.as_ref())),
        })
    }
}

/// PostgreSQL's `md5`.
pub(super) fn postgres_md5(user: &str, password: &str, salt: [u8; 4]) -> String {
    let inner = format!("{:x}", md5::compute(format!("{password}{user}")));
    format!("md5{:x}", md5::compute([inner.as_bytes(), &salt].concat()))
}

/// MySQL's `mysql_native_password`.
pub(super) fn mysql_native(password: &str, salt: &[u8]) -> Vec<u8> {
    if password.is_empty() {
        return Vec::new();
    }
    let hash = |bytes: &[u8]| digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes);
    let once = hash(password.as_bytes());
    let twice = hash(once.as_ref());
    xor(once.as_ref(), hash(&[salt, twice.as_ref()].concat()).as_ref())
}

/// MySQL's `caching_sha2_password`, on its fast path.
pub(super) fn mysql_sha2(password: &str, salt: &[u8]) -> Vec<u8> {
    if password.is_empty() {
        return Vec::new();
    }
    let hash = |bytes: &[u8]| digest::digest(&digest::SHA256, bytes);
    let once = hash(password.as_bytes());
    let twice = hash(once.as_ref());
    xor(once.as_ref(), hash(&[twice.as_ref(), salt].concat()).as_ref())
}

fn sign(key: &[u8], message: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message)
}

fn xor(left: &[u8], right: &[u8]) -> Vec<u8> {
    left.iter().zip(right).map(|(left, right)| left ^ right).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange of RFC 7677 section 3, but for the user's name, which PostgreSQL leaves empty: so the proof is another.
    #[test]
    fn the_client_proves_the_password_and_asks_the_server_for_the_same() {
        let scram = Scram { nonce: "rOprNGfwEbeRWgbNEkqO".to_owned() };
        let challenge =
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let proof = scram.prove(challenge, "pencil").unwrap();
        assert!(proof.message.starts_with("c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p="));
        assert_ne!(proof.answer, scram.prove(challenge, "pen").unwrap().answer);
        for bad in [
            "r=other,s=QQ==,i=1",
            "r=rOprNGfwEbeRWgbNEkqO,s=QQ==,i=0",
            "r=rOprNGfwEbeRWgbNEkqO,s=QQ==,i=9999999",
            "x",
        ] {
            assert!(scram.prove(bad, "pencil").is_err(), "{bad}");
        }
    }

    #[test]
    fn no_password_is_proven_by_nothing() {
        assert!(mysql_native("", b"12345678").is_empty() && mysql_sha2("", b"12345678").is_empty());
        assert_eq!(mysql_native("a", b"12345678901234567890").len(), 20);
        assert_eq!(mysql_sha2("a", b"12345678901234567890").len(), 32);
    }
}
