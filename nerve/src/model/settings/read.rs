//! Reading settings that another version wrote: a word that is not known costs that setting and no other.
//!
//! For readers only. Whoever changes settings decodes them whole, and refuses what it would lose.

use serde_json::{Map, Value};

use super::ServiceSettings;

impl ServiceSettings {
    /// Reads a record; what is not understood of it is left out and named (`balance.policy "psychic"`). Of a list an entry
    /// is left out whole: half a published port is another port.
    ///
    /// # Errors
    /// It is no JSON object.
    pub fn read(record: &[u8]) -> serde_json::Result<(Self, Vec<String>)> {
        if let Ok(settings) = serde_json::from_slice(record) {
            return Ok((settings, Vec::new()));
        }
        let record: Map<String, Value> = serde_json::from_slice(record)?;
        let mut left_out = Vec::new();
        let understood = prune(&mut Vec::new(), Value::Object(record), &mut left_out);
        Ok((serde_json::from_value(understood.unwrap_or(Value::Object(Map::new())))?, left_out))
    }
}

/// What of the value at `path` is understood.
fn prune(path: &mut Vec<String>, value: Value, left_out: &mut Vec<String>) -> Option<Value> {
    if is_understood(path, &value) {
        return Some(value);
    }
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter_map(|(name, value)| {
                path.push(name.clone());
                let value = prune(path, value, left_out);
                path.pop();
                Some((name, value?))
            });
            let kept = Value::Object(kept.collect());
            if is_understood(path, &kept) {
                return Some(kept);
            }
            // Each of its fields is, but not together.
            left_out.push(path.join("."));
            None
        }
        Value::Array(entries) => {
            let kept = entries.into_iter().enumerate().filter_map(|(at, entry)| {
                let entry = Value::Array(vec![entry]);
                if !is_understood(path, &entry) {
                    left_out.push(format!("{}[{at}]", path.join(".")));
                    return None;
                }
                let Value::Array(entry) = entry else { return None };
                entry.into_iter().next()
            });
            Some(Value::Array(kept.collect()))
        }
        word => {
            left_out.push(format!("{} {word}", path.join(".")));
            None
        }
    }
}

/// Would settings with nothing but this be read?
fn is_understood(path: &[String], value: &Value) -> bool {
    let wrap = |value, name: &String| Value::Object(Map::from_iter([(name.clone(), value)]));
    let alone = path.iter().rev().fold(value.clone(), wrap);
    serde_json::from_value::<ServiceSettings>(alone).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_understood_stays() {
        let text = br#"{"balance":{"policy":"x","outlier":{"resets":"many","share":10}},"limits":{"queue":5},"of_a_newer":{"a":1}}"#;
        let (settings, left_out) = ServiceSettings::read(text).unwrap();
        assert_eq!(left_out, ["balance.outlier.resets \"many\"", "balance.policy \"x\""]);
        assert!(settings.limits.queue.is_some() && settings.unknown.contains_key("of_a_newer"));
        assert!(ServiceSettings::read(b"[]").is_err() && ServiceSettings::read(b"{").is_err());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            "[a-z0-9]{0,4}".prop_map(Value::from),
            any::<i8>().prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            let name = "(published|port|balance|policy|outlier|resets|limits|queue|vip|x)";
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map(name, inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_object_can_be_read(value in any_json()) {
            let read = ServiceSettings::read(value.to_string().as_bytes());
            prop_assert_eq!(read.is_ok(), value.is_object());
        }
    }
}
