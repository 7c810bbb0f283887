//! Descriptors that this process was started with: systemd's socket activation (`sd_listen_fds(3)`).
//!
//! The numbers stand in the environment and mean something only once: whoever adopts a number twice closes somebody else's
//! descriptor later. So they are taken once a process.

use std::ffi::OsString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first number after standard input, output and error (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// More than a unit file has sockets.
const MOST: RawFd = 4096;

/// A descriptor, and what the service manager calls it (`FileDescriptorName=`); empty without a name.
#[derive(Debug)]
pub(crate) struct Passed {
    pub(crate) name: String,
    pub(crate) descriptor: OwnedFd,
}

/// Takes what the service manager passed, if it passed it to this process; nothing the second time.
///
/// # Errors
/// The variables contradict themselves, or a descriptor is not there.
pub(crate) fn take_passed() -> io::Result<Vec<Passed>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let own = i64::from(rustix::process::getpid().as_raw_nonzero().get());
    let names = numbered(own, |name| std::env::var_os(name))?;
    let numbers = FIRST..;
    numbers.zip(names).map(|(number, name)| Ok(Passed { name, descriptor: adopt(number)? })).collect()
}

/// The names of the descriptors from [`FIRST`] on that are for the process `own`.
fn numbered(own: i64, variable: impl Fn(&str) -> Option<OsString>) -> io::Result<Vec<String>> {
    let wrong = |what: &str| {
        let what = format!(
            "{what}: what the service manager passed cannot be used; unset LISTEN_FDS and LISTEN_PID"
        );
        io::Error::new(io::ErrorKind::InvalidInput, what)
    };
    let number = |name: &str| -> io::Result<Option<i64>> {
        let Some(text) = variable(name) else { return Ok(None) };
        let parsed = text.to_str().and_then(|text| text.parse().ok());
        parsed.map(Some).ok_or_else(|| wrong(&format!("{name}={} is no number", text.display())))
    };
    // Set for another process, a parent of ours that left them in the environment.
    if number("LISTEN_PID")? != Some(own) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS")?.unwrap_or(0);
    let count = usize::try_from(count).ok().filter(|count| *count <= usize::try_from(MOST).unwrap_or(0));
    let count = count.ok_or_else(|| wrong("LISTEN_FDS is out of range"))?;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names: Vec<String> = names.to_string_lossy().split(':').map(str::to_owned).collect();
    names.resize(count, String::new());
    Ok(names)
}

fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes any number and touches no memory of ours; one that is not open is its error EBADF.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        let error = io::Error::last_os_error();
        let what = format!("descriptor {number}, which the service manager is to have passed: {error}");
        return Err(io::Error::new(error.kind(), what));
    }
    // SAFETY: it is open, as the call above has shown. `sd_listen_fds(3)` makes these numbers this process's to own, LISTEN_PID
    // says that they are meant for it, and `TAKEN` sees to it that no number is adopted twice. Nothing of ours owns one of them:
    // descriptors that the program opens get numbers that are free.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        numbered(7, variable).map_err(|error| error.to_string())
    }

    #[test]
    fn names_come_with_the_numbers_and_may_be_missing() {
        assert_eq!(of(&[]), Ok(vec![]));
        assert_eq!(of(&[("LISTEN_PID", "8"), ("LISTEN_FDS", "2")]), Ok(vec![]), "another process's");
        let two = [("LISTEN_PID", "7"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "dns:admin")];
        assert_eq!(of(&two), Ok(vec!["dns".to_owned(), "admin".to_owned()]));
        assert_eq!(of(&two[..2]), Ok(vec![String::new(); 2]));
    }

    #[test]
    fn what_is_no_number_is_said() {
        for (pid, count) in [("x", "1"), ("7", "-1"), ("7", "99999999"), ("7", "one")] {
            let error = of(&[("LISTEN_PID", pid), ("LISTEN_FDS", count)]).unwrap_err();
            assert!(error.contains("unset LISTEN_FDS"), "{error}");
        }
    }

    #[test]
    fn a_number_that_is_not_open_is_an_error_and_is_not_closed() {
        assert!(adopt(RawFd::MAX).is_err());
    }
}
