//! A running guest, from the host's side: the requests that its agent takes.
//!
//! ```no_run
//! # use std::{os::unix::net::UnixStream, time::Duration};
//! # use testvm::guest::{Errno, Guest, GuestError, Observe, OpenFlags, Protection, Sharing};
//! # fn example(agent: UnixStream, plugged: u64) -> Result<(), GuestError> {
//! let guest = Guest::connect(agent, Duration::from_secs(60))?;
//! guest.load_module("virtio_mem", "")?;
//! let process = guest.spawn()?;
//! let mem = process.open("/dev/mem", OpenFlags::RDWR)?;
//! let outcome = mem.mmap(plugged, 4096, Protection::Read, Sharing::Shared).outcome()?;
//! assert!(outcome == Errno::EPERM, "mmap of a plugged page: {outcome}");
//! # Ok(())
//! # }
//! ```
//!
//! A request that the guest's kernel denies is an error; [`Observe::outcome`] turns such a denial into
//! a value, where it is what a test observes.

mod channel;
mod error;
mod event_fd;
mod iomem;
mod kernel_log;
mod meminfo;
mod outcome;
mod pci;
mod process;
mod vfio;
mod writing;

use std::{os::unix::net::UnixStream, sync::Arc, time::Duration};

use agent_protocol::{Action, Command, Power};
pub use agent_protocol::{
    End, Errno, HammerReport, IoctlReply, OpenFlags, PatternReport, Protection, Sharing, Signal,
    Width,
};

use self::channel::Channel;
pub use self::{
    error::GuestError,
    event_fd::EventFd,
    iomem::{IoMem, Resource},
    kernel_log::{Level, LogRecord},
    meminfo::MemInfo,
    outcome::{Denial, Observe, Outcome, Show},
    pci::{PciAddress, PciFunction, command_register, status_register},
    process::{File, Mapping, Polled, Polling, Process},
    vfio::{
        InContainer, Ioas, VfioContainer, VfioDevice, VfioGroup, VfioInterrupt, VfioIommu,
        VfioRegion,
    },
    writing::Writing,
};

/// How long a process in a guest waits for what is expected to come at once: enough for a slow guest.
const TIMEOUT_MILLISECONDS: u16 = 30_000;

/// A guest whose agent has sent its greeting.
#[derive(Debug)]
pub struct Guest {
    channel: Arc<Channel>,
    kernel_release: String,
    /// A process for requests that concern no other process. It keeps nothing open.
    helper: Process,
}

impl Guest {
    /// Waits for a guest that boots, at most this long, until its agent sends its greeting.
    pub fn connect(agent: UnixStream, boot: Duration) -> Result<Self, GuestError> {
        let (channel, hello) = Channel::open(agent, boot)?;
        let channel = Arc::new(channel);
        let helper = Process::spawn(&channel)?;
        Ok(Self { channel, kernel_release: hello.kernel_release, helper })
    }

    /// Waits for the guest to boot again, after [`reboot`](Self::reboot), or after
    /// [`crash`](Self::crash) with a crash kernel loaded. Its processes are gone.
    pub fn wait_to_restart(&mut self, boot: Duration) -> Result<(), GuestError> {
        self.kernel_release = self.channel.reopen(boot)?.kernel_release;
        self.helper = Process::spawn(&self.channel)?;
        Ok(())
    }

    /// How long each request may take from now on.
    pub fn set_deadline(&self, deadline: Duration) {
        self.channel.set_deadline(deadline);
    }

    /// What `uname -r` prints.
    pub fn kernel_release(&self) -> &str {
        &self.kernel_release
    }

    /// A new process, to open files and hold mappings.
    pub fn spawn(&self) -> Result<Process, GuestError> {
        Process::spawn(&self.channel)
    }

    /// Loads a module of the initramfs, after the modules that it needs. One that is built in is
    /// there already; one that is loaded is EEXIST.
    pub fn load_module(&self, name: &str, parameters: &str) -> Result<(), GuestError> {
        let (name, parameters) = (name.to_owned(), parameters.to_owned());
        self.helper.perform(Action::LoadModule { name, parameters })
    }

    /// Unloads a module; EAGAIN while it is in use.
    pub fn unload_module(&self, name: &str) -> Result<(), GuestError> {
        self.helper.perform(Action::UnloadModule(name.to_owned()))
    }

    /// Reads a whole file.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>, GuestError> {
        self.helper.read_file(path)
    }

    /// Reads a whole file of text.
    pub fn read_text(&self, path: &str) -> Result<String, GuestError> {
        self.read_file(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes a file that exists, with one write(2); gives the number of bytes written.
    pub fn write_file(&self, path: &str, data: impl AsRef<[u8]>) -> Result<u64, GuestError> {
        self.helper.write_file(path, data)
    }

    /// The names in a directory, sorted.
    pub fn list_directory(&self, path: &str) -> Result<Vec<String>, GuestError> {
        self.helper.list_directory(path)
    }

    /// Who has claimed which range of physical addresses.
    pub fn iomem(&self) -> Result<IoMem, GuestError> {
        IoMem::parse(&self.read_text("/proc/iomem")?)
    }

    /// The kernel's memory statistics.
    pub fn meminfo(&self) -> Result<MemInfo, GuestError> {
        MemInfo::parse(&self.read_text("/proc/meminfo")?)
    }

    /// The kernel's log from a sequence number on. Every byte of it crosses a serial port: ask for
    /// what is new, with [`log_end`](Self::log_end) before the thing of interest.
    pub fn kernel_log(&self, from: u64) -> Result<Vec<LogRecord>, GuestError> {
        let mut log: Vec<LogRecord> = Vec::new();
        loop {
            let from = log.last().map_or(from, |record| record.sequence + 1);
            let bytes: Vec<u8> = self.helper.perform(Action::ReadLog { from })?;
            if bytes.is_empty() {
                return Ok(log);
            }
            log.extend(kernel_log::parse(&String::from_utf8_lossy(&bytes))?);
        }
    }

    /// The sequence number that the log's next record will have.
    pub fn log_end(&self) -> Result<u64, GuestError> {
        self.helper.perform(Action::LogEnd)
    }

    /// Has the kernel start another one, from files in the initramfs, when it crashes.
    pub fn load_crash_kernel(
        &self,
        kernel: &str,
        initramfs: &str,
        command_line: &str,
    ) -> Result<(), GuestError> {
        self.helper.perform(Action::LoadCrashKernel {
            kernel: kernel.to_owned(),
            initramfs: initramfs.to_owned(),
            command_line: command_line.to_owned(),
        })
    }

    /// Writes dirty pages to disk.
    pub fn sync(&self) -> Result<(), GuestError> {
        self.helper.perform(Action::Sync)
    }

    /// Powers off.
    pub fn power_off(&self) -> Result<(), GuestError> {
        self.channel.ask(Command::Power(Power::Off))
    }

    /// Restarts the machine.
    pub fn reboot(&self) -> Result<(), GuestError> {
        self.channel.ask(Command::Power(Power::Reboot))
    }

    /// Stops without powering off.
    pub fn halt(&self) -> Result<(), GuestError> {
        self.channel.ask(Command::Power(Power::Halt))
    }

    /// Crashes the kernel.
    pub fn crash(&self) -> Result<(), GuestError> {
        self.channel.ask(Command::Power(Power::Crash))
    }
}
