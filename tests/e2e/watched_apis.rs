//! Places that are the APIs of other systems, each a server in the test that speaks it as it is published: what it names is served, changes
//! are followed, and while it is away what it said last is used, also by an agent that starts then.

use std::time::Duration;

use plexus_tests::server::api::Api;
use plexus_tests::server::aws::{self, Aws, Instance};
use plexus_tests::server::kubernetes::Kubernetes;
use plexus_tests::server::marathon::{Marathon, task};
use plexus_tests::{Cluster, Node, eventually, needs};
use serde_json::Value;

use crate::watched_places::{
    FIRST, SECOND, SOON, becomes, hears, refuses, remembers, watcher, with_a_mesh_of_its_own,
};
use crate::{INSTANCE, PUBLISHED};

/// What is wrong with the place of this name is said with this.
#[track_caller]
fn fails(node: &Node, name: &str, with: &str) {
    let said =
        |stands: &Value| stands["last_error"].to_string().contains(with) && stands["connected"] == false;
    let _ = eventually!(SOON, watcher(node, name), said);
}

#[test]
fn endpoint_slices_of_kubernetes_are_followed_and_listed_again_when_their_version_is_forgotten() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let _backends = (a.backend("web", INSTANCE), a.backend("web", 9001));
    let kubernetes = Api::start(a.namespace(), 6443, Kubernetes::new("one"));
    let slices = kubernetes.speaks();
    let token = a.directory().join("kubernetes.token");
    std::fs::write(&token, "one\n").expect("a file");
    slices.apply("web-1", "web", INSTANCE, &[("web-0", "10.77.0.1", true), ("web-1", "10.77.0.1", false)]);
    slices.apply("other-1", "other", 9001, &[("other-0", "10.77.0.1", true)]);
    let more = format!(
        "[[watch]]\nservice = \"web\"\nkubernetes = \"{}\"\nnamespace = \"shop\"\nport_name = \"http\"\ntoken_file = \"{}\"\n",
        kubernetes.url(),
        token.display()
    );
    with_a_mesh_of_its_own(&cluster, a, &more);
    becomes(a, "web", &[FIRST]);
    let endpoint = a.admin_json("/v1/plexus/services/web")["endpoints"][0].clone();
    let labels = (&endpoint["labels"]["name"], &endpoint["labels"]["node"], &endpoint["zone"]);
    assert_eq!(labels, (&"web-0".into(), &"k8s-1".into(), &"eu-1a".into()), "{endpoint}");
    let _ = a.plexus(["publish", "web", &PUBLISHED.to_string()]).ok();
    let _ = eventually!(SOON, a.get(a.at(PUBLISHED), "/").is_ok(), |answers| *answers);
    let load = a.load(a.at(PUBLISHED));
    slices.apply("web-2", "web", 9001, &[("web-2", "10.77.0.1", true), ("broken", "10.77.0 1", true)]);
    becomes(a, "web", &[FIRST, SECOND]);
    refuses(a, "web-kubernetes", "broken");
    load.stop().assert_unharmed();
    slices.apply("web-1", "web", INSTANCE, &[("web-0", "10.77.0.1", false)]);
    becomes(a, "web", &[SECOND]);
    slices.apply("web-1", "web", INSTANCE, &[("web-0", "10.77.0.1", true)]);
    becomes(a, "web", &[FIRST, SECOND]);
    // A token that counts no more is said, and the next one read from its file.
    slices.exchange_token("two");
    fails(a, "web-kubernetes", "401");
    assert_eq!(a.serving("web"), [FIRST, SECOND]);
    std::fs::write(&token, "two\n").expect("a file");
    let _ = hears(a, "web-kubernetes", true);
    kubernetes.stop();
    remembers(a, "web-kubernetes", "web", &[FIRST, SECOND]);
    slices.delete("web-1");
    kubernetes.start_again();
    let _ = hears(a, "web-kubernetes", true);
    becomes(a, "web", &[SECOND]);
    // A short outage, after which the API has forgotten what the agent would go on from.
    kubernetes.stop();
    slices.apply("web-1", "web", INSTANCE, &[("web-0", "10.77.0.1", true)]);
    slices.compact();
    kubernetes.start_again();
    becomes(a, "web", &[FIRST, SECOND]);
    slices.delete("web-2");
    becomes(a, "web", &[FIRST]);
}

#[test]
fn tasks_of_marathon_are_servers_as_healthy_as_it_finds_them() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let _backends = (a.backend("web", INSTANCE), a.backend("web", 9001));
    let marathon = Api::start(a.namespace(), 8081, Marathon::default());
    let app = marathon.speaks();
    let first = |alive| task("web.1", "10.77.0.1", &[31_000, INSTANCE], alive);
    let second = task("web.2", "10.77.0.1", &[31_001, 9001], true);
    app.runs(&[first(true)]);
    // The first of its servers is away for good.
    let more = format!(
        "[[watch]]\nservice = \"web\"\nmarathon = [\"http://127.0.0.1:1\", \"{}\"]\napp = \"/shop/web\"\nport_index = 1\n",
        marathon.url()
    );
    with_a_mesh_of_its_own(&cluster, a, &more);
    becomes(a, "web", &[FIRST]);
    app.runs(&[first(true), second.clone(), task("web.3", "10.77.0.1", &[31_002], true)]);
    becomes(a, "web", &[FIRST, SECOND]);
    refuses(a, "web-marathon", "web.3");
    app.runs(&[first(false), second.clone()]);
    becomes(a, "web", &[SECOND]);
    let _ = eventually!(SOON, a.known("web"), |known| known.len() == 2);
    app.runs(&[first(true), second.clone()]);
    becomes(a, "web", &[FIRST, SECOND]);
    marathon.stop();
    remembers(a, "web-marathon", "web", &[FIRST, SECOND]);
    app.runs(&[second]);
    marathon.start_again();
    let _ = hears(a, "web-marathon", true);
    becomes(a, "web", &[SECOND]);
    // What it names no more at all may be a mistake.
    app.runs(&[]);
    let _ = eventually!(SOON, watcher(a, "web-marathon"), |stands| stands["instead"].is_string());
    assert_eq!(a.serving("web"), [SECOND]);
}

const RUNNING: Instance = Instance { id: "i-1", state: "running", address: "10.77.0.1", role: "web" };

#[test]
fn instances_of_ec2_are_found_by_a_tag_with_the_credentials_of_a_role_that_end() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(2).without_agents().start();
    let [a, b] = cluster.nodes();
    // They end sooner than they are asked for early: each look has others.
    let aws = Api::start(a.namespace(), 4566, Aws::new(Duration::from_secs(3)));
    let account = aws.speaks();
    let second = Instance { id: "i-2", address: "10.77.0.2", ..RUNNING };
    let first = format!("{}:{INSTANCE}", a.address());
    let both = [first.as_str(), &format!("{}:{INSTANCE}", b.address())];
    let _backends = (a.backend("web", INSTANCE), b.backend("web", INSTANCE));
    account.runs(&[
        RUNNING,
        Instance { id: "i-8", state: "stopped", address: "10.77.0.8", ..RUNNING },
        Instance { id: "i-9", role: "other", address: "10.77.0.9", ..RUNNING },
    ]);
    let more = format!(
        "[[watch]]\nservice = \"web\"\nec2 = \"{}\"\ntag_name = \"role\"\ntag_value = \"web\"\nport = {INSTANCE}\ninterval = \"1s\"\n\
         endpoint = \"{url}\"\nmetadata = \"{url}\"\n",
        aws::REGION,
        url = aws.url()
    );
    with_a_mesh_of_its_own(&cluster, a, &more);
    becomes(a, "web", &[&first]);
    let endpoint = a.admin_json("/v1/plexus/services/web")["endpoints"][0].clone();
    let labels = &endpoint["labels"];
    assert_eq!(
        (&labels["name"], &labels["Name"], &labels["role"]),
        (&"i-1".into(), &"a & b".into(), &"web".into()),
        "{endpoint}"
    );
    assert_eq!(endpoint["zone"], "eu-west-1a", "{endpoint}");
    // By pages; what cannot be used costs itself alone.
    account.runs(&[
        second.clone(),
        Instance { id: "i-3", address: "", ..RUNNING },
        RUNNING,
        Instance { id: "i-4", address: "x y", ..RUNNING },
    ]);
    becomes(a, "web", &both);
    refuses(a, "web-ec2", "i-3");
    refuses(a, "web-ec2", "i-4");
    let (handed_out, described) = (account.handed_out(), account.described());
    let _ = eventually!(SOON, account.described(), |now| *now >= described + 12);
    assert!(account.handed_out() > handed_out, "those that have ended are not used");
    assert_eq!(watcher(a, "web-ec2")["connected"], true);
    // What is refused is said with what to do about it; what is known goes on.
    for (status, code, advice) in [
        (403, "UnauthorizedOperation", "allow ec2:DescribeInstances to the credentials ASIAEXAMPLE"),
        (503, "RequestLimitExceeded", "it is asked less often"),
        (401, "AuthFailure", aws::ROLE),
    ] {
        account.refuse(Some((status, code)));
        fails(a, "web-ec2", code);
        fails(a, "web-ec2", advice);
        assert_eq!(a.serving("web"), both);
    }
    account.refuse(None);
    let _ = hears(a, "web-ec2", true);
    aws.stop();
    remembers(a, "web-ec2", "web", &both);
    account.runs(&[second]);
    aws.start_again();
    let _ = hears(a, "web-ec2", true);
    becomes(a, "web", &both[1..]);
    // No secret leaves the agent, and no token.
    let said = a.agent_log() + &a.plexus(["watchers"]).ok() + &watcher(a, "web-ec2").to_string();
    let kept = std::fs::read_to_string(a.directory().join("state/watchers.json")).expect("a file");
    assert!(!(said + &kept).contains("s3cret/") && account.handed_out() > 0);
}

#[test]
fn weights_in_s3_say_which_place_a_node_takes_and_hold_while_they_cannot_be_read() {
    needs!("etcd", "etcdctl");
    let cluster = Cluster::of(1).without_agents().start();
    let [a] = cluster.nodes();
    let aws = Api::start(a.namespace(), 4566, Aws::new(Duration::from_secs(3600)));
    let account = aws.speaks();
    let weights = |text: &str| account.put("/plexus-weights/web%20b.yaml", text);
    weights("---\none: 0\ntwo: 1\n");
    let more = format!(
        "[[watch]]\nservice = \"web\"\nmulti = \"toggle\"\ntoggle_s3 = \"s3://plexus-weights/web b.yaml\"\ntoggle_region = \"{}\"\n\
         toggle_interval = \"1s\"\nendpoint = \"{url}\"\nmetadata = \"{url}\"\n\
         [[watch.part]]\nname = \"one\"\nstatic = [\"{FIRST}\"]\n[[watch.part]]\nname = \"two\"\nstatic = [\"{SECOND}\"]\n",
        aws::REGION,
        url = aws.url()
    );
    with_a_mesh_of_its_own(&cluster, a, &more);
    becomes(a, "web", &[SECOND]);
    weights("{\"one\": 1}");
    becomes(a, "web", &[FIRST]);
    // What cannot be read, or is refused, is said and changes nothing.
    let said = |what: &str| drop(eventually!(SOON, a.agent_log(), |log| log.contains(what)));
    weights("- two");
    said("s3://plexus-weights/web b.yaml is no mapping");
    weights("two: 1");
    becomes(a, "web", &[SECOND]);
    weights("one: 1");
    account.refuse(Some((403, "AccessDenied")));
    said("allow s3:GetObject to the credentials ASIAEXAMPLE");
    assert_eq!(a.serving("web"), [SECOND]);
    aws.stop();
    account.refuse(None);
    assert_eq!(a.serving("web"), [SECOND]);
    aws.start_again();
    becomes(a, "web", &[FIRST]);
    assert!(!a.agent_log().contains("s3cret/"));
}
