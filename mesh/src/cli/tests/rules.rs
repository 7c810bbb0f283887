//! Rules: added, listed, removed, and explained.

use super::*;

impl World {
    /// The catalog says what the store does.
    async fn follow_rules(&mut self) {
        let entry = self.store.get(&Key::Rules.path()).await.unwrap();
        let set = entry.map(|entry| nerve::model::RuleRecord::read(&entry.value).unwrap().understood().0);
        self.writer.apply([Change::PutRules(Arc::new(set.unwrap_or_default()))]);
    }
}

#[tokio::test]
async fn rules_are_added_once_listed_and_removed() {
    let mut world = World::filled().await;
    assert_eq!(world.prints("rules").await, "there is no rule: allow\n");
    let added = world.prints("allow web api").await;
    assert_eq!(
        added,
        "rule allow-web-to-api is added: allow web -> api\nnote: there is no service api yet\n"
    );
    assert!(
        world
            .prints("allow web -> api --name other")
            .await
            .starts_with("rule allow-web-to-api says so already")
    );
    let denied = world.prints("deny env=dev wbe").await;
    assert!(denied.contains("did you mean \"web\"?") && denied.contains("open may go on"), "{denied}");
    world.follow_rules().await;
    assert!(world.prints("deny web api").await.contains("rule allow-web-to-api allows just this"));
    let deny = world.prints("rules default deny").await;
    assert_eq!(deny, "the default is deny\nnote: only what 1 rules allow is connected from now on\n");
    world.follow_rules().await;
    let listed = world.prints("rules").await;
    assert!(listed.starts_with("NAME"), "{listed}");
    assert!(listed.contains("deny    env=dev  wbe"), "{listed}");
    assert!(listed.ends_with("where no rule applies: deny\n"), "{listed}");
    let json: serde_json::Value = serde_json::from_str(&world.prints("rules --json").await).unwrap();
    assert_eq!((json["default"].as_str(), json["rules"].as_array().map(Vec::len)), (Some("deny"), Some(3)));
    let wrong = world.prints("rules remove allow-web-to-ap").await;
    assert!(
        wrong.contains("there is no rule") && wrong.contains("did you mean \"allow-web-to-api\"?"),
        "{wrong}"
    );
    assert_eq!(world.prints("rules remove allow-web-to-api").await, "rule allow-web-to-api is removed\n");
}

#[tokio::test]
async fn a_mistake_is_told_and_nothing_is_written() {
    let world = World::filled().await;
    assert!(world.fails("allow web").await.contains("plexus allow FROM TO"));
    assert!(world.fails("allow web -").await.contains("redirection"));
    assert!(world.fails("deny Web api").await.contains("or labels as `env=prod,tier!=db`"));
    assert!(world.prints("deny web api --name x").await.contains("rule x is added"));
    assert!(world.fails("deny web db --name x").await.contains("rule x is there already: deny web -> api"));
    assert_eq!(world.run("rules default ask").await.unwrap_err().exit_code(), 2);
}

#[tokio::test]
async fn why_tells_which_rule_decides() {
    let mut world = World::filled().await;
    assert!(!world.prints("why web").await.contains("rules"));
    let nobody = world.prints("why web --from db").await;
    assert!(nobody.contains("db -> web: allowed by the default: no rule applies"), "{nobody}");
    world.prints("deny db web").await;
    world.follow_rules().await;
    let why = world.prints("why web").await;
    assert!(why.contains("rules about connections to web: 1; where none applies: allow"), "{why}");
    assert!(why.contains("clients that are no known instance -> web: allowed by the default"), "{why}");
    let why = world.prints("why web --from db").await;
    assert!(why.contains("db -> web: denied by rule deny-db-to-web (deny db -> web)"), "{why}");
}
