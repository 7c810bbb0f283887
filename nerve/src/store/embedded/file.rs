//! The embedded store's file: durable entries and a ceiling for revisions, in redb.
//!
//! Leased writes advance the revision too, and are not worth an fsync each. So revisions are reserved in blocks: the
//! file names a ceiling that no revision given out so far reaches, and a restart goes on from there.

use std::path::Path as FilePath;

use redb::{Database, DatabaseError, ReadableTable, StorageError, TableDefinition};

use super::state::{FileChange, Plan};
use crate::store::{Entry, OpenError, Path, Revision};

/// Path → revision (8 bytes, little endian), value.
const ENTRIES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("entries");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT: u64 = 1;
/// Revisions reserved at a time: a week of ten writes a second without another fsync.
const BLOCK: u64 = 1 << 23;
/// Metadata of a fleet; redb's default of 1 GiB is meant for databases.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// The open file. redb holds a lock on it for as long as this lives.
#[derive(Debug)]
pub(super) struct File {
    database: Database,
    ceiling: u64,
}

impl File {
    /// Opens or creates `path` and reads all of it.
    pub(super) fn open(path: &FilePath) -> Result<(Self, Vec<Entry>, Revision), OpenError> {
        let failed =
            |reason: String, source| OpenError::Database { file: path.display().to_string(), reason, source };
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        builder.set_repair_callback(|_| {
            tracing::warn!("the embedded store's file was not closed; it is repaired")
        });
        let database = builder.create(path).map_err(|error| failed(explain(&error), Some(error.into())))?;
        let (entries, floor) = Self::read(&database).map_err(|error| {
            let reason =
                format!("its contents cannot be read: {error}; restore it from a backup or move it away");
            failed(reason, Some(error.into()))
        })?;
        if let Some(format) = floor.format.filter(|format| *format != FORMAT) {
            let reason =
                format!("it has format {format}, this program reads {FORMAT}: use the version that wrote it");
            return Err(failed(reason, None));
        }
        let mut file = Self { database, ceiling: floor.ceiling };
        file.raise_ceiling(floor.ceiling).map_err(|error| {
            failed(format!("it cannot be written: {error}; check the disk"), Some(error.into()))
        })?;
        Ok((file, entries, Revision(floor.ceiling)))
    }

    fn read(database: &Database) -> Result<(Vec<Entry>, Floor), redb::Error> {
        let transaction = database.begin_write()?;
        let (mut entries, floor);
        {
            let meta = transaction.open_table(META)?;
            floor = Floor {
                format: meta.get("format")?.map(|value| value.value()),
                ceiling: meta.get("ceiling")?.map_or(0, |value| value.value()),
            };
            let table = transaction.open_table(ENTRIES)?;
            entries = Vec::new();
            for row in table.iter()? {
                let (path, value) = row?;
                let (revision, bytes) = value.value();
                match Path::new(path.value()) {
                    Ok(path) => {
                        entries.push(Entry { path, value: bytes.to_vec(), revision: Revision(revision) })
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the embedded store's file holds a key that is left out")
                    }
                }
            }
        }
        transaction.commit()?;
        Ok((entries, floor))
    }

    /// Must anything reach the disk before `plan` is applied?
    pub(super) fn concerns(&self, plan: &Plan) -> bool {
        plan.revision.0 >= self.ceiling || !plan.is_in_memory()
    }

    /// Writes what a plan means to the file, and returns when it is on disk.
    pub(super) fn commit(&mut self, plan: &Plan) -> Result<(), redb::Error> {
        if plan.revision.0 >= self.ceiling {
            self.raise_ceiling(plan.revision.0)?;
        }
        if plan.is_in_memory() {
            return Ok(());
        }
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(ENTRIES)?;
            for change in plan.file_changes() {
                match change {
                    FileChange::Keep(path, value) => {
                        table.insert(path, (plan.revision.0, value))?;
                    }
                    FileChange::Forget(path) => {
                        table.remove(path)?;
                    }
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn raise_ceiling(&mut self, from: u64) -> Result<(), redb::Error> {
        let ceiling = from + BLOCK;
        let transaction = self.database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert("format", FORMAT)?;
            meta.insert("ceiling", ceiling)?;
        }
        transaction.commit()?;
        self.ceiling = ceiling;
        Ok(())
    }
}

struct Floor {
    format: Option<u64>,
    ceiling: u64,
}

fn explain(error: &DatabaseError) -> String {
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
            "another process holds it: stop that one, or give each agent a file of its own".to_owned()
        }
        DatabaseError::UpgradeRequired(version) => {
            format!("it has redb's old file format {version}: use the version of this program that wrote it")
        }
        DatabaseError::Storage(StorageError::Corrupted(what)) => {
            format!("it is damaged ({what}): restore it from a backup, or move it away to start empty")
        }
        DatabaseError::Storage(StorageError::Io(error))
            if error.kind() == std::io::ErrorKind::InvalidData =>
        {
            "it is no database of this program: name another file, or move it away to start empty".to_owned()
        }
        DatabaseError::Storage(StorageError::Io(error)) => {
            format!("{error}; check that its directory exists and that this user may write there")
        }
        other => format!("{other}"),
    }
}
