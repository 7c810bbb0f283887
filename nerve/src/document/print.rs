//! The other way round: typed values as configuration text.

use serde::Serialize;

/// `value` as TOML, its keys in the order of its fields.
///
/// # Errors
/// It is not representable: no table at the top, or a number beyond 64 bits.
pub fn to_toml(value: &impl Serialize) -> Result<String, impl std::error::Error + use<>> {
    toml::to_string_pretty(value)
}
