//! A table that is being read: each key is asked for once, and what was not asked for is unknown.

use std::cell::RefCell;
use std::fmt::Display;

use super::Lines;
use super::error::{Position, Problem, Sink};
use super::value::{FromValue, Kind, Mismatch, Table, Value};

/// How alike an unknown key must be to a valid one to be suggested, from 0 to 1 (Jaro-Winkler).
const ALIKE: f64 = 0.75;

/// Proof that a problem was reported: only this room makes one, so a failure without a message cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported(());

/// A table of a [`super::Document`] while it is being read.
///
/// Read every key before the first `?`: keys that were not asked for are reported as unknown.
/// After a problem, `or` and `optional` go on with the default: the document is refused as a whole anyway.
#[derive(Debug)]
pub struct Section<'a> {
    table: &'a Table,
    lines: &'a Lines,
    sink: &'a RefCell<Sink>,
    path: String,
    known: Vec<&'static str>,
    obsolete: Vec<&'static str>,
}

/// Reads one table with `decode`, then reports its unknown keys.
pub(super) fn read<T>(
    table: &Table,
    lines: &Lines,
    sink: &RefCell<Sink>,
    path: String,
    decode: impl FnOnce(&mut Section<'_>) -> T,
) -> T {
    let mut section = Section { table, lines, sink, path, known: Vec::new(), obsolete: Vec::new() };
    let decoded = decode(&mut section);
    section.report_unknown();
    decoded
}

impl Section<'_> {
    /// The value of a key that must be there.
    ///
    /// # Errors
    /// It is missing or wrong, and that was reported.
    pub fn required<T: FromValue>(&mut self, key: &'static str) -> Result<T, Reported> {
        match self.take(key) {
            Some(value) => self.convert(key, value),
            None => Err(self.missing(key, &T::expected())),
        }
    }

    /// The value of a key that may be missing. `None` also when it is wrong, which was reported.
    pub fn optional<T: FromValue>(&mut self, key: &'static str) -> Option<T> {
        let value = self.take(key)?;
        self.convert(key, value).ok()
    }

    /// The value of a key that may be missing, where going on with none would be another mistake.
    ///
    /// # Errors
    /// It is wrong, and that was reported.
    pub fn given<T: FromValue>(&mut self, key: &'static str) -> Result<Option<T>, Reported> {
        self.take(key).map(|value| self.convert(key, value)).transpose()
    }

    /// The value of a key, or `default` when it is missing (or wrong, which was reported).
    pub fn or<T: FromValue>(&mut self, key: &'static str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    /// As [`Section::or`], for a value that must also pass `valid`; `expected` tells what that means.
    pub fn or_where<T: FromValue>(
        &mut self,
        key: &'static str,
        default: T,
        expected: &str,
        valid: impl FnOnce(&T) -> bool,
    ) -> T {
        let Some(raw) = self.take(key) else { return default };
        let Ok(value) = self.convert::<T>(key, raw) else { return default };
        if valid(&value) {
            return value;
        }
        let message = format!("{} is out of range", raw.shown());
        self.report(raw.offset, self.key_path(key), message, expected.to_owned());
        default
    }

    /// Reads the table under `key`, if there is one.
    pub fn section<T>(&mut self, key: &'static str, decode: impl FnOnce(&mut Section<'_>) -> T) -> Option<T> {
        let value = self.take(key)?;
        let path = self.key_path(key);
        match self.table_of(value, &path) {
            Ok(table) => Some(read(table, self.lines, self.sink, path, decode)),
            Err(Reported(())) => None,
        }
    }

    /// Reads the table under `key`, or an empty one if it is missing, so that every default applies.
    pub fn section_or_empty<T>(
        &mut self,
        key: &'static str,
        decode: impl FnOnce(&mut Section<'_>) -> T,
    ) -> T {
        let path = self.key_path(key);
        let table = self.take(key).and_then(|value| self.table_of(value, &path).ok());
        let empty = Table::empty(self.table.offset);
        read(table.unwrap_or(&empty), self.lines, self.sink, path, decode)
    }

    /// Reads each table of the list under `key` (`[[service]]`, `check = [{…}]`); one table alone counts as a list of one.
    pub fn list<T>(&mut self, key: &'static str, mut decode: impl FnMut(&mut Section<'_>) -> T) -> Vec<T> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let path = self.key_path(key);
        let elements = match &value.kind {
            Kind::List(elements) => elements.as_slice(),
            _ => std::slice::from_ref(value),
        };
        let mut read_elements = Vec::with_capacity(elements.len());
        for (index, element) in elements.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if let Ok(table) = self.table_of(element, &path) {
                read_elements.push(read(table, self.lines, self.sink, path, &mut decode));
            }
        }
        read_elements
    }

    /// Reads each table of the table under `key` (`[watchers.a]`) with its name, in the order of the names.
    pub fn tables<T>(
        &mut self,
        key: &'static str,
        mut decode: impl FnMut(&str, &mut Section<'_>) -> T,
    ) -> Vec<T> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let path = self.key_path(key);
        let Ok(all) = self.table_of(value, &path) else { return Vec::new() };
        let mut read_tables = Vec::with_capacity(all.entries.len());
        for (name, entry) in &all.entries {
            let path = format!("{path}.{name}");
            if let Ok(table) = self.table_of(&entry.value, &path) {
                read_tables.push(read(table, self.lines, self.sink, path, |section| decode(name, section)));
            }
        }
        read_tables
    }

    /// Is the key there? Does not count as having asked for it.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.table.entries.contains_key(key)
    }

    /// Is the key there with a table, or a list of tables, as its value?
    #[must_use]
    pub fn has_table(&self, key: &str) -> bool {
        self.table.entries.get(key).is_some_and(|entry| match &entry.value.kind {
            Kind::Table(_) => true,
            Kind::List(elements) => elements.iter().any(|element| matches!(element.kind, Kind::Table(_))),
            _ => false,
        })
    }

    /// Is there no key at all?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.entries.is_empty()
    }

    /// Makes a key known, and so one that can be suggested, without reading it.
    pub fn allow(&mut self, key: &'static str) {
        self.known.push(key);
    }

    /// A key of an earlier version: whoever still writes it is told the new name.
    pub fn renamed(&mut self, old: &'static str, new: &'static str) {
        self.obsolete.push(old);
        if let Some(entry) = self.table.entries.get(old) {
            let message = format!("this key is now called `{new}`");
            self.report(entry.key_offset, self.key_path(old), message, String::new());
        }
    }

    /// Reports that the value of `key` is wrong for a reason that only the reader knows; at the section if it is missing.
    pub fn invalid(&self, key: &str, message: impl Display, expected: impl Into<String>) -> Reported {
        let offset = self.table.entries.get(key).map_or(self.table.offset, |entry| entry.value.offset);
        self.report(offset, self.key_path(key), message.to_string(), expected.into())
    }

    /// Reports that the section as a whole is wrong.
    pub fn refuse(&self, message: impl Display, expected: impl Into<String>) -> Reported {
        self.report(self.table.offset, self.path.clone(), message.to_string(), expected.into())
    }

    /// The file that it stands in.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.lines.file
    }

    /// Where it begins; `None` in a document without places.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.lines.position(self.table.offset)
    }

    /// Its own key, from the root (`service[0]`); empty for the root.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    fn key_path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn report(&self, offset: usize, key: String, message: String, expected: String) -> Reported {
        let position = self.lines.position(offset);
        let problem = Problem { position, key, ..Problem::in_file(&self.lines.file, message, expected) };
        self.sink.borrow_mut().push(problem);
        Reported(())
    }

    fn missing(&self, key: &str, expected: &str) -> Reported {
        self.report(self.table.offset, self.key_path(key), "it is missing".to_owned(), expected.to_owned())
    }

    fn convert<T: FromValue>(&self, key: &str, value: &Value) -> Result<T, Reported> {
        T::from_value(value).map_err(|mismatches| {
            for Mismatch { offset, subkey, message, expected } in mismatches {
                self.report(offset, format!("{}{subkey}", self.key_path(key)), message, expected);
            }
            Reported(())
        })
    }

    fn report_unknown(&self) {
        for (key, entry) in &self.table.entries {
            if self.known.iter().chain(&self.obsolete).any(|known| known == key) {
                continue;
            }
            let suggestion = self
                .known
                .iter()
                .map(|known| (strsim::jaro_winkler(known, key), *known))
                .filter(|(alike, _)| *alike >= ALIKE)
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .map(|(_, known)| known.to_owned());
            let mut known: Vec<String> = self.known.iter().map(|known| format!("`{known}`")).collect();
            known.sort();
            known.dedup();
            let expected = match known.len() {
                0 => "no key here".to_owned(),
                _ => format!("one of {}", known.join(", ")),
            };
            let problem = Problem {
                position: self.lines.position(entry.key_offset),
                key: self.key_path(key),
                suggestion,
                ..Problem::in_file(&self.lines.file, "unknown key", expected)
            };
            self.sink.borrow_mut().push_unknown(problem);
        }
    }
}

impl<'a> Section<'a> {
    fn take(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.table.entries.get(key).map(|entry| &entry.value)
    }

    fn table_of(&self, value: &'a Value, path: &str) -> Result<&'a Table, Reported> {
        match &value.kind {
            Kind::Table(table) => Ok(table),
            other => {
                let message = format!("found {}", other.name());
                Err(self.report(value.offset, path.to_owned(), message, "a table".to_owned()))
            }
        }
    }
}
