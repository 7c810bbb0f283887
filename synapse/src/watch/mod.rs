//! Watchers: what turns a place where services are known into changes of the catalog. One file or folder a kind, each with a
//! `Config`, a `start` that takes the catalog's writer, and a `Handle` that tells how it stands.

mod record;
pub mod store;
