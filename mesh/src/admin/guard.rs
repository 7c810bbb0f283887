//! What the admin interface refuses before it looks at a request: browsers acting for a foreign page.
//!
//! Who comes over loopback may change things unless told otherwise, and a browser on the same machine comes over loopback, in the name
//! of any page that it shows.
//! Two rules keep such pages out. A *write* must be one that a foreign page cannot send without asking first (the Fetch
//! standard's CORS preflight, which is never granted here), and have no foreign `Origin`: it carries `content-type:
//! application/json`, or it is a `PUT`, which is asked for whatever it carries, and which clients of Consul send without a type.
//! *Any* request over loopback must name an IP address or `localhost` as its host: a foreign name that leads to 127.0.0.1
//! is DNS rebinding. No browser speaks with a unix socket, so that nothing is asked of what comes by one. Never a substitute for a firewall on an address that strangers can reach.

use std::net::IpAddr;

use hyper::http::{HeaderMap, HeaderName, Method, header};

use super::access::Origin;

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Foreign {
    /// The `Host` is a name that does not mean this machine.
    Host,
    /// The `Origin`, or `Sec-Fetch-Site`, is another site.
    Origin,
    /// A write without `content-type: application/json`.
    ContentType,
}

impl Foreign {
    /// The word for it, as in metric labels.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Host => "foreign_host",
            Self::Origin => "foreign_origin",
            Self::ContentType => "content_type",
        }
    }

    /// What to do about it.
    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::Host => "ask for http://127.0.0.1:PORT or http://localhost:PORT",
            Self::Origin => "web pages of other sites may not use this interface",
            Self::ContentType => "send the header `content-type: application/json`",
        }
    }
}

/// May this request be answered?
pub(super) fn check(method: &Method, headers: &HeaderMap, origin: Origin) -> Result<(), Foreign> {
    if matches!(origin, Origin::Socket(_)) {
        return Ok(());
    }
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if origin == Origin::Loopback && !means_this_machine(host) {
        return Err(Foreign::Host);
    }
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        // `null` and unreadable origins are foreign too.
        let same = origin.to_str().is_ok_and(|origin| origin.strip_prefix("http://") == Some(host));
        if !same {
            return Err(Foreign::Origin);
        }
    }
    let site = headers.get(HeaderName::from_static("sec-fetch-site")).map(|value| value.as_bytes());
    if site.is_some_and(|site| site != b"same-origin" && site != b"none") {
        return Err(Foreign::Origin);
    }
    let json = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|kind| {
        kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
    });
    if json || *method == Method::PUT && !headers.contains_key(header::CONTENT_TYPE) {
        Ok(())
    } else {
        Err(Foreign::ContentType)
    }
}

/// Is the `Host` an IP address or `localhost`, with or without a port? An HTTP/1.0 client sends none.
fn means_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.is_empty() || name.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::Peer;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

    #[test]
    fn a_name_that_was_made_to_lead_to_loopback_is_refused() {
        for good in ["127.0.0.1:7070", "localhost:7070", "[::1]:7070", "127.0.0.1", "LOCALHOST"] {
            let asked = headers(&[("host", good)]);
            assert_eq!(check(&Method::GET, &asked, Origin::Loopback), Ok(()), "{good}");
        }
        for bad in ["evil.example:7070", "localhost.evil.example", "127.0.0.1.evil.example"] {
            let asked = headers(&[("host", bad)]);
            assert_eq!(check(&Method::GET, &asked, Origin::Loopback), Err(Foreign::Host), "{bad}");
            assert_eq!(check(&Method::GET, &asked, Origin::Network), Ok(()), "{bad}");
        }
    }

    #[test]
    fn a_page_of_another_site_cannot_write() {
        let host = ("host", "127.0.0.1:7070");
        let write = |more: &[(&'static str, &'static str)]| {
            check(&Method::PUT, &headers(&[&[host, JSON], more].concat()), Origin::Loopback)
        };
        assert_eq!(write(&[]), Ok(()));
        assert_eq!(write(&[("origin", "http://127.0.0.1:7070")]), Ok(()));
        assert_eq!(write(&[("origin", "http://evil.example")]), Err(Foreign::Origin));
        assert_eq!(write(&[("origin", "null")]), Err(Foreign::Origin));
        assert_eq!(write(&[("sec-fetch-site", "cross-site")]), Err(Foreign::Origin));
    }

    #[test]
    fn a_form_cannot_write() {
        for kind in
            ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"]
        {
            let form = headers(&[("host", "localhost"), ("content-type", kind)]);
            assert_eq!(check(&Method::POST, &form, Origin::Loopback), Err(Foreign::ContentType), "{kind}");
        }
        let nothing = headers(&[("host", "localhost")]);
        assert_eq!(check(&Method::DELETE, &nothing, Origin::Loopback), Err(Foreign::ContentType));
        assert_eq!(check(&Method::POST, &nothing, Origin::Loopback), Err(Foreign::ContentType));
        let put = check(&Method::PUT, &nothing, Origin::Loopback);
        assert_eq!(put, Ok(()), "a page is never let do this unasked");
    }

    #[test]
    fn no_page_comes_by_a_unix_socket() {
        let anything = headers(&[("host", "any.example"), ("origin", "http://any.example")]);
        let socket = Origin::Socket(Peer { uid: 1000, pid: None });
        assert_eq!(check(&Method::POST, &anything, socket), Ok(()));
    }
}
