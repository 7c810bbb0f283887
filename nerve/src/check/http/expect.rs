//! What an answer must be: its status, and what its body must have.
//!
//! Of a body no more is read than decides: nothing where nothing is asked of it, and else at most [`MAX_READ`].

use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use regex::bytes::{Regex, RegexBuilder};
use serde::{Serialize, Serializer};

use crate::check::StatusSet;
use crate::document::{FromValue, Mismatch, Reported, Section, Value};
use crate::http::{MAX_READ, chain};

/// So large may a compiled pattern be, in bytes.
const MAX_PATTERN: usize = 1024 * 1024;

/// What is expected of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Expected {
    pub(super) status: StatusSet,
    /// A text that the body must contain.
    pub(super) contains: Option<String>,
    /// A pattern that the body must match somewhere.
    pub(super) matches: Option<Pattern>,
}

/// A regular expression, equal to another that is written the same.
#[derive(Debug, Clone)]
pub(super) struct Pattern(Regex);

impl Expected {
    /// Reads its keys.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        section.renamed("body", "contains");
        let status = section.or("status", StatusSet::default());
        let contains = section.given::<String>("contains");
        let matches = section.given::<Pattern>("matches");
        Ok(Self { status, contains: contains?, matches: matches? })
    }

    /// The key that asks something of the body, if one does.
    pub(super) fn of_the_body(&self) -> Option<&'static str> {
        match self {
            Self { contains: Some(_), .. } => Some("contains"),
            Self { matches: Some(_), .. } => Some("matches"),
            _ => None,
        }
    }

    /// Judges an answer. Gives its body back where that was not read to its end.
    pub(super) async fn judge(
        &self,
        response: Response<Incoming>,
    ) -> (Result<String, String>, Option<Incoming>) {
        let status = response.status().as_u16();
        let mut body = response.into_body();
        if !self.status.contains(status) {
            return (Err(format!("status {status}")), Some(body));
        }
        if self.of_the_body().is_none() {
            return (Ok(format!("status {status}")), Some(body));
        }
        let mut read = Vec::new();
        loop {
            let ended = match body.frame().await {
                None => true,
                Some(Err(error)) => {
                    return (Err(format!("status {status}, then reading the body: {}", chain(&error))), None);
                }
                Some(Ok(frame)) => {
                    let data = frame.data_ref().map_or(&[][..], |data| &data[..]);
                    read.extend_from_slice(&data[..data.len().min(MAX_READ - read.len())]);
                    false
                }
            };
            // A pattern may be about the end, which only a whole body has.
            let whole = ended || read.len() == MAX_READ;
            match self.missing(&read, whole) {
                Some(_) if !whole => {}
                None => return (Ok(format!("status {status}, body as expected")), (!ended).then_some(body)),
                Some(missing) if ended => {
                    return (Err(format!("status {status}, but the body lacks {missing}")), None);
                }
                Some(missing) => {
                    let text =
                        format!("status {status}, but the first {MAX_READ} bytes of the body lack {missing}");
                    return (Err(text), None);
                }
            }
        }
    }

    /// What is not there (yet).
    fn missing(&self, read: &[u8], whole: bool) -> Option<String> {
        if let Some(text) = self.contains.as_ref().filter(|text| !contains(read, text.as_bytes())) {
            return Some(format!("{text:?}"));
        }
        let pattern = self.matches.as_ref().filter(|pattern| !whole || !pattern.0.is_match(read))?;
        Some(format!("a match of {:?}", pattern.0.as_str()))
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|window| window == needle)
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

impl FromValue for Pattern {
    fn expected() -> String {
        "a regular expression such as \"status: *(ok|ready)\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        let text = value.as_text().ok_or_else(|| value.wrong_kind(Self::expected()))?;
        let built = RegexBuilder::new(text).size_limit(MAX_PATTERN).build();
        built.map(Self).map_err(|error| {
            // The last line says what is wrong, those before draw where.
            let error = error.to_string();
            let why = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
            value.mismatch(format_args!("{text:?}: {why}"), Self::expected())
        })
    }
}
