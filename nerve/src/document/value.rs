//! One value of a document, and how a Rust type is made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};
use toml::de::{DeTable, DeValue};

use crate::model::{
    InstanceId, NodeName, PortName, Prefix, Protocol, PublishedPort, Region, ServiceName, Tag, UnixPath,
    Weight, Zone,
};
use crate::period::Period;

/// So much of a value is repeated in a message, in characters.
const SHOWN: usize = 60;

/// One value, with its place in the file.
#[derive(Debug, Clone)]
pub struct Value {
    pub(super) kind: Kind,
    pub(super) offset: usize,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Text(String),
    Integer(Option<i128>),
    Float(f64),
    Boolean(bool),
    Datetime,
    Null,
    List(Vec<Value>),
    Table(Table),
}

/// Keys in alphabetical order, with their places.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) offset: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key_offset: usize,
    pub(super) value: Value,
}

/// Why a value is not of a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    pub(super) offset: usize,
    pub(super) subkey: String,
    pub(super) message: String,
    pub(super) expected: String,
}

/// A type that a value of a document can be read as.
pub trait FromValue: Sized {
    /// What such a value looks like, with an article: `a duration such as "1s"`.
    fn expected() -> String;

    /// Converts the value.
    ///
    /// # Errors
    /// Everything that is wrong with it, made by [`Value::mismatch`].
    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>>;
}

/// Any type that reads itself from a text, for types that cannot implement [`FromValue`] themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text<T>(pub T);

impl Table {
    pub(super) fn empty(offset: usize) -> Self {
        Self { entries: BTreeMap::new(), offset }
    }

    pub(super) fn from_json(map: serde_json::Map<String, serde_json::Value>) -> Self {
        let entries = map
            .into_iter()
            .map(|(key, value)| (key, Entry { key_offset: 0, value: Value::from_json(value) }));
        // A null is an absent value, as JSON clients mean it.
        let entries = entries.filter(|(_, entry)| !matches!(entry.value.kind, Kind::Null));
        Self { entries: entries.collect(), offset: 0 }
    }

    pub(super) fn from_toml(table: DeTable<'_>, offset: usize) -> Self {
        let entries = table
            .into_iter()
            .map(|(key, value)| {
                let key_offset = key.span().start;
                let value_offset = value.span().start;
                let value = Value::from_toml(value.into_inner(), value_offset);
                (key.into_inner().into_owned(), Entry { key_offset, value })
            })
            .collect();
        Self { entries, offset }
    }
}

impl Kind {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Datetime => "a date or time",
            Self::Null => "null",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

impl Value {
    fn from_toml(value: DeValue<'_>, offset: usize) -> Self {
        let kind = match value {
            DeValue::String(text) => Kind::Text(text.into_owned()),
            DeValue::Integer(number) => {
                Kind::Integer(i128::from_str_radix(number.as_str(), number.radix()).ok())
            }
            DeValue::Float(number) => Kind::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(truth) => Kind::Boolean(truth),
            DeValue::Datetime(_) => Kind::Datetime,
            DeValue::Array(elements) => Kind::List(
                elements
                    .into_iter()
                    .map(|element| {
                        let offset = element.span().start;
                        Self::from_toml(element.into_inner(), offset)
                    })
                    .collect(),
            ),
            DeValue::Table(table) => Kind::Table(Table::from_toml(table, offset)),
        };
        Self { kind, offset }
    }

    fn from_json(value: serde_json::Value) -> Self {
        use serde_json::Value as Json;
        let kind = match value {
            Json::Null => Kind::Null,
            Json::Bool(truth) => Kind::Boolean(truth),
            Json::Number(number) => match number.as_i128() {
                Some(integer) => Kind::Integer(Some(integer)),
                None => Kind::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Kind::Text(text),
            Json::Array(elements) => Kind::List(elements.into_iter().map(Self::from_json).collect()),
            Json::Object(map) => Kind::Table(Table::from_json(map)),
        };
        Self { kind, offset: 0 }
    }

    /// The text, if it is a string.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if it is an integer.
    #[must_use]
    pub fn as_integer(&self) -> Option<i128> {
        match self.kind {
            Kind::Integer(number) => number,
            _ => None,
        }
    }

    /// The number, if it is one.
    #[must_use]
    pub fn as_number(&self) -> Option<f64> {
        match self.kind {
            Kind::Float(number) => Some(number),
            #[allow(clippy::cast_precision_loss, reason = "whoever asks for it takes fractions")]
            Kind::Integer(number) => number.map(|number| number as f64),
            _ => None,
        }
    }

    /// The truth, if it is a boolean.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self.kind {
            Kind::Boolean(truth) => Some(truth),
            _ => None,
        }
    }

    /// The elements, if it is a list.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Self]> {
        match &self.kind {
            Kind::List(elements) => Some(elements),
            _ => None,
        }
    }

    /// A complaint about this value.
    #[must_use]
    pub fn mismatch(&self, message: impl Display, expected: impl Into<String>) -> Vec<Mismatch> {
        vec![Mismatch {
            offset: self.offset,
            subkey: String::new(),
            message: message.to_string(),
            expected: expected.into(),
        }]
    }

    /// The complaint that this value is of another kind.
    #[must_use]
    pub fn wrong_kind(&self, expected: impl Into<String>) -> Vec<Mismatch> {
        self.mismatch(format_args!("found {}", self.kind.name()), expected)
    }

    /// Reads a string as a `T`.
    ///
    /// # Errors
    /// It is no string, or `T` refuses it.
    pub fn parse_text<T: FromStr<Err: Display>>(&self, expected: &str) -> Result<T, Vec<Mismatch>> {
        let text = self.as_text().ok_or_else(|| self.wrong_kind(expected))?;
        text.parse().map_err(|error: T::Err| {
            let error = error.to_string();
            // Our own types repeat the text in their errors; those of std do not.
            let shown = self.shown();
            let message = if error.contains(shown.trim_matches('"')) && text.len() > 1 {
                error
            } else {
                format!("{shown}: {error}")
            };
            self.mismatch(message, expected)
        })
    }

    /// The value as a message repeats it: shortened, on one line.
    pub(super) fn shown(&self) -> String {
        match &self.kind {
            Kind::Text(text) if text.chars().count() > SHOWN => {
                format!("{:?}…", text.chars().take(SHOWN).collect::<String>())
            }
            Kind::Text(text) => format!("{text:?}"),
            Kind::Integer(Some(number)) => number.to_string(),
            Kind::Float(number) => number.to_string(),
            Kind::Boolean(truth) => truth.to_string(),
            other => other.name().to_owned(),
        }
    }
}

/// As it was written: the entries of tables in the order of the file.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.kind {
            Kind::Text(text) => serializer.serialize_str(text),
            Kind::Integer(Some(number)) => match i64::try_from(*number) {
                Ok(number) => serializer.serialize_i64(number),
                Err(_) => serializer.serialize_i128(*number),
            },
            Kind::Float(number) => serializer.serialize_f64(*number),
            Kind::Boolean(truth) => serializer.serialize_bool(*truth),
            Kind::Integer(None) | Kind::Datetime | Kind::Null => serializer.serialize_unit(),
            Kind::List(elements) => serializer.collect_seq(elements),
            Kind::Table(table) => {
                let mut entries: Vec<_> = table.entries.iter().collect();
                entries.sort_by_key(|(_, entry)| entry.key_offset);
                serializer.collect_map(entries.into_iter().map(|(key, entry)| (key, &entry.value)))
            }
        }
    }
}

/// Any value, to be passed on as it is.
impl FromValue for Value {
    fn expected() -> String {
        "a value".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        Ok(value.clone())
    }
}

impl FromValue for String {
    fn expected() -> String {
        "a string".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        value.as_text().map(str::to_owned).ok_or_else(|| value.wrong_kind(<Self as FromValue>::expected()))
    }
}

impl FromValue for PathBuf {
    fn expected() -> String {
        "a path".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        match value.as_text() {
            Some("") => Err(value.mismatch("it is empty", Self::expected())),
            Some(text) => Ok(Self::from(text)),
            None => Err(value.wrong_kind(Self::expected())),
        }
    }
}

impl FromValue for bool {
    fn expected() -> String {
        "true or false".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        value.as_bool().ok_or_else(|| value.wrong_kind(Self::expected()))
    }
}

impl FromValue for f64 {
    fn expected() -> String {
        "a finite number".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        let number = match &value.kind {
            Kind::Float(number) => *number,
            Kind::Integer(Some(number)) => value
                .mismatch_unless(i32::try_from(*number).ok(), <Self as FromValue>::expected)
                .map(Self::from)?,
            _ => return Err(value.wrong_kind(<Self as FromValue>::expected())),
        };
        value.mismatch_unless(number.is_finite().then_some(number), <Self as FromValue>::expected)
    }
}

impl Value {
    fn mismatch_unless<T>(&self, read: Option<T>, expected: fn() -> String) -> Result<T, Vec<Mismatch>> {
        read.ok_or_else(|| self.mismatch(format_args!("{} is out of range", self.shown()), expected()))
    }
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl FromValue for $type {
            fn expected() -> String {
                format!("an integer from {} to {}", <$type>::MIN, <$type>::MAX)
            }

            fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
                match value.kind {
                    Kind::Integer(number) => value.mismatch_unless(
                        number.and_then(|number| <$type>::try_from(number).ok()),
                        <Self as FromValue>::expected,
                    ),
                    _ => Err(value.wrong_kind(<Self as FromValue>::expected())),
                }
            }
        }
    )*};
}

integers!(u8, u16, u32, u64, usize, i32, i64);

macro_rules! non_zero_integers {
    ($($type:ident = $base:ty),*) => {$(
        impl FromValue for std::num::$type {
            fn expected() -> String {
                format!("an integer from {} to {}", Self::MIN, Self::MAX)
            }

            fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
                match value.kind {
                    Kind::Integer(number) => value.mismatch_unless(
                        number.and_then(|number| <$base>::try_from(number).ok()).and_then(Self::new),
                        Self::expected,
                    ),
                    _ => Err(value.wrong_kind(Self::expected())),
                }
            }
        }
    )*};
}

non_zero_integers!(
    NonZeroU8 = u8,
    NonZeroU16 = u16,
    NonZeroU32 = u32,
    NonZeroU64 = u64,
    NonZeroUsize = usize
);

impl FromValue for Weight {
    fn expected() -> String {
        std::num::NonZeroU16::expected()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        FromValue::from_value(value).map(Self)
    }
}

impl FromValue for Duration {
    fn expected() -> String {
        "a duration such as \"500ms\", \"1s\" or \"1m30s\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        let text = value.as_text().ok_or_else(|| value.wrong_kind(Self::expected()))?;
        humantime::parse_duration(text).map_err(|error| {
            value.mismatch(format_args!("{} is no duration: {error}", value.shown()), Self::expected())
        })
    }
}

impl FromValue for Period {
    fn expected() -> String {
        "a duration from 1ms to 1day such as \"500ms\" or \"2s\"".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        let duration = Duration::from_value(value)?;
        value.mismatch_unless(Self::new(duration).ok(), Self::expected)
    }
}

/// Types that are texts in a document, each with what is expected there.
#[macro_export]
macro_rules! texts {
    ($($type:ty = $expected:literal),* $(,)?) => {$(
        impl $crate::document::FromValue for $type {
            fn expected() -> String {
                $expected.to_owned()
            }

            fn from_value(value: &$crate::document::Value) -> Result<Self, Vec<$crate::document::Mismatch>> {
                value.parse_text($expected)
            }
        }
    )*};
}

texts! {
    SocketAddr = "an address with port such as \"127.0.0.1:53\" or \"[::1]:53\"",
    IpAddr = "an IP address such as \"192.0.2.11\" or \"2001:db8::1\"",
    Ipv4Addr = "an IPv4 address such as \"192.0.2.11\"",
    Ipv6Addr = "an IPv6 address such as \"2001:db8::1\"",
    ServiceName = "a service name such as \"web\"",
    InstanceId = "an instance id such as \"web-a-8080\"",
    NodeName = "a node name such as \"a\"",
    PortName = "a port name such as \"http\"",
    Tag = "a tag such as \"v2\"",
    Zone = "a zone such as \"eu-1a\"",
    Region = "a region such as \"eu-1\"",
    UnixPath = "the absolute path of a unix socket such as \"/run/app.sock\"",
    Protocol = "\"tcp\" or \"udp\"",
    Prefix = "a range of addresses such as \"10.96.0.0/16\"",
    PublishedPort = "a port such as \"8080\", \"8080:metrics\" or \"53/udp\"",
}

impl<T: FromStr<Err: Display>> FromValue for Text<T> {
    fn expected() -> String {
        "a string".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        value.parse_text("").map(Self)
    }
}

impl<T: FromValue> FromValue for Vec<T> {
    fn expected() -> String {
        format!("a list, each of it {}", T::expected())
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        let elements = value.as_list().ok_or_else(|| value.wrong_kind(Self::expected()))?;
        let (mut read, mut wrong) = (Self::with_capacity(elements.len()), Vec::new());
        for (index, element) in elements.iter().enumerate() {
            match T::from_value(element) {
                Ok(element) => read.push(element),
                Err(mismatches) => wrong.extend(below(&format!("[{index}]"), mismatches)),
            }
        }
        if wrong.is_empty() { Ok(read) } else { Err(wrong) }
    }
}

impl<T: FromValue + Ord> FromValue for BTreeSet<T> {
    fn expected() -> String {
        Vec::<T>::expected()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        Vec::from_value(value).map(Self::from_iter)
    }
}

impl<K: FromStr<Err: Display> + Ord, V: FromValue> FromValue for BTreeMap<K, V> {
    fn expected() -> String {
        format!("a table, each value of it {}", V::expected())
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        let Kind::Table(table) = &value.kind else { return Err(value.wrong_kind(Self::expected())) };
        let (mut read, mut wrong) = (Self::new(), Vec::new());
        for (key, entry) in &table.entries {
            let subkey = format!(".{key}");
            match (key.parse(), V::from_value(&entry.value)) {
                (Ok(key), Ok(value)) => {
                    read.insert(key, value);
                }
                (key, value) => {
                    if let Err(error) = key {
                        let offset = entry.key_offset;
                        let message = error.to_string();
                        wrong.push(Mismatch {
                            offset,
                            subkey: subkey.clone(),
                            message,
                            expected: String::new(),
                        });
                    }
                    wrong.extend(below(&subkey, value.err().unwrap_or_default()));
                }
            }
        }
        if wrong.is_empty() { Ok(read) } else { Err(wrong) }
    }
}

fn below(subkey: &str, mismatches: Vec<Mismatch>) -> impl Iterator<Item = Mismatch> {
    mismatches
        .into_iter()
        .map(move |mismatch| Mismatch { subkey: format!("{subkey}{}", mismatch.subkey), ..mismatch })
}
