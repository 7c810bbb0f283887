//! A request that is not done: the status, what failed, what to do, as JSON.

use axum::Json;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;

use super::access::Denied;
use crate::api::ErrorBody;

/// Why a request is not done.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    body: ErrorBody,
}

pub(super) type Answer<T> = Result<Json<T>, Refusal>;

impl Refusal {
    pub(super) fn new(status: StatusCode, error: impl ToString) -> Self {
        Self { status, body: ErrorBody { error: error.to_string(), hint: None } }
    }

    /// The request itself is wrong.
    pub(super) fn bad_request(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// There is no such thing; `known` are the names that there are.
    pub(super) fn unknown<'a>(kind: &str, name: &str, known: impl Iterator<Item = &'a str>) -> Self {
        let refusal = Self::new(StatusCode::NOT_FOUND, format!("no {kind} is called {name:?}"));
        match nearest(name, known) {
            Some(near) => refusal.hint(format!("did you mean {near:?}?")),
            None => refusal,
        }
    }

    /// It contradicts what is there.
    pub(super) fn conflict(error: impl ToString) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }

    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }
}

impl Refusal {
    /// With this hint, if it has none yet.
    #[must_use]
    pub(super) fn or_hint(self, hint: impl Into<String>) -> Self {
        if self.body.hint.is_some() { self } else { self.hint(hint) }
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self::new(StatusCode::FORBIDDEN, &denied).hint(denied.hint())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

/// The name that was probably meant, if one is alike enough: a slip of the finger or two (letters swapped, missing, too
/// many), or the same beginning.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const ALIKE: f64 = 0.85;
    let slips = (name.chars().count() / 3).max(1);
    known
        .map(|candidate| (strsim::damerau_levenshtein(candidate, name), candidate))
        .filter(|(distance, candidate)| *distance <= slips || strsim::jaro_winkler(candidate, name) >= ALIKE)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_probably_meant_is_suggested_and_nothing_else() {
        let known = ["web", "api", "database-primary", "payments"];
        for (typed, meant) in [
            ("wbe", Some("web")),
            ("we", Some("web")),
            ("paymets", Some("payments")),
            ("database", Some("database-primary")),
            ("redis", None),
            ("x", None),
        ] {
            assert_eq!(nearest(typed, known.into_iter()), meant, "{typed}");
        }
    }
}
