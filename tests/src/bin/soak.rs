//! Soaks: minutes of load while things fail or change at random. Exits with 1 when a client had an error that a correct balancer could
//! have avoided, or an answer that a correct name server would not give, or when something is left behind.
//!
//! ```text
//! plexus-soak [--minutes 10] [--seed N] [--rate 500]
//! plexus-soak names [--minutes 10] [--seed N] [--rate 200]
//! ```

#![allow(clippy::print_stderr, reason = "a program that talks to whoever runs it")]

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use plexus_tests::soak::{Soak, names};
use plexus_tests::{can_make_namespaces, missing_programs};

const USAGE: &str = "usage: plexus-soak [names] [--minutes N] [--seed N] [--rate N]";

/// Which one, and how.
#[derive(Debug, Clone, Copy)]
struct Asked {
    names: bool,
    length: Duration,
    seed: u64,
    rate: u32,
}

fn main() -> ExitCode {
    let Asked { names, length, seed, rate } = match read(std::env::args().skip(1)) {
        Ok(asked) => asked,
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
    let broken =
        if names { names::Soak { length, seed, rate }.run() } else { Soak { length, seed, rate }.run() };
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What the command line asks for.
fn read(arguments: impl Iterator<Item = String>) -> Result<Asked, String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut arguments = arguments.peekable();
    let names = arguments.next_if(|argument| argument == "names").is_some();
    let rate = if names { 200 } else { 500 };
    let mut asked = Asked { names, length: Duration::from_secs(600), seed: now.as_secs() % 10_000, rate };
    while let Some(option) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse::<u32>().ok()).filter(|value| *value > 0);
        let value = value.ok_or_else(|| format!("{option} needs a whole number, at least 1"))?;
        match option.as_str() {
            "--minutes" => asked.length = Duration::from_secs(u64::from(value) * 60),
            "--seed" => asked.seed = value.into(),
            "--rate" => asked.rate = value,
            _ => return Err(format!("there is no option {option}")),
        }
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_read_and_mistakes_are_told() {
        let read = |line: &str| read(line.split_whitespace().map(str::to_owned));
        let soak = read("--minutes 1 --seed 7 --rate 100").expect("a good line");
        assert_eq!((soak.length, soak.seed, soak.rate), (Duration::from_secs(60), 7, 100));
        let names = read("names --seed 7").expect("a good line");
        assert!(names.names && !soak.names && names.rate == 200);
        assert!(read("--minutes").is_err() && read("--rate 0").is_err() && read("--speed 7").is_err());
    }
}
