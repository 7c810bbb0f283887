//! The workspace's source files, parsed, and what each refers to.
//!
//! A reference is any path in the code, `use` or not, macros' arguments included, resolved to crate, module and name.
//! Types are not known here: what is reached through a method or a re-export of another crate is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use plexus_tests::repository;
use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// The product's crates, from the lowest up.
pub(crate) const CRATES: [&str; 3] = ["nerve", "synapse", "mesh"];
/// Every member of the workspace.
pub(crate) const MEMBERS: [&str; 5] = ["nerve", "synapse", "mesh", "tests", "benches"];

/// One file of Rust.
#[derive(Debug)]
pub(crate) struct Source {
    /// From the root of the repository.
    pub(crate) path: String,
    /// As it stands on disk.
    pub(crate) text: String,
}

impl Source {
    /// Parsed, each time anew: a syntax tree cannot be shared between threads.
    pub(crate) fn ast(&self) -> syn::File {
        syn::parse_file(&self.text).unwrap_or_else(|error| panic!("{}: {error}", self.path))
    }
}

/// A file of the product, and what it refers to.
#[derive(Debug)]
pub(crate) struct Module {
    /// From the root of the repository.
    pub(crate) path: String,
    /// Its crate, then its modules: `["nerve", "store", "key"]`.
    pub(crate) name: Vec<String>,
    /// What it refers to outside of tests.
    pub(crate) references: Vec<Reference>,
}

/// One path in the code.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    /// The crate, then modules and names, as far as it is spelled; external crates by their own name.
    pub(crate) target: Vec<String>,
    /// The line.
    pub(crate) line: usize,
}

/// Every `.rs` file of the workspace.
pub(crate) fn all() -> &'static [Source] {
    static ALL: OnceLock<Vec<Source>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut files = Vec::new();
        MEMBERS.iter().for_each(|member| find(&repository().join(member), "rs", &mut files));
        files.iter().map(|path| read(path)).collect()
    })
}

/// The files of the product that are not tests.
pub(crate) fn modules() -> &'static [Module] {
    static MODULES: OnceLock<Vec<Module>> = OnceLock::new();
    MODULES.get_or_init(|| {
        let named: Vec<(Vec<String>, &Source)> =
            all().iter().filter_map(|source| Some((module_name(&source.path)?, source))).collect();
        let tests: BTreeSet<Vec<String>> =
            named.iter().flat_map(|(name, source)| test_modules(name, &source.ast())).collect();
        let names: BTreeSet<Vec<String>> = named.iter().map(|(name, _)| name.clone()).collect();
        let product = named.into_iter().filter(|(name, _)| !tests.iter().any(|test| name.starts_with(test)));
        product
            .map(|(name, source)| {
                let mut collect = Collect { scope: name.clone(), names: &names, references: Vec::new() };
                collect.visit_file(&source.ast());
                Module { path: source.path.clone(), name, references: collect.references }
            })
            .collect()
    })
}

/// What the names that a module imports stand for: `(module, name)` → what was imported.
pub(crate) fn imported_names(module: &Module) -> BTreeMap<String, Vec<String>> {
    let names = module.references.iter().filter(|reference| reference.target.len() > 1);
    names.filter_map(|reference| Some((reference.target.last()?.clone(), reference.target.clone()))).collect()
}

/// All files below `directory` with this extension, in order; build output and hidden directories aside.
pub(crate) fn find(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            find(&path, extension, found);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

/// From the root of the repository.
pub(crate) fn relative(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap_or(path).to_string_lossy().into_owned()
}

fn read(path: &Path) -> Source {
    Source { path: relative(path), text: fs::read_to_string(path).expect("a readable file") }
}

/// `nerve/src/store/key.rs` → `nerve`, `store`, `key`; nothing for what is not the product's.
fn module_name(path: &str) -> Option<Vec<String>> {
    let (krate, rest) = path.split_once("/src/")?;
    if !CRATES.contains(&krate) {
        return None;
    }
    let rest = rest.strip_suffix(".rs")?;
    let modules = rest.strip_suffix("/mod").unwrap_or(rest).split('/').filter(|module| *module != "lib");
    Some(std::iter::once(krate).chain(modules).map(str::to_owned).collect())
}

/// The modules that a file declares for tests only: `#[cfg(test)] mod tests;`.
fn test_modules(name: &[String], ast: &syn::File) -> Vec<Vec<String>> {
    let declared = ast.items.iter().filter_map(|item| match item {
        syn::Item::Mod(module) if module.content.is_none() && is_for_tests(&module.attrs) => Some(module),
        _ => None,
    });
    declared.map(|module| [name, &[module.ident.to_string()]].concat()).collect()
}

/// Is an item with these attributes there for tests only?
pub(crate) fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::Path(path) => path.segments.last().is_some_and(|last| last.ident == "test"),
        syn::Meta::List(list) if list.path.is_ident("cfg") => {
            let condition = list.tokens.to_string();
            condition == "test" || condition.starts_with("any (test") || condition.starts_with("all (test")
        }
        syn::Meta::List(list) => list.path.segments.last().is_some_and(|last| last.ident == "test"),
        syn::Meta::NameValue(_) => false,
    })
}

struct Collect<'a> {
    scope: Vec<String>,
    names: &'a BTreeSet<Vec<String>>,
    references: Vec<Reference>,
}

impl Collect<'_> {
    fn add(&mut self, path: &[String], line: usize) {
        if let Some(target) = self.resolve(path) {
            self.references.push(Reference { target, line });
        }
    }

    fn resolve(&self, path: &[String]) -> Option<Vec<String>> {
        let first = path.first()?;
        let (mut base, mut rest) = match first.as_str() {
            "crate" => (self.scope[..1].to_vec(), &path[1..]),
            "self" => (self.scope.clone(), &path[1..]),
            "super" => (self.scope.clone(), path),
            _ => {
                let child = [&self.scope[..], &path[..1]].concat();
                let target = if self.names.contains(&child) {
                    [&self.scope[..], path].concat()
                } else {
                    path.to_vec()
                };
                return Some(target);
            }
        };
        while rest.first().is_some_and(|segment| segment == "super") {
            base.pop();
            rest = &rest[1..];
        }
        Some([&base[..], rest].concat())
    }

    fn use_tree(&mut self, before: &mut Vec<String>, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.use_tree(before, &path.tree);
                before.pop();
            }
            syn::UseTree::Name(name) if name.ident == "self" => {
                self.add(before, name.ident.span().start().line)
            }
            syn::UseTree::Name(name) => self.used(before, &name.ident),
            syn::UseTree::Rename(name) => self.used(before, &name.ident),
            syn::UseTree::Glob(glob) => self.add(before, glob.span().start().line),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.use_tree(before, tree)),
        }
    }

    fn used(&mut self, before: &[String], name: &proc_macro2::Ident) {
        let path = [before, &[name.to_string()]].concat();
        self.add(&path, name.span().start().line);
    }

    /// Finds `a::b::c` among the tokens of a macro.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let (mut line, mut colons) = (0, 0);
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end(&mut path, line);
                    }
                    line = ident.span().start().line;
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.end(&mut path, line);
                    self.tokens(group.stream());
                    colons = 0;
                }
                _ => {
                    self.end(&mut path, line);
                    colons = 0;
                }
            }
        }
        self.end(&mut path, line);
    }

    fn end(&mut self, path: &mut Vec<String>, line: usize) {
        if path.len() > 1 {
            self.add(path, line);
        }
        path.clear();
    }
}

impl<'ast> Visit<'ast> for Collect<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes: &[syn::Attribute] = match item {
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            syn::Item::Enum(item) => &item.attrs,
            syn::Item::Const(item) => &item.attrs,
            syn::Item::Static(item) => &item.attrs,
            syn::Item::Type(item) => &item.attrs,
            syn::Item::Trait(item) => &item.attrs,
            _ => &[],
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.scope.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.scope.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&mut Vec::new(), &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.add(&segments, path.span().start().line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }
}
