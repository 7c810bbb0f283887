//! Synapse runs its files through ERB before it reads them. Of that, what configurations use is understood: variables of the
//! environment and comments. Anything else is Ruby, and refused.

use std::path::Path;

use nerve::document::{Document, Errors, Position, Problem, read_text};

/// Reads a file as Synapse does. Blocks.
pub(super) fn open(path: &Path) -> Result<Document, Errors> {
    let (file, text) = (path.display().to_string(), read_text(path)?);
    Document::parse_yaml(&file, &expand(&file, &text, |name| std::env::var(name).ok())?)
}

fn expand(file: &str, text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, Errors> {
    let (mut expanded, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, tag)) = rest.split_once("<%") {
        let value = tag.split_once("%>").ok_or_else(|| "it does not end".to_owned());
        let value = value.and_then(|(ruby, after)| Ok((evaluate(ruby, &variable)?, after)));
        let (value, after) = value.map_err(|message| {
            let above = &text[..text.len() - tag.len() - "<%".len()];
            let line = above.matches('\n').count() + 1;
            let column = above.rsplit('\n').next().map_or(0, |begun| begun.chars().count()) + 1;
            Errors::single(Problem {
                file: file.to_owned(),
                position: Some(Position { line, column }),
                key: String::new(),
                message: format!("the ERB tag cannot be evaluated: {message}"),
                expected: "<%= ENV['NAME'] %>, or the value itself".to_owned(),
                suggestion: None,
            })
        })?;
        expanded.push_str(before);
        expanded.push_str(&value);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// What stands between `<%` and `%>`.
fn evaluate(ruby: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    if ruby.starts_with('#') {
        return Ok(String::new());
    }
    let is_not_understood = || format!("`{}` is Ruby", ruby.trim());
    let expression =
        ruby.strip_prefix('=').ok_or_else(is_not_understood)?.trim().trim_end_matches('-').trim();
    if let Some(name) = within(expression, "ENV[", ']').and_then(quoted) {
        // As in Ruby: nothing is an empty text.
        return Ok(variable(name).unwrap_or_default());
    }
    let arguments = within(expression, "ENV.fetch(", ')').ok_or_else(is_not_understood)?;
    let (name, fallback) = match arguments.split_once(',') {
        Some((name, fallback)) => (name, Some(quoted(fallback).ok_or_else(is_not_understood)?)),
        None => (arguments, None),
    };
    let name = quoted(name).ok_or_else(is_not_understood)?;
    let value = variable(name).or_else(|| fallback.map(str::to_owned));
    value.ok_or_else(|| format!("the environment has no {name}"))
}

fn within<'a>(text: &'a str, begin: &str, end: char) -> Option<&'a str> {
    text.strip_prefix(begin)?.strip_suffix(end)
}

/// The text that a literal is.
fn quoted(literal: &str) -> Option<&str> {
    let literal = literal.trim();
    let inner = |quote| literal.strip_prefix(quote)?.strip_suffix(quote);
    inner('\'').or_else(|| inner('"')).filter(|text| !text.contains(['\'', '"', '\\', '#']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        let variable = |name: &str| (name == "AZ").then(|| "eu-1a".to_owned());
        expand("synapse.conf.json", text, variable).map_err(|errors| errors.to_string())
    }

    #[test]
    fn variables_of_the_environment_are_put_in_and_other_ruby_is_refused_where_it_stands() {
        for (text, becomes) in [
            ("{\"az\": \"<%= ENV['AZ'] %>\"}", "{\"az\": \"eu-1a\"}"),
            ("<%=ENV[\"AZ\"]-%>/<%= ENV['NO'] %>", "eu-1a/"),
            ("<%= ENV.fetch('AZ') %> <%= ENV.fetch('NO', 'here') %><%# of the host %>", "eu-1a here"),
            ("no tag", "no tag"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(becomes));
        }
        for (text, said) in [
            (
                "a: 1\nb: <%= `hostname` %>",
                "synapse.conf.json:2:4: the ERB tag cannot be evaluated: `= `hostname`` is Ruby",
            ),
            ("<% if true %>", "1:1"),
            ("<%= ENV.fetch('NO') %>", "the environment has no NO"),
            ("<%= ENV['AZ'] + 'x' %>", "is Ruby"),
            ("a\n<%= ENV['AZ']", "2:1: the ERB tag cannot be evaluated: it does not end"),
        ] {
            let error = expanded(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
