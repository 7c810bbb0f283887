//! CFSSL's API for signing, as its documentation has it: `POST /api/v1/cfssl/authsign`, whose token is an HMAC of the request, and what
//! OpenSSL makes of that.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ring::hmac;
use serde_json::{Value, json};

use super::api::{Answer, Asked, Speaks, lock};
use crate::process::run;

/// An authority in a directory.
#[derive(Debug)]
pub struct Cfssl {
    directory: PathBuf,
    key: Vec<u8>,
    /// What it certifies instead of what is asked for.
    lies: Mutex<Option<String>>,
    signed: AtomicUsize,
}

impl Cfssl {
    /// Makes a root in a directory, `ca.pem`; whoever asks has to know the key.
    ///
    /// # Panics
    /// OpenSSL makes none.
    #[must_use]
    pub fn new(directory: &Path, key: &[u8]) -> Self {
        fs::create_dir_all(directory).expect("a directory");
        let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9 -subj /CN=cfssl \
                      -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.pem";
        let made = Self {
            directory: directory.to_owned(),
            key: key.to_owned(),
            lies: Mutex::default(),
            signed: AtomicUsize::new(0),
        };
        made.shell(script);
        made
    }

    /// Certifies this name from now on, whoever asks; or whom it is asked for.
    pub fn lie(&self, name: Option<&str>) {
        *lock(&self.lies) = name.map(str::to_owned);
    }

    /// How much it has signed.
    pub fn signed(&self) -> usize {
        self.signed.load(Ordering::Relaxed)
    }

    fn shell(&self, script: &str) {
        let script = format!("set -e; cd {}; {script}", self.directory.display());
        let _ = run(&["sh", "-c", &script]).expect("a shell").ok();
    }

    /// Who asks in a request that is proved to be by who has the key.
    fn request(&self, body: &str) -> Result<Value, &'static str> {
        let asked: Value = serde_json::from_str(body).map_err(|_| "malformed")?;
        let octets = |key: &str| decode(asked[key].as_str().unwrap_or_default());
        let (token, request) = (octets("token"), octets("request"));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.key);
        hmac::verify(&key, &request, &token).map_err(|_| "invalid token")?;
        serde_json::from_slice(&request).map_err(|_| "malformed")
    }

    fn sign(&self, request: &Value) -> String {
        let number = self.signed.fetch_add(1, Ordering::Relaxed);
        let file = |name: &str| self.directory.join(format!("{number}.{name}"));
        let host = request["hosts"][0].as_str().expect("a host").to_owned();
        let host = lock(&self.lies).clone().unwrap_or(host);
        let pem = request["certificate_request"].as_str().expect("a request");
        fs::write(file("csr"), pem).expect("written");
        fs::write(file("ext"), format!("subjectAltName=URI:{host}\nkeyUsage=digitalSignature\n"))
            .expect("written");
        self.shell(&format!(
            "openssl x509 -req -in {number}.csr -CA ca.pem -CAkey ca.key -set_serial {} -days 2 -extfile {number}.ext \
             -out {number}.pem",
            number + 2
        ));
        fs::read_to_string(file("pem")).expect("a certificate")
    }
}

impl Speaks for Cfssl {
    fn answer(&self, asked: &Asked) -> Answer {
        let refused = |code: u16, message: &str| {
            let errors = json!([{ "code": code, "message": message }]);
            json!({ "success": false, "result": null, "errors": errors, "messages": [] })
        };
        let (status, answer) = match (asked.method.as_str(), asked.path.as_str()) {
            ("POST", "/api/v1/cfssl/authsign") => match self.request(&asked.body) {
                Ok(request) => {
                    let certificate = self.sign(&request);
                    let result = json!({ "certificate": certificate });
                    (200, json!({ "success": true, "result": result, "errors": [], "messages": [] }))
                }
                Err(why) => (401, refused(6000, why)),
            },
            _ => (404, refused(404, "no such endpoint")),
        };
        Answer::Whole(status, answer.to_string())
    }
}

/// Base64, as RFC 4648 section 4 has it.
fn decode(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let value = |octet: u8| DIGITS.iter().position(|digit| *digit == octet);
    let (mut octets, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for digit in text.bytes().filter_map(value) {
        bits = bits << 6 | u32::try_from(digit).expect("below 64");
        held += 6;
        if held >= 8 {
            held -= 8;
            octets.push(u8::try_from(bits >> held & 0xff).expect("an octet"));
        }
    }
    octets
}
