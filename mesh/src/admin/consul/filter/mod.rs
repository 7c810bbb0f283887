//! Consul's `filter`: which rows of an answer the asker wants (developer.hashicorp.com/consul/api-docs/features/filtering).
//!
//! A filter is read, then held against the fields that the answer's rows have ([`fields`]), so that a slip is refused and not
//! answered with nothing; what is left cannot fail, and is asked of each row as it would be sent.

pub(super) mod fields;
mod parse;

use regex::{Regex, RegexBuilder};
use serde::Serialize;
use serde_json::Value;

use self::fields::{Field, Fields, Kind};
use self::parse::{Comparison, Expression, Operator};

/// The most memory that a regular expression may take, and as much again while it looks.
const REGEX_BYTES: usize = 256 * 1024;
/// The most of them in one filter: making one takes long against everything else here.
const REGEXES: usize = 8;

/// A filter whose fields exist and whose values are of their kind.
#[derive(Debug)]
pub(super) enum Filter {
    Any(Vec<Self>),
    All(Vec<Self>),
    Not(Box<Self>),
    Asks(Test),
}

/// What is asked of one field.
#[derive(Debug)]
pub(super) struct Test {
    path: Vec<String>,
    asked: Asked,
    negated: bool,
}

#[derive(Debug)]
enum Asked {
    Equals(Value),
    Contains(String),
    Empty,
    Matches(Regex),
}

/// The rows that are wanted; all of them without a filter.
pub(super) fn kept<T: Serialize>(filter: Option<&Filter>, rows: impl IntoIterator<Item = T>) -> Vec<T> {
    rows.into_iter().filter(|row| filter.is_none_or(|filter| filter.keeps(row))).collect()
}

impl Filter {
    /// Reads a filter of rows that have these fields.
    pub(super) fn read(text: &str, fields: Fields) -> Result<Self, String> {
        let expression = parse::parse(text)?;
        if expression.count(Operator::Matches) > REGEXES {
            return Err(format!("it has more than {REGEXES} regular expressions"));
        }
        Self::of(expression, fields)
    }

    fn of(expression: Expression, fields: Fields) -> Result<Self, String> {
        let each = |parts: Vec<Expression>| -> Result<Vec<Self>, String> {
            parts.into_iter().map(|part| Self::of(part, fields)).collect()
        };
        Ok(match expression {
            Expression::Any(parts) => Self::Any(each(parts)?),
            Expression::All(parts) => Self::All(each(parts)?),
            Expression::Not(of) => Self::Not(Box::new(Self::of(*of, fields)?)),
            Expression::Compares(comparison) => Self::Asks(Test::of(comparison, fields)?),
        })
    }

    /// Is this row wanted?
    pub(super) fn keeps(&self, row: &impl Serialize) -> bool {
        serde_json::to_value(row).is_ok_and(|row| self.holds(&row))
    }

    fn holds(&self, row: &Value) -> bool {
        match self {
            Self::Any(parts) => parts.iter().any(|part| part.holds(row)),
            Self::All(parts) => parts.iter().all(|part| part.holds(row)),
            Self::Not(of) => !of.holds(row),
            Self::Asks(test) => test.holds(row, &test.path),
        }
    }
}

impl Test {
    fn of(comparison: Comparison, fields: Fields) -> Result<Self, String> {
        let Comparison { selector: path, operator, negated, value } = comparison;
        let name = path.join(".");
        let Some(kind) = kind(&path, fields) else {
            let known: Vec<&str> = fields.iter().map(|Field(name, _)| *name).collect();
            return Err(format!("there is no `{name}` here; there are {}", known.join(", ")));
        };
        let asked = match (operator, kind) {
            (Operator::Equals, Kind::Text) => Asked::Equals(value.into()),
            (Operator::Equals, Kind::Number) => {
                let number: i64 =
                    value.parse().map_err(|_| format!("`{name}` is a number, and {value:?} is none"))?;
                Asked::Equals(number.into())
            }
            (Operator::Equals, Kind::Flag) => match value.as_str() {
                "true" | "1" => Asked::Equals(true.into()),
                "false" | "0" => Asked::Equals(false.into()),
                _ => return Err(format!("`{name}` is true or false, and not {value:?}")),
            },
            (Operator::Contains, Kind::Text | Kind::List | Kind::Map) => Asked::Contains(value),
            (Operator::Empty, Kind::Text | Kind::List | Kind::Map) => Asked::Empty,
            (Operator::Matches, Kind::Text) => {
                let regex =
                    RegexBuilder::new(&value).size_limit(REGEX_BYTES).dfa_size_limit(REGEX_BYTES).build();
                Asked::Matches(regex.map_err(|error| format!("{value:?} is no regular expression: {error}"))?)
            }
            (operator, kind) => {
                let word = match operator {
                    Operator::Equals => "==",
                    Operator::Contains => "contains",
                    Operator::Empty => "is empty",
                    Operator::Matches => "matches",
                };
                return Err(format!("`{name}` is {}, for which there is no `{word}`", kind.shown()));
            }
        };
        Ok(Self { path, asked, negated })
    }

    /// Goes down to the field, and in a list of structures to that of any.
    fn holds(&self, at: &Value, path: &[String]) -> bool {
        match (path.split_first(), at) {
            (None, value) => self.is_so(value) != self.negated,
            (Some(_), Value::Array(elements)) => elements.iter().any(|element| self.holds(element, path)),
            (Some((name, rest)), structure) => match structure.get(name) {
                Some(value) => self.holds(value, rest),
                // A key that a map does not have is equal to nothing, contains nothing, and is empty.
                None => matches!(self.asked, Asked::Empty) != self.negated,
            },
        }
    }

    fn is_so(&self, value: &Value) -> bool {
        match (&self.asked, value) {
            (Asked::Equals(wanted), value) => value == wanted,
            (Asked::Contains(part), Value::String(text)) => text.contains(part.as_str()),
            (Asked::Contains(element), Value::Array(elements)) => elements.iter().any(|of| of == element),
            (Asked::Contains(key), Value::Object(map)) => map.contains_key(key),
            (Asked::Empty, Value::String(text)) => text.is_empty(),
            (Asked::Empty, Value::Array(elements)) => elements.is_empty(),
            (Asked::Empty, Value::Object(map)) => map.is_empty(),
            (Asked::Matches(regex), Value::String(text)) => regex.is_match(text),
            _ => false,
        }
    }
}

/// Of what kind the field is that a selector names, if there is one.
fn kind(path: &[String], fields: Fields) -> Option<Kind> {
    let kind_of = |path: &[String]| {
        let is_it = |Field(name, _): &&Field| name.split('.').eq(path.iter().map(String::as_str));
        fields.iter().find(is_it).map(|Field(_, kind)| *kind)
    };
    let of_map = || {
        let (_, map) = path.split_last()?;
        (kind_of(map)? == Kind::Map).then_some(Kind::Text)
    };
    kind_of(path).or_else(of_map)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const FIELDS: Fields = &[
        Field("Node.Meta", Kind::Map),
        Field("Service.Service", Kind::Text),
        Field("Service.Tags", Kind::List),
        Field("Service.Port", Kind::Number),
        Field("Service.EnableTagOverride", Kind::Flag),
        Field("Checks.Status", Kind::Text),
    ];

    fn row(service: &str, tags: &[&str], port: u16, checks: &[&str]) -> Value {
        let checks: Vec<Value> = checks.iter().map(|status| json!({"Status": status})).collect();
        json!({
            "Node": {"Meta": {"zone": "eu", "a team": ""}},
            "Service": {"Service": service, "Tags": tags, "Port": port, "EnableTagOverride": false},
            "Checks": checks,
        })
    }

    fn keeps(text: &str, row: &Value) -> bool {
        Filter::read(text, FIELDS).unwrap_or_else(|error| panic!("{text}: {error}")).keeps(row)
    }

    #[test]
    fn each_kind_of_field_is_asked_as_consul_asks_it() {
        let row = row("web", &["v2", "blue"], 80, &["passing", "warning"]);
        for (text, expected) in [
            (r#"Service.Tags contains "v2""#, true),
            (r#""v" in Service.Tags"#, false),
            ("v1 not in Service.Tags", true),
            ("Service.Tags is empty", false),
            ("Service.Service == web", true),
            ("Service.Service contains eb", true),
            ("Service.Service matches `^w.b$`", true),
            ("Service.Service not matches `^w$`", true),
            ("Service.Port == 80 and Service.Port != 81", true),
            ("Service.EnableTagOverride == true", false),
            ("Node.Meta.zone == eu", true),
            ("Node.Meta.rack == r1", false),
            ("Node.Meta.rack != r1", true),
            ("Node.Meta.rack is empty", true),
            (r#"Node.Meta["a team"] is empty"#, true),
            ("rack in Node.Meta", false),
            ("zone in Node.Meta", true),
            ("Node.Meta is not empty", true),
            // Of several checks any: also for what they are not.
            ("Checks.Status == warning", true),
            ("Checks.Status != passing", true),
            ("not Checks.Status == passing", false),
            ("Checks.Status == critical", false),
        ] {
            assert_eq!(keeps(text, &row), expected, "{text}");
        }
        assert!(!keeps("Checks.Status != passing", &self::row("web", &[], 80, &[])));
    }

    #[test]
    fn what_the_rows_do_not_have_or_cannot_be_asked_is_refused() {
        for (text, named) in [
            ("Service.Name == web", "there is no `Service.Name` here; there are Node.Meta,"),
            ("Service == web", "there is no `Service`"),
            ("Service.Service.x == web", "there is no `Service.Service.x`"),
            ("Node.Meta.a.b == web", "there is no `Node.Meta.a.b`"),
            ("Service.Port == http", "is a number"),
            ("Service.Port contains 8", "is a number, for which there is no `contains`"),
            ("Service.Tags == v2", "is a list, for which there is no `==`"),
            ("Node.Meta matches x", "is a map"),
            ("Service.EnableTagOverride == maybe", "is true or false"),
            ("Service.Service matches `(`", "no regular expression"),
            (&["Service.Service matches `a`"; REGEXES + 1].join(" or "), "more than 8 regular expressions"),
            ("Service.Service matches `(\\w{100}){100}`", "no regular expression"),
        ] {
            let refused = Filter::read(text, FIELDS).unwrap_err();
            assert!(refused.contains(named), "{text}: {refused}");
        }
    }

    /// Texts of comparisons, grouped and joined at random.
    fn texts() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("Service.Service == web"),
            Just("v2 in Service.Tags"),
            Just("Service.Tags is empty"),
            Just("Service.Port != 80"),
            Just("Node.Meta.rack not contains x"),
            Just("Checks.Status == passing"),
            Just("Checks.Status != passing"),
        ];
        leaf.prop_map(str::to_owned).prop_recursive(4, 24, 2, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) and ({b})")),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) or ({b})")),
                inner.prop_map(|a| format!("not ({a})")),
            ]
        })
    }

    fn rows() -> impl Strategy<Value = Value> {
        let some = |words: &'static [&'static str]| proptest::sample::subsequence(words, 0..=words.len());
        let (tags, checks) = (some(&["v1", "v2"]), some(&["passing", "critical"]));
        (prop_oneof![Just("web"), Just("api")], tags, 79..82u16, checks)
            .prop_map(|(service, tags, port, checks)| row(service, &tags, port, &checks))
    }

    proptest! {
        #[test]
        fn what_is_said_in_other_words_keeps_the_same_rows(a in texts(), b in texts(), row in rows()) {
            let (is_a, is_b) = (keeps(&a, &row), keeps(&b, &row));
            prop_assert_eq!(keeps(&format!("({a}) and ({b})"), &row), is_a && is_b);
            prop_assert_eq!(keeps(&format!("({a}) or ({b})"), &row), is_a || is_b);
            prop_assert_eq!(keeps(&format!("not not ({a})"), &row), is_a);
            prop_assert_eq!(keeps(&format!("not (({a}) or ({b}))"), &row), keeps(&format!("not ({a}) and not ({b})"), &row));
            prop_assert_eq!(keeps(&format!("({a}) and (({b}) or ({a}))"), &row), is_a);
        }
    }
}
