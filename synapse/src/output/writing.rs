//! Files of a directory that is not ours alone: whole or not at all, only where they say something else, and never those of others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The file that lists those that are ours, one a line.
const LIST: &str = ".plexus";

/// What a file is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Becomes {
    /// With this in it.
    Text(String),
    /// Not there.
    Nothing,
}

/// What could not be done.
#[derive(Debug)]
pub(super) struct Failure {
    /// On what.
    pub(super) path: PathBuf,
    /// Why.
    pub(super) error: io::Error,
}

impl Failure {
    pub(super) fn of(path: &Path, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { path: path.to_owned(), error: io::Error::other(error) }
    }
}

/// The files of this directory that were written here, by their names without the ending. Blocks.
pub(super) fn ours(directory: &Path) -> Result<BTreeSet<String>, Failure> {
    let path = directory.join(LIST);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(Failure { path, error }),
    }
}

/// Brings files to what they are to be; those that are ours afterwards, and the first thing that could not be done. Blocks.
pub(super) fn apply(
    directory: &Path,
    mut ours: BTreeSet<String>,
    work: BTreeMap<String, Becomes>,
) -> (BTreeSet<String>, Option<Failure>) {
    let mut first = None;
    let before = ours.clone();
    let written = work.iter().filter(|(_, becomes)| **becomes != Becomes::Nothing);
    ours.extend(written.map(|(file, _)| file.clone()));
    // Listed first: a file that is not is nobody's.
    if ours != before
        && let Err(failure) = list(directory, &ours)
    {
        return (before, Some(failure));
    }
    let listed = ours.clone();
    for (file, becomes) in work {
        let path = directory.join(format!("{file}.json"));
        let done = match becomes {
            Becomes::Text(text) => replace(&path, &text),
            Becomes::Nothing if listed.contains(&file) => {
                let removed = remove(&path);
                if removed.is_ok() {
                    ours.remove(&file);
                }
                removed
            }
            Becomes::Nothing => Ok(()),
        };
        if let Err(error) = done {
            first.get_or_insert(Failure { path, error });
        }
    }
    if ours != listed
        && let Err(failure) = list(directory, &ours)
    {
        first.get_or_insert(failure);
    }
    (ours, first)
}

fn list(directory: &Path, ours: &BTreeSet<String>) -> Result<(), Failure> {
    let text: String = ours.iter().map(|file| format!("{file}\n")).collect();
    let path = directory.join(LIST);
    let made = fs::create_dir_all(directory).map_err(|error| Failure { path: directory.to_owned(), error });
    made.and_then(|()| replace(&path, &text).map_err(|error| Failure { path, error }))
}

/// Nobody reads half of it, and nobody is told of a change that is none.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|held| held == text.as_bytes()) {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{}.tmp", name.trim_start_matches('.')));
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).open(&new)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&new, path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(of: &[(&str, Option<&str>)]) -> BTreeMap<String, Becomes> {
        let becomes =
            |text: Option<&str>| text.map_or(Becomes::Nothing, |text| Becomes::Text(text.to_owned()));
        of.iter().map(|(file, text)| ((*file).to_owned(), becomes(*text))).collect()
    }

    #[test]
    fn only_what_was_written_here_is_ever_removed_and_only_what_changes_is_written() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("deep/services");
        assert_eq!(ours(&directory).unwrap(), BTreeSet::new());
        let (mine, failure) =
            apply(&directory, BTreeSet::new(), text(&[("web", Some("[]")), ("api", Some("[1]"))]));
        assert!(failure.is_none() && mine == ours(&directory).unwrap() && mine.len() == 2, "{failure:?}");
        fs::write(directory.join("theirs.json"), "[]").unwrap();
        let web = directory.join("web.json");
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        File::open(&web).unwrap().set_modified(long_ago).unwrap();
        let work = text(&[("web", Some("[]")), ("api", None), ("theirs", None)]);
        let (mine, failure) = apply(&directory, mine, work);
        assert!(failure.is_none() && mine == ours(&directory).unwrap() && mine.len() == 1, "{failure:?}");
        assert_eq!(fs::metadata(&web).unwrap().modified().unwrap(), long_ago);
        let mut left: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".plexus", "theirs.json", "web.json"]);
    }

    #[test]
    fn what_fails_is_told_with_its_path_and_the_rest_is_done() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("web.json/not-empty")).unwrap();
        let (mine, failure) =
            apply(root.path(), BTreeSet::new(), text(&[("web", Some("[]")), ("zoo", Some("[]"))]));
        assert_eq!(failure.unwrap().path, root.path().join("web.json"));
        assert!(root.path().join("zoo.json").is_file() && mine.len() == 2);
        fs::write(root.path().join("file"), "").unwrap();
        let below = root.path().join("file/services");
        let (mine, failure) = apply(&below, BTreeSet::new(), text(&[("web", Some("[]"))]));
        assert!(failure.unwrap().path == below && mine.is_empty());
    }
}
