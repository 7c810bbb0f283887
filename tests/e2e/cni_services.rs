//! Containers that a runtime attaches are instances of their aliases, and of what labels say.

use std::time::Duration;

use plexus_tests::{eventually, needs};
use serde_json::{Value, json};

use crate::cni::{Container, Runtime, address, cluster};

const SOON: Duration = Duration::from_secs(10);
/// Of the usual kind, whose beginning runtimes give as an alias.
const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn labels(pairs: &[(&str, &str)]) -> Value {
    let labels = pairs.iter().map(|(key, value)| json!({"key": key, "value": value}));
    json!({"cni": {"labels": labels.collect::<Vec<_>>()}})
}

#[test]
fn aliases_and_labels_of_a_runtime_are_services_on_every_node() {
    needs!("etcd", "etcdctl", "nft", "dig");
    let cluster = cluster(2);
    let [a, b] = cluster.nodes();
    let runtime = Runtime::on(a);
    let mut configuration = runtime.configuration("1.0.0");
    assert_eq!(configuration["capabilities"]["aliases"], true);
    configuration["args"] = labels(&[("plexus.port", "80"), ("role", "primary")]);
    let aliases = json!({"default": ["web", "shop", &ID[..12], "No_Name"], "other": ["elsewhere"]});
    configuration["runtimeConfig"] = json!({ "aliases": aliases });
    let container = Container { id: ID.to_owned(), ..Container::on(a, "one") };
    let result = runtime.call("ADD", Some(&container), &configuration).ok();
    for name in ["web", "shop"] {
        cluster.wait_serving(name, &[&format!("{name}-a-{}", &ID[..12])]);
        assert_eq!(b.dig(&format!("{name}.mesh.internal"), "A").data, [address(&result)]);
    }
    let services = b.admin_json("/v1/plexus/services")["services"].as_array().map(Vec::len);
    assert_eq!(services, Some(2));
    let listed = a.admin_json("/v1/plexus/attachments")["attachments"][0].clone();
    assert_eq!((&listed["aliases"], &listed["labels"]["role"]), (&json!(["shop", "web"]), &json!("primary")));
    let _ = runtime.call("DEL", Some(&container), &configuration).ok();
    for name in ["web", "shop"] {
        let _ = eventually!(SOON, b.known(name), Vec::is_empty);
    }
    // By CNI_ARGS and by annotations of a pod, which say more than what is said of the whole network.
    let annotations = json!({"plexus.service": "api", "plexus.port": "8080", "example.org/other": "{}"});
    configuration["runtimeConfig"] = json!({ "io.kubernetes.cri.pod-annotations": annotations });
    let arguments = "IgnoreUnknown=1;K8S_POD_NAME=pod;plexus.port=8081";
    let result = runtime.call_with(arguments, "ADD", Some(&container), &configuration).ok();
    cluster.wait_serving("api", &[&format!("api-a-{}", &ID[..12])]);
    let srv = b.dig("api.mesh.internal", "SRV").data;
    assert!(srv.len() == 1 && srv[0].starts_with("0 100 8081 "), "{srv:?} {result}");
    let _ = runtime.call("DEL", Some(&container), &configuration).ok();
    // Called nothing else, it is what the runtime calls it. Without a port it is attached and nothing more.
    configuration["runtimeConfig"] = json!({ "aliases": {"default": [&ID[..12]]} });
    let named = "IgnoreUnknown=1;K8S_POD_NAME=db";
    let _ = runtime.call_with(named, "ADD", Some(&container), &configuration).ok();
    cluster.wait_serving("db", &[&format!("db-a-{}", &ID[..12])]);
    let _ = runtime.call("DEL", Some(&container), &configuration).ok();
    configuration["args"] = json!({});
    let _ = runtime.call_with(named, "ADD", Some(&container), &configuration).ok();
    let _ = eventually!(SOON, b.known("db"), Vec::is_empty);
    assert_eq!(runtime.attached().len(), 1);
}

#[test]
fn labels_that_are_wrong_are_refused_with_a_code_and_attach_nothing() {
    needs!("etcd", "etcdctl", "nft");
    let cluster = cluster(1);
    let [a] = cluster.nodes();
    let runtime = Runtime::on(a);
    let container = Container::on(a, "one");
    let configuration = runtime.configuration("1.0.0");
    let with = |pairs: &[(&str, &str)]| {
        let mut changed = configuration.clone();
        changed["args"] = labels(pairs);
        runtime.call("ADD", Some(&container), &changed)
    };
    assert_eq!(with(&[("plexus.port", "http")]).code(), 100);
    for (pairs, said) in [
        (&[("plexus.port", "http")][..], "plexus.port: \"http\" is no port"),
        (&[("plexus.service", "web")], "plexus.service: there is no port of web"),
        (&[("plexus.services", "web")], "plexus.services: there is no such label"),
        (&[("plexus.service", "web"), ("plexus.port", "80"), ("plexus.check", "ftp")], "plexus.check: "),
    ] {
        let refused = with(pairs).refused();
        assert!(refused.contains(said), "{refused}");
    }
    let mut unreadable = configuration.clone();
    unreadable["args"] = json!({"cni": {"labels": {"plexus.port": "80"}}});
    assert_eq!(runtime.call("ADD", Some(&container), &unreadable).code(), 6);
    let refused = runtime.call_with("plexus.weight=0", "ADD", Some(&container), &configuration);
    // It is an instance of nothing, and wrong all the same.
    assert!(refused.refused().contains("plexus.weight"));
    assert_eq!(runtime.attached(), Vec::<String>::new());
}
