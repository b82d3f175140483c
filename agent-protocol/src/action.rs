//! What a process in the guest can do for the host.

use std::{fmt, ops::BitOr};

use serde::{Deserialize, Serialize};

use crate::FileId;

/// What a process can do. A mapping is named by its address.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// open(2); answers with the file.
    Open {
        /// What to open.
        path: String,
        /// How.
        flags: OpenFlags,
    },
    /// close(2).
    Close(FileId),
    /// pread(2); answers with the bytes, fewer at the end of the file.
    ReadAt {
        /// Where to read from.
        file: FileId,
        /// At what offset.
        offset: u64,
        /// How many bytes, at most [`MAX_DATA`](crate::MAX_DATA).
        length: u32,
    },
    /// pwrite(2); answers with the number of bytes written.
    WriteAt {
        /// Where to write to.
        file: FileId,
        /// At what offset.
        offset: u64,
        /// What to write.
        data: Vec<u8>,
    },
    /// pread(2) whose buffer is a mapping; answers with the number of bytes read.
    ReadInto {
        /// Where to read from.
        file: FileId,
        /// At what offset.
        offset: u64,
        /// The mapping to read into.
        mapping: u64,
        /// Where in the mapping.
        at: u64,
        /// How many bytes.
        length: u32,
    },
    /// ioctl(2) whose argument is a number, not a pointer; answers with the number returned.
    Ioctl {
        /// On what.
        file: FileId,
        /// Which.
        request: u32,
        /// Its argument: too small to be the address of anything.
        argument: u16,
    },
    /// ioctl(2) whose argument points to these bytes; answers with the number returned and what the
    /// bytes have become. At least a page is at the kernel's disposal.
    Exchange {
        /// On what.
        file: FileId,
        /// Which.
        request: u32,
        /// What its argument points to.
        data: Vec<u8>,
    },
    /// Keep a descriptor that an ioctl has opened; answers with the file.
    Adopt(u32),
    /// mmap(2); answers with the address.
    Map {
        /// What to map; nothing for anonymous memory.
        file: Option<FileId>,
        /// From what offset.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// For what.
        protection: Protection,
        /// Shared or private.
        sharing: Sharing,
    },
    /// munmap(2) of a whole mapping.
    Unmap(u64),
    /// One load; answers with the value.
    Peek {
        /// The mapping.
        mapping: u64,
        /// Where in it.
        offset: u64,
        /// How wide.
        width: Width,
        /// Who makes the access.
        accessor: Accessor,
    },
    /// One store.
    Poke {
        /// The mapping.
        mapping: u64,
        /// Where in it.
        offset: u64,
        /// How wide.
        width: Width,
        /// What to store; what exceeds the width is ignored.
        value: u64,
        /// Who makes the access.
        accessor: Accessor,
    },
    /// Fill a mapping with a pattern of addresses and the seed.
    Fill {
        /// The mapping.
        mapping: u64,
        /// Makes each pattern different from the one before.
        seed: u64,
    },
    /// Compare a mapping with the pattern; answers with a report.
    Verify {
        /// The mapping.
        mapping: u64,
        /// As it was filled.
        seed: u64,
    },
    /// Start threads that write, read and compare memory of their own until they are stopped.
    StartHammer {
        /// How many.
        threads: u16,
        /// How much memory each.
        bytes: u64,
    },
    /// Stop them; answers with their report.
    StopHammer,
    /// Fork a child that loads from a mapping, which it inherits, again and again until it is
    /// stopped or a fault kills it. Answered when the first load has been made.
    StartPolling {
        /// The mapping.
        mapping: u64,
        /// Where in it.
        offset: u64,
        /// How wide.
        width: Width,
    },
    /// Stop it after at least one more load; answers with its report.
    StopPolling,
    /// eventfd(2) with no events; answers with the file.
    CreateEventFd,
    /// Count one more event of an eventfd.
    Signal(FileId),
    /// Take the events that an eventfd has counted, and wait for one if there are none; answers with
    /// their number, zero if none came in time.
    TakeEvents {
        /// The eventfd.
        file: FileId,
        /// How long to wait; may be zero.
        milliseconds: u16,
    },
    /// Read a whole file; answers with its bytes.
    ReadFile(String),
    /// Write a file that exists with one write(2), as sysfs wants it; answers with the number of
    /// bytes written.
    WriteFile {
        /// Which.
        path: String,
        /// What.
        data: Vec<u8>,
    },
    /// Start to write a file as [`WriteFile`](Self::WriteFile) does, without a limit of time.
    StartWrite {
        /// Which.
        path: String,
        /// What.
        data: Vec<u8>,
    },
    /// Wait for that write(2) to end; answers with the number of bytes written, zero if it goes on.
    FinishWrite {
        /// How long to wait; may be zero.
        milliseconds: u16,
    },
    /// List a directory; answers with names.
    ListDirectory(String),
    /// Load a module of the initramfs, after the modules that it needs.
    LoadModule {
        /// Its name.
        name: String,
        /// Its parameters, as on modprobe's command line.
        parameters: String,
    },
    /// Unload a module, as rmmod does.
    UnloadModule(String),
    /// Load the kernel that a crash will start.
    LoadCrashKernel {
        /// A bzImage in the guest.
        kernel: String,
        /// Its initramfs.
        initramfs: String,
        /// Its command line.
        command_line: String,
    },
    /// The kernel's log from this sequence number on; answers with records of /dev/kmsg.
    ReadLog {
        /// The first sequence number wanted.
        from: u64,
    },
    /// The sequence number that the log's next record will have.
    LogEnd,
    /// Write dirty pages to disk.
    Sync,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { path, flags } => write!(f, "open {path} with flags {:#o}", flags.0),
            Self::Close(file) => write!(f, "close {file}"),
            Self::ReadAt { file, offset, length } => {
                write!(f, "read {length:#x} bytes at {offset:#x} of {file}")
            }
            Self::WriteAt { file, offset, data } => {
                write!(f, "write {:#x} bytes at {offset:#x} of {file}", data.len())
            }
            Self::ReadInto { file, offset, mapping, at, length } => write!(
                f,
                "read {length:#x} bytes at {offset:#x} of {file} to {at:#x} of mapping {mapping:#x}"
            ),
            Self::Ioctl { file, request, argument } => {
                write!(f, "ioctl {request:#x} of {file} with {argument:#x}")
            }
            Self::Exchange { file, request, data } => {
                write!(f, "ioctl {request:#x} of {file} with {:#x} bytes", data.len())
            }
            Self::Adopt(descriptor) => write!(f, "keep descriptor {descriptor}"),
            Self::Map { file: Some(file), offset, length, protection, sharing } => write!(
                f,
                "map {length:#x} bytes at {offset:#x} of {file}, {protection:?}, {sharing:?}"
            ),
            Self::Map { file: None, length, .. } => write!(f, "allocate {length:#x} bytes"),
            Self::Unmap(mapping) => write!(f, "unmap mapping {mapping:#x}"),
            Self::Peek { mapping, offset, width, accessor } => write!(
                f,
                "load {} bytes at {offset:#x} of mapping {mapping:#x} in {accessor}",
                width.bytes()
            ),
            Self::Poke { mapping, offset, width, value, accessor } => write!(
                f,
                "store {value:#x}, {} bytes, at {offset:#x} of mapping {mapping:#x} in {accessor}",
                width.bytes()
            ),
            Self::Fill { mapping, seed } => {
                write!(f, "fill mapping {mapping:#x} with the pattern of seed {seed}")
            }
            Self::Verify { mapping, seed } => {
                write!(f, "compare mapping {mapping:#x} with the pattern of seed {seed}")
            }
            Self::StartHammer { threads, bytes } => {
                write!(f, "hammer {bytes:#x} bytes with each of {threads} threads")
            }
            Self::StopHammer => write!(f, "stop the hammer"),
            Self::StartPolling { mapping, offset, width } => write!(
                f,
                "poll {} bytes at {offset:#x} of mapping {mapping:#x} in a child",
                width.bytes()
            ),
            Self::StopPolling => write!(f, "stop polling"),
            Self::CreateEventFd => write!(f, "create an eventfd"),
            Self::Signal(file) => write!(f, "signal {file}"),
            Self::TakeEvents { file, milliseconds } => {
                write!(f, "take events of {file}, waiting for at most {milliseconds} ms")
            }
            Self::ReadFile(path) => write!(f, "read {path}"),
            Self::WriteFile { path, data } => {
                write!(f, "write {:?} to {path}", String::from_utf8_lossy(data))
            }
            Self::StartWrite { path, data } => {
                write!(f, "start to write {:?} to {path}", String::from_utf8_lossy(data))
            }
            Self::FinishWrite { milliseconds } => {
                write!(f, "finish writing, waiting for at most {milliseconds} ms")
            }
            Self::ListDirectory(path) => write!(f, "list {path}"),
            Self::LoadModule { name, parameters } if parameters.is_empty() => {
                write!(f, "load module {name}")
            }
            Self::LoadModule { name, parameters } => {
                write!(f, "load module {name} with {parameters}")
            }
            Self::UnloadModule(name) => write!(f, "unload module {name}"),
            Self::LoadCrashKernel { kernel, .. } => write!(f, "load {kernel} for a crash"),
            Self::ReadLog { from } => write!(f, "read the kernel's log from record {from}"),
            Self::LogEnd => write!(f, "find the end of the kernel's log"),
            Self::Sync => write!(f, "sync"),
        }
    }
}

/// The flags of open(2), with Linux's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFlags(pub u32);

impl OpenFlags {
    /// Only to read.
    pub const RDONLY: Self = Self(0);
    /// Only to write.
    pub const WRONLY: Self = Self(0o1);
    /// To read and to write.
    pub const RDWR: Self = Self(0o2);
    /// Create it if it does not exist.
    pub const CREAT: Self = Self(0o100);
    /// Truncate it first.
    pub const TRUNC: Self = Self(0o1000);
    /// Fail with EAGAIN instead of waiting.
    pub const NONBLOCK: Self = Self(0o4000);
    /// For `/dev/mem`: map uncached.
    pub const SYNC: Self = Self(0o4010000);
}

impl BitOr for OpenFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a mapping may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protection {
    /// Loads.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// Who sees what is stored in a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sharing {
    /// Everyone.
    Shared,
    /// Only this process: a page is copied when it is first written.
    Private,
}

/// Which process makes a memory access, and is ended if it raises a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Accessor {
    /// A child forked for it. The process keeps running, with its mappings.
    Child,
    /// The process itself. Needed where fork(2) fails, as with copied pages of a private mapping
    /// of device memory, and where the child would get a copy of its own.
    Process,
}

impl fmt::Display for Accessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Child => "a child",
            Self::Process => "the process itself",
        })
    }
}

/// How many bytes one access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Long,
    /// 8 bytes.
    Quad,
}

impl Width {
    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Long => 4,
            Self::Quad => 8,
        }
    }
}
