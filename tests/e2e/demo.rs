//! The demo: what a newcomer sees, typed as it is printed.
//!
//! It runs in a namespace of the test's world that plays the newcomer's machine, with a directory for temporary files of
//! its own and a copy of the program that nobody else runs: so what is left behind can be told from what others do.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plexus_tests::{
    Fabric, Namespace, Process, Ran, Signal, World, eventually, needs, plexus_program, run, skipped,
};

/// What a newcomer waits for the first prompt at most; the demo itself gives up later.
const UP: Duration = Duration::from_secs(20);
const DOWN: Duration = Duration::from_secs(20);

/// A machine with a running demo.
struct Demo {
    process: Process,
    machine: Namespace,
    program: PathBuf,
    temporary: PathBuf,
    links_before: Vec<String>,
    // Last: it removes what the others stand in.
    _world: World,
}

impl Demo {
    /// Starts it by `prefix plexus demo arguments` and waits until it says how to end it.
    fn start(prefix: &[&str], arguments: &[&str]) -> Self {
        let world = World::new();
        let machine = Fabric::new(&world).machine("newcomer");
        let program = world.directory().join("plexus");
        fs::copy(plexus_program(), &program).expect("a copy of the program");
        let temporary = world.directory().join("tmp");
        fs::create_dir(&temporary).expect("a directory");
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o1777)).expect("for everyone");
        let links_before = links(&machine);
        let line: Vec<&str> =
            prefix.iter().copied().chain([program.to_str().expect("text"), "demo"]).collect();
        let mut command = machine.command(line[0]);
        command.args(&line[1..]).args(arguments).env("TMPDIR", &temporary).current_dir("/");
        command.env_remove("XDG_STATE_HOME").env_remove("HOME");
        let process = Process::start("the demo", &mut command, &world.log("demo"));
        let mut demo = Self { process, machine, program, temporary, links_before, _world: world };
        eventually!(
            UP,
            {
                demo.process.assert_running();
                demo.process.output()
            },
            |text| text.contains("Ctrl-C ends it"),
        );
        demo
    }

    /// The lines that it says to type.
    fn lines(&self) -> Vec<String> {
        let text = self.process.output();
        let lines = text.lines().filter(|line| line.starts_with("  ") && !line.trim().starts_with('#'));
        lines.map(|line| line.trim().to_owned()).collect()
    }

    /// Types a line.
    fn paste(&self, line: &str) -> Ran {
        self.machine.exec("timeout", &["15", "sh", "-c", line])
    }

    /// Types every line, in order; each must work.
    fn paste_all(&self) -> Vec<Ran> {
        let lines = self.lines();
        assert!(lines.len() > 10, "{}", self.process.output());
        let pasted: Vec<Ran> = lines.iter().map(|line| self.paste(line)).collect();
        for ran in &pasted {
            assert!(ran.success(), "{ran}\n{}", self.process.output());
            let prints = ["curl http", "dig ", "for "].iter().any(|tool| ran.command.contains(tool));
            assert!(!prints || !ran.stdout.trim().is_empty(), "it printed nothing: {ran}");
        }
        pasted
    }

    /// Nothing of it is there any more: no process, link, socket or file.
    fn assert_nothing_is_left(&self) {
        eventually!(DOWN, running(&self.program), Vec::is_empty);
        // The kernel removes a namespace and its links a moment after the last process in it.
        eventually!(Duration::from_secs(2), links(&self.machine), |links| *links == self.links_before);
        assert_eq!(self.machine.exec("ss", &["-Htuln"]).ok(), "");
        let left: Vec<_> = fs::read_dir(&self.temporary).expect("a directory").flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// The names of a machine's links.
fn links(machine: &Namespace) -> Vec<String> {
    let listed = machine.exec("ip", &["-br", "link"]).ok();
    listed.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

/// The ids of the processes that run this program.
fn running(program: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_it = processes.filter(|process| {
        let program_of = fs::read_link(process.path().join("exe"));
        program_of.is_ok_and(|path| path == program)
    });
    of_it.filter_map(|process| process.file_name().into_string().ok()).collect()
}

/// Ctrl-C ends it well, and soon.
fn ctrl_c(mut demo: Demo) {
    demo.process.signal(Signal::INT);
    let ended = demo.process.wait(DOWN);
    assert_eq!(ended.code(), Some(0), "{}", demo.process.output());
    demo.assert_nothing_is_left();
}

#[test]
fn as_root_it_is_three_nodes_and_every_line_works_when_pasted() {
    needs!("curl", "dig", "nft");
    let demo = Demo::start(&[], &[]);
    let lines = demo.lines();
    let ports: Vec<&String> =
        lines.iter().filter(|line| line.starts_with("curl http") && !line.contains("/client")).collect();
    assert_eq!(ports.len(), 3, "a published port on each node: {}", demo.process.output());
    let pasted = demo.paste_all();
    let all: String = pasted.iter().map(|ran| ran.stdout.as_str()).collect();
    for service in ["web", "api"] {
        assert!(all.contains(service), "{all}");
    }
    // Names lead to containers.
    let addresses =
        &pasted[lines.iter().position(|line| line.starts_with("dig +short")).expect("a name")].stdout;
    assert!(
        addresses.lines().count() == 3 && addresses.lines().all(|line| line.starts_with("10.42.")),
        "{addresses}"
    );
    // The last node runs no instance of web: what answers there is a container elsewhere, and it sees this machine.
    let clients: Vec<&String> = lines.iter().filter(|line| line.contains("/client")).collect();
    let own = "is asked by 10.213.0.1:";
    let _ = eventually!(DOWN, demo.paste(clients[0]).stdout, |answer| answer.contains(own));
    assert!(ports[2].contains("runs 0 of web's instances"), "{}", ports[2]);
    let inside: Vec<&Ran> =
        pasted.iter().filter(|ran| ran.command.contains("nsenter --net=/proc/")).collect();
    assert!(inside.len() == 3 && inside[0].stdout.contains("on node b"), "{inside:?}");
    ctrl_c(demo);
}

#[test]
fn without_nft_its_instances_run_on_the_nodes_themselves() {
    needs!("curl", "dig", "env");
    let path = "/usr/local/bin:/usr/bin:/bin";
    if path.split(':').any(|directory| Path::new(directory).join("nft").exists())
        && skipped("nft is where everything else is")
    {
        return;
    }
    let demo = Demo::start(&["env", &format!("PATH={path}")], &[]);
    assert!(demo.process.output().contains("nft is not installed"), "{}", demo.process.output());
    assert!(!demo.paste_all().iter().any(|ran| ran.command.contains("nsenter")));
    ctrl_c(demo);
}

#[test]
fn as_an_ordinary_user_it_is_one_node_and_every_line_works_when_pasted() {
    needs!("curl", "dig", "setpriv");
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let possible = run(&[&nobody[..], &["true"]].concat()).is_ok_and(|ran| ran.success());
    if !possible && skipped("this root may not become another user") {
        return;
    }
    let demo = Demo::start(&nobody, &[]);
    assert!(demo.process.output().contains("loopback"), "{}", demo.process.output());
    demo.paste_all();
    ctrl_c(demo);
}

#[test]
fn on_loopback_it_needs_no_network_of_its_own() {
    needs!("curl", "dig");
    let demo = Demo::start(&[], &["--loopback"]);
    assert_eq!(links(&demo.machine), demo.links_before);
    demo.paste_all();
    ctrl_c(demo);
}

#[test]
fn killed_it_leaves_no_process_and_no_link_either() {
    needs!("curl", "dig");
    let mut demo = Demo::start(&[], &[]);
    assert!(running(&demo.program).len() > 5, "the demo and its five instances");
    demo.process.kill();
    eventually!(DOWN, running(&demo.program), Vec::is_empty);
    eventually!(DOWN, links(&demo.machine), |links| *links == demo.links_before);
}
