//! Skipping: a test that needs what this machine does not have says so and returns.
//!
//! `PLEXUS_TEST_NO_SKIP=1` (set by `tests/run` where everything was installed) turns every skip into a failure, so that
//! a green run cannot be an empty one.

use std::sync::OnceLock;

use crate::process::run;

/// Prints why a test does not run. Returns `true`, to read as `if … { return skipped(…) }` at the call.
#[track_caller]
pub fn skipped(why: &str) -> bool {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test").to_owned();
    assert!(std::env::var_os("PLEXUS_TEST_NO_SKIP").is_none(), "{test} may not be skipped here: {why}");
    eprintln!("SKIPPED {test}: {why}");
    true
}

/// May this process make network namespaces? Asked once, by making one.
#[must_use]
pub fn can_make_namespaces() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let name = format!("plexus-{}-0-probe", std::process::id());
        let made = run(&["ip", "netns", "add", &name]).is_ok_and(|ran| ran.success());
        // A probe that cannot be removed is swept by a later run.
        made && run(&["ip", "netns", "del", &name]).is_ok_and(|ran| ran.success())
    })
}

/// Which of these programs are not on the path?
#[must_use]
pub fn missing_programs(programs: &[&str]) -> Vec<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    programs.iter().filter(|program| !is_there(program)).map(|&program| program.to_owned()).collect()
}

/// Returns from a test, saying why, where this machine cannot run it: namespaces and the named programs are needed.
#[macro_export]
macro_rules! needs {
    ($($program:literal),* $(,)?) => {
        if !$crate::can_make_namespaces() {
            $crate::skipped("network namespaces need root: run `tests/run`, which makes a user namespace for it");
            return;
        }
        let missing = $crate::missing_programs(&["ip", "nsenter", $($program),*]);
        if !missing.is_empty() {
            $crate::skipped(&format!("not installed: {}; `tests/run` as root installs it", missing.join(", ")));
            return;
        }
    };
}
