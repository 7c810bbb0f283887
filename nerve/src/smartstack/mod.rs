//! What the configurations of SmartStack's two halves have in common: a main file and a directory of services, YAML or JSON, with values
//! as Ruby takes them.
//!
//! They are read when an agent starts and when it is told to (SIGHUP), and no notice is taken of keys that nobody knows. Unlike there, a
//! service that is wrong is no reason to lose another: it keeps its last good version and is a problem.

mod loose;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

pub use loose::{Number, Rate, Seconds, Several, Word};

use crate::document::{Document, Errors, Problem, Reported, Section};
use crate::model::ServiceName;

/// So many services are read; more are refused with a problem.
const MAX_SERVICES: usize = 4096;

/// What the files said of each service when they were last good.
#[derive(Debug)]
pub struct Services<T> {
    /// Which program's they are, for the log.
    of: &'static str,
    last: BTreeMap<String, T>,
    wrong: Vec<Wrong>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The file, or the directory.
    pub place: String,
    /// What is wrong with it, and what is in force instead.
    pub message: String,
}

/// Is a server with these words of HAProxy's one that only stands in?
#[must_use]
pub fn is_backup(server_options: &str) -> bool {
    server_options.split_whitespace().any(|word| word == "backup")
}

type Read<T> = Result<(T, Vec<Problem>), Errors>;

impl<T> Services<T> {
    /// Nothing of this program's yet.
    #[must_use]
    pub fn of(program: &'static str) -> Self {
        Self { of: program, last: BTreeMap::new(), wrong: Vec::new() }
    }

    /// By their names there.
    #[must_use]
    pub fn all(&self) -> &BTreeMap<String, T> {
        &self.last
    }

    /// What was wrong when they were read.
    #[must_use]
    pub fn wrong(&self) -> &[Wrong] {
        &self.wrong
    }

    /// Reads the main file by `open`: `globals` is what it says beside its services; then each `service`, those of `service_conf_dir`
    /// too. `None`: the main file is wrong, and all stays as it was. Blocks.
    pub fn load<G>(
        &mut self,
        file: &Path,
        open: fn(&Path) -> Result<Document, Errors>,
        globals: impl FnOnce(&mut Section<'_>) -> Result<G, Reported>,
        service: impl Fn(&G, &str, &mut Section<'_>) -> Result<T, Reported>,
    ) -> Option<G> {
        self.wrong.clear();
        match self.read_all(file, open, globals, service) {
            Ok(globals) => Some(globals),
            Err(errors) => {
                let message = format!("{}; what was read before stays in force", errors.summary());
                self.complain(file, message);
                None
            }
        }
    }

    fn complain(&mut self, place: &Path, message: String) {
        let place = place.display().to_string();
        tracing::warn!(place, problem = message, "the configuration of {}", self.of);
        self.wrong.push(Wrong { place, message });
    }

    fn read_all<G>(
        &mut self,
        main: &Path,
        open: fn(&Path) -> Result<Document, Errors>,
        globals: impl FnOnce(&mut Section<'_>) -> Result<G, Reported>,
        service: impl Fn(&G, &str, &mut Section<'_>) -> Result<T, Reported>,
    ) -> Result<G, Errors> {
        let document = open(main)?;
        let ((globals, directory), unknown) = document.decode_tolerantly(|root| {
            root.allow("services");
            let directory = root.optional::<PathBuf>("service_conf_dir");
            Ok((globals(root)?, directory))
        })?;
        self.report_unknown(main, &unknown);
        let parts = document.decode_parts("services", |name, section| service(&globals, name, section))?;
        let mut read: BTreeMap<String, (PathBuf, Read<T>)> =
            parts.into_iter().map(|(name, part)| (name, (main.to_owned(), part))).collect();
        let mut is_whole = true;
        if let Some(directory) = directory {
            // As it is for SmartStack: from where the process runs.
            match list(&directory) {
                Ok(files) => {
                    let files = files.into_iter().map(|(name, file)| {
                        let one = |root: &mut Section<'_>| service(&globals, &name, root);
                        let one = open(&file).and_then(|document| document.decode_tolerantly(one));
                        (name, (file, one))
                    });
                    read.extend(files);
                }
                Err(error) => {
                    is_whole = false;
                    let message = format!("it cannot be listed ({error}); its services stay as they were");
                    self.complain(&directory, message);
                }
            }
        }
        if is_whole {
            self.last.retain(|name, _| read.contains_key(name));
        }
        let excess = read.len().saturating_sub(MAX_SERVICES);
        if excess > 0 {
            let message =
                format!("{excess} services more than the {MAX_SERVICES} that are read are left out");
            self.complain(main, message);
        }
        for (name, (file, one)) in read.into_iter().take(MAX_SERVICES) {
            self.take(name, &file, one);
        }
        Ok(globals)
    }

    fn take(&mut self, name: String, file: &Path, read: Read<T>) {
        match read {
            Ok((service, unknown)) => {
                self.report_unknown(file, &unknown);
                self.last.insert(name, service);
            }
            Err(errors) => {
                let kept = if self.last.contains_key(&name) {
                    "its last good version stays in force"
                } else {
                    "nothing of it is in force"
                };
                self.complain(file, format!("{}; {kept}", errors.summary()));
            }
        }
    }

    /// Said, for a key may be mistyped; and no more, for real files have keys of other programs.
    fn report_unknown(&self, file: &Path, unknown: &[Problem]) {
        if unknown.is_empty() {
            return;
        }
        let keys: Vec<&str> = unknown.iter().map(|problem| problem.key.as_str()).collect();
        tracing::warn!(
            file = %file.display(), keys = keys.join(", "),
            "keys of the configuration of {} that mean nothing here", self.of
        );
    }
}

/// The files of services: by the service's name, which is the file's.
fn list(directory: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let is_ours = path.extension().is_some_and(|extension| extension == "yaml" || extension == "json");
        if let (true, Some(name)) = (is_ours, path.file_stem().and_then(|name| name.to_str())) {
            files.insert(name.to_owned(), path);
        }
    }
    Ok(files)
}

/// The address that a host is. Blocks while a name is looked up; of several, one that SmartStack would take: IPv4.
///
/// # Errors
/// Nobody knows it.
pub fn resolve(host: &str) -> Result<IpAddr, String> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return Ok(address);
    }
    let found =
        (host, 0).to_socket_addrs().map_err(|error| format!("{host:?} cannot be looked up: {error}"))?;
    let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    addresses.sort();
    addresses.first().copied().ok_or_else(|| format!("{host:?} has no address"))
}

/// What a service is called in the mesh: SmartStack takes any name, DNS does not.
///
/// # Errors
/// Nothing that DNS takes can be made of it, and that was reported.
pub fn service_name(name: &str, section: &Section<'_>) -> Result<ServiceName, Reported> {
    let mut mapped = String::with_capacity(name.len());
    for character in name.chars() {
        match character.to_ascii_lowercase() {
            letter if letter.is_ascii_alphanumeric() => mapped.push(letter),
            _ if mapped.ends_with('-') => {}
            _ => mapped.push('-'),
        }
    }
    ServiceName::new(mapped.trim_matches('-')).map_err(|error| {
        section.refuse(
            format_args!("the service's name does not do: {error}"),
            "a name of letters, digits, _ and .",
        )
    })
}
