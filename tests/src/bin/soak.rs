//! The soak: minutes of load on three nodes while things fail at random. Exits with 1 when a client had an error that a correct
//! balancer could have avoided, or when something is left behind.
//!
//! ```text
//! plexus-soak [--minutes 10] [--seed N] [--rate 500]
//! ```

#![allow(clippy::print_stderr, reason = "a program that talks to whoever runs it")]

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use plexus_tests::soak::Soak;
use plexus_tests::{can_make_namespaces, missing_programs};

const USAGE: &str = "usage: plexus-soak [--minutes N] [--seed N] [--rate N]";

fn main() -> ExitCode {
    let soak = match read(std::env::args().skip(1)) {
        Ok(soak) => soak,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let missing = missing_programs(&["ip", "nsenter", "etcd", "etcdctl"]);
    if !can_make_namespaces() || !missing.is_empty() {
        eprintln!(
            "it needs root, to make network namespaces, and ip, nsenter, etcd and etcdctl; missing: {missing:?}"
        );
        return ExitCode::from(2);
    }
    if soak.run().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What the command line asks for.
fn read(mut arguments: impl Iterator<Item = String>) -> Result<Soak, String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut soak = Soak { length: Duration::from_secs(600), seed: now.as_secs() % 10_000, rate: 500 };
    while let Some(option) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse::<u32>().ok()).filter(|value| *value > 0);
        let value = value.ok_or_else(|| format!("{option} needs a whole number, at least 1"))?;
        match option.as_str() {
            "--minutes" => soak.length = Duration::from_secs(u64::from(value) * 60),
            "--seed" => soak.seed = value.into(),
            "--rate" => soak.rate = value,
            _ => return Err(format!("there is no option {option}")),
        }
    }
    Ok(soak)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_read_and_mistakes_are_told() {
        let read = |line: &str| read(line.split_whitespace().map(str::to_owned));
        let soak = read("--minutes 1 --seed 7 --rate 100").expect("a good line");
        assert_eq!((soak.length, soak.seed, soak.rate), (Duration::from_secs(60), 7, 100));
        assert!(read("--minutes").is_err() && read("--rate 0").is_err() && read("--speed 7").is_err());
    }
}
