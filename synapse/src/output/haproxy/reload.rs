//! Whether HAProxy has to be reloaded, and when it may be (pure).
//!
//! What it runs it says itself, where there is a socket: an agent that starts asks, and reloads nothing that runs as it is to. As with Synapse there is an interval between reloads, and a part of it more by chance, so that a fleet does not reload in step. A
//! reload that failed is tried again after a pause that grows.

use std::time::Duration;

use tokio::time::Instant;

use super::compare::Reload;
use super::loose::Share;
use super::render::Mark;
use super::runtime::Loaded;

/// The first pause after a failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A configuration: what it was made from, and a number for all of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) mark: Mark,
    pub(super) text: u64,
}

/// What is known of a process of HAProxy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// Nothing: it does not answer, or is not asked.
    Silent,
    /// What it runs, and what of it cannot be changed by telling it.
    Says { loaded: Loaded, lacks: Option<Reload> },
}

/// Why HAProxy has to be reloaded, if it has to be. `reloaded` is what it was last reloaded with, or was
/// seen to run.
pub(super) fn needed(wanted: Version, reloaded: Option<Version>, views: &[View]) -> Option<Reload> {
    let views = if views.is_empty() { &[View::Silent] } else { views };
    views.iter().find_map(|view| match *view {
        View::Silent => (reloaded != Some(wanted)).then_some(Reload::Unknown),
        View::Says { loaded: Loaded::Unknown, .. } if reloaded.map(|last| last.mark) != Some(wanted.mark) => {
            Some(Reload::Unknown)
        }
        View::Says { loaded: Loaded::Foreign, .. } => Some(Reload::Sections),
        View::Says { loaded: Loaded::Made(mark), .. } if mark.lines != wanted.mark.lines => {
            Some(Reload::Sections)
        }
        View::Says { loaded: Loaded::Made(mark), .. } if mark != wanted.mark => Some(Reload::Options),
        View::Says { lacks, .. } => lacks,
    })
}

/// Keeps the pace.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Not before this.
    next: Option<Instant>,
    failures: u32,
}

impl Pace {
    /// The moment from which on a reload is allowed; `None`: at once.
    pub(super) fn waits_until(&self, now: Instant) -> Option<Instant> {
        self.next.filter(|next| *next > now)
    }

    /// A reload begins. `chance` is from 0 to 1023.
    pub(super) fn begin(&mut self, now: Instant, interval: Duration, jitter: Share, chance: u16) {
        self.next = Some(now + interval + jitter.of(interval) * u32::from(chance % 1024) / 1024);
    }

    /// It had an effect.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// It had none.
    pub(super) fn failed(&mut self, now: Instant) {
        let pause = FIRST_PAUSE * 2_u32.saturating_pow(self.failures.min(6));
        self.failures = self.failures.saturating_add(1);
        let next = now + pause.min(LONGEST_PAUSE);
        self.next = Some(self.next.map_or(next, |paced| paced.max(next)));
    }
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;

    use super::*;

    fn share(text: &str) -> Share {
        let document = Document::parse_yaml("x", &format!("x: {text}")).unwrap();
        document.decode(|root| root.required("x")).unwrap()
    }

    #[test]
    fn what_haproxy_says_decides_and_where_it_says_nothing_what_it_was_given() {
        let wanted = Version { mark: Mark { lines: 1, options: 1 }, text: 7 };
        let other = |lines, options| Loaded::Made(Mark { lines, options });
        let says = |loaded, lacks: bool| View::Says { loaded, lacks: lacks.then_some(Reload::NewServer) };
        for (reloaded, view, expected) in [
            (None, View::Silent, Some(Reload::Unknown)),
            (Some(wanted), View::Silent, None),
            (Some(Version { text: 8, ..wanted }), View::Silent, Some(Reload::Unknown)),
            (None, says(other(1, 1), false), None),
            (Some(Version { text: 8, ..wanted }), says(other(1, 1), false), None),
            (Some(wanted), says(other(1, 1), true), Some(Reload::NewServer)),
            (Some(wanted), says(other(2, 1), false), Some(Reload::Sections)),
            (Some(wanted), says(other(1, 2), true), Some(Reload::Options)),
            (Some(wanted), says(Loaded::Foreign, false), Some(Reload::Sections)),
            (None, says(Loaded::Unknown, false), Some(Reload::Unknown)),
            (Some(Version { text: 8, ..wanted }), says(Loaded::Unknown, false), None),
        ] {
            assert_eq!(needed(wanted, reloaded, &[view]), expected, "{reloaded:?} {view:?}");
        }
        assert_eq!(needed(wanted, None, &[]), Some(Reload::Unknown));
        let both = [says(other(1, 1), false), says(other(2, 1), false)];
        assert_eq!(needed(wanted, None, &both), Some(Reload::Sections));
    }

    #[tokio::test(start_paused = true)]
    async fn reloads_are_an_interval_apart_and_a_chance_more() {
        let (now, interval) = (Instant::now(), Duration::from_secs(10));
        let mut pace = Pace::default();
        assert_eq!(pace.waits_until(now), None);
        pace.begin(now, interval, share("0"), 1023);
        assert_eq!(pace.waits_until(now), Some(now + interval));
        assert_eq!(pace.waits_until(now + interval), None);
        for chance in [0, 512, 1023, u16::MAX] {
            pace.begin(now, interval, share("0.5"), chance);
            let after = pace.waits_until(now).unwrap() - now - interval;
            assert!(
                after <= Duration::from_secs(5) && (chance == 0) == after.is_zero(),
                "{chance}: {after:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_further_and_further_apart() {
        let (now, mut pace) = (Instant::now(), Pace::default());
        let mut last = Duration::ZERO;
        for round in 0..20 {
            pace.begin(now, Duration::ZERO, share("0"), 0);
            pace.failed(now);
            let pause = pace.waits_until(now).unwrap() - now;
            assert!(pause >= last && pause <= LONGEST_PAUSE, "{round}: {pause:?}");
            last = pause;
        }
        assert_eq!(last, LONGEST_PAUSE);
        pace.succeeded();
        pace.begin(now, Duration::ZERO, share("0"), 0);
        pace.failed(now);
        assert_eq!(pace.waits_until(now), Some(now + FIRST_PAUSE));
    }
}
