//! How several places are configured: a part each, which is of another kind.

use std::path::Path;

use nerve::document::{Reported, Section};
use serde::Serialize;

use super::{Kind, Means};
use crate::watch::multi::{How, MultiPlace};
use crate::watch::options::Options;
use crate::watch::place::Place;
use crate::watch::toggle::Toggle;

/// Several places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Multi {
    /// Which of them count.
    #[serde(flatten)]
    pub which: Which,
    /// In their order.
    #[serde(rename = "part")]
    pub parts: Vec<Part>,
}

/// Which of several places count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "multi", rename_all = "lowercase")]
pub enum Which {
    /// All of them.
    Union,
    /// The first that names a server.
    Sequential,
    /// One for each node, so that each has its share of the nodes, by the weights that stand there.
    Toggle(Toggle),
}

/// One of several places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What it is called.
    pub name: String,
    /// Where it is.
    #[serde(flatten)]
    pub kind: Kind,
}

impl Which {
    /// By its word; where it is wrong, the key, why, and what is expected.
    fn of(word: &str, toggle: Option<Toggle>) -> Result<Self, (&'static str, String, &'static str)> {
        match (word, toggle) {
            ("union", None) => Ok(Self::Union),
            ("sequential", None) => Ok(Self::Sequential),
            ("toggle", Some(toggle)) => Ok(Self::Toggle(toggle)),
            ("union" | "sequential" | "toggle", _) => {
                let expected = "`toggle_file` or `toggle_s3`, which have a weight for each part, with `multi = \"toggle\"`";
                Err(("toggle_file", "one is without the other".to_owned(), expected))
            }
            _ => Err(("multi", format!("{word:?} is none"), "\"union\", \"sequential\" or \"toggle\"")),
        }
    }
}

impl Multi {
    /// Reads the keys of this kind.
    pub(in crate::watch) fn read(
        section: &mut Section<'_>,
        base: &Path,
        service: &str,
    ) -> Result<Self, Reported> {
        let which = section.required::<String>("multi");
        let toggle = Toggle::read(section, base);
        let parts = section.list("part", |section| {
            let name = section.required::<String>("name");
            let kind = Kind::read(section, base, service);
            let part = Part { name: name?, kind: kind? };
            if matches!(part.kind, Kind::Multi(_)) {
                return Err(section.invalid("multi", "it is a part of several places itself", "one place"));
            }
            Ok(part)
        });
        let parts = parts.into_iter().collect::<Result<Vec<_>, _>>()?;
        let which = Which::of(&which?, toggle?)
            .map_err(|(key, why, expected)| section.invalid(key, why, expected))?;
        let is_twice =
            |(index, part): (usize, &Part)| parts[..index].iter().any(|other| other.name == part.name);
        if parts.is_empty() || parts.iter().enumerate().any(is_twice) {
            return Err(section.invalid(
                "part",
                "there is none, or two have one name",
                "a table for each place, with a `name`",
            ));
        }
        Ok(Self { which, parts })
    }

    pub(in crate::watch) fn place(&self) -> String {
        let parts: Vec<String> = self.parts.iter().map(|part| part.kind.place()).collect();
        parts.join(" ")
    }

    pub(super) fn open(&self, options: &Options, means: &Means) -> Box<dyn Place> {
        Box::new(MultiPlace {
            names: self.parts.iter().map(|part| part.name.clone()).collect(),
            places: self.parts.iter().map(|part| part.kind.open(options, means)).collect(),
            how: match &self.which {
                Which::Union => How::Union,
                Which::Sequential => How::Sequential,
                Which::Toggle(toggle) => How::Toggle(toggle.open()),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;

    use super::*;

    fn read(text: &str) -> Result<Multi, String> {
        let read = |section: &mut Section<'_>| Multi::read(section, Path::new("/etc"), "web");
        Document::parse("x", text).unwrap().decode(read).map_err(|errors| errors.to_string())
    }

    #[test]
    fn parts_have_names_of_their_own_and_a_toggle_its_file() {
        let parts = "[[part]]\nname = \"a\"\nstatic = []\n[[part]]\nname = \"b\"\nfile = \"b.json\"\n";
        let union = read(&format!("multi = \"union\"\n{parts}")).unwrap();
        assert_eq!(union.place(), "the configuration /etc/b.json");
        read(&format!("multi = \"toggle\"\ntoggle_file = \"w.yaml\"\n{parts}")).unwrap();
        for (text, said) in [
            ("multi = \"union\"".to_owned(), "there is none"),
            (format!("multi = \"union\"\n{}", parts.replace("\"b\"", "\"a\"")), "two have one name"),
            (format!("multi = \"toggle\"\n{parts}"), "toggle_file"),
            (format!("multi = \"union\"\ntoggle_file = \"w\"\n{parts}"), "toggle_file"),
            (format!("multi = \"fallback\"\n{parts}"), "sequential"),
            ("multi = \"union\"\n[[part]]\nname = \"a\"\nmulti = \"union\"\n[[part.part]]\nname = \"b\"\nstatic = []".to_owned(), "a part of several"),
        ] {
            let told = read(&text).unwrap_err();
            assert!(told.contains(said), "{text}: {told}");
        }
    }
}
