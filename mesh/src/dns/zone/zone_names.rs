//! The names of zones that nodes stand in, as far as names under the domain are about them: `a.b` has `b` and `a.b` below
//! `zone`. Read anew where nodes have changed, so that a question costs one look and not a walk over the nodes.

use std::collections::HashSet;

use arc_swap::ArcSwap;
use synapse::catalog::Catalog;

/// The names' ends by whole labels, in lower case, as of so many changes of nodes.
#[derive(Debug, Default)]
pub(super) struct ZoneNames(ArcSwap<(u64, HashSet<String>)>);

impl ZoneNames {
    /// Do nodes stand in a zone of this name, in lower case, or in one whose name ends so?
    pub(super) fn has(&self, name: &str, catalog: &Catalog) -> bool {
        let nodes = catalog.node_changes();
        let known = self.0.load();
        if known.0 == nodes {
            return known.1.contains(name);
        }
        let now = ends(catalog);
        let has = now.contains(name);
        self.0.store(std::sync::Arc::new((nodes, now)));
        has
    }
}

fn ends(catalog: &Catalog) -> HashSet<String> {
    let mut ends = HashSet::new();
    for zone in catalog.nodes().iter().filter_map(|node| node.zone.as_ref()) {
        let zone = zone.as_str().to_ascii_lowercase();
        let mut rest = zone.as_str();
        // One that is there has its own ends there as well.
        while ends.insert(rest.to_owned()) {
            let Some((_, end)) = rest.split_once('.') else { break };
            rest = end;
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use synapse::catalog::Change;

    use super::*;

    #[test]
    fn zones_are_known_by_their_ends_and_anew_when_nodes_change() {
        let (catalog, mut writer) = Catalog::new();
        let zones = ZoneNames::default();
        assert!(!zones.has("b", &catalog));
        let mut put = |name: &str, zone: &str| {
            let node =
                serde_json::json!({"name": name, "address": "192.0.2.1", "version": "0", "zone": zone});
            writer.apply([Change::PutNode(Arc::new(serde_json::from_value(node).unwrap()))]);
        };
        put("a", "Rack-1.b");
        put("b", "rack-2.b");
        for (name, is_zone) in
            [("b", true), ("rack-1.b", true), ("rack-2.b", true), ("rack-1", false), ("1.b", false)]
        {
            assert_eq!(zones.has(name, &catalog), is_zone, "{name}");
        }
        put("a", "c");
        assert!(zones.has("c", &catalog) && !zones.has("rack-1.b", &catalog));
    }
}
