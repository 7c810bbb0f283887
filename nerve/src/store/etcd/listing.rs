//! A listing of any size: pages at one revision.

use etcd_client::{GetOptions, KeyValue};
use tokio::time::Instant;

use super::call::{Failed, History, Repeat, Shared, unsigned};
use super::failure::Next;
use crate::store::{Entry, Path, Result, Revision};

/// Keys asked for at a time; fewer where values are large.
const PAGE: i64 = 1000;
/// The largest page taken.
const PAGE_BYTES: usize = 16 * 1024 * 1024;
/// A history that is compacted faster than it can be read once more is not one that can be listed.
const RESTARTS: u32 = 3;

impl Shared {
    /// Every entry below `directory` at one revision, and what the cluster's history was at that moment.
    pub(super) async fn listing(
        &self,
        operation: &'static str,
        directory: &Path,
    ) -> Result<(Vec<Entry>, History)> {
        let started = Instant::now();
        let mut restarts = 0;
        let result = loop {
            match self.pages(&self.directory(directory)).await {
                Err(failed) if failed.failure.next == Next::StartAnew && restarts < RESTARTS => restarts += 1,
                Err(failed) => break Err(self.error(operation, directory.as_str(), failed)),
                Ok(listing) => break Ok(listing),
            }
        };
        self.metrics.observe(operation, started.elapsed(), &result);
        result
    }

    async fn pages(&self, prefix: &str) -> std::result::Result<(Vec<Entry>, History), Failed> {
        let end = end_of(prefix);
        let mut from = prefix.as_bytes().to_vec();
        let mut limit = PAGE;
        let mut entries = Vec::new();
        let mut history: Option<History> = None;
        loop {
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(limit);
            if let Some(history) = &history {
                options = options.with_revision(i64::try_from(history.revision).unwrap_or(i64::MAX));
            }
            let page = self.attempts(Repeat::Always, |client| {
                let (from, options) = (from.clone(), options.clone());
                async move {
                    client.kv_client().max_decoding_message_size(PAGE_BYTES).get(from, Some(options)).await
                }
            });
            let mut page = match page.await {
                Ok(page) => page,
                Err(failed) if failed.failure.next == Next::AskForLess && limit > 1 => {
                    limit = (limit / 8).max(1);
                    continue;
                }
                Err(failed) => return Err(failed),
            };
            let history = *history.get_or_insert_with(|| History::of(page.header()));
            let more = page.more();
            let page = page.take_kvs();
            // The smallest key after the last one.
            let last = page.last().map(|last| [last.key(), b"\0"].concat());
            entries.extend(page.into_iter().filter_map(|entry| self.entry(entry)));
            match last {
                Some(last) if more => from = last,
                _ => return Ok((entries, history)),
            }
        }
    }

    /// An entry as read, unless its key is no path of ours.
    pub(super) fn entry(&self, read: KeyValue) -> Option<Entry> {
        let path = self.path(read.key())?;
        let revision = Revision(unsigned(read.mod_revision()));
        Some(Entry { path, value: read.into_key_value().1, revision })
    }
}

/// The end of the range of keys that start with `prefix`, which ends with a slash.
pub(super) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}
