//! A place of several parts, each of which is followed on its own: what they say together.

use std::convert::Infallible;

use async_trait::async_trait;
use futures_util::future::select_all;
use tokio::sync::Mutex;

use super::pace::Pace;
use super::place::{Place, Refused, Tell, follow_always};
use super::server::Server;

/// What one part said last.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    /// What stands there; `None`: it was not heard yet.
    pub(super) servers: Option<Vec<Server>>,
    refused: Vec<Refused>,
    /// It is out of reach.
    error: Option<String>,
}

/// Which servers of all parts count.
pub(super) trait Choose: Send + Sync {
    /// They are in their order.
    fn choose(&self, said: &[Said]) -> Vec<Server>;
}

/// All that any part says.
pub(super) struct Union;

impl Choose for Union {
    fn choose(&self, said: &[Said]) -> Vec<Server> {
        said.iter().flat_map(|said| said.servers.iter().flatten()).cloned().collect()
    }
}

/// What the parts say.
pub(super) struct Parts<'a> {
    names: Vec<String>,
    said: Mutex<Vec<Said>>,
    choose: &'a dyn Choose,
    told: &'a dyn Tell,
}

impl<'a> Parts<'a> {
    /// Parts of these names.
    pub(super) fn new(names: Vec<String>, choose: &'a dyn Choose, told: &'a dyn Tell) -> Self {
        let said = Mutex::new(vec![Said::default(); names.len()]);
        Self { names, said, choose, told }
    }

    /// Follows each.
    pub(super) async fn follow(&self, places: &[Box<dyn Place>]) -> Infallible {
        let parts: Vec<Part<'_>> = (0..places.len()).map(|index| Part { parts: self, index }).collect();
        let all = places.iter().zip(&parts).map(|(place, part)| Box::pin(follow_always(&**place, part)));
        select_all(all).await.0
    }

    /// Tells what counts now.
    pub(super) async fn tell(&self) {
        self.tell_of(&self.said.lock().await).await;
    }

    async fn tell_of(&self, said: &[Said]) {
        // What only some have said yet is not the whole, and would take the place of it.
        if said.iter().any(|said| said.servers.is_none() && said.error.is_none()) {
            return;
        }
        let errors = || {
            said.iter().zip(&self.names).filter_map(|(said, name)| Some((name.clone(), said.error.clone()?)))
        };
        if let Some((name, error)) = errors().next().filter(|_| said.iter().all(|said| said.error.is_some()))
        {
            self.told.failed(format!("{name}: {error}")).await;
            return;
        }
        let named = |(said, name): (&Said, &String)| {
            let name = name.clone();
            said.refused.clone().into_iter().map(move |(what, why)| (format!("{name}: {what}"), why))
        };
        let refused = said.iter().zip(&self.names).flat_map(named).chain(errors()).collect();
        self.told.found(self.choose.choose(said), refused).await;
    }
}

/// Whom one of them tells.
struct Part<'a> {
    parts: &'a Parts<'a>,
    index: usize,
}

#[async_trait]
impl Tell for Part<'_> {
    async fn found(&self, found: Vec<Server>, refused: Vec<Refused>) {
        let mut said = self.parts.said.lock().await;
        said[self.index] = Said { servers: Some(found), refused, error: None };
        self.parts.tell_of(&said).await;
    }

    async fn failed(&self, error: String) {
        let mut said = self.parts.said.lock().await;
        said[self.index].error = Some(error);
        self.parts.tell_of(&said).await;
    }

    fn pace(&self) -> Pace {
        self.parts.told.pace()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::stub::Written;

    #[tokio::test]
    async fn the_whole_is_told_when_each_has_spoken_and_one_that_fails_keeps_its_word() {
        let written = Written::default();
        let parts = Parts::new(vec!["a".to_owned(), "b".to_owned()], &Union, &written);
        let [a, b] = [0, 1].map(|index| Part { parts: &parts, index });
        let server = |text: &str| vec![text.parse::<Server>().unwrap()];
        a.found(server("192.0.2.1:80"), Vec::new()).await;
        assert!(written.lines().is_empty());
        b.failed("away".to_owned()).await;
        b.found(server("192.0.2.2:80"), vec![("x".to_owned(), "why".to_owned())]).await;
        a.failed("gone".to_owned()).await;
        b.failed("gone as well".to_owned()).await;
        let told =
            ["192.0.2.1:80 1", "192.0.2.1:80 192.0.2.2:80 1", "192.0.2.1:80 192.0.2.2:80 2", "a: gone"];
        assert_eq!(written.lines(), told);
    }
}
