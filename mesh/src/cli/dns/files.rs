//! Changes of files: what they would be, shown as `diff` does, and done one after the other, or none of them.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::error::{Error, Result};
use crate::cli::files;

/// A change of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub(super) enum Step {
    /// It is to have this text.
    Write { file: PathBuf, before: Option<String>, after: String },
    /// It is to go.
    Remove { file: PathBuf, before: String },
    /// What is there, whatever it is, is to have another name as well.
    Keep { file: PathBuf, to: PathBuf },
    /// What was kept is to be there again.
    GiveBack { file: PathBuf, from: PathBuf },
}

/// Does them in turn. When one fails, those before it are taken back.
pub(super) fn apply(steps: &[Step]) -> Result {
    for (done, step) in steps.iter().enumerate() {
        if let Err(error) = step.apply() {
            let left = take_back(&steps[..done]);
            let error = Error::failed(step.to_string(), &error).hint(advice(&error));
            return Err(if left.is_empty() { error } else { error.hint(left) });
        }
    }
    Ok(())
}

/// Takes back what was done, the last first; tells what could not be.
pub(super) fn take_back(steps: &[Step]) -> String {
    let failed = steps.iter().rev().filter_map(|step| {
        step.take_back().err().map(|error| format!("{step} was done, and cannot be taken back: {error}"))
    });
    failed.collect::<Vec<_>>().join("; ")
}

/// What a file says; `None`: there is none.
pub(super) fn read(file: &Path) -> Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::failed(format!("reading {}", file.display()), &error).hint(advice(&error))),
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run it as root",
        io::ErrorKind::ResourceBusy => {
            "it is a mount of its own, as in containers, where only whoever runs the container can change it: by `--dns`"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "this host's configuration is made elsewhere: change it there (docs/dns.md)"
        }
        io::ErrorKind::InvalidData => "it is no text; look at it",
        _ => "nothing was changed",
    }
}

impl Step {
    fn apply(&self) -> io::Result<()> {
        match self {
            Self::Write { file, after, .. } => files::write(file, after).map(drop),
            Self::Remove { file, .. } => fs::remove_file(file),
            // Of a symbolic link, the link itself.
            Self::Keep { file, to } => fs::hard_link(file, to),
            Self::GiveBack { file, from } => fs::rename(from, file),
        }
    }

    fn take_back(&self) -> io::Result<()> {
        match self {
            Self::Write { file, before: None, .. } | Self::Keep { to: file, .. } => fs::remove_file(file),
            Self::Write { file, before: Some(before), .. } | Self::Remove { file, before } => {
                files::write(file, before).map(drop)
            }
            Self::GiveBack { file, from } => fs::rename(file, from),
        }
    }

    /// The change, as `diff` shows it.
    pub(super) fn diff(&self) -> String {
        let (file, before, after) = match self {
            Self::Write { file, before, after } => {
                (file, before.as_deref().unwrap_or_default(), after.as_str())
            }
            Self::Remove { file, before } => (file, before.as_str(), ""),
            Self::Keep { .. } | Self::GiveBack { .. } => return String::new(),
        };
        let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
        let same = |(a, b): (&&str, &&str)| a == b;
        let head = old.iter().zip(&new).take_while(|&pair| same(pair)).count();
        let (old_rest, new_rest) = (&old[head..], &new[head..]);
        let tail = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|&pair| same(pair)).count();
        let lines = |mark: &str, lines: &[&str]| {
            lines.iter().fold(String::new(), |mut text, line| {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{mark}{line}");
                text
            })
        };
        let mut text = format!("--- {0}\n+++ {0}\n", file.display());
        text.push_str(&lines(" ", &old[..head]));
        text.push_str(&lines("-", &old_rest[..old_rest.len() - tail]));
        text.push_str(&lines("+", &new_rest[..new_rest.len() - tail]));
        text.push_str(&lines(" ", &old_rest[old_rest.len() - tail..]));
        text
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Write { file, .. } => write!(f, "writing {}", file.display()),
            Self::Remove { file, .. } => write!(f, "removing {}", file.display()),
            Self::Keep { file, to } => write!(f, "keeping {} as {}", file.display(), to.display()),
            Self::GiveBack { file, from } => {
                write!(f, "giving {} back as it was, from {}", file.display(), from.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_shown_as_diff_does() {
        let step = |before: Option<&str>, after: &str| Step::Write {
            file: "/etc/x".into(),
            before: before.map(str::to_owned),
            after: after.to_owned(),
        };
        assert_eq!(step(None, "a\n").diff(), "--- /etc/x\n+++ /etc/x\n+a\n");
        assert_eq!(step(Some("a\nb\nc\n"), "a\nx\nc\n").diff(), "--- /etc/x\n+++ /etc/x\n a\n-b\n+x\n c\n");
        let removed = Step::Remove { file: "/etc/x".into(), before: "a\n".to_owned() };
        assert_eq!(removed.diff(), "--- /etc/x\n+++ /etc/x\n-a\n");
    }

    #[test]
    fn what_fails_half_way_leaves_everything_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("conf"), "old\n").unwrap();
        std::os::unix::fs::symlink("conf", at("link")).unwrap();
        let steps = [
            Step::Keep { file: at("link"), to: at("kept") },
            Step::Write { file: at("new/conf"), before: None, after: "x\n".to_owned() },
            Step::Write { file: at("conf"), before: Some("old\n".to_owned()), after: "new\n".to_owned() },
            Step::Remove { file: at("nowhere"), before: String::new() },
        ];
        let error = apply(&steps).unwrap_err().to_string();
        assert!(error.starts_with(&format!("removing {}", at("nowhere").display())), "{error}");
        assert_eq!(fs::read_to_string(at("conf")).unwrap(), "old\n");
        assert!(!at("new/conf").exists() && at("kept").symlink_metadata().is_err());
        // Without the last one it is done, and a link is kept as a link.
        apply(&steps[..3]).unwrap();
        assert_eq!(fs::read_link(at("kept")).unwrap(), PathBuf::from("conf"));
        apply(&[Step::GiveBack { file: at("link"), from: at("kept") }]).unwrap();
        assert_eq!(fs::read_to_string(at("link")).unwrap(), "new\n");
    }
}
