//! Configuration text into typed values, with every mistake told at once.
//!
//! A [`Document`] is parsed TOML in which each value knows its line. [`Document::decode`] hands out its root
//! [`Section`]; whoever reads it names each key once, with its type and default, and what was never named is an unknown
//! key. All problems of a file come back together as [`Errors`], each with file, line, column, key, what is wrong
//! and what is expected.
//!
//! ```
//! use nerve::document::Document;
//! use std::time::Duration;
//!
//! let document = Document::parse("demo.toml", "[node]\nnmae = \"a\"\nttl = \"soon\"\n").unwrap();
//! let errors = document
//!     .decode(|root| {
//!         root.section_or_empty("node", |node| {
//!             let name = node.required::<String>("name");
//!             let ttl = node.or("ttl", Duration::from_secs(10));
//!             Ok((name?, ttl))
//!         })
//!     })
//!     .unwrap_err();
//! assert_eq!(errors.to_string().lines().count(), 3); // `name` is missing, `nmae` is unknown, `soon` is no duration
//! ```
//!
//! The only home of the `toml` crate. What it never does: hand out a half-read document (one problem refuses the whole),
//! read more than [`MAX_BYTES`], or know what any key means.

mod error;
mod print;
mod section;
mod value;
mod yaml;

use std::cell::RefCell;
use std::io::Read;
use std::path::Path;

use toml::de::DeTable;

pub use error::{Errors, Position, Problem};
pub use print::{Unprintable, to_toml};
pub use section::{Reported, Section};
pub use value::{FromValue, Mismatch, Text, Value};

use error::Sink;
use value::{Entry, Kind, Table};

/// The largest file that is read, in bytes.
pub const MAX_BYTES: usize = 1024 * 1024;

/// One entry of a table that is read by itself: its name, and what it is with the keys that nobody asked for.
pub type Part<T> = (String, Result<(T, Vec<Problem>), Errors>);

/// A parsed text whose values know where they stand.
#[derive(Debug)]
pub struct Document {
    root: Table,
    lines: Lines,
}

/// The text of a file, which is at most [`MAX_BYTES`] large.
///
/// # Errors
/// The file cannot be read, is too large or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, Errors> {
    let file = path.display().to_string();
    let unreadable = |error: std::io::Error| {
        Errors::whole_file(&file, format!("the file cannot be read: {error}"), "a readable file")
    };
    let mut bytes = Vec::new();
    let limit = MAX_BYTES as u64 + 1;
    std::fs::File::open(path)
        .and_then(|opened| opened.take(limit).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let good = String::from_utf8_lossy(&error.as_bytes()[..valid]);
        let position = Lines::new(&file, &good).position(good.len());
        Errors::single(Problem {
            position,
            ..Problem::in_file(&file, "the file is not UTF-8 from here on", "UTF-8 text")
        })
    })
}

impl Document {
    /// Reads and parses a file.
    ///
    /// # Errors
    /// The file cannot be read, is too large, is not UTF-8 or is not TOML.
    pub fn read(path: &Path) -> Result<Self, Errors> {
        Self::read_as(path, Self::parse)
    }

    /// Reads and parses a file of YAML or JSON.
    ///
    /// # Errors
    /// The file cannot be read, is too large, is not UTF-8 or is no YAML mapping.
    pub fn read_yaml(path: &Path) -> Result<Self, Errors> {
        Self::read_as(path, Self::parse_yaml)
    }

    fn read_as(path: &Path, parse: fn(&str, &str) -> Result<Self, Errors>) -> Result<Self, Errors> {
        parse(&path.display().to_string(), &read_text(path)?)
    }

    /// Parses a text; `file` is the name that errors show.
    ///
    /// # Errors
    /// The text is too large or is not TOML; every syntax error is told.
    pub fn parse(file: &str, text: &str) -> Result<Self, Errors> {
        if text.len() > MAX_BYTES {
            return Err(too_large(file));
        }
        let lines = Lines::new(file, text);
        let (table, mistakes) = DeTable::parse_recoverable(text);
        if mistakes.is_empty() {
            return Ok(Self { root: Table::from_toml(table.into_inner(), 0), lines });
        }
        let mut sink = Sink::default();
        let mut last_line = 0;
        for mistake in mistakes {
            let position = lines.position(mistake.span().map_or(0, |span| span.start));
            // The parser recovers within a line; what it then stumbles over is a consequence of the first mistake.
            let line = position.map_or(0, |position| position.line);
            if line != last_line {
                last_line = line;
                sink.push(Problem {
                    position,
                    ..Problem::in_file(file, format!("not TOML: {}", mistake.message()), "")
                });
            }
        }
        Err(sink.into_errors())
    }

    /// Parses a JSON object that has the form of a TOML document: what an HTTP client sends, what a state file holds.
    /// Problems in it name the key but no line.
    ///
    /// # Errors
    /// The text is too large or is no JSON object.
    pub fn parse_json(file: &str, text: &str) -> Result<Self, Errors> {
        if text.len() > MAX_BYTES {
            return Err(Errors::whole_file(
                file,
                format!("it has more than {MAX_BYTES} bytes"),
                "a smaller one",
            ));
        }
        match serde_json::from_str(text) {
            Ok(map) => Ok(Self { root: Table::from_json(map), lines: Lines::unplaced(file) }),
            Err(error) => {
                let position = Some(Position { line: error.line(), column: error.column().max(1) });
                let problem = Problem::in_file(file, format!("no JSON object: {error}"), "");
                Err(Errors::single(Problem { position, ..problem }))
            }
        }
    }

    /// Parses a YAML mapping, and so JSON too, as programs read it that we take over from.
    ///
    /// # Errors
    /// The text is too large or is no YAML mapping.
    pub fn parse_yaml(file: &str, text: &str) -> Result<Self, Errors> {
        if text.len() > MAX_BYTES {
            return Err(too_large(file));
        }
        Ok(Self { root: yaml::parse(file, text)?, lines: Lines::new(file, text) })
    }

    /// What a YAML text is, and so a JSON text too, be it a list or a mapping; `None`: it is empty.
    ///
    /// # Errors
    /// The text is too large or is no YAML.
    pub fn parse_yaml_value(file: &str, text: &str) -> Result<Option<Value>, Errors> {
        if text.len() > MAX_BYTES {
            return Err(too_large(file));
        }
        yaml::value(file, text)
    }

    /// Reads the document's root with `decode`, then reports what it did not ask for.
    ///
    /// # Errors
    /// Every problem that was found, in the order of the file.
    pub fn decode<T>(
        &self,
        decode: impl FnOnce(&mut Section<'_>) -> Result<T, Reported>,
    ) -> Result<T, Errors> {
        self.decode_into(Sink::default(), decode).map(|(value, _)| value)
    }

    /// As [`Document::decode`], for a document of another program: keys that nobody asked for are returned and are no errors.
    ///
    /// # Errors
    /// Every other problem that was found, in the order of the file.
    pub fn decode_tolerantly<T>(
        &self,
        decode: impl FnOnce(&mut Section<'_>) -> Result<T, Reported>,
    ) -> Result<(T, Vec<Problem>), Errors> {
        self.decode_into(Sink::tolerant(), decode)
    }

    /// As [`Document::decode_tolerantly`], for each entry of the table under `key` of the root by itself: what is wrong in one is
    /// no reason to lose another. Where there is no such key there are none.
    ///
    /// # Errors
    /// What stands under `key` is no table.
    pub fn decode_parts<T>(
        &self,
        key: &str,
        mut decode: impl FnMut(&str, &mut Section<'_>) -> Result<T, Reported>,
    ) -> Result<Vec<Part<T>>, Errors> {
        let wrong = |offset, key: String, kind: &Kind| {
            let message = format!("found {}", kind.name());
            let problem = Problem::in_file(&self.lines.file, message, "a table");
            Errors::single(Problem { position: self.lines.position(offset), key, ..problem })
        };
        let Some(Entry { value, .. }) = self.root.entries.get(key) else { return Ok(Vec::new()) };
        let Kind::Table(table) = &value.kind else {
            return Err(wrong(value.offset, key.to_owned(), &value.kind));
        };
        let part = |(name, entry): (&String, &Entry)| {
            let path = format!("{key}.{name}");
            let read = match &entry.value.kind {
                Kind::Table(table) => {
                    self.read_into(table, path, Sink::tolerant(), |section| decode(name, section))
                }
                other => Err(wrong(entry.value.offset, path, other)),
            };
            (name.clone(), read)
        };
        Ok(table.entries.iter().map(part).collect())
    }

    fn decode_into<T>(
        &self,
        sink: Sink,
        decode: impl FnOnce(&mut Section<'_>) -> Result<T, Reported>,
    ) -> Result<(T, Vec<Problem>), Errors> {
        self.read_into(&self.root, String::new(), sink, decode)
    }

    fn read_into<T>(
        &self,
        table: &Table,
        path: String,
        sink: Sink,
        decode: impl FnOnce(&mut Section<'_>) -> Result<T, Reported>,
    ) -> Result<(T, Vec<Problem>), Errors> {
        let sink = RefCell::new(sink);
        let decoded = section::read(table, &self.lines, &sink, path, decode);
        match (decoded, sink.into_inner()) {
            (Ok(value), sink) if sink.is_empty() => Ok((value, sink.into_unknown())),
            (_, sink) => Err(sink.into_errors()),
        }
    }
}

fn too_large(file: &str) -> Errors {
    let message = format!("the file has more than {MAX_BYTES} bytes");
    Errors::whole_file(file, message, "a smaller file: split it")
}

/// Byte offsets to lines and columns.
#[derive(Debug)]
struct Lines {
    file: String,
    text: String,
    starts: Vec<usize>,
}

impl Lines {
    fn new(file: &str, text: &str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { file: file.to_owned(), text: text.to_owned(), starts }
    }

    /// For a document whose values have no places.
    fn unplaced(file: &str) -> Self {
        Self { file: file.to_owned(), text: String::new(), starts: Vec::new() }
    }

    fn position(&self, offset: usize) -> Option<Position> {
        if self.starts.is_empty() {
            return None;
        }
        let offset = offset.min(self.text.len());
        let line = self.starts.partition_point(|&start| start <= offset).max(1);
        let before = self.text.as_bytes().get(self.starts[line - 1]..offset).unwrap_or_default();
        // Characters, not bytes: continuation bytes of UTF-8 are 0b10xxxxxx.
        let column = before.iter().filter(|&&byte| byte & 0xC0 != 0x80).count() + 1;
        Some(Position { line, column })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;
    use std::num::NonZeroU16;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::model::ServiceName;

    fn errors_of(text: &str, decode: impl FnOnce(&mut Section<'_>) -> Result<(), Reported>) -> String {
        match Document::parse("x.toml", text).and_then(|document| document.decode(decode)) {
            Ok(()) => String::new(),
            Err(errors) => errors.to_string(),
        }
    }

    #[test]
    fn values_of_every_kind_are_read() {
        let text = r#"
            name = "web"
            port = 8080
            every = "1m30s"
            listen = ["127.0.0.1:53", "[::1]:53"]
            [labels]
            team = "a"
        "#;
        let document = Document::parse("x.toml", text).unwrap();
        let read = document.decode(|s| {
            let name = s.required::<ServiceName>("name");
            let port = s.required::<NonZeroU16>("port");
            let every = s.or("every", Duration::ZERO);
            let listen = s.or("listen", Vec::<SocketAddr>::new());
            let labels = s.or("labels", BTreeMap::<String, String>::new());
            let absent = s.optional::<bool>("absent");
            Ok((name?, port?, every, listen, labels, absent))
        });
        let (name, port, every, listen, labels, absent) = read.unwrap();
        assert_eq!((name.as_str(), port.get(), every.as_secs(), listen.len()), ("web", 8080, 90, 2));
        assert_eq!((labels["team"].as_str(), absent), ("a", None));
    }

    #[test]
    fn every_mistake_is_told_at_once_in_the_order_of_the_file() {
        let text =
            "[node]\nnmae = \"a\"\nport = 70000\n[[service]]\nname = \"My_Web\"\n[[service]]\nname = 3\n";
        let shown = errors_of(text, |root| {
            root.section("node", |node| {
                let name = node.required::<String>("name");
                node.optional::<NonZeroU16>("port");
                name.map(drop)
            });
            root.list("service", |service| service.required::<ServiceName>("name"));
            Ok(())
        });
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 5, "{shown}");
        assert!(lines[0].starts_with("x.toml:1:1: node.name: it is missing"), "{shown}");
        assert_eq!(lines[1], "x.toml:2:1: node.nmae: unknown key; did you mean `name`?", "{shown}");
        assert!(lines[2].starts_with("x.toml:3:8: node.port: 70000 is out of range; expected"), "{shown}");
        assert!(
            lines[3].starts_with("x.toml:5:8: service[0].name: \"My_Web\" is no service name"),
            "{shown}"
        );
        assert!(lines[4].starts_with("x.toml:7:8: service[1].name: found an integer; expected"), "{shown}");
    }

    #[test]
    fn an_unknown_key_far_from_every_other_lists_the_valid_ones() {
        let shown = errors_of("zzz = 1\n", |s| {
            s.optional::<bool>("alpha");
            s.optional::<bool>("beta");
            Ok(())
        });
        assert_eq!(shown, "x.toml:1:1: zzz: unknown key; expected one of `alpha`, `beta`");
    }

    #[test]
    fn a_renamed_key_answers_with_its_new_name() {
        let shown = errors_of("old = 1\n", |s| {
            s.renamed("old", "new");
            s.optional::<bool>("new");
            Ok(())
        });
        assert_eq!(shown, "x.toml:1:1: old: this key is now called `new`");
    }

    #[test]
    fn each_wrong_element_of_a_list_is_told() {
        let shown = errors_of("a = [\"1.2.3.4\", \"x\",\n 5]\n", |s| {
            s.optional::<Vec<std::net::IpAddr>>("a");
            Ok(())
        });
        let lines: Vec<_> = shown.lines().collect();
        assert!(lines[0].starts_with("x.toml:1:17: a[1]: "), "{shown}");
        assert!(lines[1].starts_with("x.toml:2:2: a[2]: found an integer"), "{shown}");
    }

    #[test]
    fn syntax_errors_have_a_line() {
        let shown = errors_of("a = 1\nb = = 2\nc = \"x\n", |_| Ok(()));
        assert!(shown.starts_with("x.toml:2:5: not TOML: "), "{shown}");
        assert!(shown.lines().any(|line| line.starts_with("x.toml:3:")), "{shown}");
    }

    #[test]
    fn columns_count_characters() {
        let shown = errors_of("\"ä\" = 1\nx = { \"öö\" = 1, y = 2 }\n", |s| {
            s.optional::<u8>("ä");
            s.section("x", |x| x.optional::<u8>("öö"));
            Ok(())
        });
        assert!(shown.starts_with("x.toml:2:17: x.y: unknown key"), "{shown}");
    }

    #[test]
    fn json_of_the_same_form_is_read_the_same_way() {
        let document = Document::parse_json("body", r#"{"port": 80, "every": "x", "gone": null}"#).unwrap();
        let errors = document
            .decode(|s| Ok((s.required::<u16>("port")?, s.optional::<Duration>("every"))))
            .unwrap_err();
        assert!(errors.to_string().starts_with("body: every: \"x\" is no duration"), "{errors}");
        let errors = Document::parse_json("body", "{\n 1").unwrap_err().to_string();
        assert!(errors.starts_with("body:2:2: no JSON object"), "{errors}");
    }

    #[test]
    fn oversized_and_unreadable_files_are_refused() {
        let errors = Document::parse("x.toml", &" ".repeat(MAX_BYTES + 1)).unwrap_err();
        assert!(errors.to_string().contains("more than 1048576 bytes"));
        let errors = Document::read(Path::new("/nonexistent/x.toml")).unwrap_err();
        assert!(errors.to_string().starts_with("/nonexistent/x.toml: the file cannot be read"), "{errors}");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("latin.toml");
        std::fs::write(&path, b"a = 1\nb = \"\xff\"\n").unwrap();
        let errors = Document::read(&path).unwrap_err().to_string();
        assert!(errors.contains("latin.toml:2:6: the file is not UTF-8"), "{errors}");
    }

    #[test]
    fn the_number_of_problems_shown_is_bounded() {
        let text: String = (0..5000).map(|n| format!("k{n} = 1\n")).collect();
        let shown = errors_of(&text, |_| Ok(()));
        assert!(shown.lines().count() <= 101, "{}", shown.lines().count());
        assert!(shown.ends_with("and 4900 more"), "{}", shown.lines().last().unwrap());
    }

    #[test]
    fn a_value_outside_its_limits_is_told_with_them() {
        let shown = errors_of("ttl = \"0s\"\n", |s| {
            s.or_where("ttl", Duration::from_secs(1), "a duration above 0s", |ttl| !ttl.is_zero());
            Ok(())
        });
        assert_eq!(shown, "x.toml:1:7: ttl: \"0s\" is out of range; expected a duration above 0s");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z\\[\\]{}=\", .\\n0-9ä-]{0,200}") {
            if let Err(errors) = Document::parse("x", &text).and_then(|document| document.decode(|s| {
                s.optional::<Vec<u16>>("a");
                s.list("b", |b| { b.optional::<Duration>("c"); });
                Ok(())
            })) {
                prop_assert!(!errors.to_string().is_empty());
            }
        }
    }
}
