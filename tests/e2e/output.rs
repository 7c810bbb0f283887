//! What other programs of a machine are told of services.

use std::fs;
use std::time::Duration;

use plexus_tests::{Cluster, Settings, Signal, eventually, needs, throughout};

use crate::INSTANCE;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn services_are_files_that_follow_them_and_a_directory_that_cannot_be_is_a_problem() {
    needs!("etcd", "etcdctl");
    let more = |files: &str| format!("[output.files]\n{files}\n");
    let all = more("directory = \"services\"");
    let cluster = Cluster::of(2).settings(|settings: &mut Settings| settings.more.clone_from(&all)).start();
    let [a, b] = cluster.nodes();
    let backend = a.serve("web", INSTANCE);
    cluster.wait_serving("web", &[backend.id()]);
    let file = b.directory().join("services/web.json");
    let content = || fs::read_to_string(&file).unwrap_or_default();
    let said = format!(
        r#"[{{"name":"a","host":"{}","port":9000,"id":null,"weight":null,"haproxy_server_options":null,"labels":null}}]"#,
        a.address()
    );
    let _ = eventually!(SOON, content(), |text| *text == said);
    // It fails: no server. What others have put there is theirs.
    fs::write(b.directory().join("services/theirs.json"), "[]").expect("a file");
    backend.fail();
    let _ = eventually!(SOON, content(), |text| text == "[]");
    backend.recover();
    let _ = eventually!(SOON, content(), |text| *text == said);
    // The agent is gone: what it said last stays, and the next one finds it and changes nothing.
    b.kill_agent();
    let written = || fs::metadata(&file).and_then(|of| of.modified()).ok();
    let before = written();
    b.restart_agent();
    b.wait_ready(SOON);
    throughout!(Duration::from_millis(500), written(), |now| *now == before);
    // Only some of them, one of which is not there; then nowhere where they can be.
    b.configure(&Settings {
        more: all.clone() + "services = [\"web\", \"api\"]\n",
        ..cluster.settings().clone()
    });
    b.signal_agent(Signal::HUP);
    let api = b.directory().join("services/api.json");
    let _ = eventually!(SOON, fs::read_to_string(&api).unwrap_or_default(), |text| text == "[]");
    let nowhere = more("directory = \"plexus.toml/services\"");
    b.configure(&Settings { more: nowhere, ..cluster.settings().clone() });
    b.signal_agent(Signal::HUP);
    let status = || b.plexus(["status"]).ok();
    let problem = eventually!(SOON, status(), |said| said.contains("cannot be written"));
    assert!(problem.contains("plexus.toml/services") && problem.contains("tried again"), "{problem}");
    b.configure(&Settings { more: all, ..cluster.settings().clone() });
    b.signal_agent(Signal::HUP);
    let _ = eventually!(SOON, status(), |said| !said.contains("cannot be written"));
    // Its service is gone: so is the file, and no other.
    let _ = eventually!(SOON, api.exists(), |there| !*there);
    a.remove_service_file("web-9000.toml");
    let _ = eventually!(SOON, file.exists(), |there| !*there);
    assert!(b.directory().join("services/theirs.json").exists());
}
