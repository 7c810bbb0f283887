//! What the documents tell people to type: each `plexus …` names commands and options that the program has, and each
//! example of a configuration is accepted by it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use plexus_tests::{World, plexus_program, repository, run};

use crate::documents::documents;
use crate::none_of;
use crate::source::{find, relative};

/// What may stand before `plexus` on a line that is to be typed.
const BEFORE: &[&str] =
    &["$ ", "# ", "sudo ", "./", "target/release/", "cargo run --release -- ", "cargo run -r -- "];

#[test]
fn documented_commands_and_options_exist() {
    let mut help = Help::default();
    let mut problems = Vec::new();
    for document in documents() {
        let code = document.lines.iter().filter(|line| line.code.is_some());
        let typed = code.map(|line| (line.number, line.text.as_str())).chain(document.spans());
        for (line, command) in typed.filter_map(|(line, text)| Some((line, command_in(text)?))) {
            if let Some(problem) = help.problem_with(&command) {
                problems.push(format!("{}:{line}: plexus {}: {problem}", document.path, command.join(" ")));
            }
        }
    }
    none_of(&problems);
}

#[test]
fn every_command_is_documented() {
    let mut help = Help::default();
    let documented: Vec<Vec<String>> = documents()
        .iter()
        .flat_map(|document| {
            let code =
                document.lines.iter().filter(|line| line.code.is_some()).map(|line| line.text.as_str());
            code.chain(document.spans().map(|(_, span)| span)).filter_map(command_in).collect::<Vec<_>>()
        })
        .collect();
    let commands = help.commands(&[]);
    assert!(commands.len() > 5, "{commands:?}");
    let missing =
        commands.into_iter().filter(|command| !documented.iter().any(|words| words.first() == Some(command)));
    none_of(&missing.map(|command| format!("no document shows `plexus {command}`")).collect::<Vec<_>>());
}

#[test]
fn configurations_in_examples_and_documents_are_accepted() {
    let world = World::new();
    let mut found: Vec<(String, String)> = Vec::new();
    let mut files: Vec<PathBuf> = Vec::new();
    find(&repository().join("examples"), "toml", &mut files);
    assert!(!files.is_empty(), "there are no examples");
    for file in files {
        found.push((relative(&file), fs::read_to_string(&file).expect("a readable example")));
    }
    for document in documents() {
        let blocks = document.blocks("toml");
        found.extend(blocks.into_iter().map(|(line, text)| (format!("{}:{line}", document.path), text)));
    }
    let mut problems = Vec::new();
    for (number, (place, text)) in found.into_iter().enumerate() {
        let file = world.directory().join(format!("{number}.toml"));
        fs::write(&file, completed(&text)).expect("the world's directory is writable");
        let checked = run(&[&plexus_program().to_string_lossy(), "config", "check", &file.to_string_lossy()]);
        let checked = checked.expect("the program can be started");
        if !checked.success() {
            problems.push(format!("{place}: {}", checked.stderr.trim()));
        }
    }
    none_of(&problems);
}

/// A part of a configuration, with what it needs to be a whole one on any machine.
fn completed(text: &str) -> String {
    let has =
        |table: &str| text.lines().any(|line| line.split('#').next().unwrap_or_default().trim() == table);
    let mut whole = text.to_owned();
    if !has("[store]") {
        whole.push_str("\n[store]\nurl = \"embedded\"\n");
    }
    let address = "address = \"192.0.2.1\"\n";
    if !has("[node]") {
        whole.push_str(&format!("\n[node]\n{address}name = \"a\"\n"));
    } else if !text.lines().any(|line| line.starts_with("address = ")) {
        whole = whole.replace("[node]\n", &format!("[node]\n{address}"));
    }
    whole
}

/// What the program says about its commands, asked once for each.
#[derive(Default)]
struct Help {
    texts: BTreeMap<Vec<String>, Option<String>>,
}

impl Help {
    /// The help of a command; nothing where there is no such command.
    fn of(&mut self, command: &[String]) -> Option<String> {
        let entry = self.texts.entry(command.to_vec()).or_insert_with(|| {
            let program = plexus_program().to_string_lossy();
            let mut line: Vec<&str> = vec![&program];
            line.extend(command.iter().map(String::as_str));
            line.push("--help");
            let ran = run(&line).expect("the program can be started");
            ran.success().then_some(ran.stdout)
        });
        entry.clone()
    }

    /// The commands below a command.
    fn commands(&mut self, command: &[String]) -> Vec<String> {
        let text = self.of(command).unwrap_or_default();
        let listed =
            text.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        // Names are indented by two; a description that is wrapped, by more.
        let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        names.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
    }

    fn problem_with(&mut self, words: &[String]) -> Option<String> {
        let mut command: Vec<String> = Vec::new();
        for word in words.iter().take_while(|word| !word.starts_with('-')) {
            let below = self.commands(&command);
            if below.contains(word) {
                command.push(word.clone());
                continue;
            }
            let is_hidden = command.is_empty() && self.of(std::slice::from_ref(word)).is_some();
            if below.is_empty() || is_hidden {
                break;
            }
            return Some(format!("there is no command {word:?}; there are {}", below.join(", ")));
        }
        let help = self.of(&command)?;
        let options = words.iter().filter(|word| word.starts_with('-') && word.len() > 1);
        let unknown =
            options.filter_map(|word| word.split('=').next()).find(|option| !names_option(&help, option));
        unknown.map(|option| format!("there is no option {option}"))
    }
}

fn names_option(help: &str, option: &str) -> bool {
    let names = help.split(|c: char| !(c.is_alphanumeric() || c == '-'));
    names.into_iter().any(|name| name == option)
}

/// The words after `plexus` where a line is a command to type; placeholders are left away.
fn command_in(text: &str) -> Option<Vec<String>> {
    let mut rest = text.trim();
    while let Some(shorter) = BEFORE.iter().find_map(|before| rest.strip_prefix(before)) {
        // `cargo run -- demo` is `plexus demo`.
        let is_cargo = rest.starts_with("cargo");
        rest = shorter.trim_start();
        if is_cargo {
            return Some(words(rest));
        }
    }
    let rest = rest.strip_prefix("plexus ")?;
    let words = words(rest);
    // `plexus 0.1.0` is what the program prints, and a lone word with a full stop is prose.
    let is_output = words.first().is_none_or(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    (!is_output).then_some(words)
}

fn words(rest: &str) -> Vec<String> {
    // A comment, a pipe, or a description in a second column ends the command.
    let ends = ["  ", " #", " |", "|", " >", " &", ";"];
    let end = ends.iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
    let words = rest[..end].split_whitespace().map(|word| word.trim_matches(['[', ']', '(', ')', ',']));
    let typed = words.filter(|word| !word.is_empty() && !word.contains(['…', '<', '"', '\'']));
    typed.map(str::to_owned).collect()
}

#[test]
fn commands_are_told_from_prose() {
    let parsed = |text: &str| command_in(text).map(|words| words.join(" "));
    assert_eq!(
        parsed("    $ sudo plexus publish web 8080   # on every node"),
        Some("publish web 8080".to_owned())
    );
    assert_eq!(parsed("cargo run --release -- demo"), Some("demo".to_owned()));
    assert_eq!(parsed("plexus endpoints web --json | jq ."), Some("endpoints web --json".to_owned()));
    assert_eq!(parsed("plexus 0.1.0"), None);
    assert_eq!(parsed("plexusd is no command"), None);
}
