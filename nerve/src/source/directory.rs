//! The files of services.d: what they said when they were last good.
//!
//! A scan reads what has changed since the last one. A file with an error, and one that is empty (an editor is just writing
//! it), keeps its last good version; a file that is gone takes its services along. A directory that vanishes must
//! be missing at two scans before its services go: directories are swapped, too.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Definition, Local, Located, Metrics, Origin, Snapshot, SourceProblem, read_services};
use crate::document::{Document, Errors, Section};

/// So many files are read; more are refused with a problem.
const MAX_FILES: usize = 4096;

/// A directory of service files.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    local: Local,
    metrics: Metrics,
    files: BTreeMap<PathBuf, File>,
    problem: Option<String>,
    missing: bool,
}

/// What tells that a file has changed: device, inode, size, modification and change time.
type Signature = [i128; 5];

#[derive(Debug, Default)]
struct File {
    signature: Option<Signature>,
    good: Vec<Arc<Located>>,
    problem: Option<String>,
}

/// What a scan asks of whoever runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing before the next event or tick.
    Wait,
    /// Scan again soon: what was seen may be the middle of a swap.
    Again,
}

impl Directory {
    pub(super) fn new(path: PathBuf, local: Local, metrics: Metrics) -> Self {
        Self { path, local, metrics, files: BTreeMap::new(), problem: None, missing: false }
    }

    /// Takes in what has changed.
    pub(super) fn scan(&mut self) -> Next {
        let listed = list(&self.path);
        let missing_before = std::mem::replace(&mut self.missing, false);
        let paths = match listed {
            Ok(paths) => paths,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.missing = true;
                self.complain(None);
                if !self.files.is_empty() && !missing_before {
                    return Next::Again;
                }
                self.files.clear();
                self.metrics.faulty_files.set(0);
                return Next::Wait;
            }
            Err(error) => {
                self.complain(Some(format!(
                    "the directory cannot be listed ({error}); the services that it last had stay in force"
                )));
                return Next::Wait;
            }
        };
        let excess = paths.len().saturating_sub(MAX_FILES);
        self.complain((excess > 0).then(|| {
            format!(
                "it has {excess} files more than the {MAX_FILES} that are read; the last by name are left out"
            )
        }));
        let paths: Vec<_> = paths.into_iter().take(MAX_FILES).collect();
        self.files.retain(|path, _| {
            let stays = paths.contains(path);
            if !stays {
                tracing::info!(file = %path.display(), "service file removed");
            }
            stays
        });
        for path in paths {
            self.visit(path);
        }
        let faulty = self.files.values().filter(|file| file.problem.is_some()).count();
        self.metrics.faulty_files.set(i64::try_from(faulty).unwrap_or(i64::MAX));
        Next::Wait
    }

    /// What the directory says now.
    pub(super) fn snapshot(&self) -> Snapshot {
        let of_directory = self.problem.iter().map(|problem| (self.path.as_path(), problem));
        let of_files =
            self.files.iter().filter_map(|(path, file)| Some((path.as_path(), file.problem.as_ref()?)));
        let problems = of_directory.chain(of_files).map(|(path, message)| SourceProblem {
            place: path.display().to_string(),
            message: message.clone(),
        });
        Snapshot {
            definitions: self.files.values().flat_map(|file| file.good.iter().cloned()).collect(),
            clients: Vec::new(),
            problems: problems.collect(),
        }
    }

    fn complain(&mut self, problem: Option<String>) {
        if let Some(problem) = problem.as_ref().filter(|problem| Some(*problem) != self.problem.as_ref()) {
            tracing::warn!(directory = %self.path.display(), problem, "services.d");
        }
        self.problem = problem;
    }

    fn visit(&mut self, path: PathBuf) {
        // Taken before the read: what is written in between has another signature and is read at the next scan.
        let signature = std::fs::metadata(&path).ok().map(|metadata| signature(&metadata));
        let file = self.files.entry(path.clone()).or_default();
        if signature.is_some() && file.signature == signature {
            return;
        }
        file.signature = signature;
        match read(&path, &self.local) {
            Ok(definitions) => {
                self.metrics.reads.with_label_values(&["good"]).inc();
                tracing::info!(file = %path.display(), services = definitions.len(), "service file read");
                file.good = definitions.into_iter().map(Arc::new).collect();
                file.problem = None;
            }
            Err(errors) => {
                self.metrics.reads.with_label_values(&["bad"]).inc();
                let kept = match file.good.len() {
                    0 => "nothing of it is in force".to_owned(),
                    1 => "its last good version stays in force (1 service)".to_owned(),
                    services => format!("its last good version stays in force ({services} services)"),
                };
                let problem = format!("{errors}; {kept}");
                if file.problem.as_ref() != Some(&problem) {
                    tracing::warn!(file = %path.display(), problem, "service file refused");
                }
                file.problem = Some(problem);
            }
        }
    }
}

/// The service files, in the order of their names.
fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        // Hidden files are what editors write to before they rename, and how ConfigMaps keep their versions.
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_ours = path.extension().is_some_and(|extension| extension == "toml" || extension == "json");
        // A link that leads nowhere is as good as no file.
        if is_ours && !hidden && std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path, local: &Local) -> Result<Vec<Located>, Errors> {
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    // JSON is YAML, and that is read with lines and columns.
    let document = if is_json { Document::read_yaml(path) } else { Document::read(path) };
    document?.decode(|root| {
        let file: Arc<str> = root.file().into();
        if root.is_empty() {
            return Err(root.refuse("the file is empty; delete it to remove its services", ""));
        }
        if root.has("service") {
            return read_services(root, local, |file, line| Origin::File { file, line });
        }
        root.allow("service");
        read_single(root, local, file)
    })
}

/// A file may hold the keys of one service without a table around them.
fn read_single(
    root: &mut Section<'_>,
    local: &Local,
    file: Arc<str>,
) -> Result<Vec<Located>, crate::document::Reported> {
    let definition = Definition::read(root, local)?;
    Ok(vec![Located { definition, origin: Origin::File { file, line: 1 } }])
}

fn signature(metadata: &std::fs::Metadata) -> Signature {
    let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    [
        i128::from(metadata.dev()),
        i128::from(metadata.ino()),
        i128::from(metadata.size()),
        time(metadata.mtime(), metadata.mtime_nsec()),
        time(metadata.ctime(), metadata.ctime_nsec()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(path: &Path) -> Directory {
        let local = Local { node: "a".parse().unwrap(), address: "192.0.2.1".parse().unwrap() };
        Directory::new(path.to_owned(), local, Metrics::default())
    }

    fn ids(directory: &Directory) -> Vec<String> {
        let snapshot = directory.snapshot();
        snapshot.definitions.iter().map(|located| located.definition.key.to_string()).collect()
    }

    #[test]
    fn both_forms_of_a_file_are_read_and_say_where_they_stand() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a.toml"), "name = \"web\"\nport = 1\n").unwrap();
        std::fs::write(
            root.path().join("b.toml"),
            "[[service]]\nname = \"api\"\nport = 2\n[[service]]\nname = \"api\"\nport = 3\n",
        )
        .unwrap();
        let json = "{\n\t\"name\": \"json\",\n\t\"port\": 6, \"check\": [{\"http\": \"/\", \"interval\": \"1s\"}]\n}\n";
        std::fs::write(root.path().join("c.json"), json).unwrap();
        std::fs::write(root.path().join(".c.toml"), "name = \"hidden\"\nport = 4\n").unwrap();
        std::fs::write(root.path().join("d.toml~"), "name = \"backup\"\nport = 5\n").unwrap();
        let mut directory = directory(root.path());
        directory.scan();
        assert_eq!(ids(&directory), ["web/web-a-1", "api/api-a-2", "api/api-a-3", "json/json-a-6"]);
        assert!(directory.snapshot().definitions[2].origin.to_string().ends_with("b.toml:4"));
    }

    #[test]
    fn a_file_with_an_error_keeps_its_last_good_version_and_says_so() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("web.toml");
        std::fs::write(&path, "name = \"web\"\nport = 1\n").unwrap();
        let mut directory = directory(root.path());
        directory.scan();
        for (bad, expected) in [
            ("name = \"web\"\nport = 70000\n", "web.toml:2:8: port: 70000 is out of range"),
            ("", "the file is empty"),
            ("name = ", "web.toml:1:8: not TOML"),
            ("[[sevrice]]\nname = \"web\"\nport = 1\n", "did you mean `service`?"),
        ] {
            std::fs::write(&path, bad).unwrap();
            directory.scan();
            assert_eq!(ids(&directory), ["web/web-a-1"], "{bad}");
            let problem = &directory.snapshot().problems[0].message;
            assert!(problem.contains(expected), "{problem}");
            assert!(problem.ends_with("its last good version stays in force (1 service)"), "{problem}");
            assert_eq!(directory.metrics.faulty_files.get(), 1);
        }
        std::fs::write(&path, "name = \"web\"\nport = 2\n").unwrap();
        directory.scan();
        assert_eq!(
            (ids(&directory), directory.snapshot().problems.len()),
            (vec!["web/web-a-2".to_owned()], 0)
        );
        assert_eq!(directory.metrics.faulty_files.get(), 0);
    }

    #[test]
    fn a_directory_that_is_swapped_does_not_withdraw_its_services() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("services.d");
        let mut directory = directory(&path);
        assert_eq!(directory.scan(), Next::Wait, "missing is fine");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("web.toml"), "name = \"web\"\nport = 1\n").unwrap();
        directory.scan();
        std::fs::rename(&path, root.path().join("old")).unwrap();
        assert_eq!(directory.scan(), Next::Again);
        assert_eq!(ids(&directory).len(), 1);
        assert_eq!(directory.scan(), Next::Wait);
        assert!(ids(&directory).is_empty());
    }
}
