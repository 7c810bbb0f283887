//! The checks of a service of Nerve's, in our words.
//!
//! What differs, and why: the interval is from probe to probe, as here everywhere, where Nerve's is the pause between them; a
//! timeout is for a whole probe, where Nerve's HTTP check has one for each read; all checks are probed every time, where
//! Nerve stops at the first that fails; and `rise` counts at the start too.

use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use crate::check::CheckSpec;
use crate::document::{Document, Reported, Section, Value};
use crate::smartstack::{Number, Seconds, Word, resolve};

/// What Nerve's HTTP check allows for connecting, and for beginning TLS, unless it is told.
const OPEN_TIMEOUT: Duration = Duration::from_millis(200);
/// Nerve's timeout of everything else.
const TIMEOUT: Duration = Duration::from_millis(100);
/// The key that Nerve's check of Redis asks for, to see through a proxy.
const REDIS_KEY: &str = "nerve-redis-service-check";

/// The service that checks are of.
pub(super) struct Of {
    pub(super) address: IpAddr,
    pub(super) interval: Duration,
}

/// Reads one table of `checks`; `None`: it is always well, and so is no check.
pub(super) fn read(section: &mut Section<'_>, of: &Of) -> Result<Option<CheckSpec>, Reported> {
    let kind = section.required::<Word>("type");
    section.allow("name");
    section.allow("module");
    let (host, port) = (section.given::<Word>("host"), section.given::<Number<NonZeroU16>>("port"));
    let timeout = section.or("timeout", Seconds(TIMEOUT)).0;
    let rise = section.or("rise", Number(NonZeroU32::MIN)).0;
    let fall = section.or("fall", Number(NonZeroU32::MIN)).0;
    let (Word(kind), host, port) = (kind?, host?, port?);
    let mut check = Map::new();
    let mut timeout = timeout;
    let default_host = match kind.as_str() {
        "http" => {
            timeout = http(section, timeout, &mut check)?;
            // The one kind of Nerve's that does not ask the service's own address.
            Some("127.0.0.1".to_owned())
        }
        "tcp" => None,
        "redis" => {
            check.insert("key".to_owned(), REDIS_KEY.into());
            None
        }
        "rabbitmq" => {
            for key in ["username", "password"] {
                let word = section.or(key, Word("guest".to_owned()));
                check.insert(key.to_owned(), word.0.into());
            }
            check.insert("queue".to_owned(), "nerve".into());
            None
        }
        "noop" => return Ok(None),
        other => {
            let why = format_args!("{other:?} is a kind that is a program of its own");
            let expected = "tcp, http, redis, rabbitmq or noop; otherwise define the service in services.d, with an `external` check";
            return Err(section.invalid("type", why, expected));
        }
    };
    let port = port.map_or(Json::Bool(true), |Number(port)| port.get().into());
    if kind == "http" {
        if port != Json::Bool(true) {
            check.insert("port".to_owned(), port);
        }
    } else {
        check.insert(kind, port);
    }
    if let Some(host) = host.map(|Word(host)| host).or(default_host) {
        let address = resolve(&host).map_err(|error| section.invalid("host", error, "an address"))?;
        if address != of.address {
            check.insert("address".to_owned(), address.to_string().into());
        }
    }
    // Probes may not overlap.
    let interval = of.interval.max(timeout).max(Duration::from_millis(1));
    check.insert("interval".to_owned(), shown(interval).into());
    check.insert("timeout".to_owned(), shown(timeout.max(Duration::from_millis(1))).into());
    check.insert("rise".to_owned(), rise.get().into());
    check.insert("fall".to_owned(), fall.get().into());
    let text = Json::Object(check).to_string();
    let read = Document::parse_json("", &text).and_then(|document| document.decode(CheckSpec::read));
    read.map(Some).map_err(|errors| section.refuse(errors.summary(), ""))
}

/// The keys of `http`; returns how long a probe may take.
fn http(
    section: &mut Section<'_>,
    timeout: Duration,
    check: &mut Map<String, Json>,
) -> Result<Duration, Reported> {
    let uri = section.required::<Word>("uri");
    let ssl = section.or("ssl", false);
    let expect = section.optional::<Word>("expect");
    let headers = section.optional::<Value>("headers");
    let read = section.or("read_timeout", Seconds(timeout)).0;
    let open = section.or("open_timeout", Seconds(OPEN_TIMEOUT)).0;
    let tls = section.or("ssl_timeout", Seconds(OPEN_TIMEOUT)).0;
    let Word(uri) = uri?;
    let uri = if uri.starts_with('/') { uri } else { format!("/{uri}") };
    check.insert(if ssl { "https" } else { "http" }.to_owned(), uri.into());
    check.insert("status".to_owned(), "200-399".into());
    if ssl {
        check.insert("insecure".to_owned(), true.into());
    }
    if let Some(Word(expect)) = expect {
        check.insert("contains".to_owned(), expect.into());
    }
    if let Some(headers) = headers {
        // Numbers among them are texts to Ruby, too.
        let headers = match json!(headers) {
            Json::Object(headers) => headers.into_iter().map(|(name, value)| match value {
                Json::String(text) => (name, text.into()),
                other => (name, other.to_string().into()),
            }),
            _ => return Err(section.invalid("headers", "it is no table", "names and values of headers")),
        };
        check.insert("headers".to_owned(), Json::Object(headers.collect()));
    }
    Ok(open + read + if ssl { tls } else { Duration::ZERO })
}

fn shown(duration: Duration) -> String {
    humantime::format_duration(Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
        .to_string()
}
