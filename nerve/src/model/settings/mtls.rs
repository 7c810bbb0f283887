//! Whether what goes to the instances of a service on other nodes is encrypted, and by whom it may come.

use super::key::{Key, key};
use super::value::word_list;

word_list! {
    /// How nodes reach each other's instances.
    MtlsMode {
        /// Directly, and in the clear.
        #[default]
        Off = "off",
        /// By mutual TLS where both nodes can, otherwise directly. Both are let in.
        Permissive = "permissive",
        /// By mutual TLS alone.
        Strict = "strict",
    }
}

/// What an operator may set of it.
pub(super) const KEYS: &[Key] = &[key!(
    mtls: MtlsMode = "",
    "how instances on other nodes are reached: off, permissive or strict; else as [mtls] mode of each node says"
)];
