//! Who imports whom: each room what its row allows, and no loop at any depth.

use std::collections::{BTreeMap, BTreeSet};

use crate::none_of;
use crate::rules::{ROOMS, Room};
use crate::source::{CRATES, Module, imported_names, modules};

/// From one module to another, with the place that says so.
type Edges = BTreeMap<(Vec<String>, Vec<String>), String>;

#[test]
fn rooms_import_only_what_their_row_allows() {
    let rooms = rooms();
    let mut problems = Vec::new();
    for module in modules() {
        let Some(from) = module.name.get(..2).map(|name| name.join("::")) else { continue };
        let Some(Room { may_import, .. }) = ROOMS.iter().find(|room| room.name == from) else {
            problems.push(format!(
                "{}: {from} has no row in tests/tidy/rules.rs: say what it may import",
                module.path
            ));
            continue;
        };
        for reference in &module.references {
            let Some(to) = reference.target.get(..2).map(|name| name.join("::")) else { continue };
            if to == from || !rooms.contains(&to) {
                continue;
            }
            let spelled = reference.target.join("::");
            let allows = |allowed: &&str| {
                *allowed == "*" || spelled == **allowed || spelled.starts_with(&format!("{allowed}::"))
            };
            if !may_import.iter().any(allows) {
                problems.push(format!("{}:{}: {from} may not import {spelled}", module.path, reference.line));
            }
        }
    }
    none_of(&problems);
}

#[test]
fn crates_import_only_downwards() {
    let mut problems = Vec::new();
    for module in modules() {
        let level = |krate: &str| CRATES.iter().position(|known| *known == krate);
        for reference in &module.references {
            if level(&reference.target[0]) > level(&module.name[0]) {
                problems.push(format!("{}:{}: {}", module.path, reference.line, reference.target.join("::")));
            }
        }
    }
    none_of(&problems);
}

#[test]
fn every_row_is_about_a_room_that_exists() {
    let rooms = rooms();
    let known = |name: &&str| *name == "*" || rooms.contains(*name);
    let named = ROOMS.iter().flat_map(|room| std::iter::once(&room.name).chain(room.may_import));
    let problems: BTreeSet<String> = named
        .filter(|name| !known(name))
        .map(|name| format!("tests/tidy/rules.rs: there is no {name}"))
        .collect();
    none_of(&problems.into_iter().collect::<Vec<_>>());
}

#[test]
fn no_modules_import_each_other_in_a_loop() {
    let edges = edges();
    let mut levels: BTreeMap<Vec<String>, BTreeMap<String, BTreeMap<String, &String>>> = BTreeMap::new();
    for ((from, to), place) in &edges {
        let shared = from.iter().zip(to).take_while(|(a, b)| a == b).count();
        if let (Some(a), Some(b)) = (from.get(shared), to.get(shared)) {
            let level = levels.entry(from[..shared].to_vec()).or_default();
            level.entry(a.clone()).or_default().entry(b.clone()).or_insert(place);
        }
    }
    let mut problems = Vec::new();
    for (level, graph) in &levels {
        if let Some(found) = cycle(graph) {
            let steps = found
                .windows(2)
                .map(|step| format!("{} → {} ({})", step[0], step[1], graph[&step[0]][&step[1]]));
            problems.push(format!("in {}: {}", level.join("::"), steps.collect::<Vec<_>>().join(", ")));
        }
    }
    none_of(&problems);
}

#[test]
fn a_loop_is_found() {
    let place = String::new();
    let arrow = |to: &str| BTreeMap::from([(to.to_owned(), &place)]);
    let graph = BTreeMap::from([("a".to_owned(), arrow("b")), ("b".to_owned(), arrow("c"))]);
    assert_eq!(cycle(&graph), None);
    let graph = BTreeMap::from([
        ("a".to_owned(), arrow("b")),
        ("b".to_owned(), arrow("c")),
        ("c".to_owned(), arrow("b")),
    ]);
    assert_eq!(cycle(&graph).map(|found| found.join(" ")), Some("b c b".to_owned()));
}

#[test]
fn references_are_seen_and_resolved() {
    // What the other tests stand on: a well-known import is among what was collected.
    let seen = |module: &str, target: &str| {
        let module = modules().iter().find(|found| found.name.join("::") == module);
        module.is_some_and(|module| module.references.iter().any(|found| found.target.join("::") == target))
    };
    assert!(seen("nerve::store::key", "nerve::model::ServiceName"));
    assert!(seen("mesh::drain", "tokio::sync::watch"));
    assert!(!seen("mesh::drain", "tokio::time::sleep"), "what only tests use does not count");
}

/// `<crate>::<room>` of every room that there is.
fn rooms() -> BTreeSet<String> {
    modules().iter().filter_map(|module| Some(module.name.get(..2)?.join("::"))).collect()
}

/// From module to module, through what a module re-exports to where it comes from.
fn edges() -> Edges {
    let known: BTreeMap<&[String], &Module> =
        modules().iter().map(|module| (module.name.as_slice(), module)).collect();
    let names: BTreeMap<&[String], BTreeMap<String, Vec<String>>> =
        known.iter().map(|(name, module)| (*name, imported_names(module))).collect();
    let mut edges = Edges::new();
    for module in modules() {
        for reference in &module.references {
            if let Some(to) = home_of(&reference.target, &known, &names, 8) {
                let place = format!("{}:{}", module.path, reference.line);
                edges.entry((module.name.clone(), to)).or_insert(place);
            }
        }
    }
    edges
}

/// The module that a path leads to.
fn home_of(
    target: &[String],
    known: &BTreeMap<&[String], &Module>,
    names: &BTreeMap<&[String], BTreeMap<String, Vec<String>>>,
    depth: usize,
) -> Option<Vec<String>> {
    let length = (1..=target.len()).rev().find(|length| known.contains_key(&target[..*length]))?;
    let module = &target[..length];
    let imported = target.get(length).and_then(|name| names.get(module)?.get(name));
    match imported {
        Some(imported) if depth > 0 && imported != target => {
            home_of(imported, known, names, depth - 1).or_else(|| Some(module.to_vec()))
        }
        _ => Some(module.to_vec()),
    }
}

/// A loop, its first member repeated at the end.
fn cycle<V>(graph: &BTreeMap<String, BTreeMap<String, V>>) -> Option<Vec<String>> {
    let mut done = BTreeSet::new();
    graph.keys().find_map(|start| walk(start, graph, &mut Vec::new(), &mut done))
}

fn walk<V>(
    at: &str,
    graph: &BTreeMap<String, BTreeMap<String, V>>,
    path: &mut Vec<String>,
    done: &mut BTreeSet<String>,
) -> Option<Vec<String>> {
    if let Some(first) = path.iter().position(|name| name == at) {
        return Some([&path[first..], &[at.to_owned()]].concat());
    }
    if done.contains(at) {
        return None;
    }
    path.push(at.to_owned());
    let found = graph.get(at).and_then(|next| next.keys().find_map(|to| walk(to, graph, path, done)));
    path.pop();
    done.insert(at.to_owned());
    found
}
