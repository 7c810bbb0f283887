//! DNS questions, asked by `dig`.

use std::net::IpAddr;

use crate::netns::Namespace;

/// What a name server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `NOERROR`, `NXDOMAIN`, …; `NO ANSWER` when there was none.
    pub status: String,
    /// The flags: `aa`, `ra`, `tc`, …
    pub flags: Vec<String>,
    /// The data of the answer section, sorted.
    pub data: Vec<String>,
    /// The lines of the authority section.
    pub authority: Vec<String>,
    /// The TTLs of the answer section.
    pub ttls: Vec<u32>,
}

/// Asks `server` from inside a namespace, once, for at most a second.
#[must_use]
pub fn ask(from: &Namespace, server: IpAddr, name: &str, kind: &str, options: &[&str]) -> Answer {
    let server = format!("@{server}");
    let mut arguments = vec![server.as_str(), name, kind, "+time=1", "+tries=1", "+noedns"];
    arguments.extend(options);
    parse(&from.exec("dig", &arguments).stdout)
}

fn parse(text: &str) -> Answer {
    let mut answer = Answer {
        status: "NO ANSWER".to_owned(),
        flags: Vec::new(),
        data: Vec::new(),
        authority: Vec::new(),
        ttls: Vec::new(),
    };
    let mut section = "";
    for line in text.lines() {
        if let Some((_, status)) = line.split_once("status: ") {
            status.split(',').next().unwrap_or_default().clone_into(&mut answer.status);
        } else if let Some(flags) = line.strip_prefix(";; flags: ") {
            let flags = flags.split(';').next().unwrap_or_default();
            answer.flags = flags.split_whitespace().map(str::to_owned).collect();
        } else if let Some(head) = line.strip_prefix(";; ").and_then(|head| head.strip_suffix(" SECTION:")) {
            section = head;
        } else if line.is_empty() || line.starts_with(';') {
        } else if section == "ANSWER" {
            let mut fields = line.split_whitespace().skip(1);
            answer.ttls.extend(fields.next().and_then(|ttl| ttl.parse::<u32>().ok()));
            answer.data.push(fields.skip(2).collect::<Vec<_>>().join(" "));
        } else if section == "AUTHORITY" {
            answer.authority.push(line.to_owned());
        }
    }
    answer.data.sort();
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dig_prints_is_understood() {
        let text = ";; ->>HEADER<<- opcode: QUERY, status: NOERROR, id: 1\n\
                    ;; flags: qr aa rd; QUERY: 1, ANSWER: 2, AUTHORITY: 0, ADDITIONAL: 0\n\n\
                    ;; QUESTION SECTION:\n;web.mesh.internal.\tIN A\n\n\
                    ;; ANSWER SECTION:\nweb.mesh.internal.\t5 IN A 10.0.0.2\nweb.mesh.internal.\t5 IN A 10.0.0.1\n\n\
                    ;; Query time: 0 msec\n";
        let answer = parse(text);
        assert_eq!(answer.status, "NOERROR");
        assert_eq!(answer.flags, ["qr", "aa", "rd"]);
        assert_eq!(answer.data, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(answer.ttls, [5, 5]);
    }

    #[test]
    fn silence_is_no_answer() {
        assert_eq!(parse(";; connection timed out; no servers could be reached\n").status, "NO ANSWER");
    }
}
