//! The command line as its users meet it.

use std::collections::BTreeSet;

use plexus_tests::{Cluster, needs, plexus_program, run};

use crate::INSTANCE;

#[test]
fn exit_codes_tell_done_from_failed_from_wrong_usage() {
    let program = plexus_program().to_string_lossy();
    let code = |arguments: &[&str]| {
        let line: Vec<&str> = std::iter::once(&*program).chain(arguments.iter().copied()).collect();
        run(&line).expect("the program can be started").code
    };
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["--version"]), Some(0));
    assert_eq!(code(&[]), Some(2));
    assert_eq!(code(&["no-such-command"]), Some(2));
    assert_eq!(code(&["services", "--no-such-option"]), Some(2));
    // Nobody listens on port 9.
    assert_eq!(code(&["services", "--admin", "http://127.0.0.1:9"]), Some(1));
    assert_eq!(code(&["agent", "--config", "/no/such/file"]), Some(1));
}

#[test]
fn an_agent_that_does_not_answer_is_named_with_what_to_do() {
    let program = plexus_program().to_string_lossy();
    let ran = run(&[&program, "services", "--admin", "http://127.0.0.1:9"]).expect("it starts");
    assert!(ran.stdout.is_empty(), "{ran}");
    assert!(ran.stderr.contains("127.0.0.1:9") && ran.stderr.contains("--admin"), "{ran}");
}

#[test]
fn completions_are_printed_for_the_usual_shells() {
    let program = plexus_program().to_string_lossy();
    for shell in ["bash", "zsh", "fish"] {
        let text = run(&[&program, "completions", shell]).expect("it starts").ok();
        assert!(text.contains("endpoints"), "{shell}");
    }
}

#[test]
fn every_reading_command_prints_a_table_and_json() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(2);
    let [a, b] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    for command in [&["services"][..], &["endpoints", "web"], &["nodes"], &["why", "web"], &["status"]] {
        let (text, json) = match command {
            [one] => (b.plexus([one]).ok(), b.plexus_json([one])),
            [one, two] => (b.plexus([one, two]).ok(), b.plexus_json([one, two])),
            _ => unreachable!("the commands above have one or two words"),
        };
        assert!(json.is_object(), "{command:?}: {json}");
        assert!(!text.contains('\u{1b}'), "colour without a terminal: {text:?}");
    }
    let why = b.plexus(["why", "web"]).ok();
    assert!(why.contains("web-a-9000") && why.contains(&a.at(INSTANCE).to_string()), "{why}");
    let none = b.plexus(["endpoints", "nothing"]);
    assert!(format!("{none}").contains("nothing"), "{none}");
    let registered = b.plexus(["register", "web", "--port", "1", "--json"]).ok();
    assert!(registered.starts_with('{'), "{registered}");
}

#[test]
fn metrics_are_those_of_a_well_behaved_exporter() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::new(1);
    let [a] = cluster.nodes();
    let _backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &["web-a-9000"]);
    let text = a.admin("/metrics").expect("an answer").body;
    let names: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    assert!(names.len() > 20, "{names:?}");
    for name in &names {
        assert!(name.starts_with("plexus_") || name.starts_with("process_"), "{name}");
    }
    let described = text.lines().filter(|line| line.starts_with("# HELP ")).count();
    assert_eq!(described, text.lines().filter(|line| line.starts_with("# TYPE ")).count());
}
