//! The command line itself: usage, help, completions, `config check`.

use super::*;

#[test]
fn wrong_usage_is_exit_code_2_and_help_is_0() {
    let code = |words: &str| {
        let arguments = ["plexus"].into_iter().chain(words.split(' ')).map(OsString::from);
        run(arguments).expect_err(words).exit_code()
    };
    for wrong in
        ["servces", "publish web", "publish web 0", "endpoints Web", "drain", "drain x --node", "agent"]
    {
        assert_eq!(code(wrong), 2, "{wrong}");
    }
    for help in ["--help", "--version", "why --help"] {
        assert_eq!(code(help), 0, "{help}");
    }
}

#[test]
fn a_reader_that_had_enough_is_no_failure() {
    assert_eq!(Error::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe)).exit_code(), 0);
    assert_eq!(Error::from(std::io::Error::from(std::io::ErrorKind::StorageFull)).exit_code(), 1);
}

#[test]
fn every_command_has_help_and_examples_and_a_place_in_the_reference() {
    let reference = include_str!("../../../../docs/cli.md");
    Arguments::command().debug_assert();
    for command in Arguments::command().get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = command.get_name();
        assert!(command.get_about().is_some(), "{name} has no help");
        assert!(reference.contains(&format!("plexus {name}")), "plexus {name} is not in docs/cli.md");
        let parts: Vec<_> =
            if command.has_subcommands() { command.get_subcommands().collect() } else { vec![command] };
        for part in parts {
            assert!(part.get_after_help().is_some() || name == "demo", "{name} has no examples");
            for argument in part.get_arguments().filter_map(|argument| argument.get_long()) {
                assert!(
                    reference.contains(&format!("--{argument}")),
                    "--{argument} of {name} is not in docs/cli.md"
                );
            }
        }
    }
}

#[test]
fn config_check_tells_every_mistake_with_its_line_and_prints_what_is_right() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("plexus.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let words = ["plexus".into(), "config".into(), "check".into(), file.clone().into_os_string()];
        let Command::Config(command) = Arguments::try_parse_from(words).unwrap().command else {
            panic!("no config")
        };
        let mut printed = Vec::new();
        let outcome = command.run(&mut Output::new(&mut printed, false));
        outcome.map(|()| String::from_utf8(printed).unwrap())
    };
    let node = "[node]\nname = \"a\"\naddress = \"192.0.2.1\"\n";
    let printed = check(&format!("{node}[store]\nurl = \"embedded\"\n")).unwrap();
    assert!(printed.contains("[store]\nurl = \"embedded\"") && printed.contains("ttl = \"5s\""), "{printed}");
    let error = check(&format!("{node}[store]\nulr = \"embedded\"\n[dns]\nttl = 5\n")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("3 problems") && text.contains("plexus.toml:5:1: store.ulr: unknown key"),
        "{text}"
    );
    assert!(text.contains("plexus.toml:7:7: dns.ttl"), "{text}");
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn completions_know_the_commands() {
    let mut printed = Vec::new();
    let Command::Completions(command) =
        Arguments::try_parse_from(["plexus", "completions", "bash"]).unwrap().command
    else {
        panic!("no completions")
    };
    command.run(&mut Arguments::command(), &mut Output::new(&mut printed, false)).unwrap();
    let script = String::from_utf8(printed).unwrap();
    assert!(script.contains("unpublish") && script.contains("--admin"));
}
