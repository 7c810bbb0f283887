//! How long clients may keep answers, by what they are about.
//!
//! Short by default: what stands in an answer changes when a check says so. Zero is allowed, and asks for every connection.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use nerve::model::ServiceName;

/// Whole seconds, from none to a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ttl(u32);

/// Why a text is no time to live.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no time to live: {rule}")]
pub struct TtlError {
    text: String,
    rule: String,
}

/// Times to live by what is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ttls {
    /// Of the domains themselves: SOA, NS.
    pub domains: Ttl,
    /// Of services: their endpoints' addresses, ports and instances.
    pub services: Ttl,
    /// Of virtual addresses.
    pub virtual_addresses: Ttl,
    /// Of nodes, and of names that spell addresses: what SRV records name.
    pub nodes: Ttl,
    /// Of the names of addresses.
    pub reverse: Ttl,
    /// Of "there is none" (RFC 2308).
    pub negative: Ttl,
    /// Of some services, whether a virtual address is answered or endpoints are.
    pub of_services: ServiceTtls,
}

/// Times to live of services by name: its own, else that of the longest beginning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceTtls(Vec<(ServicePattern, Ttl)>);

/// `web`: a service; `web-*`: services whose names begin so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServicePattern {
    /// This one.
    Name(ServiceName),
    /// Those whose names begin so; of every service, where that is nothing.
    Beginning(String),
}

/// Why a text names no services.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no services: write a name such as \"web\", the beginning of some such as \"web-*\", or \"*\""
)]
pub struct PatternError(String);

impl Ttl {
    const LONGEST: u32 = 24 * 60 * 60;

    /// In seconds.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Ttls {
    /// Everything that exists lives so long.
    #[must_use]
    pub fn all(ttl: Ttl, negative: Ttl) -> Self {
        let of_services = ServiceTtls::default();
        let (domains, services, virtual_addresses, nodes, reverse) = (ttl, ttl, ttl, ttl, ttl);
        Self { domains, services, virtual_addresses, nodes, reverse, negative, of_services }
    }

    /// Of a service's endpoints.
    pub(super) fn service(&self, name: &ServiceName) -> Ttl {
        self.of_services.get(name).unwrap_or(self.services)
    }

    /// Of a service's virtual address.
    pub(super) fn virtual_address(&self, name: &ServiceName) -> Ttl {
        self.of_services.get(name).unwrap_or(self.virtual_addresses)
    }
}

impl Default for Ttls {
    /// 5 s, and 2 s for what is not there.
    fn default() -> Self {
        Self::all(Ttl(5), Ttl(2))
    }
}

impl ServiceTtls {
    fn get(&self, name: &ServiceName) -> Option<Ttl> {
        let meant = |pattern: &ServicePattern| match pattern {
            ServicePattern::Name(own) => own == name,
            ServicePattern::Beginning(beginning) => name.as_str().starts_with(beginning),
        };
        self.0.iter().find(|(pattern, _)| meant(pattern)).map(|(_, ttl)| *ttl)
    }
}

impl FromIterator<(ServicePattern, Ttl)> for ServiceTtls {
    fn from_iter<I: IntoIterator<Item = (ServicePattern, Ttl)>>(all: I) -> Self {
        let mut all: Vec<_> = all.into_iter().collect();
        // What says more counts first.
        all.sort_by_key(|(pattern, _)| match pattern {
            ServicePattern::Name(_) => (false, 0),
            ServicePattern::Beginning(beginning) => (true, usize::MAX - beginning.len()),
        });
        Self(all)
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(Duration::from_secs(self.0.into())).fmt(f)
    }
}

impl FromStr for Ttl {
    type Err = TtlError;

    /// Reads `5s`, `1m`, `0s`.
    fn from_str(text: &str) -> Result<Self, TtlError> {
        let refuse = |rule: String| TtlError { text: text.chars().take(60).collect(), rule };
        let time = humantime::parse_duration(text).map_err(|error| refuse(error.to_string()))?;
        if time.subsec_nanos() > 0 {
            return Err(refuse("DNS knows whole seconds only".to_owned()));
        }
        let seconds = u32::try_from(time.as_secs()).ok().filter(|seconds| *seconds <= Self::LONGEST);
        seconds.map(Self).ok_or_else(|| refuse("it is longer than a day".to_owned()))
    }
}

impl fmt::Display for ServicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Beginning(beginning) => write!(f, "{beginning}*"),
        }
    }
}

impl FromStr for ServicePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let refused = || PatternError(text.chars().take(80).collect());
        match text.strip_suffix('*') {
            None => text.parse().map(Self::Name).map_err(|_| refused()),
            // With a letter behind it, a beginning is a name.
            Some(beginning) if format!("{beginning}a").parse::<ServiceName>().is_ok() => {
                Ok(Self::Beginning(beginning.to_owned()))
            }
            Some(_) => Err(refused()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_whole_seconds_up_to_a_day() {
        for (text, shown, seconds) in [("0s", "0s", 0), ("90s", "1m 30s", 90), ("1day", "1day", 86_400)] {
            let ttl: Ttl = text.parse().unwrap();
            assert_eq!((ttl.to_string().as_str(), ttl.get()), (shown, seconds));
            assert_eq!(ttl.to_string().parse(), Ok(ttl));
        }
        for bad in ["", "soon", "500ms", "25h", "-1s", "5000000000s"] {
            assert!(bad.parse::<Ttl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_longest_beginning_counts_and_a_name_before_all() {
        let all = [("*", "9s"), ("web*", "3s"), ("web-*", "4s"), ("web-db", "0s"), ("ap*", "7s")];
        let all = all.map(|(pattern, ttl)| (pattern.parse().unwrap(), ttl.parse().unwrap()));
        let ttls = Ttls { of_services: all.into_iter().collect(), ..Ttls::default() };
        for (name, seconds) in [("web-db", 0), ("web-api", 4), ("web", 3), ("webs", 3), ("api", 7), ("x", 9)]
        {
            let name = name.parse().unwrap();
            assert_eq!((ttls.service(&name).get(), ttls.virtual_address(&name).get()), (seconds, seconds));
        }
        assert_eq!(Ttls::default().service(&"web".parse().unwrap()).get(), 5);
        for bad in ["", "Web", "a b*", "*a", "-*", "a.b"] {
            assert!(bad.parse::<ServicePattern>().is_err(), "{bad}");
        }
    }
}
