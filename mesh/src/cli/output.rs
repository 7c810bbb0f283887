//! What a command prints: tables for people, JSON for programs.
//!
//! A table has its columns as wide as their widest cell, two spaces apart, and is never wrapped or cut: what is piped
//! into `awk` looks as it does on a terminal. Colour only repeats what the words say, and only on a terminal.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// Where a command prints to, and how.
pub(super) struct Output<'a> {
    to: Box<dyn Write + 'a>,
    colour: bool,
    json: bool,
}

/// What a cell means to the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Warning,
    Bad,
}

/// One cell of a table.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

/// Rows under a head.
#[derive(Debug)]
pub(super) struct Table {
    head: &'static [&'static str],
    rows: Vec<Vec<Cell>>,
}

impl Tone {
    /// The SGR sequence (ECMA-48 section 8.3.117) that begins it.
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Warning => "\x1b[33m",
            Self::Bad => "\x1b[31m",
        }
    }
}

impl Cell {
    pub(super) fn new(text: impl ToString, tone: Tone) -> Self {
        // A label or a reason comes from elsewhere: no control character of it reaches the terminal.
        let text: String = text.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Self { text: if text.is_empty() { "-".to_owned() } else { text }, tone }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

impl Table {
    pub(super) fn new(head: &'static [&'static str]) -> Self {
        Self { head, rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.head.iter().map(|h| h.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        widths
    }
}

impl<'a> Output<'a> {
    /// Standard output; coloured on a terminal unless `NO_COLOR` is set (no-color.org) or the terminal is dumb.
    pub(super) fn stdout() -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = io::stdout().is_terminal() && !set("NO_COLOR") && !dumb;
        Self::new(io::BufWriter::new(io::stdout()), colour)
    }

    pub(super) fn new(to: impl Write + 'a, colour: bool) -> Self {
        Self { to: Box::new(to), colour, json: false }
    }

    /// From now on the answer is wanted as JSON.
    pub(super) fn as_json(&mut self, json: bool) {
        self.json = json;
    }

    /// Prints `answer`: as JSON if that is wanted, else as `human` has it.
    pub(super) fn answer<T: Serialize>(
        &mut self,
        answer: &T,
        human: impl FnOnce(&mut Self, &T) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.json {
            serde_json::to_writer_pretty(&mut self.to, answer).map_err(io::Error::from)?;
            writeln!(self.to)?;
        } else {
            human(self, answer)?;
        }
        self.to.flush()
    }

    pub(super) fn line(&mut self, text: impl AsRef<str>) -> io::Result<()> {
        writeln!(self.to, "{}", text.as_ref())?;
        self.to.flush()
    }

    pub(super) fn toned_line(&mut self, tone: Tone, text: impl AsRef<str>) -> io::Result<()> {
        let text = Cell::new(text.as_ref(), tone).text;
        if self.colour && tone != Tone::Plain {
            writeln!(self.to, "{}{text}\x1b[0m", tone.code())
        } else {
            writeln!(self.to, "{text}")
        }
    }

    pub(super) fn table(&mut self, table: &Table) -> io::Result<()> {
        let widths = table.widths();
        let head: Vec<Cell> = table.head.iter().map(|&h| Cell::from(h)).collect();
        for row in std::iter::once(&head).chain(&table.rows) {
            self.table_row(row, &widths)?;
        }
        Ok(())
    }

    fn table_row(&mut self, row: &[Cell], widths: &[usize]) -> io::Result<()> {
        for (at, (cell, width)) in row.iter().zip(widths).enumerate() {
            let last = at + 1 == row.len();
            if self.colour && cell.tone != Tone::Plain {
                write!(self.to, "{}{}\x1b[0m", cell.tone.code(), cell.text)?;
            } else {
                write!(self.to, "{}", cell.text)?;
            }
            // The last column is not padded: a line never ends in spaces.
            if !last {
                write!(self.to, "{:1$}", "", width - cell.width() + 2)?;
            }
        }
        writeln!(self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(colour: bool) -> String {
        let mut buffer = Vec::new();
        let mut table = Table::new(&["NAME", "STATUS"]);
        table.row(["web".into(), Cell::new("serving", Tone::Good)]);
        table.row(["a-long-name".into(), Cell::new("", Tone::Plain)]);
        Output::new(&mut buffer, colour).table(&table).unwrap();
        String::from_utf8(buffer).unwrap()
    }

    #[test]
    fn columns_line_up_and_no_line_ends_in_spaces() {
        assert_eq!(printed(false), "NAME         STATUS\nweb          serving\na-long-name  -\n");
    }

    #[test]
    fn colour_changes_no_column() {
        let plain = printed(true).replace("\x1b[32m", "").replace("\x1b[0m", "");
        assert_eq!(plain, printed(false));
    }

    #[test]
    fn a_cell_cannot_send_control_characters_to_the_terminal() {
        assert_eq!(Cell::from("a\x1b[2Jb\nc").text, "a [2Jb c");
    }
}
