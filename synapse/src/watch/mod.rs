//! Watchers: what turns a place where services are known into changes of the catalog. One file a kind.

mod record;
pub mod store;
