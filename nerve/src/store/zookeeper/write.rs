//! Writes: what happens in one step, and why nothing gets lost between a look and a write.
//!
//! ZooKeeper compares a node's *version*, which begins again with 0 when the node is deleted and created: a comparison with it
//! alone could take another's new entry for the old one. So whoever creates an entry also writes (nothing) to its directory
//! in the same transaction, and a compare-and-swap holds only while the versions of all directories above the entry are as
//! they were before it was looked at. A plain `put` of what exists touches the entry alone.
//!
//! A node belongs to a session or to nobody for as long as it lives: to move an entry it is deleted and created again, in one
//! transaction.

use std::sync::Arc;

use zookeeper_client::{
    Acls, Client, CreateMode, Error as ZkError, MultiWriteError, MultiWriteResult, MultiWriter, Stat,
};

use super::call::{Sent, read, revision};
use super::failure::Failure;
use super::link::make_root;
use super::znode;
use crate::store::{Entry, Expect, Path, Revision, Swap};

type Result<T> = std::result::Result<T, Failure>;

/// Writes one entry over one connection.
pub(super) struct Writer<'a> {
    pub(super) client: Client,
    pub(super) sent: Arc<Sent>,
    pub(super) acls: Acls<'static>,
    pub(super) prefix: &'a str,
    pub(super) path: &'a Path,
    pub(super) node: &'a str,
    /// The session that the entry is to belong to; 0 for none.
    pub(super) owner: i64,
}

/// The versions of the directories above an entry.
struct Guard<'a> {
    versions: Vec<(&'a str, i32)>,
    revision: Revision,
}

/// Why a transaction wrote nothing.
enum Refused {
    /// Something was otherwise than when it was looked at.
    Changed,
    /// A directory is missing.
    NoDirectory,
    /// There is an entry already.
    Exists,
    /// Anything else.
    Failed(Failure),
}

impl Writer<'_> {
    /// Writes, whatever stood there.
    pub(super) async fn put(&self, value: &[u8]) -> Result<Revision> {
        loop {
            let (caught_up, stat) =
                futures_util::future::join(self.client.sync(self.node), self.client.check_stat(self.node))
                    .await;
            caught_up.map_err(Failure::of)?;
            let written = match stat.map_err(Failure::of)? {
                None => self.create(value).await?,
                Some(stat) if stat.ephemeral_owner == self.owner => self.overwrite(value, &stat).await?,
                Some(stat) => self.commit(&[], |writer| self.replace(writer, value, stat.version)).await?,
            };
            if let Some(revision) = written {
                return Ok(revision);
            }
        }
    }

    /// Writes or deletes if the entry is as expected.
    pub(super) async fn swap(&self, expect: Expect, value: Option<&[u8]>) -> Result<Swap> {
        loop {
            let guard = self.guard().await?;
            let found = match &guard {
                Some(_) => self.look().await?,
                None => None,
            };
            let swapped = match (expect, found, guard) {
                (Expect::Absent, None, guard) => match value {
                    None => return Ok(Swap::Done(guard.map_or(Revision(0), |guard| guard.revision))),
                    Some(value) => self.create(value).await?,
                },
                (Expect::Unchanged(expected), Some((entry, stat)), Some(guard))
                    if entry.revision == expected =>
                {
                    self.commit(&guard.versions, |writer| match value {
                        Some(value) if stat.ephemeral_owner == self.owner => {
                            writer.add_set_data(self.node, value, Some(stat.version))
                        }
                        Some(value) => self.replace(writer, value, stat.version),
                        None => {
                            writer.add_delete(self.node, Some(stat.version))?;
                            // For its transaction's number.
                            writer.add_set_data(znode::parent(self.node), b"", None)
                        }
                    })
                    .await?
                }
                (_, found, _) => return Ok(Swap::Conflict(found.map(|(entry, _)| entry))),
            };
            if let Some(revision) = swapped {
                return Ok(Swap::Done(revision));
            }
        }
    }

    /// The directories' versions as the leader has them, or `None` where one is missing and so is the entry.
    async fn guard(&self) -> Result<Option<Guard<'_>>> {
        let directories = znode::chain(self.prefix, znode::parent(self.node));
        let caught_up = self.client.sync(self.prefix);
        let stats = directories.iter().map(|directory| self.client.check_stat(directory));
        let stats = futures_util::future::try_join_all(stats);
        let (caught_up, stats) = futures_util::future::join(caught_up, stats).await;
        caught_up.map_err(Failure::of)?;
        let stats: Option<Vec<Stat>> = stats.map_err(Failure::of)?.into_iter().collect();
        Ok(stats.map(|stats| Guard {
            revision: revision(stats.iter().map(|stat| stat.pzxid.max(stat.mzxid)).max().unwrap_or(0)),
            versions: directories.into_iter().zip(stats.iter().map(|stat| stat.version)).collect(),
        }))
    }

    async fn look(&self) -> Result<Option<(Entry, Stat)>> {
        match self.client.get_data(self.node).await {
            Ok((value, stat)) => {
                let entry = Entry { path: self.path.clone(), value, revision: revision(stat.mzxid) };
                Ok(Some((entry, stat)))
            }
            Err(ZkError::NoNode) => Ok(None),
            Err(error) => Err(Failure::of(error)),
        }
    }

    /// In place; `None` when something else stands there by now.
    async fn overwrite(&self, value: &[u8], seen: &Stat) -> Result<Option<Revision>> {
        let set = self.client.set_data(self.node, value, Some(seen.version));
        match self.sent.write(set).await {
            // Otherwise it was created anew under another session, and has our value, but not our owner.
            Ok(stat) => Ok((stat.ephemeral_owner == self.owner).then(|| revision(stat.mzxid))),
            Err(ZkError::NoNode | ZkError::BadVersion) => Ok(None),
            Err(error) => Err(Failure::of_write(error)),
        }
    }

    /// A new entry; `None` when there is one by now.
    async fn create(&self, value: &[u8]) -> Result<Option<Revision>> {
        loop {
            match self.transaction(&[], |writer| self.add_create(writer, value)).await {
                Ok(revision) => return Ok(Some(revision)),
                Err(Refused::NoDirectory) => self.make_directories().await?,
                Err(Refused::Changed | Refused::Exists) => return Ok(None),
                Err(Refused::Failed(failure)) => return Err(failure),
            }
        }
    }

    /// Each directory, from the top, unless it is there.
    async fn make_directories(&self) -> Result<()> {
        let directories = znode::chain(self.prefix, znode::parent(self.node));
        for directory in directories.into_iter().skip(1) {
            let made = self
                .transaction(&[], |writer| {
                    writer.add_create(directory, b"", &CreateMode::Container.with_acls(self.acls))?;
                    writer.add_set_data(znode::parent(directory), b"", None)
                })
                .await;
            match made {
                Ok(_) | Err(Refused::Exists) => {}
                // Somebody removed it; the caller finds out again what is missing.
                Err(Refused::NoDirectory | Refused::Changed) => {
                    let root = make_root(&self.client, self.prefix, self.acls).await;
                    return root.map(drop).map_err(Failure::of);
                }
                Err(Refused::Failed(failure)) => return Err(Failure { may_have_applied: false, ..failure }),
            }
        }
        Ok(())
    }

    fn add_create(&self, writer: &mut MultiWriter<'_>, value: &[u8]) -> std::result::Result<(), ZkError> {
        let mode = if self.owner == 0 { CreateMode::Persistent } else { CreateMode::Ephemeral };
        writer.add_create(self.node, value, &mode.with_acls(self.acls))?;
        writer.add_set_data(znode::parent(self.node), b"", None)
    }

    fn replace(
        &self,
        writer: &mut MultiWriter<'_>,
        value: &[u8],
        version: i32,
    ) -> std::result::Result<(), ZkError> {
        writer.add_delete(self.node, Some(version))?;
        self.add_create(writer, value)
    }

    /// A transaction; `None` when something has changed since it was looked at.
    async fn commit(
        &self,
        guard: &[(&str, i32)],
        operations: impl FnOnce(&mut MultiWriter<'_>) -> std::result::Result<(), ZkError>,
    ) -> Result<Option<Revision>> {
        match self.transaction(guard, operations).await {
            Ok(revision) => Ok(Some(revision)),
            Err(Refused::Changed | Refused::NoDirectory | Refused::Exists) => Ok(None),
            Err(Refused::Failed(failure)) => Err(failure),
        }
    }

    async fn transaction(
        &self,
        guard: &[(&str, i32)],
        operations: impl FnOnce(&mut MultiWriter<'_>) -> std::result::Result<(), ZkError>,
    ) -> std::result::Result<Revision, Refused> {
        let commit = {
            let mut writer = self.client.new_multi_writer();
            let built = guard
                .iter()
                .try_for_each(|(directory, version)| writer.add_check_version(directory, *version))
                .and_then(|()| operations(&mut writer));
            built.map_err(|error| Refused::Failed(Failure::of(error)))?;
            writer.commit()
        };
        match self.sent.write(commit).await {
            // Each of our transactions sets some data; every operation of it has its number.
            Ok(results) => Ok(results
                .iter()
                .find_map(|result| match result {
                    MultiWriteResult::SetData { stat } => Some(revision(stat.mzxid)),
                    _ => None,
                })
                .unwrap_or_default()),
            Err(MultiWriteError::OperationFailed { source: ZkError::BadVersion, .. }) => {
                Err(Refused::Changed)
            }
            Err(MultiWriteError::OperationFailed { source: ZkError::NoNode, .. }) => {
                Err(Refused::NoDirectory)
            }
            Err(MultiWriteError::OperationFailed { source: ZkError::NodeExists, .. }) => Err(Refused::Exists),
            Err(
                MultiWriteError::OperationFailed { source, .. } | MultiWriteError::RequestFailed { source },
            ) => Err(Refused::Failed(Failure::of_write(source))),
        }
    }
}

/// Deletes an entry, and tells whether there was one.
pub(super) async fn delete(client: &Client, sent: &Sent, node: &str) -> Result<bool> {
    match sent.write(client.delete(node, None)).await {
        Ok(()) => Ok(true),
        Err(ZkError::NoNode) => Ok(false),
        Err(error) => Err(Failure::of_write(error)),
    }
}

/// Reads an entry.
pub(super) async fn get(client: &Client, node: &str, path: &Path) -> Result<Option<Entry>> {
    read(client, node, path).await.map_err(Failure::of)
}
