//! Answers as a manager gives them, and what becomes of them.

use std::sync::Mutex;

use nerve::document::Document;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::watch::pace::Pace;
use crate::watch::place::Services;
use crate::watch::stub::api;

fn read(text: &str) -> Result<Swarm, String> {
    let read = |section: &mut Section<'_>| {
        let service = section.given::<ServiceName>("service")?;
        Swarm::read(section, service)
    };
    let text = format!("swarm = [\"unix:///d\"]\n{text}");
    Document::parse("x", &text).unwrap().decode(read).map_err(|errors| errors.to_string())
}

fn port(target: u16, published: u16, mode: &str, protocol: &str) -> Value {
    json!({"Protocol": protocol, "TargetPort": target, "PublishedPort": published, "PublishMode": mode})
}

fn host(target: u16, published: u16) -> Value {
    port(target, published, "host", "tcp")
}

fn service(id: &str, name: &str, ports: &[Value]) -> Value {
    json!({
        "ID": id, "CreatedAt": format!("2026-01-0{}T00:00:00Z", id.len()),
        "Spec": {"Name": name, "Labels": {"team": "blue"}, "EndpointSpec": {"Ports": ports}},
        "Endpoint": {"Ports": ports},
    })
}

fn node(id: &str, address: &str) -> Value {
    json!({
        "ID": id, "Spec": {"Labels": {"zone": "eu-1a"}, "Availability": "active"},
        "Description": {"Hostname": format!("{id}-host")}, "Status": {"State": "ready", "Addr": address},
    })
}

fn task(id: &str, of: &str, node: &str, state: &str, ports: &[Value]) -> Value {
    // The API of 20.10 tells each port for each family.
    let twice: Vec<&Value> = ports.iter().flat_map(|port| [port, port]).collect();
    json!({
        "ID": id, "ServiceID": of, "NodeID": node, "Slot": 1, "DesiredState": "running",
        "Status": {"State": state, "PortStatus": {"Ports": twice}},
    })
}

fn seen(services: Vec<Value>, nodes: Vec<Value>, tasks: Vec<Value>) -> (Seen, Vec<Refused>) {
    let mut refused = Vec::new();
    let seen = Seen {
        services: api::each("service", services, MOST, &mut refused),
        nodes: api::each("node", nodes, MOST, &mut refused),
        tasks: api::each("task", tasks, MOST_TASKS, &mut refused),
    };
    (seen, refused)
}

/// `service server health name=port,… published`, a line each.
fn shown(found: &Services) -> Vec<String> {
    let mut lines = Vec::new();
    for (service, copies) in found {
        let published: Vec<String> = copies.published.iter().map(ToString::to_string).collect();
        lines.push(format!("{service}: {}", published.join(" ")));
        for server in &copies.servers {
            let ports: Vec<String> =
                server.ports.iter().map(|(name, port)| format!(" {name}={port}")).collect();
            lines.push(format!("{service} {server} {:?}{}", server.health, ports.concat()));
        }
    }
    lines
}

fn judged(config: &str, seen: &Seen) -> (Vec<String>, Vec<Refused>) {
    let (found, refused) = read(config).unwrap().judged(seen, None);
    (shown(&found), refused)
}

#[test]
fn tasks_are_reached_at_the_ports_of_their_nodes_and_fixed_ones_are_published() {
    let ports = [host(443, 0), host(80, 8080), port(53, 5353, "host", "udp"), port(9, 9, "host", "sctp")];
    let has = |published| [host(80, 8080), host(443, published), port(53, 5353, "host", "udp")];
    let services = vec![service("s", "shop_web", &ports), service("t", "quiet", &[])];
    let tasks = vec![
        task("1", "s", "a", "running", &has(32768)),
        task("2", "s", "b", "running", &has(32769)),
        task("3", "s", "c", "preparing", &[]),
        task("4", "s", "", "pending", &[]),
        task("5", "s", "a", "failed", &[]),
        task("6", "other", "a", "running", &[]),
    ];
    let nodes = vec![node("a", "192.0.2.1"), node("b", "192.0.2.2"), node("c", "192.0.2.3")];
    let (seen, wrong) = seen(services, nodes, tasks);
    assert_eq!(wrong, []);
    let (lines, refused) = judged("", &seen);
    let expected = [
        "shop-web: 8080/tcp 5353:udp-53/udp",
        "shop-web 192.0.2.1:8080 Passing tcp-443=32768 udp-53=5353",
        "shop-web 192.0.2.2:8080 Passing tcp-443=32769 udp-53=5353",
        // It comes: what Docker chooses is not known yet.
        "shop-web 192.0.2.3:8080 Starting udp-53=5353",
    ];
    assert_eq!(lines, expected);
    assert_eq!(refused, []);
    let (lines, _) = judged("service = \"web\"\nswarm_service = \"shop_web\"\nswarm_port = 443", &seen);
    assert_eq!(
        lines[..2],
        ["web: 8080:tcp-80/tcp 5353:udp-53/udp", "web 192.0.2.1:32768 Passing tcp-80=8080 udp-53=5353"]
    );
    let (lines, _) = judged("service = \"shop-web\"\nswarm_port = 53\npublish = false", &seen);
    assert_eq!(lines[..2], ["shop-web: ", "shop-web 192.0.2.1:5353 Passing tcp-443=32768 tcp-80=8080"]);
    let (found, _) = read("").unwrap().judged(&seen, None);
    let server = &found.values().next().unwrap().servers[0];
    let labels: Vec<String> = server.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(labels, ["node=a-host", "slot=1", "team=blue"]);
    assert_eq!(
        (server.name.as_deref(), server.zone.as_ref().unwrap().as_str()),
        (Some("shop_web.1"), "eu-1a")
    );
}

#[test]
fn ports_of_swarm_s_own_mesh_are_used_where_that_is_said_and_told_where_it_is_not() {
    let ports = [port(80, 7070, "ingress", "tcp"), host(81, 0)];
    let both = [service("s", "web", &ports[..1]), service("tt", "two", &ports)];
    let tasks = [("1", "s", "a"), ("2", "s", "a"), ("3", "s", "b"), ("4", "tt", "a")]
        .map(|(id, of, on)| task(id, of, on, "running", &[host(81, 32768)]));
    let nodes = vec![node("a", "192.0.2.1"), node("b", "192.0.2.2")];
    let (seen, _) = seen(both.to_vec(), nodes, tasks.to_vec());
    let (lines, refused) = judged("", &seen);
    assert_eq!(lines, ["two: ", "two 192.0.2.1:32768 Passing"]);
    assert!(
        refused.len() == 1 && refused[0].0 == "web" && refused[0].1.contains("mode=ingress"),
        "{refused:?}"
    );
    let (lines, refused) = judged("ingress = true", &seen);
    let expected = [
        "two: 7070/tcp",
        "two 192.0.2.1:7070 Passing tcp-81=32768",
        "web: 7070/tcp",
        "web 192.0.2.1:7070 Passing",
        "web 192.0.2.2:7070 Passing",
    ];
    assert_eq!((lines.as_slice(), refused.as_slice()), (&expected.map(str::to_owned)[..], &[][..]));
}

#[test]
fn tasks_of_nodes_that_are_down_or_drained_or_unknown_are_none() {
    let services = vec![service("s", "web", &[host(80, 8080)])];
    let of = |node: &str| task(node, "s", node, "running", &[host(80, 8080)]);
    let with = |id: &str, key: &str, what: Value| {
        let mut node = node(id, &format!("192.0.2.{}", id.len()));
        node.pointer_mut(key).unwrap().clone_from(&what);
        node
    };
    let nodes = vec![
        with("a", "/Status/State", json!("down")),
        with("bb", "/Spec/Availability", json!("drain")),
        with("ccc", "/Status/State", json!("unknown")),
    ];
    let (seen, _) = seen(services, nodes, vec![of("a"), of("bb"), of("ccc"), of("dddd")]);
    let (lines, refused) = judged("", &seen);
    assert_eq!(lines, ["web: 8080/tcp", "web 192.0.2.3:8080 Passing"]);
    assert_eq!(refused, [("web.dddd".to_owned(), "the swarm does not know its node".to_owned())]);
}

#[test]
fn a_node_whose_address_is_that_of_none_is_reached_where_managers_are() {
    let manager = |address: &str, advertised: &str| {
        let mut manager = node("a", address);
        manager["ManagerStatus"] = json!({"Leader": true, "Addr": advertised});
        manager
    };
    let at = |nodes: Vec<Value>, asked: Option<&str>| {
        let services = vec![service("s", "web", &[host(80, 8080)])];
        let (seen, _) = seen(services, nodes, vec![task("1", "s", "a", "running", &[])]);
        let (found, refused) = read("").unwrap().judged(&seen, asked);
        let server = found.values().flat_map(|copies| &copies.servers).next().map(ToString::to_string);
        (server.unwrap_or_default(), refused.len())
    };
    for (address, advertised, asked, expected) in [
        ("192.0.2.1", "192.0.2.9:2377", None, "192.0.2.1:8080"),
        ("0.0.0.0", "192.0.2.9:2377", None, "192.0.2.9:8080"),
        ("127.0.0.1", "[2001:db8::9]:2377", None, "[2001:db8::9]:8080"),
        ("127.0.0.1", "0.0.0.0:2377", None, "127.0.0.1:8080"),
        ("", "", Some("192.0.2.7"), "192.0.2.7:8080"),
    ] {
        assert_eq!(at(vec![manager(address, advertised)], asked), (expected.to_owned(), 0), "{address}");
    }
    // Which of two it is, nobody knows.
    let mut other = manager("0.0.0.0", "0.0.0.0:2377");
    other["ID"] = json!("b");
    assert_eq!(at(vec![manager("0.0.0.0", "0.0.0.0:2377"), other], None), (String::new(), 1));
    assert_eq!(at(vec![node("a", "0.0.0.0")], None), (String::new(), 1));
}

#[test]
fn services_are_chosen_by_name_or_labels_and_of_two_of_one_name_the_older_one_has_it() {
    let of = |id: &str, name: &str| service(id, name, &[host(80, 8080)]);
    let mut plain = of("333", "plain");
    plain["Spec"]["Labels"] = Value::Null;
    let services = vec![of("22", "shop-web"), of("1", "shop_web"), plain, of("4444", "No.Name")];
    let (seen, _) = seen(services, Vec::new(), Vec::new());
    let (lines, refused) = judged("", &seen);
    assert_eq!(lines, ["plain: 8080/tcp", "shop-web: 8080/tcp"]);
    let refused: Vec<String> = refused.into_iter().map(|(what, why)| format!("{what}: {why}")).collect();
    assert_eq!(refused[0], "shop-web: shop_web has the name shop-web here; give it another one");
    assert!(refused[1].starts_with("No.Name: ") && refused.len() == 2, "{refused:?}");
    let (lines, refused) = judged("service_labels = { team = \"blue\" }", &seen);
    assert_eq!((lines.len(), refused.len()), (1, 2));
    assert_eq!(judged("service = \"plain\"", &seen).0, ["plain: 8080/tcp"]);
    let (lines, refused) = judged("service = \"gone\"", &seen);
    assert_eq!(lines, [""; 0]);
    assert_eq!(refused, [("gone".to_owned(), "there is no such service in the swarm".to_owned())]);
}

#[test]
fn what_cannot_be_read_costs_itself_alone_and_what_is_too_much_is_told() {
    let mut labelled = service("s", "web", &[host(80, 8080)]);
    labelled["Spec"]["Labels"] = json!({"long": "x".repeat(2000), "short": "y"});
    let services = vec![labelled, json!({"ID": "bad\n", "Spec": 7}), json!("text")];
    let tasks = vec![task("1", "s", "a", "running", &[]), json!({"ID": "2", "NodeID": {}})];
    let (seen, wrong) = seen(services, vec![node("a", "192.0.2.1")], tasks);
    let named: Vec<&str> = wrong.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(named, ["service bad", "service without an id", "task 2"]);
    let (lines, refused) = judged("", &seen);
    assert_eq!(lines, ["web: 8080/tcp", "web 192.0.2.1:8080 Passing"]);
    assert!(refused[0].1.contains("1 of its labels are left out"), "{refused:?}");
    let mut refused = Vec::new();
    assert_eq!(api::each::<api::Node>("node", vec![node("a", ""); 7], 4, &mut refused).len(), 4);
    assert_eq!(refused[0].0, "3 nodes");
}

#[test]
fn on_the_host_s_network_a_task_listens_itself() {
    let mut on_host = task("1", "s", "a", "running", &[]);
    on_host["NetworksAttachments"] = json!([{"Network": {"Spec": {"Name": "host"}}}]);
    let services = vec![service("s", "web", &[host(8099, 0)])];
    let (seen, _) = seen(services, vec![node("a", "192.0.2.1")], vec![on_host]);
    assert_eq!(judged("", &seen).0, ["web: ", "web 192.0.2.1:8099 Passing"]);
}

#[test]
fn a_task_that_runs_since_before_a_change_has_the_ports_of_before() {
    let services = vec![service("s", "web", &[host(80, 9090)])];
    let old = task("1", "s", "a", "running", &[host(80, 8080)]);
    let (seen, _) = seen(services, vec![node("a", "192.0.2.1")], vec![old]);
    assert_eq!(judged("", &seen).0, ["web: 9090/tcp", "web 192.0.2.1:8080 Passing"]);
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    for (text, said) in [
        ("swarm_port = 80", "it is of one service"),
        ("swarm_service = \"x\"", "it is of one service"),
        ("service = \"x\"\nservice_labels = { a = \"b\" }", "the choice among all"),
    ] {
        let told = read(text).unwrap_err();
        assert!(told.contains(said), "{told}");
    }
}

/// What was told, a line each.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

#[async_trait]
impl TellAll for Told {
    async fn found(&self, found: Services, refused: Vec<Refused>) {
        self.0.lock().unwrap().push(format!("{} {}", shown(&found).join(", "), refused.len()));
    }

    async fn failed(&self, error: String) {
        self.0.lock().unwrap().push(error);
    }

    fn pace(&self) -> Pace {
        Pace::default()
    }
}

#[tokio::test]
async fn the_next_manager_is_followed_where_one_is_none_and_an_event_is_a_reason_to_look_again() {
    let ok = |body: Value| ("200 OK\r\n".to_owned(), body.to_string());
    let services = json!([service("s", "web", &[host(80, 8080)])]);
    let nodes = || ok(json!([node("a", "192.0.2.1")]));
    let worker = (
        "503 Service Unavailable\r\n".to_owned(),
        r#"{"message":"This node is not a swarm manager. Worker nodes can't be used"}"#.to_owned(),
    );
    let (first, of_worker) = api(vec![ok(json!({})), worker]).await;
    let (second, of_manager) = api(vec![
        ("200 OK\r\ncontent-length: 1000\r\n".to_owned(), "{}\n".to_owned()),
        ok(services.clone()),
        nodes(),
        ok(json!([task("1", "s", "a", "starting", &[])])),
        ok(services),
        nodes(),
        ok(json!([task("1", "s", "a", "running", &[])])),
    ])
    .await;
    let mut config = read("service = \"web\"\nswarm_service = \"web\"").unwrap();
    config.managers = vec![first.parse().unwrap(), second.parse().unwrap()];
    assert_eq!(config.place(), format!("{first},{second} web"));
    let (directory, told) = (SwarmDirectory::new(config), Told::default());
    let served = async { tokio::join!(of_worker, of_manager).1 };
    let (asked, ended) = tokio::join!(served, directory.follow(&told));
    let Err(ended) = ended;
    assert!(ended.contains("it is no manager of a swarm") && ended.contains(&second), "{ended}");
    let asked: Vec<&str> = asked.iter().map(|head| head.split(" HTTP").next().unwrap()).collect();
    assert!(
        asked[0].starts_with("GET /events?filters=") && asked[3].ends_with("service%22%3A%5B%22s%22%5D%7D")
    );
    let lines = told.0.lock().unwrap().clone();
    let line = |health: &str| format!("web: 8080/tcp, web 192.0.2.1:8080 {health} 0");
    assert_eq!(lines, [line("Starting"), line("Passing")]);
}

proptest! {
    #[test]
    fn whatever_a_manager_says_ports_have_names_of_their_own_and_each_is_published_once(
        ports in proptest::collection::vec((0..4u16, 0..4u16, any::<bool>(), any::<bool>()), 0..12),
        main in proptest::option::of(1..4u16),
    ) {
        let ports: Vec<Value> = ports.into_iter().map(|(target, published, udp, host)| {
            port(target, published, if host { "host" } else { "ingress" }, if udp { "udp" } else { "tcp" })
        }).collect();
        let (seen, _) = seen(
            vec![service("s", "web", &ports)],
            vec![node("a", "192.0.2.1")],
            vec![task("1", "s", "a", "running", &[])],
        );
        let main = main.map(|main| format!("swarm_port = {main}\n")).unwrap_or_default();
        let (found, _) = read(&format!("service = \"web\"\ningress = true\n{main}")).unwrap().judged(&seen, None);
        for copies in found.values() {
            let published: Vec<_> = copies.published.iter().map(|port| (&port.target, port.protocol, port.port)).collect();
            let targets: std::collections::BTreeSet<_> = published.iter().map(|(target, ..)| target).collect();
            prop_assert_eq!(targets.len(), published.len());
            for server in &copies.servers {
                for (target, _, number) in &published {
                    let at = target.as_ref().map_or(Some(&server.port), |target| server.ports.get(target));
                    prop_assert_eq!(at, Some(number));
                }
            }
        }
    }
}
