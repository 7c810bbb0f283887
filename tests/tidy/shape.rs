//! The shape of each file: its head, its length, its functions, and what does not belong into it.

use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

use crate::none_of;
use crate::rules::{ERROR_VARIANTS, FILE_LINES, FUNCTION_LINES, SLEEPS, UNSAFE};
use crate::source::{Source, all, is_for_tests};

/// What [`look`] is given of each file.
struct Found {
    functions: Vec<(String, usize, usize)>,
    enums: Vec<(String, usize, usize)>,
    ignored: Vec<usize>,
    unsafe_code: Vec<usize>,
    /// Calls of a function called `sleep`, and whether the time there stands still but for such calls.
    sleeps: Vec<(usize, bool)>,
    badly_named: Vec<(String, usize)>,
    in_paused_test: bool,
}

#[test]
fn every_file_says_what_it_is_in_its_first_line() {
    none_of(&report(|source| {
        let head = source.text.lines().next().unwrap_or_default();
        let says = head.strip_prefix("//! ").is_some_and(|text| text.len() > 10);
        if says {
            Vec::new()
        } else {
            vec![(1, format!("it opens with {head:?}, not with `//! what it is`"))]
        }
    }));
}

#[test]
fn files_and_functions_are_short() {
    none_of(&report(|source| {
        let lines = source.text.lines().count();
        let mut problems = Vec::new();
        if lines > FILE_LINES {
            problems.push((1, format!("{lines} lines; at most {FILE_LINES}: one idea a file")));
        }
        let long = look(source).functions.into_iter().filter(|(_, _, lines)| *lines > FUNCTION_LINES);
        problems.extend(long.map(|(name, line, lines)| {
            (line, format!("fn {name} has {lines} lines; at most {FUNCTION_LINES}"))
        }));
        problems
    }));
}

#[test]
fn errors_have_few_variants() {
    none_of(&report(|source| {
        let many = look(source).enums.into_iter().filter(|(_, _, variants)| *variants > ERROR_VARIANTS);
        many.map(|(name, line, variants)| {
            (line, format!("{name} has {variants} variants; at most {ERROR_VARIANTS}"))
        })
        .collect()
    }));
}

#[test]
fn no_test_is_ignored() {
    none_of(&report(|source| {
        look(source).ignored.into_iter().map(|line| (line, "#[ignore]".to_owned())).collect()
    }));
}

#[test]
fn unsafe_code_has_one_home() {
    none_of(&report(|source| {
        let at_home = UNSAFE.iter().any(|path| source.path.starts_with(path));
        let found = if at_home { Vec::new() } else { look(source).unsafe_code };
        found.into_iter().map(|line| (line, format!("unsafe lives in {}", UNSAFE.join(", ")))).collect()
    }));
}

#[test]
fn tests_wait_for_conditions_and_never_sleep() {
    none_of(&report(|source| {
        let is_test = source.path.starts_with("tests/") || source.path.ends_with("tests.rs");
        if SLEEPS.contains(&source.path.as_str()) {
            return Vec::new();
        }
        let mut look = Look::new(is_test);
        look.visit_file(&source.ast());
        let real = look.found.sleeps.into_iter().filter(|(_, stands_still)| !stands_still);
        real.map(|(line, _)| {
            (line, "a test waits for a condition with a deadline, or pauses the clock".to_owned())
        })
        .collect()
    }));
}

#[test]
fn names_of_tests_are_sentences() {
    none_of(&report(|source| {
        let found = look(source).badly_named;
        found
            .into_iter()
            .map(|(name, line)| (line, format!("fn {name}: say what holds, as a sentence")))
            .collect()
    }));
}

fn report(check: impl Fn(&Source) -> Vec<(usize, String)>) -> Vec<String> {
    let found = all().iter().flat_map(|source| {
        check(source).into_iter().map(|(line, problem)| format!("{}:{line}: {problem}", source.path))
    });
    found.collect()
}

fn look(source: &Source) -> Found {
    let mut look = Look::new(false);
    look.visit_file(&source.ast());
    look.found
}

struct Look {
    found: Found,
    in_tests: bool,
}

impl Look {
    fn new(in_tests: bool) -> Self {
        let found = Found {
            functions: Vec::new(),
            enums: Vec::new(),
            ignored: Vec::new(),
            unsafe_code: Vec::new(),
            sleeps: Vec::new(),
            badly_named: Vec::new(),
            in_paused_test: false,
        };
        Self { found, in_tests }
    }

    fn function(&mut self, name: &syn::Ident, attributes: &[syn::Attribute], span: proc_macro2::Span) {
        let (first, last) = (span.start().line, span.end().line);
        self.found.functions.push((name.to_string(), first, last - first + 1));
        let is_test = attributes
            .iter()
            .any(|attribute| attribute.path().segments.last().is_some_and(|segment| segment.ident == "test"));
        let text = name.to_string();
        if is_test && (text.starts_with("test_") || text.split('_').count() < 3) {
            self.found.badly_named.push((text, first));
        }
        let ignored = attributes.iter().filter(|attribute| attribute.path().is_ident("ignore"));
        self.found.ignored.extend(ignored.map(|attribute| attribute.span().start().line));
    }
}

/// Does the clock of this test stand still unless it is slept on?
fn is_paused(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) => list.tokens.to_string().contains("start_paused = true"),
        _ => false,
    })
}

impl<'ast> Visit<'ast> for Look {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        let span = item.sig.span().join(item.block.span()).unwrap_or_else(|| item.span());
        self.function(&item.sig.ident, &item.attrs, span);
        let before = (self.in_tests, self.found.in_paused_test);
        self.in_tests |= is_for_tests(&item.attrs);
        self.found.in_paused_test |= is_paused(&item.attrs);
        visit::visit_item_fn(self, item);
        (self.in_tests, self.found.in_paused_test) = before;
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        let span = item.sig.span().join(item.block.span()).unwrap_or_else(|| item.span());
        self.function(&item.sig.ident, &item.attrs, span);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let before = self.in_tests;
        self.in_tests |= is_for_tests(&item.attrs);
        visit::visit_item_mod(self, item);
        self.in_tests = before;
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        let derived = item.attrs.iter().filter(|attribute| attribute.path().is_ident("derive"));
        let is_error = derived.into_iter().any(|attribute| match &attribute.meta {
            syn::Meta::List(list) => list.tokens.to_string().contains("Error"),
            _ => false,
        });
        if is_error {
            self.found.enums.push((item.ident.to_string(), item.span().start().line, item.variants.len()));
        }
        visit::visit_item_enum(self, item);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.found.unsafe_code.push(block.unsafe_token.span.start().line);
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.found.unsafe_code.extend(item.unsafety.as_ref().map(|token| token.span.start().line));
        visit::visit_item_impl(self, item);
    }

    /// `while !condition { sleep }` looks at a condition; who writes it gives it a deadline.
    fn visit_expr_while(&mut self, polling: &'ast syn::ExprWhile) {
        let before = std::mem::replace(&mut self.in_tests, false);
        visit::visit_expr_while(self, polling);
        self.in_tests = before;
    }

    fn visit_expr_path(&mut self, path: &'ast syn::ExprPath) {
        let sleeps = path.path.segments.last().is_some_and(|segment| segment.ident == "sleep");
        if sleeps && self.in_tests {
            self.found.sleeps.push((path.span().start().line, self.found.in_paused_test));
        }
        visit::visit_expr_path(self, path);
    }
}
