//! `[checks]`: what holds for the checks of a node together.

use std::num::{NonZeroU32, NonZeroUsize};

use nerve::check::Damping;
use nerve::document::{Reported, Section};
use nerve::period::Period;
use serde::Serialize;

/// The table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checks {
    /// So many probes are under way at a time.
    pub max_probes: NonZeroUsize,
    /// So many changes between getting traffic and not,
    pub flap_changes: NonZeroU32,
    /// within this time, and an instance is held down.
    pub flap_window: Period,
    /// For so long at first,
    pub flap_hold: Period,
    /// and for so long at most.
    pub flap_longest: Period,
}

impl Checks {
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        const PROBES: NonZeroUsize = NonZeroUsize::new(512).unwrap();
        let usual = Damping::default();
        let read = Self {
            max_probes: section.or("max_probes", PROBES),
            flap_changes: section.or_where(
                "flap_changes",
                usual.changes,
                "an integer from 2 to 1000",
                |changes| (2..=1000).contains(&changes.get()),
            ),
            flap_window: section.or("flap_window", usual.window),
            flap_hold: section.or("flap_hold", usual.hold),
            flap_longest: section.or("flap_longest", usual.longest),
        };
        if read.flap_hold > read.flap_longest {
            let error = format!("{} is less than `flap_hold`, {}", read.flap_longest, read.flap_hold);
            return Err(section.invalid("flap_longest", error, "at least `flap_hold`"));
        }
        Ok(read)
    }

    /// As the checks are told.
    pub(super) fn damping(&self) -> Damping {
        Damping {
            changes: self.flap_changes,
            window: self.flap_window,
            hold: self.flap_hold,
            longest: self.flap_longest,
        }
    }
}
