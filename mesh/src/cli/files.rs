//! Files of other programs, replaced whole: whoever reads one meanwhile sees all of it or what was there before.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Makes `file` have this text. Tells whether it had not.
pub(super) fn write(file: &Path, text: &str) -> io::Result<bool> {
    if std::fs::read(file).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(false);
    }
    let beside = beside(file)?;
    remove_leftover(&beside)?;
    let mut new = std::fs::File::create_new(&beside)?;
    new.write_all(text.as_bytes())?;
    new.sync_all()?;
    std::fs::rename(&beside, file).map(|()| true)
}

/// A name beside another one, in a directory that is made; no program reads what ends so.
pub(super) fn beside(path: &Path) -> io::Result<PathBuf> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    Ok(name.into())
}

pub(super) fn remove_leftover(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
