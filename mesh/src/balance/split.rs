//! A traffic split: endpoints in groups by tag or label, each group with its share of the connections.

use nerve::model::{Instance, Split};

use super::snapshot::Entry;

/// The group of a split that an instance is in, by name; the first where there are several, `None` for the rest.
pub(super) fn group_of<'a>(split: Option<&'a Split>, instance: &Instance) -> Option<&'a str> {
    split?
        .shares()
        .map(|(selector, _)| selector)
        .find(|selector| selector.matches(instance))
        .map(|s| s.as_str())
}

/// The groups in the order of their names, the rest last, each with its share in percent and who is in it.
pub(super) fn groups<'a>(
    split: Option<&Split>,
    entries: &[&'a Entry],
) -> Vec<(Option<String>, u32, Vec<&'a Entry>)> {
    let Some(split) = split else { return vec![(None, 100, entries.to_vec())] };
    let of = |name: Option<&str>| {
        let is_in = |entry: &&Entry| group_of(Some(split), &entry.instance) == name;
        entries.iter().copied().filter(is_in).collect::<Vec<_>>()
    };
    let named = split.shares().map(|(selector, share)| {
        (Some(selector.as_str().to_owned()), u32::from(share.get()), of(Some(selector.as_str())))
    });
    let mut groups: Vec<_> = named.collect();
    groups.push((None, split.rest().into(), of(None)));
    groups
}
