//! `plexus network` against an admin server: what is told, shown and refused.

use nerve::model::{NetworkName, Slot};
use synapse::catalog::NetworkUpdate;

use super::*;

fn blue() -> NetworkName {
    NetworkName::new("blue").unwrap()
}

impl World {
    /// The catalog learns of network `blue`, which a store's watch would have told it of.
    fn knows_blue(&mut self) {
        let network = json!({ "vni": 7, "mtu": 1400, "pools": [
            { "cidr": "10.42.0.0/16", "subnet_length": 24 }, { "cidr": "fd42::/48", "subnet_length": 64 }
        ] });
        let network = NetworkUpdate::Put(Arc::new(serde_json::from_value(network).unwrap()));
        let subnet = |slot, node: &str, address: &str| {
            let json = json!({ "node": node, "address": address, "mac": "02:ab:00:00:00:01" });
            NetworkUpdate::PutSubnet(Slot(slot), Arc::new(serde_json::from_value(json).unwrap()))
        };
        let updates = [
            network,
            subnet(11, "b", "192.0.2.2"),
            subnet(7, "a", "192.0.2.1"),
            NetworkUpdate::UnconfirmSubnet(Slot(11)),
        ];
        self.writer.apply(updates.map(|update| Change::Network(blue(), update)));
    }
}

#[tokio::test]
async fn a_network_is_created_once_and_removed() {
    let world = World::filled().await;
    let create = "network create blue --cidr 10.42.0.0/16 --cidr fd42::/48 --vni 7 --mtu 1400";
    let described = "10.42.0.0/16 in /24 and fd42::/48 in /64, VNI 7, for at most 256 nodes";
    assert_eq!(world.prints(create).await, format!("network blue is created: {described}\n"));
    assert_eq!(world.prints(create).await, format!("network blue is there already: {described}\n"));
    let error = world.fails("network create blue --cidr 10.43.0.0/16").await;
    let said = "there is one of this name, which is 10.42.0.0/16 in /24 and fd42::/48 in /64, VNI 7, MTU 1400; take another name";
    assert!(error.contains(said) && error.contains("plexus network rm blue"), "{error}");
    assert_eq!(world.prints("network rm blue").await, "network blue is removed: nodes let go of it\n");
    assert_eq!(world.prints("network rm blue").await, "there is no network blue\n");
}

#[tokio::test]
async fn the_length_of_subnets_belongs_to_the_range_in_its_place() {
    let world = World::filled().await;
    let printed = world
        .prints("network create blue --cidr fd42::/48 --cidr 10.42.0.0/16 --subnet-len 60 --subnet-len 26")
        .await;
    assert!(
        printed.contains("fd42::/48 in /60 and 10.42.0.0/16 in /26") && printed.contains("1024 nodes"),
        "{printed}"
    );
    for (wrong, said) in [
        ("--cidr 10.43.0.0/25", "10.43.0.0/25 cannot be cut into subnets of /24: a subnet cannot be larger"),
        ("--cidr 10.43.0.0/16 --subnet-len 31", "at least four addresses"),
        ("--cidr 10.43.0.0/16 --subnet-len 24 --subnet-len 64", "a --subnet-len too many"),
        ("--cidr 10.43.0.0/16 --cidr 10.44.0.0/16", "10.43.0.0/16 and 10.44.0.0/16 are of the same"),
    ] {
        let error = world.fails(&format!("network create red {wrong}")).await;
        assert!(error.contains(said), "{error}");
    }
}

#[tokio::test]
async fn what_another_network_or_this_host_has_is_refused_by_name() {
    let world = World::filled().await;
    world.prints("network create blue --cidr 10.42.0.0/16 --vni 7").await;
    for (wrong, said) in [
        ("--cidr 10.42.128.0/17", "network red cannot have 10.42.128.0/17: network blue has 10.42.0.0/16"),
        ("--cidr 10.43.0.0/16 --vni 7", "network red cannot have VNI 7: network blue has it"),
        (
            "--cidr 10.99.7.0/24 --subnet-len 26",
            "network red cannot have 10.99.7.0/24: on node a, this host has a route to 10.99.0.0/16 on tun0",
        ),
    ] {
        let error = world.fails(&format!("network create red {wrong}")).await;
        assert!(error.contains(said) && error.contains("free"), "{error}");
    }
    assert!(world.fails("network inspect red").await.contains("no network is called \"red\""));
}

#[tokio::test]
async fn networks_are_listed_and_shown_with_their_nodes() {
    let mut world = World::filled().await;
    assert_eq!(world.prints("network ls").await, "there is no network; `plexus network create` makes one\n");
    world.knows_blue();
    let expected = "\
NAME  VNI  RANGES                                 MTU   NODES
blue  7    10.42.0.0/16 in /24, fd42::/48 in /64  1400  2/256
";
    assert_eq!(world.prints("network ls").await, expected);
    let expected = "\
ranges        10.42.0.0/16 in /24, fd42::/48 in /64
VNI           7
MTU           1400
reaches       no other network
nodes         2 of at most 256

SLOT  SUBNET                          NODE             ADDRESS    MAC
7     10.42.7.0/24, fd42:0:0:7::/64   a                192.0.2.1  02:ab:00:00:00:01
11    10.42.11.0/24, fd42:0:0:b::/64  b (unconfirmed)  192.0.2.2  02:ab:00:00:00:01
";
    assert_eq!(world.prints("network inspect blue").await, expected);
    let json: serde_json::Value =
        serde_json::from_str(&world.prints("network inspect blue --json").await).unwrap();
    assert_eq!(json["subnets"][1]["unconfirmed"], true);
    assert_eq!(json["network"]["slots"], 256);
    let error = world.fails("network inspect blu").await;
    assert!(error.contains("did you mean \"blue\"?"), "{error}");
}

#[tokio::test]
async fn who_reaches_whom_is_said_and_what_was_probably_mistyped() {
    let mut world = World::filled().await;
    world.knows_blue();
    let printed = world.prints("network create red --cidr 10.43.0.0/16 --reach blu").await;
    assert!(printed.contains("note: there is no network blu yet; did you mean \"blue\"?"), "{printed}");
    let red =
        json!({ "vni": 8, "pools": [{ "cidr": "10.43.0.0/16", "subnet_length": 24 }], "reaches": ["blue"] });
    let red = NetworkUpdate::Put(Arc::new(serde_json::from_value(red).unwrap()));
    world.writer.apply([Change::Network(NetworkName::new("red").unwrap(), red)]);
    let printed = world.prints("network inspect blue").await;
    assert!(printed.contains("reaches       red\n"), "{printed}");
    world.store.put(&Key::Network(blue()).path(), b"{}".to_vec(), None).await.unwrap();
    let printed = world.prints("network rm blue").await;
    assert!(printed.contains("note: network red reaches blue"), "{printed}");
}

#[tokio::test]
async fn a_network_that_containers_are_attached_to_is_removed_by_force_alone() {
    let world = World::filled().await;
    world.prints("network create blue --cidr 10.42.0.0/16").await;
    let subnet = json!({ "node": "b", "address": "192.0.2.2", "mac": "02:ab:00:00:00:01", "in_use": true });
    let path = Key::Subnet(blue(), Slot(7)).path();
    world.store.put(&path, subnet.to_string().into_bytes(), None).await.unwrap();
    let error = world.fails("network rm blue").await;
    assert!(error.contains("containers are attached to it on b") && error.contains("--force"), "{error}");
    assert!(world.prints("network rm blue --force").await.contains("is removed"));
}
