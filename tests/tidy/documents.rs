//! What the documents say exists: links, headings, paths of the repository.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use plexus_tests::repository;

use crate::none_of;
use crate::rules::PATHS;
use crate::source::{MEMBERS, find, relative};

/// A document, its lines told apart.
pub(crate) struct Document {
    /// From the root of the repository.
    pub(crate) path: String,
    /// Its lines, with their number.
    pub(crate) lines: Vec<Line>,
}

/// One line of a document.
pub(crate) struct Line {
    /// From 1.
    pub(crate) number: usize,
    /// As it stands.
    pub(crate) text: String,
    /// Is it in a block of code? With the word after the fence; empty for indented blocks.
    pub(crate) code: Option<String>,
}

impl Document {
    /// What stands between single backticks in a line of prose.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (usize, &str)> {
        let prose = self.lines.iter().filter(|line| line.code.is_none());
        prose.flat_map(|line| line.text.split('`').skip(1).step_by(2).map(|span| (line.number, span)))
    }

    /// The blocks of code that have this word after their fence.
    pub(crate) fn blocks(&self, language: &str) -> Vec<(usize, String)> {
        let mut blocks: Vec<(usize, usize, String)> = Vec::new();
        for line in self.lines.iter().filter(|line| line.code.as_deref() == Some(language)) {
            match blocks.last_mut() {
                Some((_, last, text)) if *last + 1 == line.number => {
                    *last = line.number;
                    text.push_str(&line.text);
                    text.push('\n');
                }
                _ => blocks.push((line.number, line.number, format!("{}\n", line.text))),
            }
        }
        blocks.into_iter().map(|(first, _, text)| (first, text)).collect()
    }
}

/// Every document of the repository.
pub(crate) fn documents() -> Vec<Document> {
    let root = repository();
    let mut paths: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md"].iter().map(|name| root.join(name)).collect();
    for directory in MEMBERS.iter().chain(&["docs", "examples", "packaging", "tools"]) {
        find(&root.join(directory), "md", &mut paths);
    }
    let logs = root.join("tests/logs");
    paths.iter().filter(|path| !path.starts_with(&logs)).map(|path| read(path)).collect()
}

fn read(path: &Path) -> Document {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", relative(path)));
    let mut fence: Option<String> = None;
    let mut after_blank = true;
    let mut indented = false;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let is_fence = line.trim_start().starts_with("```");
        // An indented block begins after an empty line and ends with a line that is not indented.
        indented = line.starts_with("    ") && (indented || after_blank) && fence.is_none();
        after_blank = line.trim().is_empty() || (after_blank && indented);
        let code =
            if is_fence { Some("fence".to_owned()) } else { fence.clone().or(indented.then(String::new)) };
        if is_fence {
            let language = line.trim_start().trim_start_matches('`').trim().to_owned();
            fence = if fence.is_some() { None } else { Some(language) };
        }
        lines.push(Line { number: index + 1, text: line.to_owned(), code });
    }
    Document { path: relative(path), lines }
}

#[test]
fn links_lead_somewhere() {
    let mut problems = Vec::new();
    for document in documents() {
        for line in document.lines.iter().filter(|line| line.code.is_none()) {
            for target in line.text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                if let Some(problem) = broken(&document.path, target) {
                    problems.push(format!("{}:{}: {problem}", document.path, line.number));
                }
            }
        }
    }
    none_of(&problems);
}

#[test]
fn paths_in_documents_exist() {
    let mut problems = Vec::new();
    for document in documents() {
        for (line, span) in document.spans() {
            let path = span.split(':').next().unwrap_or_default();
            let is_path = PATHS.iter().any(|prefix| path.starts_with(prefix))
                && !path.contains(['<', '*', '…', '{', ' ', '$']);
            if is_path && !repository().join(path).exists() {
                problems.push(format!("{}:{line}: there is no {path}", document.path));
            }
        }
    }
    none_of(&problems);
}

/// Why a link leads nowhere.
fn broken(document: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, heading) = target.split_once('#').unwrap_or((target, ""));
    let here = repository().join(document);
    let path = if file.is_empty() { here } else { here.parent()?.join(file) };
    if !path.exists() {
        return Some(format!("there is no {file}"));
    }
    let is_document = path.extension().is_some_and(|extension| extension == "md");
    if heading.is_empty() || !is_document || headings(&read(&path)).contains(heading) {
        return None;
    }
    Some(format!("{file} has no heading #{heading}"))
}

/// The anchors of a document, as they are made from its headings.
fn headings(document: &Document) -> BTreeSet<String> {
    let heads = document.lines.iter().filter(|line| line.code.is_none() && line.text.starts_with('#'));
    heads
        .map(|line| {
            let text = line.text.trim_start_matches('#').trim().to_lowercase();
            let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}
