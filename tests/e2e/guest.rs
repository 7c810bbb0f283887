//! Stories of what this machine's kernel has not, told in a guest whose kernel has it: `overlay_encrypted`.

use std::path::Path;
use std::time::Duration;

use crate::overlay_encrypted::IN_GUEST;
use plexus_tests::{Guest, World, backend_program, plexus_program, skipped};

/// Under emulation, while others use this machine as well.
const WITHIN: Duration = Duration::from_secs(600);

/// Runs the stories whose names contain `filter`, without these modules of the kernel.
#[track_caller]
fn tell(filter: &str, without: &[&str]) {
    let guest = match Guest::find() {
        Ok(guest) => guest,
        Err(why) => {
            skipped(&why);
            return;
        }
    };
    let world = World::new();
    let this = std::env::current_exe().expect("the path of this program");
    let plain = |path: &Path| path.display().to_string();
    let command = format!(
        "export HOME=/root PATH={path} PLEXUS_BIN={plexus} PLEXUS_TEST_BACKEND_BIN={backend} PLEXUS_TEST_NO_SKIP=1 {IN_GUEST}=1 RUST_BACKTRACE=0\n\
         cd {here} && exec {this} --test-threads 1 {filter}",
        path = std::env::var("PATH").unwrap_or_default(),
        plexus = plain(plexus_program()),
        backend = plain(backend_program()),
        here = plain(&std::env::current_dir().expect("a directory")),
        this = plain(&this),
    );
    let ended = guest.run(&world, &command, without, WITHIN);
    assert_eq!(ended.status, Some(0), "in the guest:\n{}", ended.console);
    assert!(!ended.console.contains("running 0 tests"), "in the guest:\n{}", ended.console);
}

#[test]
fn encrypted_networks_by_wireguard() {
    tell("overlay_encrypted::wireguard", &[]);
}

#[test]
fn encrypted_networks_by_ipsec_where_there_is_no_wireguard() {
    tell("overlay_encrypted::esp", &["wireguard"]);
}

#[test]
fn encrypted_networks_are_refused_where_there_is_neither() {
    tell("overlay_encrypted::neither", &["wireguard", "esp4", "esp6"]);
}
