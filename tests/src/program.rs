//! The program under test: built once a process, so that a test never drives an old one by mistake.
//!
//! Cargo tells a package the path of its own programs only. So the harness asks cargo itself to build it, before it
//! enters any namespace, and takes the path from cargo's answer. `PLEXUS_TEST_PROFILE` chooses the profile (`dev`
//! unless given; `tests/run` says `release`, which is what ships); `PLEXUS_BIN` names a program that is built already, `PLEXUS_TEST_BACKEND_BIN` with it the other one: then cargo is not asked.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The two programs that the tests start.
#[derive(Debug)]
struct Programs {
    plexus: PathBuf,
    backend: PathBuf,
}

/// The path of `plexus`.
#[must_use]
pub fn plexus_program() -> &'static Path {
    &programs().plexus
}

/// The path of the harness's own HTTP backend.
#[must_use]
pub fn backend_program() -> &'static Path {
    &programs().backend
}

/// The directory that holds the workspace.
///
/// # Panics
/// The crate was moved out of the workspace.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate stands in the workspace")
}

fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let given = std::env::var_os("PLEXUS_BIN").map(PathBuf::from);
        if let (Some(plexus), Some(backend)) = (&given, std::env::var_os("PLEXUS_TEST_BACKEND_BIN")) {
            return Programs { plexus: plexus.clone(), backend: PathBuf::from(backend) };
        }
        let mut packages = vec![("plexus-tests", "plexus-test-backend")];
        if given.is_none() {
            packages.push(("mesh", "plexus"));
        }
        let built = build(&packages);
        let find = |name: &str| {
            let path = built.iter().find(|path| path.file_name().is_some_and(|file| file == name));
            path.cloned().unwrap_or_else(|| panic!("cargo built no {name}"))
        };
        if let Some(given) = &given {
            assert!(given.is_file(), "PLEXUS_BIN={}: there is no such file", given.display());
        }
        Programs { plexus: given.unwrap_or_else(|| find("plexus")), backend: find("plexus-test-backend") }
    })
}

/// Builds programs of the workspace and returns the paths of all executables that cargo names.
fn build(programs: &[(&str, &str)]) -> Vec<PathBuf> {
    let profile = std::env::var("PLEXUS_TEST_PROFILE").unwrap_or_else(|_| "dev".to_owned());
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(repository()).args([
        "build",
        "--quiet",
        "--message-format=json",
        "--profile",
        &profile,
    ]);
    // What `cargo test` says of the package under test is not for this build: build scripts that look at it (ring's does)
    // would run again, here and in the next build outside, and with them everything above them.
    let of_the_package = ["CARGO_MANIFEST_", "CARGO_PKG_"];
    for (name, _) in std::env::vars_os() {
        if of_the_package.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    for (package, program) in programs {
        command.args(["--package", package, "--bin", program]);
    }
    let output =
        command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().expect("cargo can be started");
    assert!(output.status.success(), "building the program under test failed: {command:?}");
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages.filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?))).collect()
}
