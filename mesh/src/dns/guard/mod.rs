//! What keeps the server from being used against others: cookies that prove where a client is, and a limit on what is sent
//! to networks that prove nothing.
//!
//! A client is *trusted* when what it is sent can only fall upon itself, or upon nobody but this site: it asks over a connection, shows a
//! cookie of ours, or is exempt from the limit. Others get no more than 512 octets at a time over UDP, and only so many answers
//! a second. Both roads of a query come by here; nothing here knows names or records.

mod cookie;
mod edns;
mod rate_limit;
mod siphash;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) use cookie::Sent;
use cookie::{Cookies, Signer, Worth};
pub(super) use edns::{Asked, COOKIE, Malformed, Said, read};
use rate_limit::{Passage, RateLimiter};

use super::config::Config;
use super::metrics::{AnswerKind, CookieKind, Metrics, Transport};
use super::wire::{self, flag, rcode};

/// One for all sockets.
#[derive(Debug)]
pub(super) struct Guard {
    cookies: Option<Cookies>,
    limiter: Option<RateLimiter>,
    nsid: Option<Arc<str>>,
    /// How long connections may be idle, in units of 100 ms.
    keepalive: u16,
    metrics: Arc<Metrics>,
}

/// What holds for the queries of one batch.
#[derive(Debug)]
pub(super) struct Moment {
    signer: Option<Signer>,
    /// By the limiter's clock.
    now: u64,
}

/// A client, as one of its queries shows it.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    /// What is said back to its EDNS.
    pub(super) said: Option<Said>,
    /// The most octets that it is sent over UDP.
    pub(super) most: u16,
    is_trusted: bool,
    cookie: Option<CookieKind>,
}

impl Guard {
    pub(super) fn new(config: &Config, metrics: Arc<Metrics>) -> Self {
        let keepalive = config.limits.tcp_idle.as_millis() / 100;
        Self {
            cookies: config.cookies.then(|| Cookies::new(seconds())),
            limiter: config.rate_limit.clone().map(RateLimiter::new),
            nsid: config.identity.server.as_ref().map(|text| Arc::from(text.as_str())),
            keepalive: u16::try_from(keepalive).unwrap_or(u16::MAX),
            metrics,
        }
    }

    pub(super) fn moment(&self) -> Moment {
        Moment {
            signer: self.cookies.as_ref().map(|cookies| cookies.signer(seconds())),
            now: self.limiter.as_ref().map_or(0, RateLimiter::now),
        }
    }

    /// What has to be done now and then.
    pub(super) fn tidy(&self) {
        if let Some(cookies) = &self.cookies {
            cookies.tidy(seconds());
        }
        if let Some(limiter) = &self.limiter {
            limiter.tidy(limiter.now());
        }
    }

    /// How a client stands that asks this by EDNS, if it speaks it.
    pub(super) fn meet(
        &self,
        asked: Option<&Asked>,
        client: IpAddr,
        transport: Transport,
        moment: &Moment,
    ) -> Standing {
        let is_exempt = self.limiter.as_ref().is_none_or(|limiter| limiter.exempts(client));
        let mut standing = Standing {
            said: None,
            most: wire::PLAIN_UDP_PAYLOAD,
            is_trusted: is_exempt || transport != Transport::Udp,
            cookie: None,
        };
        let Some(asked) = asked else { return standing };
        let mut said = Said { dnssec_ok: asked.dnssec_ok, ..Said::default() };
        if let (Some(sent), Some(signer)) = (&asked.cookie, &moment.signer) {
            let (worth, cookie) = signer.judge(sent, client.to_canonical());
            said.cookie = Some(cookie);
            standing.is_trusted |= worth == Worth::Valid;
            standing.cookie = Some(match worth {
                Worth::New => CookieKind::New,
                Worth::Valid => CookieKind::Valid,
                Worth::Invalid => CookieKind::Invalid,
            });
        }
        if asked.nsid {
            said.nsid.clone_from(&self.nsid);
        }
        said.keepalive = asked.keepalive.then_some(self.keepalive);
        standing.said = Some(said);
        if standing.is_trusted {
            // RFC 6891 section 6.2.3: less than 512 means 512.
            standing.most = asked.payload.clamp(wire::PLAIN_UDP_PAYLOAD, wire::UDP_PAYLOAD);
        }
        standing
    }

    /// Counts what was shown.
    pub(super) fn count(&self, standing: &Standing) {
        if let Some(kind) = standing.cookie {
            self.metrics.cookies.inc(kind);
        }
    }

    /// Lets an answer over UDP pass that stands behind `begin`, cuts it short, or takes it away. Is there something to send?
    pub(super) fn pass(
        &self,
        answer: &mut Vec<u8>,
        begin: usize,
        standing: &Standing,
        client: IpAddr,
        moment: &Moment,
    ) -> bool {
        let Some(limiter) = self.limiter.as_ref().filter(|_| !standing.is_trusted) else { return true };
        let Some(message) = answer.get(begin..) else { return false };
        let kind = kind_of(message);
        match limiter.admit(client, kind, moment.now) {
            Passage::Whole => return true,
            Passage::Short => cut_short(answer, begin, standing.said.as_ref()),
            Passage::None => answer.truncate(begin),
        }
        self.metrics.rate_limited.inc(kind);
        answer.len() > begin
    }

    /// The time that a [`Moment`] which was long ago has by now.
    pub(super) fn again(&self) -> Moment {
        Moment { signer: None, now: self.limiter.as_ref().map_or(0, RateLimiter::now) }
    }
}

fn kind_of(answer: &[u8]) -> AnswerKind {
    match (wire::flags(answer) & flag::RCODE, wire::u16_at(answer, 6)) {
        (rcode::NO_ERROR, Some(1..)) => AnswerKind::Records,
        (rcode::NO_ERROR | rcode::NX_DOMAIN, _) => AnswerKind::Negative,
        _ => AnswerKind::Error,
    }
}

/// The question alone, which says nothing but that TCP knows more.
fn cut_short(answer: &mut Vec<u8>, begin: usize, said: Option<&Said>) {
    let Some(message) = answer.get_mut(begin..) else { return };
    let kept = flag::OPCODE | flag::RECURSION_DESIRED | flag::RECURSION_AVAILABLE | flag::CHECKING_DISABLED;
    let flags = flag::RESPONSE | flag::TRUNCATED | wire::flags(message) & kept;
    let end = wire::question_end(message).unwrap_or(wire::HEADER);
    wire::put_u16(message, 2, flags);
    for (at, count) in [(4, u16::from(end > wire::HEADER)), (6, 0), (8, 0), (10, u16::from(said.is_some()))] {
        wire::put_u16(message, at, count);
    }
    answer.truncate(begin + end);
    if let Some(said) = said {
        said.push(answer, 0, None);
    }
}

/// Since 1970, as RFC 9018 has it: they wrap in 2106, which serial arithmetic takes.
fn seconds() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    u32::try_from(now & u64::from(u32::MAX)).unwrap_or(0)
}
