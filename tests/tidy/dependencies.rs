//! External crates: each has a home, or is common, and nobody keeps one that it does not use.

use std::collections::BTreeSet;
use std::fs;

use plexus_tests::repository;

use crate::none_of;
use crate::rules::{COMMON, HOMES};
use crate::source::{CRATES, all, modules};

#[test]
fn external_crates_are_named_in_their_homes_only() {
    let mut problems = Vec::new();
    for home in HOMES {
        let name = home.name.replace('-', "_");
        for module in modules() {
            let used = module.references.iter().find(|reference| reference.target[0] == name);
            let Some(used) = used else { continue };
            if !home.paths.iter().any(|path| module.path.starts_with(path)) {
                let homes = home.paths.join(", ");
                problems.push(format!("{}:{}: {name} lives in {homes}", module.path, used.line));
            }
        }
    }
    none_of(&problems);
}

#[test]
fn every_dependency_has_a_home_or_is_common() {
    let listed: BTreeSet<&str> = HOMES.iter().map(|home| home.name).chain(COMMON.iter().copied()).collect();
    let mut problems = Vec::new();
    for krate in CRATES {
        for name in dependencies(krate).iter().filter(|name| !CRATES.contains(&name.as_str())) {
            if !listed.contains(name.as_str()) {
                problems.push(format!(
                    "{krate}/Cargo.toml: {name}: say in tests/tidy/rules.rs where it may be used"
                ));
            }
        }
    }
    none_of(&problems);
}

#[test]
fn every_dependency_is_used() {
    let mut problems = Vec::new();
    for krate in CRATES {
        for name in dependencies(krate) {
            let spelled = name.replace('-', "_");
            // By the text, since a derive (`#[derive(thiserror::Error)]`) is no path of the syntax tree.
            let path = format!("{spelled}::");
            let mine = || all().iter().filter(|source| source.path.starts_with(&format!("{krate}/")));
            if !mine().any(|source| source.text.contains(&path)) {
                problems.push(format!("{krate}/Cargo.toml: {name} is not used"));
            }
        }
    }
    none_of(&problems);
}

#[test]
fn versions_stand_in_the_workspace_manifest_only() {
    let mut problems = Vec::new();
    for member in crate::source::MEMBERS {
        for (name, value) in tables(member, |table| table.ends_with("dependencies")) {
            if !name.ends_with(".workspace") && !value.contains("workspace = true") {
                problems.push(format!("{member}/Cargo.toml: {name} = {value}"));
            }
        }
    }
    none_of(&problems);
}

/// The names in `[dependencies]`, those of other targets included, those for tests aside.
fn dependencies(member: &str) -> Vec<String> {
    let wanted = |table: &str| table.ends_with("dependencies") && !table.ends_with("-dependencies");
    tables(member, wanted)
        .into_iter()
        .map(|(name, _)| name.trim_end_matches(".workspace").to_owned())
        .collect()
}

/// Keys and values of the tables of a member's manifest that are `wanted`.
fn tables(member: &str, wanted: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let path = repository().join(member).join("Cargo.toml");
    let text = fs::read_to_string(&path).expect("a member's manifest");
    let (mut table, mut found) = (String::new(), Vec::new());
    for line in text.lines().map(str::trim) {
        if let Some(head) = line.strip_prefix('[') {
            head.trim_end_matches(']').clone_into(&mut table);
        } else if let Some((key, value)) = line.split_once(" = ").filter(|(key, _)| !key.starts_with('#'))
            && wanted(&table)
        {
            found.push((key.to_owned(), value.to_owned()));
        }
    }
    found
}
