//! Keeping this node's certificate good: had when there is none, renewed at half its life.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nerve::model::NodeName;
use nerve::store::{Backoff, random_part};
use rand::seq::SliceRandom;
use tokio::sync::watch;

use super::authority::SKEW;
use super::course::Memory;
use super::credentials::Credentials;
use super::join::{self, Ask, JoinError};
use super::signer::{Desk, OwnError, Signer};
use super::state::State;
use super::tls::Standing;
use super::token::Token;

/// The pauses between attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// How long is slept at most before the time is looked at again: clocks are set, and machines are halted.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Within such a part of its life, and this long at most, a node asks anew when a rotation of the authority says so: all of them hear of
/// it at once.
const SPREAD: (u32, Duration) = (10, Duration::from_secs(600));

/// Where nodes that sign are.
pub type Signers = Arc<dyn Fn() -> Vec<SocketAddr> + Send + Sync>;

/// How a certificate is come by.
pub(super) enum Source {
    /// This node signs.
    Own { signer: Arc<Signer>, desk: Arc<Desk> },
    /// Others do; the token is for the first time.
    Others { signers: Signers, token: Option<Token> },
}

pub(super) struct Keeper {
    pub(super) node: NodeName,
    pub(super) directory: PathBuf,
    pub(super) source: Source,
    pub(super) standing: Arc<Standing>,
    pub(super) state: Arc<State>,
    /// How far the authority is rotated.
    pub(super) course: watch::Receiver<Memory>,
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error("making this node's own certificate: {0}")]
    Own(#[from] OwnError),
    #[error(
        "this node has no certificate that holds, and no join token: make one on a node that signs (`plexus join-token \
         create`), and start the agent with `--join TOKEN`"
    )]
    NoToken,
    #[error("no node that signs is known yet: the store lists none, and identity.signers is not set")]
    NoSigner,
    #[error("asking {address} for a certificate: {error}")]
    Ask { address: SocketAddr, error: JoinError },
}

impl Keeper {
    /// Does not end.
    pub(super) async fn run(&self) {
        let (mut backoff, mut course) = (Self::pauses(), self.course.clone());
        let mut due = self.state.certified().map(|certified| due(certified.not_before, certified.not_after));
        let mut early = self.early(&mut course);
        if let Source::Own { desk, .. } = &self.source {
            // Whoever asks is to be shown something, also where this node's own certificate holds for long.
            while let Err(error) = desk.renew().await {
                self.state.failed(&KeepError::from(error).to_string());
                tokio::time::sleep(backoff.next()).await;
            }
            backoff = Self::pauses();
        }
        loop {
            let next = [due, early].into_iter().flatten().min();
            if let Some(wait) = next.and_then(|next| next.duration_since(SystemTime::now()).ok()) {
                tokio::select! {
                    () = tokio::time::sleep(wait.min(LOOK_AGAIN)) => {}
                    Ok(()) = course.changed() => early = self.early(&mut course),
                }
                continue;
            }
            match self.renew().await {
                Ok(credentials) => {
                    due = Some(self.take(&credentials).await);
                    early = self.early(&mut course);
                    backoff = Self::pauses();
                }
                Err(error) => {
                    self.state.failed(&error.to_string());
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }

    /// When to ask anew, though the certificate holds: it, or who is believed, is not what the rotation says.
    fn early(&self, course: &mut watch::Receiver<Memory>) -> Option<SystemTime> {
        let rotation = course.borrow_and_update().rotation()?;
        let certified = self.state.certified()?;
        if self.state.report().borrow().as_ref().is_none_or(|report| rotation.is_met_by(report)) {
            return None;
        }
        let life = certified.not_after.duration_since(certified.not_before + SKEW).unwrap_or_default();
        let spread = (life / SPREAD.0).min(SPREAD.1);
        Some(SystemTime::now() + spread / 4 + random_part(spread * 3 / 4))
    }

    fn pauses() -> Backoff {
        Backoff::between(PAUSES.0, PAUSES.1)
    }

    async fn renew(&self) -> Result<Credentials, KeepError> {
        match &self.source {
            Source::Own { signer, desk } => {
                desk.renew().await?;
                Ok(signer.certify_own(&self.node).await?)
            }
            Source::Others { signers, token } => {
                let mut signers = signers();
                signers.shuffle(&mut rand::rng());
                let holds = self.state.certified().is_some_and(|known| known.not_after > SystemTime::now());
                let asked_again = match holds {
                    true => Some(self.ask_all(&signers, &Ask::Again(&self.standing)).await),
                    false => None,
                };
                match (asked_again, token) {
                    (Some(Ok(credentials)), _) => Ok(credentials),
                    // It may have been revoked, and be let in anew.
                    (_, Some(token)) => self.ask_all(&signers, &Ask::Token(token)).await,
                    (Some(Err(error)), None) => Err(error),
                    (None, None) => Err(KeepError::NoToken),
                }
            }
        }
    }

    /// Asks one after the other.
    async fn ask_all(&self, signers: &[SocketAddr], by: &Ask<'_>) -> Result<Credentials, KeepError> {
        let mut why = KeepError::NoSigner;
        for address in signers {
            match join::ask(*address, &self.node, by).await {
                Ok(credentials) => return Ok(credentials),
                Err(error) => {
                    why = KeepError::Ask { address: *address, error };
                    tracing::debug!(error = %why, "a node that signs did not help");
                }
            }
        }
        Err(why)
    }

    /// Shows it from now on, and tells when it is to be renewed.
    async fn take(&self, credentials: &Credentials) -> SystemTime {
        let saved = {
            let (credentials, directory) = (credentials.clone(), self.directory.clone());
            tokio::task::spawn_blocking(move || credentials.save(&directory)).await
        };
        if let Err(error) = saved.unwrap_or_else(|panic| Err(std::io::Error::other(panic))) {
            tracing::error!(directory = %self.directory.display(), %error, "this node's certificate cannot be kept for its next start");
        }
        match self.standing.take(credentials) {
            Ok(()) => self.state.has(credentials),
            Err(error) => self.state.failed(&error.to_string()),
        }
        due(credentials.certified.not_before, credentials.certified.not_after)
    }
}

/// At half its life, and some time more or less: who joined together does not ask together.
fn due(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    // Who makes it may be one who does not have it hold from before that, and not for long.
    let made = Some(not_before + SKEW).filter(|made| made < &not_after).unwrap_or(not_before);
    let life = not_after.duration_since(made).unwrap_or_default();
    made + life * 9 / 20 + random_part(life / 10)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn it_is_renewed_around_half_its_life() {
        let made = UNIX_EPOCH + Duration::from_secs(1_000_000);
        for life in [60, 86_400].map(Duration::from_secs) {
            for _ in 0..50 {
                let part = due(made - SKEW, made + life).duration_since(made).unwrap().as_secs_f64()
                    / life.as_secs_f64();
                assert!((0.45..=0.55).contains(&part), "{part}");
            }
        }
        assert_eq!(due(made, made), made);
        let short = due(made, made + SKEW / 2).duration_since(made).unwrap();
        assert!((SKEW * 9 / 40..=SKEW * 11 / 40).contains(&short), "{short:?}");
    }
}
