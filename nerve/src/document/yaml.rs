//! YAML as it is found in configurations of other programs: anchors, aliases and merge keys, and scalars as YAML 1.1 reads them
//! (`yes` is true), since that is what those programs read it with.
//!
//! The only home of the `saphyr-parser` crate. Bounded: a few lines of aliases can stand for any number of values.

use std::collections::{BTreeMap, HashMap};

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::error::{Errors, Position, Problem};
use super::value::{Entry, Kind, Table, Value};

/// So many values a document may have, with what its aliases stand for.
const MAX_VALUES: usize = 100_000;
/// So deep they may be nested.
const MAX_DEPTH: usize = 64;
/// The key whose value's entries are the mapping's own (the merge key of YAML 1.1).
const MERGE: &str = "<<";

/// The mapping that a text is; an empty text is an empty one. Further documents of the text are not looked at.
pub(super) fn parse(file: &str, text: &str) -> Result<Table, Errors> {
    match value(file, text)? {
        None | Some(Value { kind: Kind::Null, .. }) => Ok(Table::empty(0)),
        Some(Value { kind: Kind::Table(table), .. }) => Ok(table),
        Some(other) => Err(problem(file, None, format!("it is {}, and no mapping", other.kind.name()))),
    }
}

/// What a text is; nothing, if it is empty.
pub(super) fn value(file: &str, text: &str) -> Result<Option<Value>, Errors> {
    let mut loader = Loader::new(text);
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let marker = error.marker();
            let position = Position { line: marker.line(), column: marker.col() + 1 };
            problem(file, Some(position), format!("not YAML: {}", error.info()))
        })?;
        let at_the_end = matches!(event, Event::DocumentEnd);
        if let Err(reason) = loader.take(event, span) {
            let position = Position { line: span.start.line(), column: span.start.col() + 1 };
            return Err(problem(file, Some(position), reason));
        }
        if at_the_end {
            break;
        }
    }
    Ok(loader.root)
}

fn problem(file: &str, position: Option<Position>, message: String) -> Errors {
    Errors::single(Problem { position, ..Problem::in_file(file, message, "") })
}

/// A collection that has not ended.
struct Open {
    offset: usize,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Value>),
    Table {
        entries: BTreeMap<String, Entry>,
        merged: Vec<Table>,
        /// The key whose value comes next.
        key: Option<(String, usize, bool)>,
    },
}

/// Makes values of events.
struct Loader {
    /// Byte offsets of characters, where not each is one byte.
    offsets: Option<Vec<usize>>,
    open: Vec<Open>,
    anchors: HashMap<usize, Value>,
    values: usize,
    root: Option<Value>,
}

impl Loader {
    fn new(text: &str) -> Self {
        let offsets = (!text.is_ascii()).then(|| text.char_indices().map(|(at, _)| at).collect());
        Self { offsets, open: Vec::new(), anchors: HashMap::new(), values: 0, root: None }
    }

    fn offset(&self, span: Span) -> usize {
        let index = span.start.index();
        match &self.offsets {
            None => index,
            Some(offsets) => offsets.get(index).copied().unwrap_or(usize::MAX),
        }
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), String> {
        let offset = self.offset(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.count(1)?;
                let kind = match (style, tag.as_deref()) {
                    (ScalarStyle::Plain, None) => resolve(&text),
                    (_, Some(tag)) if !is_string(tag) => resolve(&text),
                    _ => Kind::Text(text.into_owned()),
                };
                self.finish(Value { kind, offset }, anchor, style == ScalarStyle::Plain)
            }
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).cloned();
                let value = value.ok_or("an alias stands inside of what it is an alias of")?;
                self.count(value.count())?;
                self.finish(value, 0, false)
            }
            Event::SequenceStart(anchor, _) => self.begin(offset, anchor, Content::List(Vec::new())),
            Event::MappingStart(anchor, _) => {
                let content = Content::Table { entries: BTreeMap::new(), merged: Vec::new(), key: None };
                self.begin(offset, anchor, content)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { offset, anchor, content }) = self.open.pop() else { return Ok(()) };
                let kind = match content {
                    Content::List(elements) => Kind::List(elements),
                    Content::Table { mut entries, merged, .. } => {
                        for (key, entry) in merged.into_iter().flat_map(|table| table.entries) {
                            entries.entry(key).or_insert(entry);
                        }
                        // A null is an absent value.
                        entries.retain(|_, entry| !matches!(entry.value.kind, Kind::Null));
                        Kind::Table(Table { entries, offset })
                    }
                };
                self.finish(Value { kind, offset }, anchor, false)
            }
            _ => Ok(()),
        }
    }

    fn count(&mut self, values: usize) -> Result<(), String> {
        self.values += values;
        if self.values > MAX_VALUES {
            return Err(format!("it has more than {MAX_VALUES} values, with what aliases stand for"));
        }
        Ok(())
    }

    fn begin(&mut self, offset: usize, anchor: usize, content: Content) -> Result<(), String> {
        self.count(1)?;
        if self.open.len() >= MAX_DEPTH {
            return Err(format!("it is nested deeper than {MAX_DEPTH} levels"));
        }
        self.open.push(Open { offset, anchor, content });
        Ok(())
    }

    /// A value is whole: it goes where it belongs.
    fn finish(&mut self, value: Value, anchor: usize, is_plain: bool) -> Result<(), String> {
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(value);
            return Ok(());
        };
        match &mut open.content {
            Content::List(elements) => elements.push(value),
            Content::Table { entries, merged, key } => match key.take() {
                None => {
                    let offset = value.offset;
                    let Some(text) = value.as_key() else {
                        return Err(format!("a key is {}, and not one word", value.kind.name()));
                    };
                    let is_merge = is_plain && text == MERGE;
                    *key = Some((text, offset, is_merge));
                }
                Some((_, _, true)) => match value.kind {
                    Kind::Table(table) => merged.push(table),
                    Kind::List(elements) => merged.extend(elements.into_iter().filter_map(Value::into_table)),
                    _ => return Err(format!("the value of {MERGE} is no mapping")),
                },
                Some((key, key_offset, false)) => drop(entries.insert(key, Entry { key_offset, value })),
            },
        }
        Ok(())
    }
}

impl Value {
    /// As the key of a mapping; numbers are keys as they would be written.
    fn as_key(&self) -> Option<String> {
        match &self.kind {
            Kind::Text(text) => Some(text.clone()),
            Kind::Integer(Some(number)) => Some(number.to_string()),
            Kind::Boolean(truth) => Some(truth.to_string()),
            Kind::Float(number) => Some(number.to_string()),
            _ => None,
        }
    }

    fn into_table(self) -> Option<Table> {
        match self.kind {
            Kind::Table(table) => Some(table),
            _ => None,
        }
    }

    /// How many values it is, with those in it.
    fn count(&self) -> usize {
        1 + match &self.kind {
            Kind::List(elements) => elements.iter().map(Self::count).sum(),
            Kind::Table(table) => table.entries.values().map(|entry| entry.value.count()).sum(),
            _ => 0,
        }
    }
}

fn is_string(tag: &Tag) -> bool {
    tag.suffix == "str" || tag.handle == "!"
}

/// A plain scalar, as YAML 1.1 reads it.
fn resolve(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        _ if is_word(text, &["true", "yes", "on"]) => return Kind::Boolean(true),
        _ if is_word(text, &["false", "no", "off"]) => return Kind::Boolean(false),
        _ => {}
    }
    if let Some(number) = integer(text) {
        return Kind::Integer(number);
    }
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE_".contains(&byte))
        && text.bytes().any(|byte| byte.is_ascii_digit());
    match text.replace('_', "").parse::<f64>() {
        Ok(number) if is_decimal => Kind::Float(number),
        _ => Kind::Text(text.to_owned()),
    }
}

/// One of these in lower case, in upper case, or with a capital.
fn is_word(text: &str, words: &[&str]) -> bool {
    let (first, rest) = text.split_at_checked(1).unwrap_or_default();
    let is_uniform = rest.bytes().all(|byte| byte.is_ascii_lowercase())
        || (first.bytes().all(|byte| byte.is_ascii_uppercase())
            && rest.bytes().all(|byte| byte.is_ascii_uppercase()));
    is_uniform && words.iter().any(|word| word.eq_ignore_ascii_case(text))
}

/// `None`: it is none. `Some(None)`: one that is too large.
fn integer(text: &str) -> Option<Option<i128>> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x', ..] => (16, &digits[2..]),
        [b'0', b'o', ..] => (8, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    let digits = digits.replace('_', "");
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    Some(i128::from_str_radix(&digits, radix).ok().map(|number| sign * number))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::Document;
    use super::*;

    fn json(text: &str) -> String {
        let table = parse("x.yaml", text).unwrap_or_else(|errors| panic!("{text}: {errors}"));
        serde_json::to_string(&Value { kind: Kind::Table(table), offset: 0 }).unwrap()
    }

    #[test]
    fn scalars_are_read_as_yaml_1_1_does_and_keep_their_order() {
        for (text, expected) in [
            ("z: 1\na: two\nm: [3, 4.5, yes, No, ~]\n", r#"{"z":1,"a":"two","m":[3,4.5,true,false,null]}"#),
            ("a: 0x1F\nb: 010\nc: 1_000\nd: -7\n", r#"{"a":31,"b":8,"c":1000,"d":-7}"#),
            ("a: '80'\nb: \"yes\"\nc: !!str 5\nd: yEs\n", r#"{"a":"80","b":"yes","c":"5","d":"yEs"}"#),
            ("a: 10.0.0.1\nb: 1.2.3\nc: 1e3\nd: .5\n", r#"{"a":"10.0.0.1","b":"1.2.3","c":1000.0,"d":0.5}"#),
            ("a:\nb: 1\n", r#"{"b":1}"#),
            ("{\"a\": {\"b\": [1, \"x\"]}, \"c\": true}", r#"{"a":{"b":[1,"x"]},"c":true}"#),
            ("ä: ö\n", r#"{"ä":"ö"}"#),
            ("1: a\ntrue: b\n", r#"{"1":"a","true":"b"}"#),
            ("", "{}"),
            ("a: 1\n---\nb: 2\n", r#"{"a":1}"#),
        ] {
            assert_eq!(json(text), expected, "{text}");
        }
    }

    #[test]
    fn aliases_and_merge_keys_stand_for_what_they_name() {
        let text = "base: &base {rise: 3, fall: 2}\nweb:\n  <<: *base\n  fall: 5\nlist: [*base]\n";
        assert_eq!(
            json(text),
            r#"{"base":{"rise":3,"fall":2},"web":{"rise":3,"fall":5},"list":[{"rise":3,"fall":2}]}"#
        );
        let several = "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc:\n  <<: [*a, *b]\n";
        assert_eq!(json(several), r#"{"a":{"x":1},"b":{"x":2,"y":2},"c":{"x":1,"y":2}}"#);
    }

    #[test]
    fn mistakes_have_a_place_and_bombs_are_refused() {
        let refused = |text: &str| parse("x.yaml", text).unwrap_err().to_string();
        assert!(
            refused("a: 1\nb: [1\nc: 2\n").starts_with("x.yaml:3:"),
            "{}",
            refused("a: 1\nb: [1\nc: 2\n")
        );
        assert!(refused("- 1\n- 2\n").contains("it is a list, and no mapping"));
        assert!(refused("? [1]\n: 2\n").contains("a key is a list"));
        let mut bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
        for level in 1..9 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        assert!(refused(&bomb).contains("more than 100000 values"), "{}", refused(&bomb));
        assert!(refused(&format!("a: {}1{}", "[".repeat(100), "]".repeat(100))).contains("nested deeper"));
        assert!(refused("a: &a [*a]\n").contains("x.yaml:1:"));
    }

    #[test]
    fn problems_in_it_name_line_and_column() {
        let document = Document::parse_yaml("x.yaml", "ä: 1\nport:\n  number: 70000\n").unwrap();
        let read = document.decode(|root| {
            root.optional::<u8>("ä");
            root.section("port", |port| port.required::<u16>("number"));
            Ok(())
        });
        let shown = read.unwrap_err().to_string();
        assert!(shown.starts_with("x.yaml:3:11: port.number: 70000 is out of range"), "{shown}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-c0-9:\\-\\[\\]{}&*!|>'\"#, \\n?~ä<%@\t]{0,120}") {
            if let Ok(document) = Document::parse_yaml("x", &text) {
                let _ = document.decode(|root| Ok(root.optional::<BTreeMap<String, String>>("a")));
            }
        }

        #[test]
        fn what_is_json_is_read_as_json_is(text in "[a-z0-9 .:-]{0,12}", number in any::<i64>(), truth: bool) {
            let json_text = serde_json::json!({"z": text, "a": [number, truth, {"k": text}]}).to_string();
            let read: serde_json::Value = serde_json::from_str(&json(&json_text)).unwrap();
            prop_assert_eq!(read, serde_json::from_str::<serde_json::Value>(&json_text).unwrap());
        }
    }
}
