//! Files that are replaced whole, so that nobody ever reads half of one, not even after a power failure; and bounded.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;

/// Writes beside, synchronises and renames; only we may read it. Blocks.
pub(crate) fn write(file: &Path, most: u64, content: &impl Serialize) -> io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let beside = file.with_extension("tmp");
    let out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    write_to(&out, most, content)?;
    out.sync_all()?;
    fs::rename(&beside, file)?;
    // The rename is on disk when its directory is.
    File::open(directory)?.sync_all()
}

/// Writes it as JSON, unless it is larger than that.
pub(crate) fn write_to(out: impl Write, most: u64, content: &impl Serialize) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(256 * 1024, Bounded { out, left: most, most });
    serde_json::to_writer(&mut out, content)?;
    out.flush()
}

/// Reads all of it, unless it is larger than that. Blocks.
pub(crate) fn read(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_from(&mut File::open(file)?, most)
}

/// As [`read`], from where an open file stands.
pub(crate) fn read_from(file: &mut File, most: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(most + 1).read_to_end(&mut text)?;
    if text.len() as u64 > most {
        return Err(io::Error::other(format!("it is larger than the {most} bytes that are allowed")));
    }
    Ok(text)
}

/// Writes and refuses to grow.
struct Bounded<W> {
    out: W,
    left: u64,
    most: u64,
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.left = self.left.checked_sub(written as u64).ok_or_else(|| {
            io::Error::other(format!("it is larger than the {} bytes that are saved", self.most))
        })?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_too_large_is_not_written() {
        let mut out = Bounded { out: Vec::new(), left: 4, most: 4 };
        assert!(out.write_all(b"1234").is_ok() && out.write_all(b"5").is_err());
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.json");
        write(&file, 5, &"abc").unwrap();
        assert!(write(&file, 4, &"def").is_err());
        assert_eq!(read(&file, 5).unwrap(), b"\"abc\"");
        assert!(read(&file, 4).is_err());
    }
}
