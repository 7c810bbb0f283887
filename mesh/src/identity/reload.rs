//! Following the directory of the authority: a key that comes to it is used without a restart. What cannot be read leaves in force what
//! was read before.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nerve::watched::Watched;
use tokio::sync::watch;

use super::authority::AuthorityError;
use super::directory::Authorities;
use super::state::State;

/// It is read so often without any event.
const TICK: Duration = Duration::from_secs(10);

/// Does not end.
pub(super) async fn follow(
    directory: PathBuf,
    authorities: watch::Sender<Arc<Authorities>>,
    state: Arc<State>,
) {
    let inside = directory.join("root.pem");
    let mut watched = Watched::files([inside.as_path(), directory.as_path()]);
    loop {
        match load(&directory).await {
            Ok(read) => {
                state.note_files(None);
                let is_news = authorities.send_if_modified(|known| {
                    let is_news = known.fingerprints() != read.fingerprints();
                    if is_news {
                        *known = Arc::new(read);
                    }
                    is_news
                });
                if is_news {
                    let (root, next) = authorities.borrow().fingerprints();
                    tracing::info!(directory = %directory.display(), %root, ?next, "the authority's directory has changed");
                }
            }
            Err(error) => state.note_files(Some(format!(
                "the authority's directory cannot be read, and what it had before is in use: {error}"
            ))),
        }
        watched.changed(TICK).await;
    }
}

async fn load(directory: &Path) -> Result<Authorities, AuthorityError> {
    let directory = directory.to_owned();
    let loaded = tokio::task::spawn_blocking(move || Authorities::load(&directory)).await;
    loaded.unwrap_or_else(|error| Err(AuthorityError::Unusable(error.to_string())))
}
