//! A place where instances are known: what each file of a kind implements. Most know one service, whatever it is called here; a directory
//! knows several by their names, and what it is told of one is told through [`OfOne`].

use std::collections::BTreeMap;
use std::convert::Infallible;

use async_trait::async_trait;
use nerve::model::{PublishedPort, ServiceName};
use nerve::store::Backoff;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::pace::Pace;
use super::server::Server;

/// What stands at a place and cannot be used, and why.
pub type Refused = (String, String);

/// What stands of a service at a place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Copies {
    /// Where it runs.
    pub(super) servers: Vec<Server>,
    /// The ports that this node is to publish for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) published: Vec<PublishedPort>,
}

/// Services by their names here. One that is there and has no servers has lost them; one that is not there is none of the place's.
pub(super) type Services = BTreeMap<ServiceName, Copies>;

/// A place of services that it has names for.
#[async_trait]
pub(super) trait Directory: Send + Sync {
    /// Follows it, and tells each time all that stands there. Returns when it cannot go on, with why; it is begun anew later.
    async fn follow(&self, told: &dyn TellAll) -> Result<Infallible, String>;
}

/// Whom a directory tells.
#[async_trait]
pub(super) trait TellAll: Send + Sync {
    /// All that stands there now. `refused` is what cannot be used, with the reason.
    async fn found(&self, found: Services, refused: Vec<Refused>);

    /// The place is out of reach, or cannot be understood; what it last said stays.
    async fn failed(&self, error: String);

    /// How soon it is to be looked at again.
    fn pace(&self) -> Pace;
}

/// A place of one service, as a directory of that one.
pub(super) struct OfOne {
    pub(super) service: ServiceName,
    pub(super) place: Box<dyn Place>,
}

#[async_trait]
impl Directory for OfOne {
    async fn follow(&self, told: &dyn TellAll) -> Result<Infallible, String> {
        self.place.follow(&Named { service: &self.service, told }).await
    }
}

/// Says the name of what is told without one.
struct Named<'a> {
    service: &'a ServiceName,
    told: &'a dyn TellAll,
}

#[async_trait]
impl Tell for Named<'_> {
    async fn found(&self, found: Vec<Server>, refused: Vec<Refused>) {
        let copies = Copies { servers: found, published: Vec::new() };
        self.told.found(Services::from([(self.service.clone(), copies)]), refused).await;
    }

    async fn failed(&self, error: String) {
        self.told.failed(error).await;
    }

    fn pace(&self) -> Pace {
        self.told.pace()
    }
}

/// A place of one service.
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

/// Follows a place for ever.
pub(super) async fn follow_always(place: &dyn Place, told: &dyn Tell) -> Infallible {
    let mut pauses = Pauses::of(told.pace());
    loop {
        let Err(error) = place.follow(told).await;
        told.failed(error).await;
        pauses.pause().await;
    }
}

/// Follows a directory for ever.
pub(super) async fn follow_directory(directory: &dyn Directory, told: &dyn TellAll) -> Infallible {
    let mut pauses = Pauses::of(told.pace());
    loop {
        let Err(error) = directory.follow(told).await;
        told.failed(error).await;
        pauses.pause().await;
    }
}

/// What is begun anew is so after a pause that grows while it fails at once.
struct Pauses {
    pace: Pace,
    backoff: Backoff,
    began: Instant,
}

impl Pauses {
    fn of(pace: Pace) -> Self {
        Self { pace, backoff: pace.pauses(), began: Instant::now() }
    }

    async fn pause(&mut self) {
        if self.began.elapsed() > self.pace.longest_pause() {
            self.backoff = self.pace.pauses();
        }
        tokio::time::sleep(self.backoff.next()).await;
        self.began = Instant::now();
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
