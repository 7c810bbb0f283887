//! A machine whose files are its own as well: `/etc` and `/run`, for what says there how names are found.
//!
//! Each command gets a mount namespace in which two directories of the world stand in their place. The machine's real files are
//! never touched, and all commands see the same ones.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::netns::Namespace;
use crate::node::ADMIN_VARIABLE;
use crate::process::{Ran, run_command};
use crate::world::World;

/// What programs want to find of `/etc` before anything else, as far as the machine has it.
const NEEDED: &[&str] = &["passwd", "group", "hosts", "ld.so.cache", "localtime"];
const ENTER: &str = "mount --bind \"$0/etc\" /etc && mount --bind \"$0/run\" /run && exec \"$@\"";

/// A machine in a namespace, with `/etc` and `/run` of its own.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    directory: PathBuf,
}

impl Host {
    /// One whose programs find names by this `/etc/resolv.conf`.
    ///
    /// # Panics
    /// Its directories cannot be made.
    #[must_use]
    pub fn new(world: &World, namespace: &Namespace, resolv_conf: &str) -> Self {
        let directory = world.directory().join(format!("host-{}", namespace.name()));
        fs::create_dir_all(directory.join("etc")).expect("a directory");
        fs::create_dir_all(directory.join("run")).expect("a directory");
        let host = Self { namespace: namespace.clone(), directory };
        for file in NEEDED {
            // What is not here is not needed here.
            let _ = fs::copy(Path::new("/etc").join(file), host.etc(file));
        }
        host.write("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n");
        host.write("resolv.conf", resolv_conf);
        host
    }

    /// A file of its `/etc`, as the world has it.
    #[must_use]
    pub fn etc(&self, file: &str) -> PathBuf {
        self.directory.join("etc").join(file)
    }

    /// A file of its `/run`.
    #[must_use]
    pub fn run_file(&self, file: &str) -> PathBuf {
        self.directory.join("run").join(file)
    }

    /// Writes a file of its `/etc`.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write(&self, file: &str, text: &str) {
        let file = self.etc(file);
        fs::create_dir_all(file.parent().expect("it is in a directory")).expect("a directory");
        fs::write(file, text).expect("a file");
    }

    /// Every file of its `/etc`, with its contents, or where it leads.
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let (mut files, mut left) = (Vec::new(), vec![self.directory.join("etc")]);
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).expect("a directory").flatten() {
                let path = entry.path();
                match (path.read_link(), path.is_dir()) {
                    (Ok(target), _) => files.push((path, target.into_os_string().into_encoded_bytes())),
                    (Err(_), true) => left.push(path),
                    (Err(_), false) => files.push((path.clone(), fs::read(path).expect("a file"))),
                }
            }
        }
        files.sort();
        files
    }

    /// What stands before a program's name to have it run here, once it is in the machine's network.
    #[must_use]
    pub fn entering(&self) -> Vec<OsString> {
        let words = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", ENTER];
        words.iter().map(OsString::from).chain([self.directory.clone().into_os_string()]).collect()
    }

    /// A command that will run here. It replaces what has led to it: the process id is the program's.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let entering = self.entering();
        let mut command = self.namespace.command(&entering[0]);
        command.args(&entering[1..]).arg(program);
        command
    }

    /// Runs a program here, to its end.
    ///
    /// # Panics
    /// It cannot be started.
    #[track_caller]
    pub fn exec(&self, program: impl AsRef<OsStr>, arguments: &[&str]) -> Ran {
        let shown =
            format!("[{}] {} {}", self.namespace.name(), program.as_ref().display(), arguments.join(" "));
        let mut command = self.command(program);
        run_command(command.args(arguments).envs([ADMIN_VARIABLE]), &shown).expect("nsenter is installed")
    }
}
