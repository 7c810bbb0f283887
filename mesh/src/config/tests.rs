//! The example files are the seeds: they parse, they show every key with its default, and no wrong key gets past.

use std::collections::BTreeSet;
use std::path::Path;

use nerve::check::Probe;
use nerve::document::{Document, Errors};
use nerve::source::{Definition, DockerAddress};
use proptest::prelude::*;

use super::*;

const EXAMPLE: &str = include_str!("../../../examples/plexus.toml");
const REFERENCE: &str = include_str!("../../../docs/configuration.md");
const CHECKS: &str = include_str!("../../../docs/checks.md");
const PATH: &str = "/etc/plexus/plexus.toml";

fn machine() -> Machine {
    Machine {
        host_name: Some("a.example.com".to_owned()),
        address: Some("192.0.2.11".parse().unwrap()),
        state_dir: Some("/var/lib/plexus".into()),
    }
}

fn read(text: &str) -> Result<Config, Errors> {
    Config::read(&Document::parse("plexus.toml", text)?, Path::new(PATH), &machine())
}

fn errors(text: &str) -> String {
    read(text).map(|config| format!("{config:?}")).expect_err("refused").to_string()
}

/// The example with its settings uncommented; `all`: those too that have no default.
fn uncommented(all: bool) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
            let is_example = setting.ends_with("# no default");
            // Its file need not exist on the machine that runs the test.
            let needs_file = setting.starts_with("password_file = \"store.");
            if (all || !is_example) && !needs_file { setting.to_owned() } else { line.to_owned() }
        }
        _ => line.to_owned(),
    };
    EXAMPLE.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn table_heads(text: &str) -> Vec<usize> {
    text.lines().enumerate().filter(|(_, line)| line.starts_with('[')).map(|(at, _)| at).collect()
}

#[test]
fn a_store_is_all_that_must_be_given() {
    let config = read("store.url = \"embedded\"").unwrap();
    assert_eq!(config.node.name.as_str(), "a");
    assert_eq!(config.node.address, "192.0.2.11".parse::<std::net::IpAddr>().unwrap());
    assert_eq!(config.services_dir, Path::new("/etc/plexus/services.d"));
    assert!(errors("").contains("store.url: it is missing"), "{}", errors(""));
}

#[test]
fn the_example_shows_every_default() {
    let bare = read(EXAMPLE).unwrap();
    assert_eq!(read(&uncommented(false)).unwrap(), bare);
    let url = "[store]\nurl = \"etcd://192.0.2.1:2379,192.0.2.2:2379,192.0.2.3:2379\"";
    assert_eq!(read(url).unwrap(), bare);
}

#[test]
fn every_setting_of_the_example_is_a_key() {
    let config = read(&uncommented(true)).unwrap();
    assert_eq!(config.ingress.localhost.len(), 2);
    assert!(config.store.ca_file.is_some() && config.node.zone.is_some());
}

#[test]
fn a_wrong_key_in_any_table_is_refused_with_its_line() {
    let text = uncommented(true);
    let lines: Vec<&str> = text.lines().collect();
    let heads = table_heads(&text);
    assert!(heads.len() >= 9, "{heads:?}");
    for head in heads {
        let mut mutated = lines.clone();
        mutated.insert(head + 1, "no_such_key = 1");
        let shown = errors(&mutated.join("\n"));
        let place = format!("plexus.toml:{}:1: ", head + 2);
        assert!(shown.starts_with(&place) && shown.contains("no_such_key: unknown key"), "{shown}");
    }
    let shown = errors(&format!("no_such_key = 1\n{text}"));
    assert!(shown.starts_with("plexus.toml:1:1: no_such_key: unknown key"), "{shown}");
}

#[test]
fn every_key_misspelt_is_refused_with_a_suggestion() {
    let text = uncommented(true);
    for (at, line) in text.lines().enumerate() {
        let Some((key, value)) = line.split_once(" = ").filter(|(key, _)| !key.starts_with('#')) else {
            continue;
        };
        let mutated: Vec<String> = text
            .lines()
            .enumerate()
            .map(|(n, l)| if n == at { format!("{key}x = {value}") } else { l.to_owned() })
            .collect();
        let shown = errors(&mutated.join("\n"));
        assert!(shown.contains(&format!("plexus.toml:{}:1: ", at + 1)), "{key}: {shown}");
        assert!(shown.contains(&format!("did you mean `{key}`?")), "{key}: {shown}");
    }
}

/// What the reader itself says to be valid keys of each table.
fn known_keys() -> BTreeSet<String> {
    let text = format!("no_such_key = 1\n{}", uncommented(true).replace("]\n", "]\nno_such_key = 1\n"));
    let text = text.replace("]] # no default\n", "]]\nno_such_key = 1\n");
    // Only whole tables: a list's closing bracket at the end of a line is followed by no key of its own.
    let tables: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut kept: Vec<String> = Vec::new();
    for line in tables {
        let after_head = kept.last().is_none_or(|previous| previous.starts_with('['));
        if line != "no_such_key = 1" || after_head {
            kept.push(line);
        }
    }
    kept.extend("[[service]]\nname = \"x\"\nport = 1\nno_such_key = 1".lines().map(str::to_owned));
    for kind in Probe::KINDS {
        let value = if kind.starts_with("http") { "\"/\"" } else { "true" };
        kept.extend([
            "[[service.check]]".to_owned(),
            format!("{kind} = {value}"),
            "no_such_key = 1".to_owned(),
        ]);
    }
    let refused = read(&kept.join("\n")).expect_err("refused");
    let mut keys = BTreeSet::new();
    for problem in refused.iter().filter(|problem| problem.message == "unknown key") {
        let table = problem.key.trim_end_matches("no_such_key");
        let table: String = table.split(['[', ']']).step_by(2).collect();
        let listed = problem.expected.trim_start_matches("one of ");
        keys.extend(listed.split(", ").map(|key| format!("{table}{}", key.trim_matches('`'))));
    }
    keys
}

#[test]
fn every_key_is_in_the_example_and_in_the_reference() {
    let keys = known_keys();
    assert!(keys.len() > 30, "{keys:?}");
    for key in keys {
        let leaf = key.rsplit('.').next().unwrap();
        let in_example = EXAMPLE.lines().any(|line| {
            let line = line.trim_start_matches('#');
            line.starts_with(&format!("{leaf} = "))
                || line.starts_with(&format!("[{key}]"))
                || line.starts_with(&format!("[[{key}]]"))
                || line.starts_with(&format!("[{key}."))
        });
        // Given in the clear, it stands in the reference only: the example shows the better way.
        let elsewhere = key == "store.password" || key.split('.').next() == Some("service");
        assert!(in_example || elsewhere, "{key} is not in examples/plexus.toml");
        // What checks take has a page of its own, by kinds.
        let (reference, shown) = match key.strip_prefix("service.check.") {
            Some(key) => (CHECKS, key),
            None => (REFERENCE, key.as_str()),
        };
        assert!(reference.contains(&format!("`{shown}`")), "{key} is not in the reference");
    }
}

/// What stands between lines of ``` in documents of this language: the document's name, and the text.
fn examples(language: &str) -> Vec<(String, String)> {
    let documents = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs")).unwrap();
    let (mut examples, begins) = (Vec::new(), format!("```{language}\n"));
    let documents = documents.map(|document| document.unwrap().path());
    for document in documents.filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let text = std::fs::read_to_string(&document).unwrap();
        let blocks = text.split(&begins).skip(1);
        let block = |rest: &str| rest.split("```").next().unwrap_or_default().to_owned();
        examples.extend(blocks.map(|rest| (document.display().to_string(), block(rest))));
    }
    examples
}

#[test]
fn every_example_of_the_documents_is_a_configuration() {
    let all = examples("toml");
    assert!(all.len() > 20, "{}", all.len());
    for (document, text) in all {
        let whole = format!("store.url = \"embedded\"\n{text}");
        assert!(read(&whole).is_ok(), "{document}: {text}\n{}", errors(&whole));
    }
    let sources =
        examples("json").into_iter().find(|(document, _)| document.ends_with("sources.md")).unwrap();
    let local = read("store.url = \"embedded\"").unwrap().node.local();
    let read = Document::parse_json("services.d/web.json", &sources.1).unwrap();
    assert!(read.decode(|root| Definition::read(root, &local)).is_ok());
}

#[test]
fn every_mistake_is_told_at_once_with_its_line() {
    let text = "[node]\nname = \"My_Node\"\n[store]\nurl = \"redis://x\"\n[dns]\nttl = \"soon\"\n[log]\nlevel = \"loud\"\n";
    let shown = errors(text);
    for (line, key) in [(2, "node.name"), (4, "store.url"), (6, "dns.ttl"), (8, "log.level")] {
        assert!(shown.contains(&format!("plexus.toml:{line}:")) && shown.contains(key), "{key}: {shown}");
    }
}

#[test]
fn ranges_that_cannot_be_services_are_refused() {
    let with = |ranges: &str| format!("[store]\nurl = \"embedded\"\n[vip]\nrange = [{ranges}]");
    assert_eq!(read(&with("\"10.96.0.0/16\", \"fd00:96::/112\"")).unwrap().vip().ranges.len(), 2);
    for (ranges, why) in [
        ("\"10.96.0.1/16\"", "the range is 10.96.0.0/16"),
        ("\"0.0.0.0/0\"", "0.0.0.0/0 is no range for services"),
        ("\"10.96.0.1\"", "10.96.0.1 is no range for services"),
        ("\"10.96.0.0/16\", \"10.96.4.0/24\"", "10.96.4.0/24 overlaps 10.96.0.0/16"),
    ] {
        let shown = errors(&with(ranges));
        assert!(shown.contains("plexus.toml:4:") && shown.contains(why), "{shown}");
    }
}

#[test]
fn a_trusted_proxy_is_a_range_or_comes_by_a_unix_socket() {
    let with = |trusted: &str| format!("[store]\nurl = \"embedded\"\n[proxy]\ntrusted_proxies = [{trusted}]");
    let config = read(&with("\"192.0.2.0/24\", \"unix\"")).unwrap();
    let trusted = ["192.0.2.0/24", "unix"].map(|trusted| trusted.parse().unwrap());
    assert_eq!(*config.proxy().trusted_proxies, trusted);
    let printed = serde_json::to_value(&config).unwrap();
    assert_eq!(printed["proxy"]["trusted_proxies"], serde_json::json!(["192.0.2.0/24", "unix"]));
    let shown = errors(&with("\"unix:/run/web.sock\""));
    assert!(shown.contains("plexus.toml:4:") && shown.contains("or \"unix\""), "{shown}");
}

#[test]
fn docker_s_containers_are_registered_and_its_driver_is_served_where_there_are_networks() {
    let with = |overlay: bool, keys: &str| {
        format!("store.url = \"embedded\"\noverlay.enabled = {overlay}\n[docker]\nenabled = true\n{keys}")
    };
    let config = read(&with(true, "plugin = \"/run/docker/plugins/mesh.sock\"")).unwrap();
    assert_eq!(config.docker().unwrap().socket.as_str(), "/run/docker/plugins/mesh.sock");
    assert_eq!(config.docker_source().unwrap().driver, "mesh");
    assert!(read(&with(true, "instances = false")).unwrap().docker_source().is_none());
    assert!(read("store.url = \"embedded\"").unwrap().docker().is_none());
    let address = |overlay, keys: &str| read(&with(overlay, keys)).unwrap().docker_source().unwrap().address;
    assert_eq!([address(true, ""), address(false, "")], [DockerAddress::Overlay, DockerAddress::Published]);
    assert_eq!(address(true, "address = \"container\""), DockerAddress::Container);
    assert!(read(&with(false, "")).unwrap().docker().is_none());
    let shown = errors(&with(false, "address = \"overlay\""));
    assert!(shown.contains("overlay.enabled is false"), "{shown}");
    for plugin in ["/run/plexus", "/run/.sock"] {
        let shown = errors(&with(true, &format!("plugin = \"{plugin}\"")));
        assert!(shown.contains("docker.plugin: ") && shown.contains("does not end in .sock"), "{shown}");
    }
}

#[test]
fn two_watchers_of_one_name_are_refused() {
    let watch = |name: &str| format!("[[watch]]\nservice = \"web\"\nfile = \"web.json\"\nname = {name:?}\n");
    let with = |names: [&str; 2]| format!("store.url = \"embedded\"\n{}", names.map(watch).concat());
    assert!(read(&with(["one", "two"])).is_ok());
    for names in [["one", "one"], ["one", "store"]] {
        let shown = errors(&with(names));
        assert!(shown.contains(&format!("another watcher that is called {:?}", names[1])), "{shown}");
    }
}

#[test]
fn rooms_on_one_address_are_refused() {
    let shown = errors("store.url = \"embedded\"\nadmin.listen = [\"127.0.0.1:53\"]");
    assert!(
        shown.contains("dns.listen is to listen on 127.0.0.1:53, which clashes with admin.listen"),
        "{shown}"
    );
    let shown = errors(
        "store.url = \"embedded\"\ndns.tls_listen = [\"0.0.0.0:53\"]\ndns.tls_cert_file = \"/a\"\ndns.tls_key_file = \"/b\"",
    );
    assert!(
        shown.contains("dns.tls_listen is to listen on 0.0.0.0:53, which clashes with dns.listen"),
        "{shown}"
    );
    let off = "store.url = \"embedded\"\nadmin.listen = [\"127.0.0.1:53\"]\ndns.enabled = false";
    assert!(read(off).is_ok());
}

#[test]
fn a_local_listener_has_a_port_or_a_socket_and_what_belongs_to_it() {
    let with =
        |keys: &str| format!("store.url = \"embedded\"\n[[ingress.localhost]]\nservice = \"web\"\n{keys}");
    let socket = "socket = \"/run/web.sock\"";
    assert!(read(&with(&format!("{socket}\nmode = \"0600\"\nowner = 0\ngroup = \"root\""))).is_ok());
    for (keys, why) in [
        ("", "ingress.localhost[0].port: it is missing"),
        ("socket = \"web.sock\"", "write it absolute"),
        (&format!("port = 1\n{socket}"), "there is a `port` too"),
        (&format!("{socket}\naddress = \"127.0.0.1\""), "a unix socket has none"),
        ("port = 1\nmode = \"0600\"", "ingress.localhost[0].mode: a port has none"),
        (&format!("{socket}\nmode = \"rw\""), "it is no mode from 0 to 0777"),
        (&format!("{socket}\nowner = \"a:b\""), "it is no name of a user or group"),
        (
            &format!("{socket}\n[[ingress.localhost]]\nservice = \"api\"\n{socket}"),
            "unix:/run/web.sock twice",
        ),
        ("socket = \"/var/lib/plexus/admin.sock\"", "unix:/var/lib/plexus/admin.sock as admin.socket is"),
    ] {
        let shown = errors(&with(keys));
        assert!(shown.contains(why), "{keys}: {shown}");
    }
}

#[test]
fn what_is_printed_reads_back_the_same_and_holds_no_password() {
    let config = read(&uncommented(true)).unwrap();
    assert_eq!(read(&config.to_toml().unwrap()).unwrap(), config);
    let secret = read("[store]\nurl = \"embedded\"\nusername = \"u\"\npassword = \"tops3cret\"").unwrap();
    assert!(!secret.to_toml().unwrap().contains("tops3cret") && !format!("{secret:?}").contains("tops3cret"));
    assert_eq!(secret.store().password.as_deref(), Some("tops3cret"));
}

#[test]
fn services_are_completed_with_what_the_node_says_and_printed_whole() {
    let config =
        read("store.url = \"embedded\"\n[[service]]\nname = \"web\"\nport = 80\ncheck = [{ tcp = true }]")
            .unwrap();
    let printed = config.to_toml().unwrap();
    for line in ["id = \"web-a-80\"", "address = \"192.0.2.11\"", "interval = \"2s\"", "weight = 100"] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    assert_eq!(read(&printed).unwrap().to_toml().unwrap(), printed);
}

const DEFINITIONS: [&str; 2] = [
    include_str!("../../../examples/services.d/web.toml"),
    include_str!("../../../examples/services.d/database.toml"),
];

#[test]
fn every_key_of_a_definition_misspelt_is_refused_with_its_line() {
    for text in DEFINITIONS {
        let whole = format!("{text}\n[store]\nurl = \"embedded\"\n");
        assert_eq!(read(&whole).unwrap().services.len(), 1);
        let definition = text.lines().count();
        for (at, line) in whole.lines().enumerate().take(definition) {
            let Some((key, value)) = line.split_once(" = ").filter(|(key, _)| !key.starts_with('#')) else {
                continue;
            };
            let mutated: Vec<String> = whole
                .lines()
                .enumerate()
                .map(|(n, l)| if n == at { format!("{key}_ = {value}") } else { l.to_owned() })
                .collect();
            let shown = errors(&mutated.join("\n"));
            assert!(shown.contains(&format!("plexus.toml:{}:1: ", at + 1)), "{key}: {shown}");
            assert!(shown.contains("unknown key"), "{key}: {shown}");
        }
    }
}

#[test]
fn a_password_comes_from_the_first_line_of_its_file() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("password"), "s3cret\n").unwrap();
    let text = "[store]\nurl = \"embedded\"\nusername = \"u\"\npassword_file = \"password\"";
    let path = directory.path().join("plexus.toml");
    let config = Config::read(&Document::parse("plexus.toml", text).unwrap(), &path, &machine()).unwrap();
    assert_eq!(config.store().password.as_deref(), Some("s3cret"));
    assert!(errors(text).contains("plexus.toml:4:"), "{}", errors(text));
}

#[test]
fn a_machine_that_tells_nothing_must_be_told() {
    let nothing = Machine { host_name: Some("my_host".to_owned()), address: None, state_dir: None };
    let document = Document::parse("plexus.toml", "store.url = \"embedded\"").unwrap();
    let shown = Config::read(&document, Path::new(PATH), &nothing).unwrap_err().to_string();
    for key in ["node.name: the host name (my_host)", "node.address: this machine", "state_dir: neither"] {
        assert!(shown.contains(key), "{shown}");
    }
}

#[test]
fn a_reload_names_what_it_applies_and_what_needs_a_restart() {
    let base = "[store]\nurl = \"embedded\"\n";
    let running = read(base).unwrap();
    assert!(diff(&running, &running).is_empty());
    let changed = format!(
        "{base}password = \"x\"\nusername = \"u\"\n[log]\nlevel = \"debug\"\n[dns]\nttl = \"9s\"\n[drain]\ndeadline = \"5s\"\n\
         [[ingress.localhost]]\nservice = \"web\"\nport = 3219\n"
    );
    let reload = diff(&running, &read(&changed).unwrap());
    assert_eq!(reload.live, ["drain.deadline", "ingress.localhost", "log.level"]);
    assert_eq!(reload.restart, ["dns.ttl", "store.password", "store.username"]);
    assert!(reload.needs_restart().unwrap().contains("dns.ttl, store.password"));
    let other = read(&changed.replace("\"x\"", "\"y\"")).unwrap();
    assert_eq!(diff(&read(&changed).unwrap(), &other).restart, ["store.password"]);
}

proptest! {
    /// Whatever a hand or a disk did to a file: an answer, never a panic, and no key that is half-read.
    #[test]
    fn a_damaged_file_is_read_or_refused(at in 0..4000_usize, length in 0..40_usize, put in "[a-z0-9=\\[\\]\"{}.,\n #-]{0,12}") {
        let mut characters: Vec<char> = uncommented(true).chars().collect();
        let start = at.min(characters.len());
        let end = (start + length).min(characters.len());
        characters.splice(start..end, put.chars());
        let text: String = characters.into_iter().collect();
        if let Err(refused) = read(&text) {
            prop_assert!(refused.total() > 0 && refused.to_string().starts_with("plexus.toml"));
        }
    }
}
