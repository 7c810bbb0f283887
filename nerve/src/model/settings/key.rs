//! The settings as an operator names them: one key each, with what it means, what it expects and its default.
//!
//! One definition per setting; the command line, the admin interface and the reference are made of it. A group lists its
//! keys beside its fields.

use super::ServiceSettings;

/// One setting.
pub struct Key {
    /// As an operator types it: `policy`, `outlier.resets`.
    pub name: &'static str,
    /// What it does, in a few words.
    pub meaning: &'static str,
    /// What holds where it is not set, as it would be typed; empty: nothing, it is off.
    pub default: &'static str,
    pub(super) expects: fn() -> String,
    pub(super) get: fn(&ServiceSettings) -> Option<String>,
    pub(super) set: fn(&mut ServiceSettings, &str) -> Result<(), String>,
    pub(super) unset: fn(&mut ServiceSettings),
}

impl Key {
    /// Every setting, in the order in which they are shown.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        super::GROUPS.iter().copied().flatten()
    }

    /// The setting of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        Self::all().find(|key| key.name == name)
    }

    /// What can be set, in words.
    #[must_use]
    pub fn expects(&self) -> String {
        (self.expects)()
    }

    /// What is set, or `None` where the default holds.
    #[must_use]
    pub fn get(&self, settings: &ServiceSettings) -> Option<String> {
        (self.get)(settings)
    }

    /// Sets it to what was typed.
    ///
    /// # Errors
    /// What is wrong with it, and what is expected.
    pub fn set(&self, settings: &mut ServiceSettings, text: &str) -> Result<(), String> {
        (self.set)(settings, text)
            .map_err(|wrong| format!("{}: {wrong}; it expects {}", self.name, self.expects()))
    }

    /// From now on the default holds.
    pub fn unset(&self, settings: &mut ServiceSettings) {
        (self.unset)(settings);
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("name", &self.name)
            .field("default", &self.default)
            .finish_non_exhaustive()
    }
}

/// A [`Key`] for a field that is an `Option`. The fields of `balance` stand at the top for an operator: `policy`.
macro_rules! key {
    (balance.$($path:ident).+: $type:ty = $default:literal, $meaning:literal) => {
        key!(@ [balance $($path)+] key!(@name $($path)+), $type, $default, $meaning)
    };
    ($($path:ident).+: $type:ty = $default:literal, $meaning:literal) => {
        key!(@ [$($path)+] key!(@name $($path)+), $type, $default, $meaning)
    };
    (@name $first:ident) => { stringify!($first) };
    (@name $first:ident $second:ident) => { concat!(stringify!($first), ".", stringify!($second)) };
    (@ [$($path:ident)+] $name:expr, $type:ty, $default:literal, $meaning:literal) => {
        $crate::model::settings::key::Key {
            name: $name,
            meaning: $meaning,
            default: $default,
            expects: <$type as $crate::model::settings::value::Value>::expects,
            get: |settings| settings $(.$path)+.as_ref().map(ToString::to_string),
            set: |settings, text| {
                settings $(.$path)+ = Some(text.parse::<$type>().map_err(|wrong| wrong.to_string())?);
                Ok(())
            },
            unset: |settings| settings $(.$path)+ = None,
        }
    };
}
pub(super) use key;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_every_default_can_be_set() {
        let mut names = BTreeSet::new();
        for key in Key::all() {
            assert!(names.insert(key.name), "{} twice", key.name);
            assert!(!key.meaning.is_empty() && !key.expects().is_empty());
            if key.default.is_empty() {
                continue;
            }
            let mut settings = ServiceSettings::default();
            key.set(&mut settings, key.default).unwrap();
            assert_eq!(key.get(&settings).unwrap().trim_end_matches('%'), key.default, "{}", key.name);
            key.unset(&mut settings);
            assert_eq!(settings, ServiceSettings::default(), "{}", key.name);
        }
    }

    #[test]
    fn a_bad_value_is_told_with_what_is_expected_and_changes_nothing() {
        let mut settings = ServiceSettings::default();
        let error = Key::find("policy").unwrap().set(&mut settings, "fastest").unwrap_err();
        assert!(error.contains("policy: \"fastest\"") && error.contains("least_connections"), "{error}");
        let error = Key::find("slow_start").unwrap().set(&mut settings, "0s").unwrap_err();
        assert!(error.contains("1ms to 1day"), "{error}");
        assert_eq!(settings, ServiceSettings::default());
    }

    #[test]
    fn a_setting_stands_in_its_group() {
        let mut settings = ServiceSettings::default();
        for (name, value) in [("policy", "maglev"), ("outlier.resets", "3"), ("limits.queue", "10")] {
            Key::find(name).unwrap().set(&mut settings, value).unwrap();
        }
        let json = serde_json::to_value(&settings).unwrap();
        let expected = serde_json::json!({
            "balance": {"policy": "maglev", "outlier": {"resets": 3}}, "limits": {"queue": 10},
        });
        assert_eq!(json, expected);
    }
}
