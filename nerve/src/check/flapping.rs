//! An instance that comes and goes is held down: each change is work for the whole fleet, and half of its traffic fails.
//!
//! Pure: it is told the time. `changes` changes between serving and not serving within `window` begin a hold, in which the
//! instance gets no traffic whatever its checks say; each further hold is twice as long as the one before, up to
//! `longest`. Whoever was not held for `longest` is forgiven.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

use crate::period::Period;

/// What is taken for flapping, and what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damping {
    /// So many changes,
    pub changes: NonZeroU32,
    /// within this time.
    pub window: Period,
    /// How long the first hold is.
    pub hold: Period,
    /// How long a hold is at most.
    pub longest: Period,
}

/// Ten changes (five falls) within two minutes; held for 30 s at first, and for ten minutes at most.
impl Default for Damping {
    fn default() -> Self {
        const TEN: NonZeroU32 = NonZeroU32::new(10).unwrap();
        Self {
            changes: TEN,
            window: Period::seconds(120),
            hold: Period::seconds(30),
            longest: Period::seconds(600),
        }
    }
}

/// The changes of one instance.
#[derive(Debug)]
pub(super) struct Damper {
    damping: Damping,
    /// As it was last; `None` until its checks have decided.
    serving: Option<bool>,
    /// When it changed, at most `changes` of them.
    changes: VecDeque<Instant>,
    held: Option<Hold>,
}

#[derive(Debug, Clone, Copy)]
struct Hold {
    until: Instant,
    lasts: Duration,
}

impl Damper {
    pub(super) fn new(damping: Damping) -> Self {
        Self { damping, serving: None, changes: VecDeque::new(), held: None }
    }

    /// Takes in how it is now: `None` while its checks have not decided. Answers with the length of the hold that it is in.
    pub(super) fn observe(&mut self, serving: Option<bool>, now: Instant) -> Option<Duration> {
        if let Some(serving) = serving
            && self.serving.replace(serving).is_some_and(|before| before != serving)
        {
            self.note(now);
        }
        self.held.filter(|hold| now < hold.until).map(|hold| hold.lasts)
    }

    /// It has changed.
    fn note(&mut self, now: Instant) {
        let Damping { changes, window, hold, longest } = self.damping;
        let enough = usize::try_from(changes.get()).unwrap_or(usize::MAX);
        self.changes.push_back(now);
        while self.changes.len() > enough
            || self.changes.front().is_some_and(|first| now.duration_since(*first) > window.get())
        {
            self.changes.pop_front();
        }
        // While it is held, what it does shows to nobody.
        if self.changes.len() < enough || self.held.is_some_and(|held| now < held.until) {
            return;
        }
        let lasts = match self.held {
            Some(before) if now.duration_since(before.until) < longest.get() => before.lasts * 2,
            _ => hold.get(),
        };
        let lasts = lasts.min(longest.get());
        self.held = Some(Hold { until: now + lasts, lasts });
        self.changes.clear();
    }

    /// Why it gets nothing.
    pub(super) fn reason(&self, hold: Duration) -> String {
        let Damping { changes, window, .. } = self.damping;
        format!("flapping: changed {changes} times within {window}, held down for {}", shown(hold))
    }
}

fn shown(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(duration)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn damping(changes: u32, window: u64, hold: u64, longest: u64) -> Damping {
        let period = |seconds| Period::new(Duration::from_secs(seconds)).unwrap();
        Damping {
            changes: NonZeroU32::new(changes).unwrap(),
            window: period(window),
            hold: period(hold),
            longest: period(longest),
        }
    }

    #[test]
    fn holds_grow_up_to_the_longest_and_are_forgiven_after_quiet() {
        let mut damper = Damper::new(damping(4, 60, 10, 30));
        let mut now = Instant::now();
        let mut serving = true;
        let mut flap = |damper: &mut Damper, now: &mut Instant| {
            for _ in 0..100 {
                serving = !serving;
                *now += Duration::from_secs(1);
                if let Some(hold) = damper.observe(Some(serving), *now) {
                    return hold.as_secs();
                }
            }
            0
        };
        damper.observe(None, now);
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(flap(&mut damper, &mut now));
            now += Duration::from_secs(held.last().copied().unwrap());
        }
        assert_eq!(held, [10, 20, 30, 30]);
        now += Duration::from_secs(61);
        assert_eq!(flap(&mut damper, &mut now), 10, "forgiven");
        let reason = damper.reason(Duration::from_secs(10));
        assert_eq!(reason, "flapping: changed 4 times within 1m, held down for 10s");
    }

    #[test]
    fn beginning_is_no_change_and_slow_changes_are_none_too() {
        let mut damper = Damper::new(damping(2, 10, 10, 30));
        let mut now = Instant::now();
        assert_eq!(damper.observe(None, now), None);
        for serving in [true, false, true, false, true, false] {
            assert_eq!(damper.observe(Some(serving), now), None);
            now += Duration::from_secs(11);
        }
    }

    proptest! {
        /// What the fleet sees of an instance that does whatever it likes.
        #[test]
        fn what_is_shown_changes_seldom_and_a_quiet_instance_is_free(
            changes in 2u32..8,
            steps in prop::collection::vec((any::<bool>(), 0u64..20), 1..300),
        ) {
            let damping = damping(changes, 60, 10, 120);
            let mut damper = Damper::new(damping);
            let begun = Instant::now();
            let (mut now, mut last, mut changed, mut shown) = (begun, None, 0, Vec::new());
            for (serving, pause) in steps {
                now += Duration::from_secs(pause);
                changed += usize::from(last.replace(serving).is_some_and(|last| last != serving));
                let held = damper.observe(Some(serving), now);
                if let Some(hold) = held {
                    prop_assert!(hold >= damping.hold.get() && hold <= damping.longest.get());
                    prop_assert!(changed >= changes as usize);
                }
                prop_assert!(damper.changes.len() <= changes as usize);
                shown.push((now, serving && held.is_none()));
            }
            // Within any window it is shown to change no more often than it takes to be held, and once more at each end.
            let flips: Vec<Instant> =
                shown.windows(2).filter(|two| two[0].1 != two[1].1).map(|two| two[1].0).collect();
            for (index, first) in flips.iter().enumerate() {
                let near = flips[index..].iter().filter(|at| at.duration_since(*first) < damping.hold.get());
                prop_assert!(near.count() <= changes as usize + 2);
            }
            prop_assert_eq!(damper.observe(last, now + damping.longest.get()), None);
        }
    }
}
