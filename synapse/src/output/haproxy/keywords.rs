//! Which lines belong into a frontend, and which into a backend (pure).
//!
//! As Synapse, a line of `listen` goes where its keyword belongs, and one that a section does not take is left out, since HAProxy
//! would refuse the whole file for it. Synapse knows the keywords of HAProxy 1.6; here are those of all versions up to 3.

/// A section of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Frontend,
    Backend,
}

impl Section {
    /// Its word in HAProxy's configuration.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::Backend => "backend",
        }
    }

    /// Does it take the line?
    pub(super) fn takes(self, line: &str) -> bool {
        if line.trim_start().starts_with('#') {
            return true;
        }
        let line = line.to_ascii_lowercase();
        let mut words: Vec<&str> = line.split_whitespace().collect();
        // Options, and `log`, may be turned off and set back.
        if matches!(words.first(), Some(&"no" | &"default")) && words.len() > 1 {
            words.remove(0);
        }
        let own = match self {
            Self::Frontend => FRONTEND,
            Self::Backend => BACKEND,
        };
        let begins = |keyword: &&str| {
            let mut line = words.iter();
            keyword.split(' ').all(|word| line.next() == Some(&word))
        };
        BOTH.iter().chain(own).any(begins)
    }
}

/// Keywords of both.
const BOTH: &[&str] = &[
    "acl",
    "bind-process",
    "block",
    "compression",
    "description",
    "disabled",
    "email-alert",
    "enabled",
    "errorfile",
    "errorfiles",
    "errorloc",
    "errorloc302",
    "errorloc303",
    "filter",
    "force-persist",
    "grace",
    "guid",
    "http-after-response",
    "http-error",
    "http-request",
    "http-response",
    "id",
    "ignore-persist",
    "log",
    "log-steps",
    "log-tag",
    "mode",
    "option forceclose",
    "option forwarded",
    "option forwardfor",
    "option http-buffer-request",
    "option http-drop-request-trailers",
    "option http-drop-response-trailers",
    "option http-keep-alive",
    "option http-no-delay",
    "option http-pretend-keepalive",
    "option http-restrict-req-hdr-names",
    "option http-server-close",
    "option http-tunnel",
    "option http_proxy",
    "option httpclose",
    "option httplog",
    "option independent-streams",
    "option nolinger",
    "option originalto",
    "option splice-auto",
    "option splice-request",
    "option splice-response",
    "option tcpka",
    "option tcplog",
    "redirect",
    "reqadd",
    "reqallow",
    "reqdel",
    "reqdeny",
    "reqiallow",
    "reqidel",
    "reqideny",
    "reqipass",
    "reqirep",
    "reqisetbe",
    "reqitarpit",
    "reqpass",
    "reqrep",
    "reqsetbe",
    "reqtarpit",
    "rspadd",
    "rspdel",
    "rspdeny",
    "rspidel",
    "rspideny",
    "rspirep",
    "rsprep",
    "stats",
    "stick-table",
    "tcp-request content",
    "tcp-request inspect-delay",
    "timeout http-keep-alive",
    "timeout http-request",
    "timeout tarpit",
];

const FRONTEND: &[&str] = &[
    "backlog",
    "bind",
    "capture cookie",
    "capture request header",
    "capture response header",
    "clitcpka-cnt",
    "clitcpka-idle",
    "clitcpka-intvl",
    "clitimeout",
    "declare capture",
    "default_backend",
    "error-log-format",
    "log-format",
    "log-format-sd",
    "maxconn",
    "monitor fail",
    "monitor-net",
    "monitor-uri",
    "option accept-invalid-http-request",
    "option accept-unsafe-violations-in-http-request",
    "option clitcpka",
    "option contstats",
    "option disable-h2-upgrade",
    "option dontlog-normal",
    "option dontlognull",
    "option h1-case-adjust-bogus-client",
    "option http-ignore-probes",
    "option http-use-proxy-header",
    "option httpslog",
    "option idle-close-on-response",
    "option log-separate-errors",
    "option logasap",
    "option socket-stats",
    "option tcp-smart-accept",
    "rate-limit sessions",
    "tcp-request connection",
    "tcp-request session",
    "timeout client",
    "timeout client-fin",
    "timeout client-hs",
    "timeout clitimeout",
    "unique-id-format",
    "unique-id-header",
    "use_backend",
];

const BACKEND: &[&str] = &[
    "appsession",
    "balance",
    "contimeout",
    "cookie",
    "default-server",
    "dispatch",
    "dynamic-cookie-key",
    "external-check command",
    "external-check path",
    "fullconn",
    "hash-balance-factor",
    "hash-preserve-affinity",
    "hash-type",
    "http-check",
    "http-reuse",
    "http-send-name-header",
    "load-server-state-from-file",
    "max-keep-alive-queue",
    "max-session-srv-conns",
    "option abortonclose",
    "option accept-invalid-http-response",
    "option accept-unsafe-violations-in-http-response",
    "option allbackups",
    "option allredisp",
    "option checkcache",
    "option external-check",
    "option h1-case-adjust-bogus-server",
    "option httpchk",
    "option lb-agent-chk",
    "option ldap-check",
    "option log-health-checks",
    "option mysql-check",
    "option persist",
    "option pgsql-check",
    "option prefer-last-server",
    "option redis-check",
    "option redispatch",
    "option smtpchk",
    "option spop-check",
    "option srvtcpka",
    "option ssl-hello-chk",
    "option tcp-check",
    "option tcp-smart-connect",
    "option transparent",
    "persist",
    "redisp",
    "redispatch",
    "retries",
    "retry-on",
    "server",
    "server-state-file-name",
    "server-template",
    "source",
    "srvtcpka-cnt",
    "srvtcpka-idle",
    "srvtcpka-intvl",
    "srvtimeout",
    "stick match",
    "stick on",
    "stick store-request",
    "stick store-response",
    "tcp-check",
    "tcp-response",
    "timeout check",
    "timeout connect",
    "timeout contimeout",
    "timeout queue",
    "timeout server",
    "timeout server-fin",
    "timeout srvtimeout",
    "timeout tunnel",
    "transparent",
    "use-fcgi-app",
    "use-server",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_where_its_keyword_belongs() {
        let where_to = |line| [Section::Frontend.takes(line), Section::Backend.takes(line)];
        for line in
            ["mode http", "MODE  tcp", "no option  httpclose", "acl x src 10.0.0.0/8", "log global", "# x"]
        {
            assert_eq!(where_to(line), [true, true], "{line}");
        }
        for line in ["timeout client 30s", "bind :80 ssl", "use_backend x if y", "monitor-uri /ok"] {
            assert_eq!(where_to(line), [true, false], "{line}");
        }
        for line in
            ["balance leastconn", "option httpchk /ping", "http-check send meth GET", "cookie x insert"]
        {
            assert_eq!(where_to(line), [false, true], "{line}");
        }
        for line in ["backend x", "global", "option", "timeout", "modes http", "no", "nonsense"] {
            assert_eq!(where_to(line), [false, false], "{line}");
        }
    }
}
