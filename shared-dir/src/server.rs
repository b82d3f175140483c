//! Messages in, replies out.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, Mode as FileMode, OFlags, open, statat};
use rustix::io::Errno;
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::boundary;
use crate::descriptors::{Descriptors, descriptor_path};
use crate::handles::Handles;
use crate::inodes::{Inodes, Status};
use crate::message::{self, Message};
use crate::wire::{
    InHeader, InitFlags, InitIn, InitOut, MAJOR, MINOR, MOST_ARGUMENTS, MOST_DATA, MOST_PAGES,
    OLDEST_MINOR, Opcode, OutHeader, WriteIn,
};

/// What guests may do to a shared directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Changes are refused with `EROFS`.
    ReadOnly,
    /// Whatever moat's user may.
    ReadWrite,
}

/// Why a directory cannot be shared.
#[derive(Debug, Error)]
pub enum OpenError {
    /// It is not there, or no directory, or may not be opened.
    #[error("cannot share {path}: {source}")]
    Open {
        /// What was to be shared.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It belongs to proc, sysfs or the like.
    #[error("cannot share {0}: it is an interface of the host's kernel, not a directory of files")]
    KernelInterface(PathBuf),
    /// Files cannot be opened again by their descriptors.
    #[error("cannot share directories without /proc: mount proc there")]
    NoProc,
}

/// A directory of the host that a guest uses. The crate's documentation lists what that guest can reach.
pub struct SharedDirectory {
    pub(crate) mode: Mode,
    pub(crate) inodes: Inodes,
    pub(crate) handles: Handles,
    pub(crate) descriptors: Descriptors,
    is_started: AtomicBool,
}

/// What a message asks for.
pub(crate) struct Request<'a> {
    pub header: InHeader,
    /// What of the arguments has not been read yet. File data is not among them.
    arguments: &'a [u8],
    pub message: &'a dyn Message,
}

/// What a message gets.
pub(crate) enum Reply {
    /// The header, and this behind it.
    Bytes(Vec<u8>),
    /// The header; so many bytes are behind it already.
    Data(usize),
}

/// Where a reply's data is in it.
pub(crate) const REPLY_HEADER: usize = size_of::<OutHeader>();
/// Where a WRITE's data is in it.
pub(crate) const WRITE_HEADER: usize = size_of::<InHeader>() + size_of::<WriteIn>();

impl Reply {
    pub fn none() -> Result<Self, Errno> {
        Ok(Self::Bytes(Vec::new()))
    }

    pub fn of(structure: impl IntoBytes + Immutable) -> Result<Self, Errno> {
        Ok(Self::Bytes(structure.as_bytes().to_vec()))
    }
}

impl<'a> Request<'a> {
    /// The next structure of the arguments.
    pub fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, Errno> {
        let (structure, rest) = T::read_from_prefix(self.arguments).map_err(|_| Errno::INVAL)?;
        self.arguments = rest;
        Ok(structure)
    }

    /// The next `count` bytes.
    pub fn take_bytes(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.arguments.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.arguments = rest;
        Ok(bytes)
    }

    /// The next string, whatever is in it.
    pub fn take_string(&mut self) -> Result<&'a CStr, Errno> {
        let string = CStr::from_bytes_until_nul(self.arguments).map_err(|_| Errno::INVAL)?;
        self.arguments = &self.arguments[string.count_bytes() + 1..];
        Ok(string)
    }

    /// The next string, which must be one name in a directory and lead nowhere else.
    pub fn take_name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.take_string()?;
        match name.to_bytes() {
            b"" | b"." | b".." => Err(Errno::INVAL),
            name if name.contains(&b'/') => Err(Errno::INVAL),
            name if name.len() > libc::NAME_MAX as usize => Err(Errno::NAMETOOLONG),
            _ => Ok(name),
        }
    }

    /// How many bytes the guest has room for behind the reply's header, of `wanted` that it asks for.
    pub fn room(&self, wanted: u32) -> usize {
        let room = self.message.reply_room().saturating_sub(REPLY_HEADER);
        room.min(wanted as usize).min(MOST_DATA)
    }
}

/// An errno of an I/O error; EIO where it is none, as when the guest's memory is not there.
pub(crate) fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

impl SharedDirectory {
    /// Shares the directory at `path`.
    pub fn open(path: &Path, mode: Mode, descriptors: Descriptors) -> Result<Self, OpenError> {
        let fail = |error: Errno| OpenError::Open { path: path.into(), source: error.into() };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(path, flags, FileMode::empty()).map_err(fail)?;
        let status = Status::of(&root).map_err(fail)?;
        if boundary::is_kernel_interface(root.as_fd()).map_err(fail)? {
            return Err(OpenError::KernelInterface(path.into()));
        }
        statat(CWD, descriptor_path(&root), AtFlags::empty()).map_err(|_| OpenError::NoProc)?;
        ignore_file_size_signal();
        Ok(Self {
            mode,
            inodes: Inodes::new(root, &status, descriptors.clone()),
            handles: Handles::default(),
            descriptors,
            is_started: AtomicBool::new(false),
        })
    }

    /// Forgets the guest: as new. For a device that is reset.
    pub fn reset(&self) {
        self.is_started.store(false, Ordering::Release);
        self.handles.remove_all();
        self.inodes.forget_all();
    }

    /// Answers one message. Gives how many bytes of the reply were written: 0 if there is none.
    ///
    /// May take as long as the host's file system does.
    pub fn handle(&self, message: &dyn Message) -> usize {
        let length = size_of::<InHeader>();
        // Without a header there is nothing to reply to.
        if message.request_length() < length {
            return 0;
        }
        let Ok(bytes) = message::read(message, 0, length) else { return 0 };
        let Ok(header) = InHeader::read_from_bytes(&bytes) else { return 0 };
        let opcode = Opcode::try_from(header.opcode);
        let reply = opcode.and_then(|opcode| self.answer(opcode, header, message));
        if opcode.is_ok_and(Opcode::is_one_way) {
            return 0;
        }
        send(message, header.unique, reply)
    }

    fn answer(
        &self,
        opcode: Opcode,
        header: InHeader,
        message: &dyn Message,
    ) -> Result<Reply, Errno> {
        let start = size_of::<InHeader>();
        let length = header.len as usize;
        if length > message.request_length() || length < start {
            return Err(Errno::INVAL);
        }
        let arguments = match opcode {
            Opcode::Write => WRITE_HEADER.min(length) - start,
            _ => length - start,
        };
        if arguments > MOST_ARGUMENTS {
            return Err(Errno::TOOBIG);
        }
        let arguments = message::read(message, start, arguments).map_err(errno)?;
        let mut request = Request { header, arguments: &arguments, message };
        if opcode == Opcode::Init {
            return self.init(&mut request);
        }
        if !self.is_started.load(Ordering::Acquire) {
            return Err(Errno::IO);
        }
        if opcode.is_change() {
            self.check_writable()?;
        }
        self.dispatch(opcode, &mut request)
    }

    fn dispatch(&self, opcode: Opcode, request: &mut Request<'_>) -> Result<Reply, Errno> {
        match opcode {
            Opcode::Init => self.init(request),
            Opcode::Destroy => {
                self.reset();
                Reply::none()
            }
            Opcode::Lookup => self.lookup(request),
            Opcode::Forget => self.forget(request),
            Opcode::BatchForget => self.batch_forget(request),
            Opcode::GetAttr => self.get_attributes(request),
            Opcode::SetAttr => self.set_attributes(request),
            Opcode::Statfs => self.statfs(request),
            Opcode::ReadLink => self.read_link(request),
            Opcode::Symlink => self.symlink(request),
            Opcode::Mknod => self.mknod(request),
            Opcode::Mkdir => self.mkdir(request),
            Opcode::Unlink => self.unlink(request, AtFlags::empty()),
            Opcode::Rmdir => self.unlink(request, AtFlags::REMOVEDIR),
            Opcode::Rename => self.rename(request),
            Opcode::Rename2 => self.rename2(request),
            Opcode::Link => self.link(request),
            Opcode::Open => self.open_file(request),
            Opcode::Create => self.create(request),
            Opcode::Read => self.read(request),
            Opcode::Write => self.write(request),
            Opcode::Release | Opcode::ReleaseDir => self.release(request),
            Opcode::Fsync => self.fsync(request, false),
            Opcode::Lseek => self.lseek(request),
            Opcode::Fallocate => self.fallocate(request),
            Opcode::CopyFileRange => self.copy_file_range(request),
            Opcode::OpenDir => self.open_directory(request),
            Opcode::ReadDir => self.read_directory(request, false),
            Opcode::ReadDirPlus => self.read_directory(request, true),
            Opcode::FsyncDir => self.fsync(request, true),
            Opcode::GetXattr => self.get_extended_attribute(request),
            Opcode::ListXattr => self.list_extended_attributes(request),
            Opcode::SetXattr => self.set_extended_attribute(request),
            Opcode::RemoveXattr => self.remove_extended_attribute(request),
        }
    }

    /// FUSE_INIT: the first message, and an error later.
    fn init(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let InitIn { major, minor, max_readahead, flags } = request.take()?;
        let ours = InitOut { major: MAJOR, minor: MINOR, ..InitOut::default() };
        if major > MAJOR {
            // The guest tries again with our version.
            return Reply::of(ours);
        }
        if major < MAJOR || minor < OLDEST_MINOR {
            return Err(Errno::PROTO);
        }
        if self.is_started.swap(true, Ordering::AcqRel) {
            return Err(Errno::IO);
        }
        Reply::of(InitOut {
            minor: minor.min(MINOR),
            max_readahead,
            flags: InitFlags::from_bits_truncate(flags).bits(),
            max_write: MOST_DATA as u32,
            max_pages: MOST_PAGES,
            time_gran: 1,
            ..ours
        })
    }

    /// `EROFS` for a share that guests may not change.
    pub(crate) fn check_writable(&self) -> Result<(), Errno> {
        match self.mode {
            Mode::ReadOnly => Err(Errno::ROFS),
            Mode::ReadWrite => Ok(()),
        }
    }
}

/// A file that grows beyond RLIMIT_FSIZE is to be `EFBIG` for the guest, not the end of this process.
fn ignore_file_size_signal() {
    // SAFETY: with SIG_IGN no code of ours runs, and nothing else in this process sets a handler for
    // SIGXFSZ.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Writes the reply to the message that the guest calls `unique`.
fn send(message: &dyn Message, unique: u64, reply: Result<Reply, Errno>) -> usize {
    let room = message.reply_room().saturating_sub(REPLY_HEADER);
    let (error, bytes, data) = match reply {
        Ok(Reply::Bytes(bytes)) if bytes.len() <= room => (0, bytes, 0),
        Ok(Reply::Data(length)) => (0, Vec::new(), length),
        Ok(Reply::Bytes(_)) => (Errno::IO.raw_os_error(), Vec::new(), 0),
        Err(error) => (error.raw_os_error(), Vec::new(), 0),
    };
    let length = REPLY_HEADER + bytes.len() + data;
    let header = OutHeader { len: length as u32, error: -error, unique };
    let mut reply = header.as_bytes().to_vec();
    reply.extend(bytes);
    match message::write(message, 0, &reply) {
        Ok(()) => length,
        // The reply has no room even for an error, or its memory is gone.
        Err(_) => 0,
    }
}
