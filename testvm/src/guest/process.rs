//! Processes in a guest, the files they have open and the mappings they hold.
//!
//! None of these ends when it is dropped: the checks are about what a process still holds when a
//! driver claims a device.

use std::sync::Arc;

use agent_protocol::{
    Accessor, Action, Command, FileId, HammerReport, IoctlReply, OpenFlags, PatternReport,
    PollReport, ProcessId, Protection, Sharing, Value, Width,
};

use super::{Denial, GuestError, channel::Channel, outcome::Show};

/// A process in the guest.
#[derive(Clone, Debug)]
pub struct Process {
    channel: Arc<Channel>,
    id: ProcessId,
}

/// A file that a process has open.
#[derive(Clone, Debug)]
pub struct File {
    process: Process,
    id: FileId,
}

/// A mapping that a process holds.
#[derive(Clone, Debug)]
pub struct Mapping {
    process: Process,
    address: u64,
    length: u64,
    accessor: Accessor,
}

/// A child that loads from a mapping again and again.
#[derive(Debug)]
pub struct Polling {
    process: Process,
    polled: u64,
}

/// What such a child did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polled {
    /// How many of its loads succeeded.
    pub accesses: u64,
    /// The fault that ended it, if one did.
    pub death: Option<Denial>,
}

impl Show for File {}
impl Show for Mapping {}

impl Process {
    pub(super) fn spawn(channel: &Arc<Channel>) -> Result<Self, GuestError> {
        let id: u64 = channel.ask(Command::Spawn)?;
        Ok(Self { channel: Arc::clone(channel), id: ProcessId(id as u32) })
    }

    pub(super) fn perform<T: TryFrom<Value>>(&self, action: Action) -> Result<T, GuestError> {
        self.channel.ask(Command::Perform(self.id, action))
    }

    /// open(2).
    pub fn open(&self, path: &str, flags: OpenFlags) -> Result<File, GuestError> {
        let id: u64 = self.perform(Action::Open { path: path.to_owned(), flags })?;
        Ok(File { process: self.clone(), id: FileId(id as u32) })
    }

    /// Keeps a descriptor that an ioctl has opened.
    pub fn adopt(&self, descriptor: u64) -> Result<File, GuestError> {
        let id: u64 = self.perform(Action::Adopt(descriptor as u32))?;
        Ok(File { process: self.clone(), id: FileId(id as u32) })
    }

    /// Anonymous memory.
    pub fn allocate(&self, length: u64) -> Result<Mapping, GuestError> {
        self.map(None, 0, length, Protection::ReadWrite, Sharing::Private)
    }

    /// Starts threads that write, read and compare memory of their own until they are stopped.
    pub fn start_hammer(&self, threads: u16, bytes: u64) -> Result<(), GuestError> {
        self.perform(Action::StartHammer { threads, bytes })
    }

    /// Stops them.
    pub fn stop_hammer(&self) -> Result<HammerReport, GuestError> {
        self.perform(Action::StopHammer)
    }

    /// Reads a whole file.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>, GuestError> {
        self.perform(Action::ReadFile(path.to_owned()))
    }

    /// Writes a file that exists, with one write(2); gives the number of bytes written.
    pub fn write_file(&self, path: &str, data: impl AsRef<[u8]>) -> Result<u64, GuestError> {
        let data = data.as_ref().to_vec();
        self.perform(Action::WriteFile { path: path.to_owned(), data })
    }

    /// The names in a directory, sorted.
    pub fn list_directory(&self, path: &str) -> Result<Vec<String>, GuestError> {
        self.perform(Action::ListDirectory(path.to_owned()))
    }

    /// Ends it, and with it all that it holds.
    pub fn kill(self) -> Result<(), GuestError> {
        self.channel.ask(Command::Kill(self.id))
    }

    fn map(
        &self,
        file: Option<FileId>,
        offset: u64,
        length: u64,
        protection: Protection,
        sharing: Sharing,
    ) -> Result<Mapping, GuestError> {
        let address = self.perform(Action::Map { file, offset, length, protection, sharing })?;
        Ok(Mapping { process: self.clone(), address, length, accessor: Accessor::Child })
    }
}

impl File {
    /// pread(2).
    pub fn read_at(&self, offset: u64, length: u32) -> Result<Vec<u8>, GuestError> {
        self.process.perform(Action::ReadAt { file: self.id, offset, length })
    }

    /// pwrite(2); gives the number of bytes written.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<u64, GuestError> {
        self.process.perform(Action::WriteAt { file: self.id, offset, data: data.to_vec() })
    }

    /// ioctl(2) whose argument is a number.
    pub fn ioctl(&self, request: u32, argument: u16) -> Result<u64, GuestError> {
        self.process.perform(Action::Ioctl { file: self.id, request, argument })
    }

    /// ioctl(2) whose argument points to bytes.
    pub fn exchange(
        &self,
        request: u32,
        data: impl Into<Vec<u8>>,
    ) -> Result<IoctlReply, GuestError> {
        let data = data.into();
        self.process.perform(Action::Exchange { file: self.id, request, data })
    }

    /// The number of its descriptor, for ioctls that want it.
    pub fn descriptor(&self) -> u32 {
        self.id.0
    }

    /// mmap(2).
    pub fn mmap(
        &self,
        offset: u64,
        length: u64,
        protection: Protection,
        sharing: Sharing,
    ) -> Result<Mapping, GuestError> {
        self.process.map(Some(self.id), offset, length, protection, sharing)
    }

    /// close(2). Mappings of it stay.
    pub fn close(self) -> Result<(), GuestError> {
        self.process.perform(Action::Close(self.id))
    }
}

macro_rules! accesses {
    ($($number:ty, $width:ident, $peek:ident, $poke:ident;)*) => {
        $(
            #[doc = concat!("One load of a `", stringify!($number), "`.")]
            pub fn $peek(&self, offset: u64) -> Result<$number, GuestError> {
                self.peek(offset, Width::$width).map(|value| value as $number)
            }

            #[doc = concat!("One store of a `", stringify!($number), "`.")]
            pub fn $poke(&self, offset: u64, value: $number) -> Result<(), GuestError> {
                self.poke(offset, Width::$width, value.into())
            }
        )*
    };
}

impl Mapping {
    /// Where it is in the process.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The same mapping, whose accesses are made by the process itself and not by a child forked
    /// for each: a fault then ends the process. Needed for copied pages of a private mapping of
    /// device memory, with which fork(2) fails.
    pub fn in_process(&self) -> Self {
        Self { accessor: Accessor::Process, ..self.clone() }
    }

    accesses! {
        u8, Byte, peek_u8, poke_u8;
        u16, Word, peek_u16, poke_u16;
        u32, Long, peek_u32, poke_u32;
        u64, Quad, peek_u64, poke_u64;
    }

    /// pread(2) of a file of the same process, with a part of the mapping for the buffer; gives the
    /// number of bytes read.
    pub fn read_from(
        &self,
        file: &File,
        offset: u64,
        at: u64,
        length: u32,
    ) -> Result<u64, GuestError> {
        let (file, mapping) = (file.id, self.address);
        self.process.perform(Action::ReadInto { file, offset, mapping, at, length })
    }

    /// Fills it with a pattern of addresses and the seed.
    pub fn fill(&self, seed: u64) -> Result<(), GuestError> {
        self.access(0, self.length, Action::Fill { mapping: self.address, seed })
    }

    /// Compares it with the pattern.
    pub fn verify(&self, seed: u64) -> Result<PatternReport, GuestError> {
        self.access(0, self.length, Action::Verify { mapping: self.address, seed })
    }

    /// munmap(2).
    pub fn munmap(self) -> Result<(), GuestError> {
        self.process.perform(Action::Unmap(self.address))
    }

    /// Forks a child that inherits the mapping and loads from there until it is stopped.
    pub fn start_polling(&self, offset: u64, width: Width) -> Result<Polling, GuestError> {
        let mapping = self.address;
        self.process.perform::<()>(Action::StartPolling { mapping, offset, width })?;
        Ok(Polling { process: self.process.clone(), polled: self.address + offset })
    }

    /// One load.
    pub fn peek(&self, offset: u64, width: Width) -> Result<u64, GuestError> {
        let (mapping, accessor) = (self.address, self.accessor);
        self.access(offset, width.bytes(), Action::Peek { mapping, offset, width, accessor })
    }

    fn poke(&self, offset: u64, width: Width, value: u64) -> Result<(), GuestError> {
        let (mapping, accessor) = (self.address, self.accessor);
        self.access(offset, width.bytes(), Action::Poke { mapping, offset, width, value, accessor })
    }

    /// A fault of the access itself is a denial; one elsewhere would be the agent's own.
    fn access<T: TryFrom<Value>>(
        &self,
        offset: u64,
        length: u64,
        action: Action,
    ) -> Result<T, GuestError> {
        let start = self.address.saturating_add(offset);
        let accessed = start..start.saturating_add(length);
        self.process.perform(action).map_err(|error| match error {
            GuestError::Faulted { asked, fault } if accessed.contains(&fault.address) => {
                let denial = Denial::Signal { signal: fault.signal, code: fault.code };
                GuestError::Denied { asked, denial }
            }
            error => error,
        })
    }
}

impl Polling {
    /// Stops it, if it still runs, after at least one more load.
    pub fn stop(self) -> Result<Polled, GuestError> {
        let PollReport { accesses, fault } = self.process.perform(Action::StopPolling)?;
        let death = fault.map(|fault| match fault.address == self.polled {
            true => Ok(Denial::Signal { signal: fault.signal, code: fault.code }),
            false => Err(GuestError::Faulted { asked: Action::StopPolling.to_string(), fault }),
        });
        Ok(Polled { accesses, death: death.transpose()? })
    }
}
