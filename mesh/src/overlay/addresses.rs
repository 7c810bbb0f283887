//! The addresses that packets of this host itself come from: other nodes cannot pass them on as a client's, since they are answered here.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;

use super::messages::own_address;
use super::netlink::{Netlink, failed};

impl Netlink {
    /// The addresses that this host has by its links to others, but for these.
    pub(super) async fn own_addresses(&self, but: &BTreeSet<u32>) -> io::Result<BTreeSet<IpAddr>> {
        let mut own = BTreeSet::new();
        let mut listed = self.handle.address().get().execute();
        while let Some(message) = listed.try_next().await.map_err(|e| failed("list the addresses", &e))? {
            if !but.contains(&message.header.index) {
                own.extend(own_address(&message));
            }
        }
        Ok(own)
    }
}
