//! How the connections of a service are shared out among its endpoints.
//!
//! Every field is optional and `None` is the default, so that a default that a later version changes reaches those who
//! never set it. The terms are Envoy's and HAProxy's.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::key::{Key, key};
use super::value::{Count, Factor, Percent, Value, word_list};
use crate::model::Instance;
use crate::period::Period;

word_list! {
    /// Which endpoint gets the next connection.
    Policy {
        /// Each in turn, by weight, as smoothly as it goes.
        #[default]
        RoundRobin = "round_robin",
        /// The same as [`Policy::RoundRobin`], which honours weights: the name that other balancers have for it.
        WeightedRoundRobin = "weighted_round_robin",
        /// The fewest open connections for its weight.
        LeastConnections = "least_connections",
        /// The better of two at random, by latency and open connections (peak EWMA).
        P2c = "p2c",
        /// At random, by weight.
        Random = "random",
        /// Consistent hashing by Maglev's table.
        Maglev = "maglev",
        /// Consistent hashing on a ring.
        Ring = "ring",
        /// The first that has room.
        First = "first",
    }
}

impl Policy {
    /// Does the client's address alone decide?
    #[must_use]
    pub fn is_hash(self) -> bool {
        matches!(self, Self::Maglev | Self::Ring)
    }
}

word_list! {
    /// What of the client a hash policy looks at.
    HashOn {
        /// Its address: all connections of a client go to one endpoint.
        #[default]
        SourceAddress = "source_address",
        /// Its address and port: each connection by itself, and repeatably so.
        SourceAddressAndPort = "source_address_and_port",
    }
}

word_list! {
    /// Which endpoints are preferred for where they stand, for as much as those that are available can carry.
    Locality {
        /// None: zones and regions are looked past.
        #[default]
        Any = "any",
        /// Those of the node's own zone, then those of its region.
        PreferZone = "prefer_zone",
        /// Those of the node's own region.
        PreferRegion = "prefer_region",
    }
}

/// A group of endpoints in a split: those with a tag, or with a value of a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector(String);

impl Selector {
    /// Is the instance in this group?
    #[must_use]
    pub fn matches(&self, instance: &Instance) -> bool {
        if instance.tags.iter().any(|tag| tag.as_str() == self.0) {
            return true;
        }
        let of_label = |(label, value): (&str, &str)| instance.labels.get(label).is_some_and(|v| v == value);
        self.0.split_once('=').is_some_and(of_label)
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Selector {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() || text.len() > 255 || text.chars().any(|c| c.is_control() || c == ',') {
            return Err(format!(
                "{text:?} names no endpoints: write a tag, or LABEL=VALUE, without commas and at most 255 bytes long"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Selector {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.0
    }
}

/// How much of the traffic each group of endpoints gets. What is left is for the endpoints of no group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<Selector, Percent>", into = "BTreeMap<Selector, Percent>")]
pub struct Split(BTreeMap<Selector, Percent>);

impl Split {
    /// The most groups: each has its own tables.
    pub const MAX_GROUPS: usize = 16;

    /// Validates `shares`.
    ///
    /// # Errors
    /// There are none or too many, or they are more than 100 % together.
    pub fn new(shares: BTreeMap<Selector, Percent>) -> Result<Self, String> {
        if shares.is_empty() {
            return Err(
                "a split without a group splits nothing: write TAG=PERCENT, such as v1=95 v2=5".to_owned()
            );
        }
        if shares.len() > Self::MAX_GROUPS {
            return Err(format!("a split has at most {} groups", Self::MAX_GROUPS));
        }
        let sum: u32 = shares.values().map(|share| u32::from(share.get())).sum();
        if sum > 100 {
            return Err(format!("the shares of a split are at most 100 % together, and these are {sum} %"));
        }
        Ok(Self(shares))
    }

    /// The groups in the order of their names, each with its share.
    pub fn shares(&self) -> impl Iterator<Item = (&Selector, Percent)> {
        self.0.iter().map(|(selector, share)| (selector, *share))
    }

    /// What is left for the endpoints of no group.
    #[must_use]
    pub fn rest(&self) -> u8 {
        self.0.values().fold(100, |left, share| left.saturating_sub(share.get()))
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (selector, share)) in self.0.iter().enumerate() {
            write!(f, "{}{selector}={}", if at > 0 { "," } else { "" }, share.get())?;
        }
        Ok(())
    }
}

impl FromStr for Split {
    type Err = String;

    /// Reads `v1=95,v2=5` and `version=v2=5`: what stands after the last `=` is the share.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut shares = BTreeMap::new();
        for part in text.split([',', ' ']).filter(|part| !part.is_empty()) {
            let (selector, share) = part.rsplit_once('=').ok_or_else(|| {
                format!(
                    "{part:?} is no share of a split: write TAG=PERCENT or LABEL=VALUE=PERCENT, such as v2=5"
                )
            })?;
            if shares.insert(selector.parse()?, share.parse()?).is_some() {
                return Err(format!("{selector:?} has two shares"));
            }
        }
        Self::new(shares)
    }
}

impl Value for Split {
    fn expects() -> String {
        "shares such as v1=95,v2=5, or LABEL=VALUE=PERCENT".to_owned()
    }
}

impl TryFrom<BTreeMap<Selector, Percent>> for Split {
    type Error = String;
    fn try_from(shares: BTreeMap<Selector, Percent>) -> Result<Self, String> {
        Self::new(shares)
    }
}

impl From<Split> for BTreeMap<Selector, Percent> {
    fn from(split: Split) -> Self {
        split.0
    }
}

/// How connections are shared out; `None` is the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BalanceSettings {
    /// Which endpoint gets the next connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// What a hash policy looks at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<HashOn>,
    /// For how long after its last connection a client's address stays with its endpoint; off unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Period>,
    /// For how long a new endpoint's share grows to its full one; off unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<Period>,
    /// With fewer available than this, all are balanced over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub panic_threshold: Option<Percent>,
    /// How many endpoints one node uses; all unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subset: Option<Count>,
    /// Which zone is preferred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// How much of the traffic each group of endpoints gets; no groups unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
    /// Are the idle connections of an endpoint that dies closed at once?
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close_idle_on_death: Option<bool>,
    /// How long the connections of an endpoint that leaves may go on; until they end unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<Period>,
    /// When an endpoint is taken out for what is seen of it.
    #[serde(skip_serializing_if = "OutlierSettings::is_default")]
    pub outlier: OutlierSettings,
    /// How many attempts at other endpoints there may be.
    #[serde(skip_serializing_if = "RetrySettings::is_default")]
    pub retry: RetrySettings,
    /// What a newer agent wrote: kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// When an endpoint is taken out for what is seen of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OutlierSettings {
    /// Connect failures in a row that eject; 0: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<Count>,
    /// Resets before the first byte in a row that eject; 0: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resets: Option<Count>,
    /// How many times the others' latency ejects; 0: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_factor: Option<Factor>,
    /// How long the first ejection lasts; each further one twice as long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejection: Option<Period>,
    /// How long the longest lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejection: Option<Period>,
    /// The largest share of the endpoints that is ejected at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejected_percent: Option<Percent>,
    /// What a newer agent wrote: kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// How many attempts at other endpoints there may be, so that a retry never becomes a storm.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RetrySettings {
    /// Retries as a share of the connections of the last ten seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Percent>,
    /// Retries a second that are always allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_per_second: Option<Count>,
    /// What a newer agent wrote: kept.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

impl OutlierSettings {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl RetrySettings {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl BalanceSettings {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What an operator may set of it.
pub(super) const KEYS: &[Key] = &[
    key!(balance.policy: Policy = "round_robin", "which endpoint gets the next connection"),
    key!(balance.hash_on: HashOn = "source_address", "what of the client maglev and ring look at"),
    key!(balance.affinity: Period = "", "a client's address stays with its endpoint for so long after its last connection"),
    key!(balance.slow_start: Period = "", "a new endpoint's share grows to its full one in this time"),
    key!(balance.panic_threshold: Percent = "1", "with fewer endpoints available than this, all are balanced over"),
    key!(balance.subset: Count = "", "how many endpoints one node uses"),
    key!(balance.locality: Locality = "any", "whether endpoints in the node's own zone are preferred"),
    key!(balance.split: Split = "", "how much of the traffic each tag or label value gets"),
    key!(balance.close_idle_on_death: bool = "true", "whether idle connections of an endpoint that dies are closed at once"),
    key!(balance.drain: Period = "", "how long connections of an endpoint that leaves may go on"),
    key!(balance.outlier.consecutive_failures: Count = "1", "connect failures in a row that eject an endpoint; 0: never"),
    key!(balance.outlier.resets: Count = "5", "resets before the first byte in a row that eject an endpoint; 0: never"),
    key!(balance.outlier.latency_factor: Factor = "0", "how many times the others' latency ejects an endpoint; 0: never"),
    key!(balance.outlier.ejection: Period = "1s", "how long a first ejection lasts; each further one twice as long"),
    key!(balance.outlier.max_ejection: Period = "10s", "how long the longest ejection lasts"),
    key!(balance.outlier.max_ejected_percent: Percent = "90", "the largest share of the endpoints that is ejected at a time"),
    key!(balance.retry.budget: Percent = "20", "retries as a share of the connections of the last 10 s"),
    key!(balance.retry.min_per_second: Count = "10", "retries a second that are always allowed"),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn instance(fields: serde_json::Value) -> Instance {
        let mut json = serde_json::json!({
            "service": "web", "id": "1", "node": "a", "address": "192.0.2.1", "port": 80,
        });
        json.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_split_is_by_tag_or_by_a_value_of_a_label() {
        let split: Split = "v2=5,version=canary=10".parse().unwrap();
        assert_eq!((split.to_string().as_str(), split.rest()), ("v2=5,version=canary=10", 85));
        let [tag, label]: [&Selector; 2] =
            split.shares().map(|(selector, _)| selector).collect::<Vec<_>>().try_into().unwrap();
        let (tagged, labelled) = (
            instance(serde_json::json!({"tags": ["v2"]})),
            instance(serde_json::json!({"labels": {"version": "canary"}})),
        );
        assert!(tag.matches(&tagged) && !tag.matches(&labelled));
        assert!(label.matches(&labelled) && !label.matches(&tagged));
    }

    #[test]
    fn a_split_that_cannot_be_meant_is_refused_with_what_is() {
        for (text, why) in [
            ("", "splits nothing"),
            ("v2", "TAG=PERCENT"),
            ("v2=101", "0 to 100"),
            ("v1=60,v2=50", "110 %"),
            ("v2=5,v2=6", "two shares"),
            ("=5", "names no endpoints"),
        ] {
            assert!(text.parse::<Split>().unwrap_err().contains(why), "{text}");
        }
        assert!(serde_json::from_str::<Split>(r#"{"v1": 60, "v2": 50}"#).is_err());
    }

    proptest! {
        #[test]
        fn splits_read_as_they_print(shares in proptest::collection::btree_map("[a-z]{1,8}(=[a-z]{1,8})?", 0..7u8, 1..16)) {
            let text: Vec<String> = shares.iter().map(|(name, share)| format!("{name}={share}")).collect();
            let split: Split = text.join(",").parse().unwrap();
            prop_assert_eq!(split.to_string().parse::<Split>().unwrap(), split.clone());
            let json = serde_json::to_string(&split).unwrap();
            prop_assert_eq!(serde_json::from_str::<Split>(&json).unwrap(), split);
        }
    }
}
