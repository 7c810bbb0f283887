//! What a registration of Nerve's is called, among the children of its path (pure).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;

use crate::source::Announcement;

/// Longer than this, in bytes, a name does not hold its data.
const MAX_ENCODED: usize = 65_536;

/// What the name begins with; what follows is the number that ZooKeeper gives, or nothing.
pub(super) fn prefix(announcement: &Announcement, encoded: bool) -> String {
    let plain = || format!("{}_", announcement.name);
    if !encoded {
        return plain();
    }
    let data = URL_SAFE.encode(&announcement.data);
    if data.len() > MAX_ENCODED { plain() } else { format!("base64_{}_{data}_", data.len()) }
}

/// May a child with this name be one of ours? Its owner tells for certain.
pub(super) fn may_be(child: &str, announcement: &Announcement) -> bool {
    child.starts_with("base64_")
        || child.strip_prefix(&*announcement.name).is_some_and(|rest| rest.starts_with('_'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Limit, NodeMode, Registry};

    fn announcement(data: &str) -> Announcement {
        let mode = NodeMode { ephemeral: true, sequential: true };
        let (ensemble, path) = ("z".to_owned(), "/x".to_owned());
        let registry = Registry::ZooKeeper { ensemble, path, mode, encoded: true, renewed: None };
        Announcement {
            registry,
            name: "macbook-pro".to_owned(),
            data: data.to_owned(),
            limit: Limit::default(),
        }
    }

    #[test]
    fn names_are_those_that_nerve_gives() {
        let own = announcement(r#"{"host":"127.0.0.1","port":6007,"name":"macbook-pro"}"#);
        assert_eq!(
            prefix(&own, true),
            "base64_72_eyJob3N0IjoiMTI3LjAuMC4xIiwicG9ydCI6NjAwNywibmFtZSI6Im1hY2Jvb2stcHJvIn0=_"
        );
        assert_eq!(prefix(&own, false), "macbook-pro_");
        assert_eq!(prefix(&announcement(&"x".repeat(50_000)), true), "macbook-pro_");
        assert!(may_be("macbook-pro_0000000001", &own) && may_be(&prefix(&own, true), &own));
        assert!(!may_be("macbook-pro-2_0000000001", &own) && !may_be("macbook-pro", &own));
    }
}
