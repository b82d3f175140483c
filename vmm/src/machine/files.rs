//! The files of a machine, opened once: what is at a path when a machine restarts may be another file.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use thiserror::Error;

use super::control::MachineControl;
use super::error::MachineError;
use super::spec::MachineSpec;
use crate::arch::x86_64::boot::KernelFile;
use crate::memory::backing::KeptFile;
use crate::symbols::SymbolFile;

/// The files of a machine.
pub struct Files {
    /// The kernel image.
    pub kernel: KernelFile,
    /// The contents of the initramfs; empty for none.
    pub initrd: Vec<u8>,
    /// The file with the names of the kernel's functions, if there is one.
    pub symbols: Option<Arc<SymbolFile>>,
    /// The file that backs RAM, if its backing is one.
    pub ram: KeptFile,
    /// The same for the memory of each memory device.
    pub memory_devices: Vec<KeptFile>,
}

/// Why an initramfs cannot be read.
#[derive(Debug, Error)]
#[error("cannot read the initramfs {}: {reason}", path.display())]
pub struct InitrdError {
    path: PathBuf,
    reason: InitrdProblem,
}

#[derive(Debug, Error)]
enum InitrdProblem {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("it has more bytes than the machine has memory")]
    TooLarge,
    #[error("it is empty; specify none for a machine without an initramfs")]
    Empty,
}

impl Files {
    /// Opens the files that are read, and reads the initramfs unless its contents are `initrd`. The files that back memory are opened later,
    /// once its sizes have been checked.
    pub fn open(
        spec: &MachineSpec,
        initrd: Option<Vec<u8>>,
        control: &MachineControl,
    ) -> Result<Self, MachineError> {
        let kernel = KernelFile::open(&spec.kernel)?;
        let symbols = spec.symbols.as_deref().map(SymbolFile::open).transpose()?;
        let initrd = match (initrd, &spec.initrd) {
            (Some(initrd), _) => Some(initrd),
            (None, None) => Some(Vec::new()),
            (None, Some(path)) => read_initrd(path, spec.memory.0, || control.is_stopped())
                .map_err(|reason| InitrdError { path: path.clone(), reason })?,
        };
        Ok(Self {
            kernel,
            initrd: initrd.ok_or(MachineError::Stopped)?,
            symbols: symbols.map(Arc::new),
            ram: KeptFile::default(),
            memory_devices: spec.virtio_mem.iter().map(|_| KeptFile::default()).collect(),
        })
    }
}

/// Reads an initramfs of at most `memory` bytes, which may be a slow pipe. None if `is_stopped` returns true
/// before all of it is read.
fn read_initrd(
    path: &Path,
    memory: u64,
    is_stopped: impl Fn() -> bool,
) -> Result<Option<Vec<u8>>, InitrdProblem> {
    /// Bytes read at a time.
    const LONGEST: usize = 1 << 20;
    /// How often `is_stopped` is called: a stop does not wake a thread that waits for a file.
    const INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    // Opening a pipe without a writer must not block: the loop below waits for one, and notices a stop.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut initrd = Vec::new();
    while !is_stopped() {
        // A pipe without a writer so far is not at its end, though `read` would return 0.
        match poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&INTERVAL)) {
            Ok(0) | Err(Errno::INTR) => continue,
            result => result.map_err(io::Error::from)?,
        };
        initrd.reserve(LONGEST);
        match rustix::io::read(&file, spare_capacity(&mut initrd)) {
            Ok(0) if initrd.is_empty() => return Err(InitrdProblem::Empty),
            Ok(0) => return Ok(Some(initrd)),
            Ok(_) if initrd.len() as u64 > memory => return Err(InitrdProblem::TooLarge),
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
    Ok(None)
}
