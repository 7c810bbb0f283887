//! The place that is several places: all of them, the first that names a server, or the one that weights give this node.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Mutex;

use async_trait::async_trait;
use nerve::hash;

use super::lock::lock;
use super::parts::{Choose, Parts, Said, Union};
use super::place::{Place, Tell};
use super::server::Server;
use super::toggle::Weights;

/// What this host is called: nodes are shared out by it.
const HOSTNAME: &str = "/proc/sys/kernel/hostname";

/// Which of them count, for whoever follows them.
pub(super) enum How {
    Union,
    Sequential,
    Toggle(Weights),
}

/// The places.
pub(super) struct MultiPlace {
    /// What they are called.
    pub(super) names: Vec<String>,
    /// In the order of the names.
    pub(super) places: Vec<Box<dyn Place>>,
    pub(super) how: How,
}

impl MultiPlace {
    /// Reads the weights again and again; what cannot be read changes nothing. Returns when others count.
    async fn toggled(&self, weights: &Weights, share: f64, chosen: &Chosen, told: &dyn Tell) -> Infallible {
        let parts = Parts::new(self.names.clone(), chosen, told);
        let follow = parts.follow(&self.places);
        let toggle = async {
            let mut failing = false;
            loop {
                match weights.read().await {
                    Ok(read) => {
                        failing = false;
                        let now = pick(&self.names, &read, share);
                        let before = now.map(|now| std::mem::replace(&mut *lock(&chosen.0), now));
                        if before.is_some() && before != now {
                            parts.tell().await;
                        }
                    }
                    Err(error) if !failing => {
                        failing = true;
                        tracing::warn!(place = %weights, error, "the weights of places cannot be read; what they were is used");
                    }
                    Err(_) => {}
                }
                tokio::time::sleep(weights.pause()).await;
            }
        };
        tokio::select! {
            never = follow => never,
            never = toggle => never,
        }
    }
}

#[async_trait]
impl Place for MultiPlace {
    async fn follow(&self, told: &dyn Tell) -> Result<Infallible, String> {
        let all = |choose| Parts::new(self.names.clone(), choose, told);
        let never = match &self.how {
            How::Sequential => all(&First).follow(&self.places).await,
            How::Toggle(weights) => {
                let host = tokio::fs::read_to_string(HOSTNAME).await.unwrap_or_default();
                // The same for this host each time, so that a restart moves nobody.
                let share = f64::from(u32::try_from(hash::of(host.trim()) >> 32).unwrap_or(0))
                    / (f64::from(u32::MAX) + 1.0);
                self.toggled(weights, share, &Chosen(Mutex::new(0)), told).await
            }
            How::Union => all(&Union).follow(&self.places).await,
        };
        match never {}
    }
}

/// The first that names a server.
struct First;

impl Choose for First {
    fn choose(&self, said: &[Said]) -> Vec<Server> {
        let first = said.iter().filter_map(|said| said.servers.as_ref()).find(|servers| !servers.is_empty());
        first.cloned().unwrap_or_default()
    }
}

/// The one of this number.
struct Chosen(Mutex<usize>);

impl Choose for Chosen {
    fn choose(&self, said: &[Said]) -> Vec<Server> {
        said.get(*lock(&self.0)).and_then(|said| said.servers.clone()).unwrap_or_default()
    }
}

/// The part in whose range a node stands that is at `share` of the way from the first to the last; `None`: none has a weight.
fn pick(names: &[String], weights: &BTreeMap<String, u32>, share: f64) -> Option<usize> {
    let weights: Vec<f64> =
        names.iter().map(|name| weights.get(name).map_or(0.0, |weight| f64::from(*weight))).collect();
    let mut left = share * weights.iter().sum::<f64>();
    let hit = weights.iter().position(|weight| {
        let hit = left < *weight;
        left -= weight;
        hit
    });
    // A rounding error beyond the last one's end.
    hit.or_else(|| weights.iter().rposition(|weight| *weight > 0.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_node_is_in_one_part_that_has_a_weight(weights in proptest::collection::vec(0..5u32, 1..5), share in 0.0..1.0f64) {
            let names: Vec<String> = (0..weights.len()).map(|number| number.to_string()).collect();
            let by_name: BTreeMap<String, u32> = names.iter().cloned().zip(weights.iter().copied()).collect();
            match pick(&names, &by_name, share) {
                Some(picked) => prop_assert!(weights[picked] > 0),
                None => prop_assert!(weights.iter().all(|weight| *weight == 0)),
            }
        }

        #[test]
        fn more_weight_moves_nodes_there_alone(share in 0.0..1.0f64, one in 1..50u32, more in 0..50u32) {
            let names = ["a".to_owned(), "b".to_owned()];
            let weights = |a| BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), 50)]);
            let (before, after) = (pick(&names, &weights(one), share), pick(&names, &weights(one + more), share));
            prop_assert!(before == after || after == Some(0));
        }
    }
}
