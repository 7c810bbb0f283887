//! Programs in the kernel, and the hash maps that they read (bpf(2)), as far as the overlay needs them.
//!
//! A program stays in the kernel for as long as something refers to it, and so do its maps: a descriptor, or a link that it is at.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `BPF_PROG_TYPE_SCHED_CLS`.
const CLASSIFIER: u32 = 3;
/// `BPF_MAP_TYPE_HASH`.
const HASH: u32 = 1;
/// `BPF_F_NO_PREALLOC`: entries take memory once they are there.
const NO_PREALLOC: u32 = 1;
/// Nothing that the programs call asks for another one.
const LICENSE: &CStr = c"Apache-2.0";
/// What the kernel may say of a program that it does not take.
const LONGEST_LOG: usize = 64 * 1024;

/// The commands (`enum bpf_cmd`).
#[derive(Debug, Clone, Copy)]
enum Command {
    MapCreate = 0,
    MapUpdate = 2,
    MapDelete = 3,
    ProgramLoad = 5,
    #[cfg(test)]
    ProgramTestRun = 10,
    ObjectInfo = 15,
}

/// One instruction, or one half of one with 64 bits of immediate (`struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    /// Registers have numbers up to 15.
    pub(crate) const fn new(code: u8, (to, from): (u8, u8), offset: i16, immediate: i32) -> Self {
        // The two are a bit field.
        let registers =
            if cfg!(target_endian = "little") { from << 4 | to & 0xf } else { to << 4 | from & 0xf };
        Self { code, registers, offset, immediate }
    }

    /// The same with another offset.
    pub(crate) const fn with_offset(self, offset: i16) -> Self {
        Self { offset, ..self }
    }
}

/// From keys of `K` bytes to values of `V` bytes.
#[derive(Debug)]
pub(crate) struct Map<const K: usize, const V: usize>(OwnedFd);

impl<const K: usize, const V: usize> Map<K, V> {
    /// An empty one for so many entries.
    pub(crate) fn new(most: u32) -> io::Result<Self> {
        let (key_size, value_size) = (length(K)?, length(V)?);
        let wanted =
            MapCreate { map_type: HASH, key_size, value_size, max_entries: most, map_flags: NO_PREALLOC };
        // SAFETY: the command is about `wanted` alone.
        unsafe { call(Command::MapCreate, wanted) }.map(|(number, _)| Self(adopt(number)))
    }

    /// The value of a key is that from now on.
    pub(crate) fn set(&self, key: &[u8; K], value: &[u8; V]) -> io::Result<()> {
        self.change(Command::MapUpdate, key, value.as_ptr() as u64)
    }

    /// Removes a key; one that is not there is no error.
    pub(crate) fn remove(&self, key: &[u8; K]) -> io::Result<()> {
        match self.change(Command::MapDelete, key, 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// `value`: where one is read from, or nothing.
    fn change(&self, command: Command, key: &[u8; K], value: u64) -> io::Result<()> {
        let change = MapChange { map: self.number(), padding: 0, key: key.as_ptr() as u64, value, flags: 0 };
        // SAFETY: the kernel reads K bytes of `key` and V bytes of the value, the sizes that the map was made with; both are
        // borrowed through the call.
        unsafe { call(command, change) }.map(drop)
    }

    /// What a program calls it by.
    pub(crate) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A program that decides on packets.
#[derive(Debug)]
pub(crate) struct Classifier(OwnedFd);

impl Classifier {
    /// Has the kernel check and take it.
    ///
    /// # Errors
    /// The kernel says what it does not take.
    pub(crate) fn load(instructions: &[Instruction]) -> io::Result<Self> {
        let error = match Self::load_with(instructions, &mut []) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EINVAL)) => error,
            done => return done,
        };
        let mut log = vec![0; LONGEST_LOG];
        Self::load_with(instructions, &mut log).map_err(|_| {
            let said = String::from_utf8_lossy(&log);
            let last = said.trim_end_matches('\0').lines().rev().take(3).collect::<Vec<_>>();
            io::Error::new(error.kind(), format!("{error}: {}", last.join("; ")))
        })
    }

    fn load_with(instructions: &[Instruction], log: &mut [u8]) -> io::Result<Self> {
        let wanted = ProgramLoad {
            program_type: CLASSIFIER,
            instructions_count: length(instructions.len())?,
            instructions: instructions.as_ptr() as u64,
            license: LICENSE.as_ptr() as u64,
            log_level: u32::from(!log.is_empty()),
            log_size: length(log.len())?,
            log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        };
        // SAFETY: the kernel reads `instructions_count` instructions and the license up to its zero, and writes at most `log_size`
        // bytes of the log; all of them are borrowed through the call.
        unsafe { call(Command::ProgramLoad, wanted) }.map(|(number, _)| Self(adopt(number)))
    }

    /// Its number among all programs of this host.
    pub(crate) fn id(&self) -> io::Result<u32> {
        let mut info = ProgramInfo::default();
        let asked = ObjectInfo {
            object: self.0.as_raw_fd(),
            info_size: length(size_of::<ProgramInfo>())?,
            info: (&raw mut info) as u64,
        };
        // SAFETY: the kernel writes at most `info_size` bytes to `info`, which lives through the call.
        unsafe { call(Command::ObjectInfo, asked) }?;
        Ok(info.id)
    }

    /// What netlink calls it by.
    pub(crate) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// What it decides on a frame, and the frame after that.
    #[cfg(test)]
    pub(crate) fn run(&self, frame: &[u8]) -> io::Result<(i32, Vec<u8>)> {
        let mut after = vec![0; frame.len() + 256];
        let run = TestRun {
            program: self.0.as_raw_fd(),
            decided: 0,
            frame_size: length(frame.len())?,
            after_size: length(after.len())?,
            frame: frame.as_ptr() as u64,
            after: after.as_mut_ptr() as u64,
            repeat: 1,
            rest: [0; 11],
        };
        // SAFETY: the kernel reads `frame_size` bytes of the frame, and writes at most `after_size` bytes of
        // `after`, both of which are borrowed through the call.
        let (_, run) = unsafe { call(Command::ProgramTestRun, run) }?;
        after.truncate(run.after_size as usize);
        Ok((run.decided, after))
    }
}

/// Of `union bpf_attr`, what is said when a map is made.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// Of an entry.
#[repr(C)]
struct MapChange {
    map: RawFd,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Of a program.
#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instructions_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// Of what is asked of an object.
#[repr(C)]
struct ObjectInfo {
    object: RawFd,
    info_size: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    program_type: u32,
    id: u32,
}

/// Of a trial.
#[cfg(test)]
#[repr(C)]
struct TestRun {
    program: RawFd,
    decided: i32,
    frame_size: u32,
    after_size: u32,
    frame: u64,
    after: u64,
    repeat: u32,
    rest: [u32; 11],
}

/// # Safety
/// What `attributes` says of memory holds through the call.
unsafe fn call<T>(command: Command, mut attributes: T) -> io::Result<(RawFd, T)> {
    let size = length(size_of::<T>())?;
    // SAFETY: the kernel reads and writes at most `size` bytes of `attributes`, which are this function's own; the rest is the
    // caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_int, &raw mut attributes, size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((RawFd::try_from(result).map_err(io::Error::other)?, attributes))
}

/// A descriptor that a command has made.
fn adopt(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just opened it for this process, and closes it on exec by itself; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

fn length(of: usize) -> io::Result<u32> {
    u32::try_from(of).map_err(io::Error::other)
}
