//! A file that a definition names: a password, a certificate, a token. It is read each time it is needed, so that one that is exchanged
//! is used without a word to the agent.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tokio::io::AsyncReadExt;

use crate::document::{FromValue, Mismatch, Value};

/// The longest file that is read: a certificate with its chain, a bundle of authorities.
const MAX_FILE: u64 = 1024 * 1024;

/// The absolute path of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FilePath(PathBuf);

/// A file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read {}: {error}", .file.display())]
pub struct FileError {
    file: PathBuf,
    /// What the system says.
    #[source]
    pub error: io::Error,
}

impl FilePath {
    /// `None`: the path is not absolute.
    #[must_use]
    pub fn absolute(path: PathBuf) -> Option<Self> {
        path.is_absolute().then_some(Self(path))
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What stands in it.
    pub async fn contents(&self) -> Result<Vec<u8>, FileError> {
        let read = async {
            let mut contents = Vec::new();
            let file = tokio::fs::File::open(&self.0).await?;
            file.take(MAX_FILE + 1).read_to_end(&mut contents).await?;
            if contents.len() as u64 > MAX_FILE {
                return Err(io::Error::other(format!("it has more than {MAX_FILE} bytes")));
            }
            Ok(contents)
        };
        read.await.map_err(|error| FileError { file: self.0.clone(), error })
    }

    /// Its first line, as a text: what a password or a token is.
    pub async fn first_line(&self) -> Result<String, FileError> {
        let text = String::from_utf8(self.contents().await?);
        let text =
            text.map_err(|_| FileError { file: self.0.clone(), error: io::Error::other("it is no text") })?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}

impl FromValue for FilePath {
    fn expected() -> String {
        "the absolute path of a file".to_owned()
    }

    fn from_value(value: &Value) -> Result<Self, Vec<Mismatch>> {
        let path = PathBuf::from_value(value)?;
        let wrong = || value.mismatch(format_args!("{} is not absolute", path.display()), Self::expected());
        Self::absolute(path.clone()).ok_or_else(wrong)
    }
}
