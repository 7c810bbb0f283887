//! From the tables of the file to what each room is told.

use nerve::source::Local;
use nerve::store::StoreConfig;

use super::{Config, Node};

impl Node {
    /// What definitions of instances take from the node.
    #[must_use]
    pub fn local(&self) -> Local {
        Local { node: self.name.clone(), address: self.address }
    }
}

impl Config {
    /// What the store's backend is told.
    #[must_use]
    pub fn store(&self) -> StoreConfig {
        let store = &self.store;
        let from_file = store.password_file.as_ref().map(|file| &file.secret);
        StoreConfig {
            url: store.url.clone(),
            prefix: Some(store.prefix.clone()),
            username: store.username.clone(),
            password: store.password.as_ref().or(from_file).map(|secret| secret.0.clone()),
            ca_file: store.ca_file.clone(),
            cert_file: store.cert_file.clone(),
            key_file: store.key_file.clone(),
            request_timeout: store.request_timeout.get(),
        }
    }

    /// What the admin interface is told.
    #[must_use]
    pub fn admin(&self) -> crate::admin::Config {
        crate::admin::Config { listen: self.admin.listen.clone() }
    }
}
