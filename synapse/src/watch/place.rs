//! A place where instances are known: what each file of a kind implements.

use std::convert::Infallible;

use async_trait::async_trait;
use tokio::time::Instant;

use super::pace::Pace;
use super::server::Server;

/// What stands at a place and cannot be used, and why.
pub type Refused = (String, String);

/// A place.
#[async_trait]
pub(super) trait Place: Send + Sync {
    /// Follows it, and tells each time all that stands there. Returns when it cannot go on, with why; it is begun anew later.
    async fn follow(&self, told: &dyn Tell) -> Result<Infallible, String>;
}

/// Whom a place tells.
#[async_trait]
pub(super) trait Tell: Send + Sync {
    /// All that stands there now. `refused` is what cannot be used, with the reason.
    async fn found(&self, found: Vec<Server>, refused: Vec<Refused>);

    /// The place is out of reach, or cannot be understood; what it last said stays.
    async fn failed(&self, error: String);

    /// How soon it is to be looked at again.
    fn pace(&self) -> Pace;
}

/// Follows a place for ever, begun anew after a pause that grows while it fails at once.
pub(super) async fn follow_always(place: &dyn Place, told: &dyn Tell) -> Infallible {
    let mut pauses = told.pace().pauses();
    loop {
        let began = Instant::now();
        let Err(error) = place.follow(told).await;
        told.failed(error).await;
        if began.elapsed() > told.pace().longest_pause() {
            pauses = told.pace().pauses();
        }
        tokio::time::sleep(pauses.next()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use nerve::document::Document;

    use super::*;

    /// A place that cannot be followed, and its watcher, who writes down when it is told so.
    struct Away {
        pace: Pace,
        began: Instant,
        told: Mutex<Vec<Duration>>,
    }

    #[async_trait]
    impl Place for Away {
        async fn follow(&self, _: &dyn Tell) -> Result<Infallible, String> {
            Err("away".to_owned())
        }
    }

    #[async_trait]
    impl Tell for Away {
        async fn found(&self, _: Vec<Server>, _: Vec<Refused>) {}

        async fn failed(&self, _: String) {
            self.told.lock().unwrap().push(self.began.elapsed());
        }

        fn pace(&self) -> Pace {
            self.pace
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_away_is_tried_at_the_pace_that_is_told() {
        let text = "retry = { base_interval = \"1m\", max_interval = \"4m\" }";
        let pace = Document::parse("x", text).unwrap().decode(Pace::read).unwrap();
        for (pace, tries) in [(pace, 6..=12), (Pace::default(), 1_200..=2_500)] {
            let away = Away { pace, began: Instant::now(), told: Mutex::default() };
            let _ = tokio::time::timeout(Duration::from_secs(20 * 60), follow_always(&away, &away)).await;
            let told = away.told.lock().unwrap();
            assert!(tries.contains(&told.len()), "{told:?}");
        }
    }
}
