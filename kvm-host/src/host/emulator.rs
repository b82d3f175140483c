//! QEMU, and how this process ends with it.

use std::{
    ffi::OsString,
    io::{self, PipeReader, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{self, Child, Command},
    sync::{Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use agent_protocol::End;
use anyhow::Context;
use rustix::{
    process::{Pid, Signal, set_parent_process_death_signal},
    system::sysinfo,
};

use super::arch::Architecture;
use crate::HOST_FAILED;

/// How many bytes of the console an error message shows.
const CONSOLE_TAIL_BYTES: usize = 4096;

/// The most memory that the emulated host gets.
const MAX_MEMORY_MIB: u64 = 8192;

/// A running QEMU.
pub struct Emulator {
    pid: Pid,
    parts: Mutex<Parts>,
}

struct Parts {
    process: Child,
    /// Returns the end of the console's output, once QEMU has ended.
    console: Option<JoinHandle<Vec<u8>>>,
}

/// Why this process ends.
pub enum Ending {
    /// The command has ended.
    Command(End),
    /// This process got a signal.
    Signal(i32),
    /// The emulated host failed, as this predicate describes.
    Failure(String),
}

impl Emulator {
    /// Starts one; returns also the stream to the program in it. To be called by the main thread, because
    /// QEMU ends when the thread ends that started it.
    pub fn start(
        architecture: &Architecture,
        vmlinux: &Path,
        initramfs: &OwnedFd,
    ) -> anyhow::Result<(Self, UnixStream)> {
        let (channel, its_channel) = UnixStream::pair()?;
        let (console, its_console) = io::pipe()?;
        let mut command = Command::new(architecture.qemu);
        command
            .args(architecture.machine)
            .args(["-accel", "tcg,thread=multi", "-smp", "2", "-m", &memory_mib().to_string()])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-append", architecture.command_line])
            .args([OsString::from("-kernel"), vmlinux.into()])
            // Without a close-on-exec flag: QEMU has the same descriptor.
            .args(["-initrd", &format!("/proc/self/fd/{}", initramfs.as_raw_fd())])
            .args(["-fsdev", "local,id=root,path=/,security_model=none,multidevs=remap"])
            .args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"])
            .args(["-chardev", "socket,id=channel,fd=0", "-device", "virtio-serial-pci"])
            .args(["-device", "virtserialport,chardev=channel"])
            .args(["-serial", "file:/dev/stdout"])
            .stdin(OwnedFd::from(its_channel))
            .stdout(its_console.try_clone()?)
            .stderr(its_console)
            // A terminal's Ctrl-C is for this process, which then ends QEMU.
            .process_group(0);
        // SAFETY: between fork and exec the closure makes a system call and allocates nothing.
        unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
        let process =
            command.spawn().with_context(|| format!("cannot run {}", architecture.qemu))?;
        let console = Some(thread::spawn(|| console_tail(console)));
        let pid = Pid::from_child(&process);
        Ok((Self { pid, parts: Mutex::new(Parts { process, console }) }, channel))
    }

    /// QEMU's process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Ends QEMU, and this process with the message "the emulated host" and what it `did`.
    pub fn fail(&self, did: String) -> ! {
        self.end(Ending::Failure(did))
    }

    /// Ends QEMU and this process. Of several threads that call this, the first decides how: the others wait
    /// for the lock until the process is gone.
    pub fn end(&self, ending: Ending) -> ! {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        // Fails if it has ended already.
        let _ = parts.process.kill();
        let _ = parts.process.wait();
        match ending {
            Ending::Command(End::Exited(status)) => process::exit(status),
            Ending::Command(End::Killed(signal)) => process::exit(128 + signal.0),
            Ending::Signal(signal) => {
                // Returns only where that signal does not end a process.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
                process::exit(128 + signal)
            }
            Ending::Failure(did) => {
                let console = parts.console.take().and_then(|console| console.join().ok());
                let console =
                    String::from_utf8_lossy(&console.unwrap_or_default()).replace('\r', "");
                eprintln!("kvm-host: the emulated host {did}");
                for line in console.lines().filter(|line| !line.is_empty()) {
                    eprintln!("  console: {line}");
                }
                process::exit(HOST_FAILED.into())
            }
        }
    }
}

/// Half of what this machine has, up to a limit.
fn memory_mib() -> u64 {
    let system = sysinfo();
    let total = system.totalram as u64 * u64::from(system.mem_unit);
    (total >> 21).min(MAX_MEMORY_MIB)
}

/// Reads to the end and returns the last bytes.
fn console_tail(mut console: PipeReader) -> Vec<u8> {
    let (mut kept, mut chunk) = (Vec::new(), [0; CONSOLE_TAIL_BYTES]);
    while let Ok(count @ 1..) = console.read(&mut chunk) {
        kept.extend_from_slice(&chunk[..count]);
        kept.drain(..kept.len().saturating_sub(CONSOLE_TAIL_BYTES));
    }
    kept
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_end_of_the_console_is_kept() {
        let (reader, mut writer) = io::pipe().unwrap();
        let console = thread::spawn(|| console_tail(reader));
        writer.write_all(&[b'.'; 3 * CONSOLE_TAIL_BYTES]).unwrap();
        writer.write_all(b"panic").unwrap();
        drop(writer);
        let kept = console.join().unwrap();
        assert!(kept.len() == CONSOLE_TAIL_BYTES && kept.ends_with(b".panic"));
    }
}
