//! Files that only their owner may read, replaced as a whole: all of the new one or all of the old one, also when the machine stops in
//! the middle.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use zeroize::Zeroizing;

/// What is in it; `None` where there is none.
pub(super) fn read(directory: &Path, name: &str) -> io::Result<Option<Zeroizing<String>>> {
    match fs::read_to_string(directory.join(name)) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn write(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    let (path, beside) = (directory.join(name), directory.join(format!(".{name}.new")));
    // Of an earlier attempt: it may have another mode.
    if let Err(error) = fs::remove_file(&beside)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, &path)?;
    File::open(directory)?.sync_all()
}
