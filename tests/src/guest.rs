//! A guest: a machine under emulation with Debian's kernel, for stories that need of the kernel what this one lacks.
//!
//! It has this machine's files, read-only with a layer in memory over them, so what runs in it is what was built here, with the programs that
//! are installed here. A small archive in memory brings them there: `busybox`, the modules that takes, and what it is to do.
//! It ends when that has ended, and says on its console how. Without hardware's help it is some ten times slower than this machine.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::{Process, run};
use crate::program::repository;
use crate::world::World;

/// Where `tests/run` puts the kernel, as its package has it.
const KERNELS: &str = "target/test-guest";
/// What it takes to have this machine's files, and a layer over them.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
const EMULATOR: &str = "qemu-system-x86_64";
/// What the guest's last line begins with; then comes the status.
const VERDICT: &str = "THE GUEST ENDS WITH ";

/// What a guest is started from.
#[derive(Debug)]
pub struct Guest {
    kernel: PathBuf,
    /// `/lib/modules/<release>` in the package.
    modules: PathBuf,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// Of the command; `None`: the guest ended, or was ended, before it.
    pub status: Option<i32>,
    /// What was written to its console.
    pub console: String,
}

impl Guest {
    /// Finds the kernel.
    ///
    /// # Errors
    /// What there is not, in words.
    pub fn find() -> Result<Self, String> {
        let missing = crate::missing_programs(&[EMULATOR, "busybox"]);
        if !missing.is_empty() {
            return Err(format!("not installed: {}; `tests/run` as root installs it", missing.join(", ")));
        }
        let package = repository().join(KERNELS);
        let only = |directory: &str, prefix: &str| {
            let entries = fs::read_dir(package.join(directory)).into_iter().flatten().flatten();
            let mut named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
            named.next().map(|entry| entry.path())
        };
        match (only("boot", "vmlinuz-"), only("lib/modules", "")) {
            (Some(kernel), Some(modules)) => Ok(Self { kernel, modules }),
            _ => Err(format!("there is no kernel for a guest in {KERNELS}; `tests/run` as root fetches one")),
        }
    }

    /// Runs a command of the shell in a guest, with the modules of these names as if the kernel had none of them.
    ///
    /// # Panics
    /// The guest cannot be started.
    #[must_use]
    pub fn run(&self, world: &World, command: &str, without: &[&str], within: Duration) -> Ended {
        let archive = world.directory().join("guest.cpio");
        fs::write(&archive, self.archive(command, without).expect("the guest's files")).expect("an archive");
        let log = world.log("guest");
        let mut emulator = Command::new(EMULATOR);
        emulator.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2G"]);
        emulator.args(["-nographic", "-nodefaults", "-no-reboot", "-serial", "stdio", "-nic", "none"]);
        emulator.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&archive);
        emulator.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
        emulator
            .args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]);
        let mut guest = Process::start("guest", &mut emulator, &log);
        let deadline = Instant::now() + within;
        while guest.status().is_none() && Instant::now() < deadline {
            crate::pause(Duration::from_millis(100));
        }
        guest.kill();
        let console = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).replace('\r', "");
        let status =
            console.rsplit_once(VERDICT).and_then(|(_, rest)| rest.lines().next()?.trim().parse().ok());
        Ended { status, console }
    }

    /// The archive in memory that the guest starts with.
    fn archive(&self, command: &str, without: &[&str]) -> io::Result<Vec<u8>> {
        let mut archive = Archive::default();
        for directory in ["bin", "m", "proc", "sys", "dev", "host", "rw", "root", "lib", "sbin"] {
            archive.add(directory, 0o040_755, &[]);
        }
        let mut load = String::new();
        for (number, module) in self.boot_modules()?.iter().enumerate() {
            let name = format!("m/{number}.ko");
            archive.add(&name, 0o100_644, &fs::read(self.modules.join(module))?);
            let _ = writeln!(load, "insmod /{name}");
        }
        let busybox = run(&["sh", "-c", "command -v busybox"])?.ok();
        archive.add("bin/busybox", 0o100_755, &fs::read(busybox.trim())?);
        archive.add("command", 0o100_755, format!("#!/bin/sh\n{command}\n").as_bytes());
        archive.add("init", 0o100_755, self.init(&load, without).as_bytes());
        archive.add("TRAILER!!!", 0, &[]);
        Ok(archive.0)
    }

    /// The first program. The kernel's own requests for modules are answered here, whatever root others have.
    fn init(&self, load: &str, without: &[&str]) -> String {
        let release = self.modules.file_name().unwrap_or_default().to_string_lossy();
        // The kernel finds a module by what these files say.
        let left_out: String = without.iter().map(|module| format!(" -e {module}")).collect();
        let filter = if without.is_empty() { "cat".to_owned() } else { format!("grep -v{left_out}") };
        format!(
            "#!/bin/busybox sh\n\
             /bin/busybox --install -s /bin\n\
             export PATH=/bin\n\
             mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev\n\
             {load}\
             mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,ro,msize=512000 host /host\n\
             mkdir -p /lib/modules/{release}; cd /lib/modules/{release}; ln -s /host{modules}/kernel kernel\n\
             for file in dep alias symbols; do {filter} < /host{modules}/modules.$file > modules.$file; done\n\
             ln -s /bin/busybox /sbin/modprobe; cd /\n\
             mount -t tmpfs none /rw; mkdir /rw/up /rw/work\n\
             mount -t overlay -o lowerdir=/host,upperdir=/rw/up,workdir=/rw/work none /root\n\
             mount -t proc none /root/proc; mount -t sysfs none /root/sys; mount -t devtmpfs none /root/dev\n\
             mkdir -p /root/dev/pts /root/dev/shm; mount -t devpts none /root/dev/pts; mount -t tmpfs none /root/dev/shm\n\
             for directory in run tmp; do mount -t tmpfs none /root/$directory; done\n\
             mount -t cgroup2 none /root/sys/fs/cgroup; mount -t bpf none /root/sys/fs/bpf\n\
             cp /command /root/run/command; ip link set lo up\n\
             chroot /root /bin/sh /run/command < /dev/null 2>&1\n\
             echo \"{VERDICT}$?\"\n\
             poweroff -f\n",
            modules = self.modules.display(),
        )
    }

    /// The modules that it takes, each after those that it needs.
    fn boot_modules(&self) -> io::Result<Vec<String>> {
        let dependencies = fs::read_to_string(self.modules.join("modules.dep"))?;
        let mut order: Vec<String> = Vec::new();
        for module in MODULES {
            let is_it = |line: &&str| {
                line.split(':').next().is_some_and(|path| path.ends_with(&format!("/{module}.ko")))
            };
            let line = dependencies.lines().find(is_it).ok_or(io::ErrorKind::NotFound)?;
            let (own, needed) = line.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
            let needed: Vec<&str> = needed.split_whitespace().collect();
            for path in needed.into_iter().rev().chain([own]) {
                if !order.iter().any(|known| known == path) {
                    order.push(path.to_owned());
                }
            }
        }
        Ok(order)
    }
}

/// Files for the kernel's memory (`cpio`, the format `newc`).
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        let number = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let length = u32::try_from(content.len()).expect("a small file");
        let of_name = u32::try_from(name.len() + 1).expect("a short name");
        let fields = [number, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, of_name, 0];
        let header = fields.iter().fold("070701".to_owned(), |text, field| text + &format!("{field:08x}"));
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
