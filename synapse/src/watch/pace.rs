//! How soon a place is looked at again, and tried again that could not be followed: so that a fleet does neither in step, nor too often.

use std::time::Duration;

use nerve::document::{Reported, Section};
use nerve::period::Period;
use nerve::store::{Backoff, random_part};
use serde::Serialize;

/// The pace of a watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Pace {
    /// A random part of this passes before a place is looked at again: many nodes are told of a change at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discovery_jitter: Option<Period>,
    /// Pauses between attempts to follow a place, if they are not the usual ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

/// Pauses that double, and stay at the longest for as long as the agent runs. What they are called is Synapse's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Retry {
    base_interval: Period,
    max_interval: Period,
}

impl Retry {
    /// The first and the longest pause.
    ///
    /// # Errors
    /// The longest is shorter than the first.
    pub fn new(base_interval: Period, max_interval: Period) -> Result<Self, String> {
        if base_interval > max_interval {
            return Err(format!(
                "the first pause, {base_interval}, is longer than the longest, {max_interval}"
            ));
        }
        Ok(Self { base_interval, max_interval })
    }

    fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let base_interval = section.required::<Period>("base_interval");
        let max_interval = section.required::<Period>("max_interval");
        Self::new(base_interval?, max_interval?)
            .map_err(|why| section.invalid("max_interval", why, "a duration that is not shorter"))
    }
}

impl Pace {
    /// Reads its keys.
    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, Reported> {
        let discovery_jitter = section.given::<Period>("discovery_jitter");
        let retry = section.section("retry", Retry::read).transpose();
        Ok(Self { discovery_jitter: discovery_jitter?, retry: retry? })
    }

    /// What this does not say is as the other has it.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            discovery_jitter: self.discovery_jitter.or(other.discovery_jitter),
            retry: self.retry.or(other.retry),
        }
    }

    /// Waits where a place that was looked at is to be looked at again.
    pub(super) async fn before_another_look(self) {
        if let Some(jitter) = self.discovery_jitter {
            tokio::time::sleep(random_part(jitter.get())).await;
        }
    }

    /// Pauses between attempts, from the first on.
    pub(super) fn pauses(self) -> Backoff {
        self.retry.map_or_else(Backoff::new, |retry| {
            Backoff::between(retry.base_interval.get(), retry.max_interval.get())
        })
    }

    /// The longest of them.
    pub(super) fn longest_pause(self) -> Duration {
        self.retry.map_or(Backoff::LONGEST, |retry| retry.max_interval.get())
    }
}

#[cfg(test)]
mod tests {
    use nerve::document::Document;
    use tokio::time::Instant;

    use super::*;

    fn read(text: &str) -> Result<Pace, String> {
        Document::parse("x", text).unwrap().decode(Pace::read).map_err(|errors| errors.to_string())
    }

    #[test]
    fn pauses_begin_and_end_as_they_are_told() {
        assert_eq!(read("").unwrap(), Pace::default());
        let told = read("retry = { base_interval = \"4s\", max_interval = \"9s\" }").unwrap();
        let mut pauses = told.pauses();
        let seconds = [4, 8, 9, 9].map(Duration::from_secs);
        for full in seconds {
            let pause = pauses.next();
            assert!(pause >= full / 2 && pause <= full, "{pause:?} of {full:?}");
        }
        assert_eq!((told.longest_pause(), Pace::default().longest_pause()), (seconds[2], Backoff::LONGEST));
        for (text, said) in [
            ("retry = { base_interval = \"4s\", max_interval = \"2s\" }", "longer than the longest"),
            ("retry = { base_interval = \"4s\" }", "max_interval"),
            ("discovery_jitter = \"0s\"", "discovery_jitter"),
        ] {
            let wrong = read(text).unwrap_err();
            assert!(wrong.contains(said), "{wrong}");
        }
        assert_eq!(Pace::default().or(told), told);
        assert_eq!(told.or(read("discovery_jitter = \"1s\"").unwrap()).retry, told.retry);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_of_the_jitter_passes_and_not_the_same_for_all() {
        let pace = read("discovery_jitter = \"10s\"").unwrap();
        let mut waited = Vec::new();
        for _ in 0..50 {
            let began = Instant::now();
            pace.before_another_look().await;
            waited.push(began.elapsed());
        }
        assert!(waited.iter().all(|waited| *waited < Duration::from_secs(11)), "{waited:?}");
        // A hundredth of what all of them wait on average, or all alike, would not spread a fleet.
        waited.sort_unstable();
        assert!(waited[49] - waited[0] > Duration::from_secs(1), "{waited:?}");
        let began = Instant::now();
        Pace::default().before_another_look().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
