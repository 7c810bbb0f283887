//! What a reading request asks for beyond its path: Consul's parameters, as its clients write them.
//!
//! Parameters that mean nothing here (a token, a consistency) are not looked at; those that would mean another answer than
//! there is (another datacenter, a namespace, a peer) are refused.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use axum::extract::{FromRequestParts, Query};
use hyper::StatusCode;
use hyper::http::request::Parts;

use super::super::refusal::Refusal;
use super::filter::Filter;
use super::filter::fields::Fields;
use super::{DATACENTER, duration};
use crate::api::{LONGEST_WAIT, WAIT_SPREAD};

/// How long a request waits for a change unless it says, as Consul has it.
const WAIT: Duration = Duration::from_secs(300);

/// What is asked.
#[derive(Debug, Default)]
pub(in super::super) struct Question {
    /// The index that the asker knows: the answer is to be of another one.
    pub(super) index: Option<u64>,
    /// How long it waits for that.
    pub(super) wait: Duration,
    /// Instances whose every check passes.
    pub(super) passing: bool,
    /// Those that have all of these.
    pub(super) tags: Vec<String>,
    /// Those nearest to this node first; `_agent` is the one that is asked.
    pub(super) near: Option<String>,
    /// Those on nodes whose data has all of these.
    pub(super) node_meta: Vec<(String, String)>,
    /// For people.
    pub(super) pretty: bool,
    filter: Option<String>,
}

impl<S: Sync> FromRequestParts<S> for Question {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
        let Query(pairs) = pairs.map_err(|wrong| Refusal::bad_request(wrong.body_text()))?;
        Self::read(pairs)
    }
}

impl Question {
    fn read(pairs: Vec<(String, String)>) -> Result<Self, Refusal> {
        let mut question = Self { wait: WAIT, ..Self::default() };
        let (mut stale, mut consistent) = (false, false);
        for (name, value) in pairs {
            match name.as_str() {
                "index" => {
                    let index: u64 = value
                        .parse()
                        .map_err(|_| Refusal::bad_request(format!("index: {value:?} is no index")))?;
                    question.index = (index > 0).then_some(index);
                }
                "wait" => {
                    let wait = duration::parse(&value)
                        .map_err(|why| Refusal::bad_request(format!("wait: {why}")))?;
                    question.wait = if wait.is_zero() { WAIT } else { wait.min(LONGEST_WAIT) };
                }
                "passing" => question.passing = flag(&name, &value)?,
                "tag" if !value.is_empty() => question.tags.push(value),
                "near" => question.near = Some(value).filter(|node| !node.is_empty()),
                "node-meta" => {
                    let (key, value) = value.split_once(':').unwrap_or((&value, ""));
                    question.node_meta.push((key.to_owned(), value.to_owned()));
                }
                "filter" => question.filter = Some(value).filter(|filter| !filter.is_empty()),
                "pretty" => question.pretty = true,
                "stale" => stale = true,
                "consistent" => consistent = true,
                "dc" if !value.is_empty() && value != DATACENTER => {
                    let hint = format!("the only one that there is is {DATACENTER}");
                    let none = "No path to datacenter";
                    return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, none).hint(hint));
                }
                "ns" | "partition" if !value.is_empty() && value != "default" => return Err(foreign(&name)),
                "peer" | "sg" if !value.is_empty() => return Err(foreign(&name)),
                _ => {}
            }
        }
        if stale && consistent {
            let both = "Cannot specify ?stale with ?consistent, conflicting semantics.";
            return Err(Refusal::bad_request(both));
        }
        Ok(question)
    }

    /// The filter, for rows that have these fields.
    pub(super) fn filter(&self, fields: Fields) -> Result<Option<Filter>, Refusal> {
        let filter = self.filter.as_deref().map(|text| Filter::read(text, fields)).transpose();
        filter.map_err(|why| {
            let hint = "docs/consul-api.md says what a filter may be";
            Refusal::bad_request(format!("Failed to create boolean expression evaluator: {why}")).hint(hint)
        })
    }

    /// How long this one waits: not all that began together end together.
    pub(super) fn spread_wait(&self) -> Duration {
        // Keyed differently each time; nobody has anything of guessing it.
        let share = RandomState::new().build_hasher().finish() % 1024;
        self.wait + self.wait / WAIT_SPREAD * u32::try_from(share).unwrap_or_default() / 1024
    }
}

fn foreign(name: &str) -> Refusal {
    Refusal::bad_request(format!(
        "Invalid query parameter: {name:?}: there is one namespace, and there are no peers"
    ))
}

/// Go's words for it; a bare parameter says yes.
fn flag(name: &str, value: &str) -> Result<bool, Refusal> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Refusal::bad_request(format!("Invalid value for ?{name}: {value:?}")).hint("true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::filter::fields;
    use super::*;

    fn read(query: &str) -> Result<Question, Refusal> {
        let uri = format!("/v1/health/service/web?{query}").parse().unwrap();
        Question::read(Query::<Vec<(String, String)>>::try_from_uri(&uri).unwrap().0)
    }

    #[test]
    fn parameters_are_read_as_clients_write_them() {
        let question = read("passing&tag=v1&tag=v%202&near=_agent&node-meta=zone:eu:1&index=7&wait=10000ms&cached&stale=&pretty&token=x&dc=dc1")
            .unwrap();
        assert_eq!((question.passing, question.pretty, question.index), (true, true, Some(7)));
        assert_eq!(
            (question.tags, question.near),
            (vec!["v1".to_owned(), "v 2".to_owned()], Some("_agent".to_owned()))
        );
        assert_eq!(question.node_meta, [("zone".to_owned(), "eu:1".to_owned())]);
        assert_eq!(question.wait, Duration::from_secs(10));
        for (query, passing) in
            [("passing=1", true), ("passing=true", true), ("passing=false", false), ("", false)]
        {
            assert_eq!(read(query).unwrap().passing, passing, "{query}");
        }
    }

    #[test]
    fn a_wait_is_five_minutes_unless_said_and_ten_at_most() {
        for (query, seconds) in [("", 300), ("wait=0s", 300), ("wait=1m", 60), ("wait=24h", 600)] {
            let question = read(query).unwrap();
            assert_eq!(question.wait.as_secs(), seconds, "{query}");
            let spread = question.spread_wait();
            assert!(spread >= question.wait && spread <= question.wait + question.wait / 16, "{spread:?}");
        }
        assert_eq!(read("index=0").unwrap().index, None);
    }

    #[test]
    fn what_cannot_be_answered_is_refused_with_its_parameter() {
        for (query, expected) in [
            ("index=x", "index: "),
            ("index=-1", "index: "),
            ("wait=soon", "wait: "),
            ("passing=maybe", "?passing"),
            ("dc=dc2", "No path to datacenter"),
            ("ns=team", "\\\"ns\\\""),
            ("peer=other", "\\\"peer\\\""),
            ("stale&consistent", "conflicting semantics"),
        ] {
            let refused = format!("{:?}", read(query).unwrap_err());
            assert!(refused.contains(expected), "{query}: {refused}");
        }
        let refused = read("filter=Service.Name%20==%20x").unwrap().filter(fields::HEALTH_ENTRY).unwrap_err();
        assert!(format!("{refused:?}").contains("there is no `Service.Name` here"));
        assert!(read("filter=").unwrap().filter(fields::NODE).unwrap().is_none());
    }
}
