//! The place that is the configuration: servers that never change by themselves.

use std::convert::Infallible;

use async_trait::async_trait;

use super::place::{Place, Tell};
use super::server::Server;

/// These servers.
#[derive(Debug)]
pub(super) struct FixedPlace(pub(super) Vec<Server>);

#[async_trait]
impl Place for FixedPlace {
    async fn follow(&self, told: &dyn Tell) -> Result<Infallible, String> {
        told.found(self.0.clone(), Vec::new()).await;
        std::future::pending().await
    }
}
