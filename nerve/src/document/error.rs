//! What is wrong with a document: every problem with its place, bounded in number.

use std::fmt;

/// So many problems are kept; of the rest only the number.
const MAX_PROBLEMS: usize = 100;

/// Where something stands in a file, both counted from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named when it was opened.
    pub file: String,
    /// Where in the file; `None` if it is about the file as a whole.
    pub position: Option<Position>,
    /// The key, from the root (`service[0].check[1].interval`); empty if it is about no key.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What would be right; empty if the message says it.
    pub expected: String,
    /// The valid key that was probably meant.
    pub suggestion: Option<String>,
}

impl Problem {
    pub(super) fn in_file(file: &str, message: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            position: None,
            key: String::new(),
            message: message.into(),
            expected: expected.into(),
            suggestion: None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)?;
        match &self.suggestion {
            Some(key) => write!(f, "; did you mean `{key}`?"),
            None if self.expected.is_empty() => Ok(()),
            None => write!(f, "; expected {}", self.expected),
        }
    }
}

/// Everything that is wrong with a document, in the order of the file; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors {
    problems: Vec<Problem>,
    omitted: usize,
}

impl Errors {
    /// One problem alone.
    #[must_use]
    pub fn single(problem: Problem) -> Self {
        Self { problems: vec![problem], omitted: 0 }
    }

    pub(super) fn whole_file(file: &str, message: String, expected: &str) -> Self {
        Self::single(Problem::in_file(file, message, expected))
    }

    /// The problems, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Problem> {
        self.problems.iter()
    }

    /// How many there are, those included that are not kept.
    #[must_use]
    pub fn total(&self) -> usize {
        self.problems.len() + self.omitted
    }

    /// The first of them, on one line: for a log entry or a status.
    #[must_use]
    pub fn summary(&self) -> String {
        match (self.problems.first(), self.total()) {
            (None, _) => String::new(),
            (Some(first), 1) => first.to_string(),
            (Some(first), total) => format!("{first} (and {} more)", total - 1),
        }
    }

    /// The problems of two documents, one after the other.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.omitted += other.omitted;
        for problem in other.problems {
            if self.problems.len() < MAX_PROBLEMS {
                self.problems.push(problem);
            } else {
                self.omitted += 1;
            }
        }
        self
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        if self.omitted > 0 {
            write!(f, "\nand {} more", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Where problems are gathered while a document is read.
#[derive(Debug, Default)]
pub(super) struct Sink {
    problems: Vec<Problem>,
    omitted: usize,
    /// Keys that nobody asked for, where that is no problem.
    unknown: Option<Vec<Problem>>,
}

impl Sink {
    /// One that takes unknown keys for no problem.
    pub(super) fn tolerant() -> Self {
        Self { unknown: Some(Vec::new()), ..Self::default() }
    }

    pub(super) fn push_unknown(&mut self, problem: Problem) {
        match &mut self.unknown {
            None => self.push(problem),
            Some(unknown) if unknown.len() < MAX_PROBLEMS => unknown.push(problem),
            Some(_) => {}
        }
    }

    pub(super) fn into_unknown(self) -> Vec<Problem> {
        self.unknown.unwrap_or_default()
    }

    pub(super) fn push(&mut self, problem: Problem) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.omitted += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    pub(super) fn into_errors(mut self) -> Errors {
        self.problems.sort_by_key(|problem| problem.position);
        Errors { problems: self.problems, omitted: self.omitted }
    }
}
