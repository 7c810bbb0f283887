//! `plexus resolve`: what DNS would answer here, and why.

use std::collections::BTreeMap;
use std::str::FromStr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use synapse::catalog::{Freshness, Service};

use super::zone::{Meaning, Zone};

/// An answer with its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The name as it was looked up, fully qualified.
    pub name: String,
    /// The type asked for.
    pub record_type: String,
    /// `NOERROR`, `NXDOMAIN`, …
    pub code: String,
    /// The records, as in a zone file.
    pub answers: Vec<String>,
    /// How the answer comes about, a sentence each.
    pub why: Vec<String>,
}

impl Zone {
    /// Explains the answer to `name` and `record_type` (`A`, `SRV`, …). An error says what is wrong with the question.
    pub fn explain(&self, name: &str, record_type: &str) -> Result<Explanation, String> {
        let kind = RecordType::from_str(&record_type.to_ascii_uppercase())
            .map_err(|_| format!("{record_type:?} is no record type: A, AAAA, SRV, NS or SOA"))?;
        let mut question =
            Name::from_utf8(name).map_err(|error| format!("{name:?} is no domain name: {error}"))?;
        question.set_fqdn(true);
        if !self.holds(&question) {
            return Ok(Explanation {
                name: question.to_utf8(),
                record_type: kind.to_string(),
                code: String::new(),
                answers: Vec::new(),
                why: vec![format!(
                    "it is not below {}: it is forwarded to the upstream servers",
                    self.domain_text()
                )],
            });
        }
        let answer = self.answer(&question, kind);
        let mut why = vec![self.why(&self.meaning(&question))];
        match &*self.catalog().freshness() {
            Freshness::Awaiting => why.push(
                "the store has not answered yet: nothing is known, so the answer is SERVFAIL".to_owned(),
            ),
            Freshness::Live => {}
            Freshness::Stale { reason, .. } => why.push(format!("this is the last known good: {reason}")),
        }
        Ok(Explanation {
            name: question.to_utf8(),
            record_type: kind.to_string(),
            code: code(answer.code).to_owned(),
            answers: answer.answers.iter().map(ToString::to_string).collect(),
            why,
        })
    }

    fn why(&self, meaning: &Meaning) -> String {
        match meaning {
            Meaning::Apex => "it is the domain of the mesh itself: it has SOA and NS".to_owned(),
            Meaning::Branch => "names stand below it, but it has no records of its own".to_owned(),
            Meaning::Unknown => format!("no service or node of {} has this name", self.domain_text()),
            Meaning::Address(address) => format!("it stands for the address {address}"),
            Meaning::Service { service, .. } => of_service(service),
        }
    }
}

fn of_service(service: &Service) -> String {
    let serving = service.serving().count();
    let mut text = format!("{serving} of {} endpoints of {} serve", service.endpoints.len(), service.name);
    let mut excluded: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for endpoint in &service.endpoints {
        if let Some(reason) = endpoint.excluded() {
            excluded.entry(reason.as_str()).or_default().push(endpoint.instance.id.as_str());
        }
    }
    for (reason, ids) in excluded {
        text.push_str(&format!("; {reason}: {}", ids.join(", ")));
    }
    text
}

/// As `dig` writes them.
fn code(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::Refused => "REFUSED",
        _ => "SERVFAIL",
    }
}

#[cfg(test)]
mod tests {
    use super::super::zone::tests::{instance, zone};

    #[test]
    fn an_explanation_names_who_is_left_out_and_why() {
        let (zone, mut writer) = zone();
        writer.apply([
            instance(&serde_json::json!({"id": "1"})),
            instance(&serde_json::json!({"id": "2", "health": "critical"})),
        ]);
        let explanation = zone.explain("web.mesh.internal", "a").unwrap();
        assert_eq!(explanation.code, "NOERROR");
        assert_eq!(explanation.answers, ["web.mesh.internal. 5 IN A 192.0.2.1"]);
        assert_eq!(explanation.why, ["1 of 2 endpoints of web serve; critical: 2"]);
        assert!(zone.explain("web.mesh.internal", "NOPE").is_err());
        assert!(zone.explain("example.com", "A").unwrap().why[0].contains("forwarded"));
    }
}
