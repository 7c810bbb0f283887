//! Rules as they are asked for each connection (pure): a few looks into one table, whatever their number.
//!
//! Each selector has a number, and a party, a client or a service, is the numbers of the selectors that take it in. What a
//! party is may be known in part only: of a service, its instances may have different labels. Then a rule that denies applies
//! where it would apply to any of them, and one that allows where it would apply to all.

use std::collections::{BTreeMap, HashMap};

use nerve::model::{Effect, LabelSelector, RuleName, RuleSet, ServiceName, ServiceSelector};

/// A selector's number.
type Id = usize;

/// `*` takes in everyone.
const EVERYONE: Id = 0;

/// A set of rules, put in order.
#[derive(Debug)]
pub(super) struct Index {
    default: Effect,
    /// In the order of their names.
    rules: Vec<Row>,
    /// The first rules of each effect for what two selectors take in.
    pairs: HashMap<(Id, Id), First>,
    services: HashMap<ServiceName, Id>,
    labels: Vec<(Id, LabelSelector)>,
}

#[derive(Debug)]
struct Row {
    name: RuleName,
    effect: Effect,
    from: Id,
    to: Id,
}

#[derive(Debug, Default, Clone, Copy)]
struct First {
    deny: Option<usize>,
    allow: Option<usize>,
}

impl First {
    fn note(&mut self, effect: Effect, rule: usize) {
        let known = match effect {
            Effect::Deny => &mut self.deny,
            Effect::Allow => &mut self.allow,
        };
        *known = Some(known.map_or(rule, |known| known.min(rule)));
    }
}

/// The label selectors that take something in, in the order of their numbers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Labelled {
    /// Whatever of it is meant.
    surely: Vec<Id>,
    /// Depending on what of it is meant.
    perhaps: Vec<Id>,
}

/// What has no label that anybody asks for.
pub(super) static UNLABELLED: Labelled = Labelled { surely: Vec::new(), perhaps: Vec::new() };

/// A client or a service, as the index knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Party<'a> {
    service: Option<Id>,
    labels: &'a Labelled,
}

/// What the rules say of two parties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) effect: Effect,
    /// The rule that says so, by its place; the default, where there is none.
    pub(super) rule: Option<usize>,
}

impl<'a> Party<'a> {
    /// A client of whom nothing is known.
    pub(super) const UNKNOWN: Self = Self { service: None, labels: &UNLABELLED };

    /// What takes it in, whatever of it is meant.
    fn surely(self) -> impl Iterator<Item = Id> + 'a {
        [EVERYONE].into_iter().chain(self.service).chain(self.labels.surely.iter().copied())
    }

    /// What may take it in.
    fn possibly(self) -> impl Iterator<Item = Id> + 'a {
        self.surely().chain(self.labels.perhaps.iter().copied())
    }

    fn width(self) -> usize {
        2 + self.labels.surely.len() + self.labels.perhaps.len()
    }

    fn is_surely(self, id: Id) -> bool {
        id == EVERYONE || self.service == Some(id) || self.labels.surely.binary_search(&id).is_ok()
    }

    fn is_possibly(self, id: Id) -> bool {
        self.is_surely(id) || self.labels.perhaps.binary_search(&id).is_ok()
    }
}

impl Index {
    pub(super) fn new(set: &RuleSet) -> Self {
        let mut index = Self {
            default: set.default,
            rules: Vec::with_capacity(set.rules.len()),
            pairs: HashMap::new(),
            services: HashMap::new(),
            labels: Vec::new(),
        };
        let mut known = HashMap::from([(&ServiceSelector::Everyone, EVERYONE)]);
        for (name, rule) in &set.rules {
            let [from, to] = [&rule.from, &rule.to].map(|selector| {
                let next = known.len();
                *known.entry(selector).or_insert(next)
            });
            let place = index.rules.len();
            index.pairs.entry((from, to)).or_default().note(rule.effect, place);
            index.rules.push(Row { name: name.clone(), effect: rule.effect, from, to });
        }
        for (selector, id) in known {
            match selector {
                ServiceSelector::Everyone => {}
                ServiceSelector::Service(name) => drop(index.services.insert(name.clone(), id)),
                ServiceSelector::Labels(labels) => index.labels.push((id, labels.clone())),
            }
        }
        index.labels.sort_unstable_by_key(|(id, _)| *id);
        index
    }

    /// Does any rule ask for labels?
    pub(super) fn asks_for_labels(&self) -> bool {
        !self.labels.is_empty()
    }

    /// The label selectors that take in what has one of these sets of labels, of which nobody knows which.
    pub(super) fn labelled<'l>(
        &self,
        sets: impl Iterator<Item = &'l BTreeMap<String, String>> + Clone,
    ) -> Labelled {
        let mut labelled = Labelled::default();
        for (id, selector) in &self.labels {
            let (mut some, mut all) = (false, true);
            for set in sets.clone() {
                let matches = selector.matches(set);
                (some, all) = (some || matches, all && matches);
            }
            match (some, all) {
                (true, true) => labelled.surely.push(*id),
                (true, false) => labelled.perhaps.push(*id),
                (false, _) => {}
            }
        }
        labelled
    }

    /// A service, or its instances, with what takes in their labels.
    pub(super) fn party<'a>(&self, service: &ServiceName, labels: &'a Labelled) -> Party<'a> {
        Party { service: self.services.get(service).copied(), labels }
    }

    /// What holds for a connection: what any rule denies, then what any allows, then the default.
    pub(super) fn decide(&self, from: Party<'_>, to: Party<'_>) -> Decision {
        let first = if from.width() * to.width() > self.rules.len() {
            self.by_rules(from, to)
        } else {
            self.by_pairs(from, to)
        };
        match first {
            First { deny: Some(rule), .. } => Decision { effect: Effect::Deny, rule: Some(rule) },
            First { allow: Some(rule), .. } => Decision { effect: Effect::Allow, rule: Some(rule) },
            First { .. } => Decision { effect: self.default, rule: None },
        }
    }

    /// Where parties are taken in by few selectors.
    fn by_pairs(&self, from: Party<'_>, to: Party<'_>) -> First {
        let mut first = First::default();
        for client in from.possibly() {
            for service in to.possibly() {
                let Some(known) = self.pairs.get(&(client, service)) else { continue };
                if let Some(rule) = known.deny {
                    first.note(Effect::Deny, rule);
                }
                if let Some(rule) = known.allow
                    && from.is_surely(client)
                    && to.is_surely(service)
                {
                    first.note(Effect::Allow, rule);
                }
            }
        }
        first
    }

    /// Where there are fewer rules than pairs to look at.
    fn by_rules(&self, from: Party<'_>, to: Party<'_>) -> First {
        let mut first = First::default();
        for (place, rule) in self.rules.iter().enumerate() {
            let applies = match rule.effect {
                Effect::Deny => from.is_possibly(rule.from) && to.is_possibly(rule.to),
                Effect::Allow => from.is_surely(rule.from) && to.is_surely(rule.to),
            };
            if applies {
                first.note(rule.effect, place);
            }
        }
        first
    }

    /// The name of a rule.
    pub(super) fn name(&self, rule: usize) -> Option<&RuleName> {
        self.rules.get(rule).map(|row| &row.name)
    }

    /// How many rules are about connections to this service.
    pub(super) fn about(&self, to: Party<'_>) -> usize {
        self.rules.iter().filter(|rule| to.is_possibly(rule.to)).count()
    }
}

#[cfg(test)]
mod tests {
    use nerve::model::Rule;
    use proptest::prelude::*;

    use super::*;

    type Labels = BTreeMap<String, String>;

    /// A party as it is: its service, and the labels of all that it may be.
    type Known = Option<(ServiceName, Vec<Labels>)>;

    /// What the documentation says, word by word.
    fn documented(set: &RuleSet, from: &Known, to: &Known) -> (Effect, Option<RuleName>) {
        let takes_in = |selector: &ServiceSelector, party: &Known, all: bool| match (selector, party) {
            (ServiceSelector::Everyone, _) => true,
            (_, None) => false,
            (ServiceSelector::Service(name), Some((service, _))) => name == service,
            (ServiceSelector::Labels(_), Some((_, sets))) if sets.is_empty() => false,
            (ServiceSelector::Labels(labels), Some((_, sets))) if all => {
                sets.iter().all(|set| labels.matches(set))
            }
            (ServiceSelector::Labels(labels), Some((_, sets))) => sets.iter().any(|set| labels.matches(set)),
        };
        for effect in [Effect::Deny, Effect::Allow] {
            let all = effect == Effect::Allow;
            let applies = |rule: &&Rule| {
                rule.effect == effect && takes_in(&rule.from, from, all) && takes_in(&rule.to, to, all)
            };
            if let Some((name, _)) = set.rules.iter().find(|(_, rule)| applies(rule)) {
                return (effect, Some(name.clone()));
            }
        }
        (set.default, None)
    }

    fn party_of<'a>(index: &Index, known: &Known, labels: &'a Labelled) -> Party<'a> {
        match known {
            Some((service, _)) => index.party(service, labels),
            None => Party::UNKNOWN,
        }
    }

    fn indexed(set: &RuleSet, from: &Known, to: &Known) -> (Effect, Option<RuleName>) {
        let index = Index::new(set);
        let labels = |party: &Known| match party {
            Some((_, sets)) => index.labelled(sets.iter()),
            None => Labelled::default(),
        };
        let (from_labels, to_labels) = (labels(from), labels(to));
        let (from, to) = (party_of(&index, from, &from_labels), party_of(&index, to, &to_labels));
        let decision = index.decide(from, to);
        assert_eq!(index.by_pairs(from, to).deny, index.by_rules(from, to).deny);
        assert_eq!(index.by_pairs(from, to).allow, index.by_rules(from, to).allow);
        (decision.effect, decision.rule.and_then(|rule| index.name(rule)).cloned())
    }

    fn set(default: Effect, rules: &[(&str, &str, &str)]) -> RuleSet {
        let rules = rules.iter().map(|(name, from, to)| {
            let effect = if name.starts_with("deny") { Effect::Deny } else { Effect::Allow };
            (name.parse().unwrap(), Rule { effect, from: from.parse().unwrap(), to: to.parse().unwrap() })
        });
        RuleSet { default, rules: rules.collect(), ..RuleSet::default() }
    }

    fn known(service: &str, sets: &[&[(&str, &str)]]) -> Known {
        let labels = |set: &&[(&str, &str)]| {
            set.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect()
        };
        Some((service.parse().unwrap(), sets.iter().map(labels).collect()))
    }

    #[test]
    fn what_any_rule_denies_is_denied_whatever_else_allows_it() {
        let set =
            set(Effect::Deny, &[("allow-1", "*", "api"), ("deny-1", "web", "api"), ("deny-0", "x", "y")]);
        let api = known("api", &[&[]]);
        let denied = (Effect::Deny, Some("deny-1".parse().unwrap()));
        assert_eq!(indexed(&set, &known("web", &[&[]]), &api), denied);
        assert_eq!(indexed(&set, &None, &api), (Effect::Allow, Some("allow-1".parse().unwrap())));
        assert_eq!(indexed(&set, &None, &known("db", &[&[]])), (Effect::Deny, None));
    }

    #[test]
    fn of_what_is_known_in_part_the_worst_is_thought() {
        let mixed = known("web", &[&[("env", "prod")], &[("env", "dev")]]);
        let api = known("api", &[&[]]);
        let allow = set(Effect::Deny, &[("allow-1", "env=prod", "api")]);
        assert_eq!(indexed(&allow, &mixed, &api).0, Effect::Deny);
        assert_eq!(indexed(&allow, &known("web", &[&[("env", "prod")]]), &api).0, Effect::Allow);
        let deny = set(Effect::Allow, &[("deny-1", "env=dev", "api")]);
        assert_eq!(indexed(&deny, &mixed, &api).0, Effect::Deny);
        let negated = set(Effect::Allow, &[("deny-1", "env!=prod", "api")]);
        assert_eq!(indexed(&negated, &None, &api).0, Effect::Allow, "nobody is no instance");
    }

    prop_compose! {
        fn party()(
            service in proptest::option::of("[a-c]"),
            sets in proptest::collection::vec(proptest::collection::btree_map("[x-y]", "[1-2]", 0..3), 0..3),
        ) -> Known {
            service.map(|service| (service.parse().unwrap(), sets))
        }
    }

    prop_compose! {
        fn rule()(deny: bool, sides in proptest::array::uniform2("(\\*|[a-c]|[x-y]!?=[1-2]|x!?=[1-2],y!?=[1-2])")) -> Rule {
            let [from, to] = sides.map(|side| side.parse().unwrap());
            Rule { effect: if deny { Effect::Deny } else { Effect::Allow }, from, to }
        }
    }

    proptest! {
        #[test]
        fn it_says_what_is_documented(
            deny: bool, rules in proptest::collection::vec(rule(), 0..12), from in party(), to in party(),
        ) {
            let rules = rules.into_iter().enumerate().map(|(at, rule)| (format!("r{at}").parse().unwrap(), rule));
            let set = RuleSet { default: if deny { Effect::Deny } else { Effect::Allow }, rules: rules.collect(), ..RuleSet::default() };
            prop_assert_eq!(indexed(&set, &from, &to), documented(&set, &from, &to));
        }
    }
}
