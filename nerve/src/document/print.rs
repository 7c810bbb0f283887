//! The other way round: typed values as configuration text.

use serde::Serialize;

/// A value that TOML has no form for: no table at the top, or a number beyond 64 bits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be written as TOML: {0}")]
pub struct Unprintable(String);

/// `value` as TOML, its keys in the order of its fields.
///
/// # Errors
/// It is not representable.
pub fn to_toml<T: Serialize>(value: &T) -> Result<String, Unprintable> {
    toml::to_string_pretty(value).map_err(|error| Unprintable(error.to_string()))
}
