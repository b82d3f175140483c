//! The kinds of host memory that guest memory can use, and how each is returned to the host.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::warn;
use rustix::fs::{FallocateFlags, MemfdFlags, SeekFrom, StatFs};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The kind of host memory that guest memory uses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Backing {
    /// Private anonymous memory.
    #[default]
    Anonymous,
    /// A memfd, which can be shared with other processes.
    Memfd,
    /// Huge pages of 2 MiB from the host's pool. They are always allocated when they are plugged: if the pool
    /// were empty at the guest's first access, the machine would end.
    #[serde(rename = "hugetlb-2m")]
    Hugetlb2M,
    /// The same with pages of 1 GiB.
    #[serde(rename = "hugetlb-1g")]
    Hugetlb1G,
    /// A file, shared with other processes that map it. It is created if it does not exist; if it does, it
    /// must hold no data. It is emptied when the machine ends.
    File(#[schemars(extend("format" = "path"))] PathBuf),
}

/// The sizes of x86's huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePageSize {
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl HugePageSize {
    /// Bytes in a page.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Size2M => 2 << 20,
            Self::Size1G => 1 << 30,
        }
    }
}

impl fmt::Display for HugePageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size2M => "2M",
            Self::Size1G => "1G",
        })
    }
}

/// Why a backing cannot be used.
#[derive(Debug, Error)]
pub enum BackingError {
    /// A memfd cannot be created.
    #[error("cannot create a memfd: {0}")]
    Memfd(io::Error),
    /// The host does not support huge pages of this size.
    #[error("this host has no huge pages of {size}: {source}")]
    Hugetlb {
        /// The size.
        size: HugePageSize,
        /// The host's error.
        source: io::Error,
    },
    /// The file cannot be opened, created or resized.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The path is not a regular file.
    #[error("{} is not a regular file; guest memory needs one, or a path where one can be created", .0.display())]
    NotAFile(PathBuf),
    /// The file holds data, which would be lost.
    #[error(
        "{} holds data, which guest memory would overwrite; remove it, or give another path",
        .0.display()
    )]
    HoldsData(PathBuf),
    /// The file backs memory of another device or machine.
    #[error("{} is in use as memory of another device or machine", .0.display())]
    InUse(PathBuf),
    /// Memory could be plugged, but never returned to the host.
    #[error(
        "{}: its file system cannot punch holes into files ({source}), which unplugging needs; ext4, \
         xfs, tmpfs and hugetlbfs can",
        path.display()
    )]
    NoHoles {
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The file cannot be emptied, and a machine that restarts would find its old memory.
    #[error("cannot empty the file of guest memory for a restart: {0}")]
    Reuse(io::Error),
}

/// Bytes in an ordinary page.
const PAGE: u64 = 4096;

impl Backing {
    /// Bytes in a page of this backing: the smallest unit that can be returned to the host.
    pub fn page_size(&self) -> u64 {
        match self {
            Self::Anonymous | Self::Memfd => PAGE,
            Self::Hugetlb2M => HugePageSize::Size2M.bytes(),
            Self::Hugetlb1G => HugePageSize::Size1G.bytes(),
            Self::File(path) => file_system(path)
                .filter(|file_system| file_system.f_type == libc::HUGETLBFS_MAGIC)
                .map_or(PAGE, |file_system| file_system.f_bsize as u64),
        }
    }

    /// Whether it obeys a NUMA policy. Pages of a file on disk are in the page cache, which does not
    /// (mbind(2)).
    pub(super) fn obeys_memory_policy(&self) -> bool {
        match self {
            Self::Anonymous | Self::Memfd | Self::Hugetlb2M | Self::Hugetlb1G => true,
            Self::File(path) => file_system(path).is_some_and(|file_system| {
                [libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC].contains(&file_system.f_type)
            }),
        }
    }

    /// Opens a file for `size` bytes. None if this backing has no file.
    fn open(&self, size: u64) -> Result<Option<MemoryFile>, BackingError> {
        let (file, persists) = match self {
            Self::Anonymous => return Ok(None),
            Self::Memfd => (memfd(MemfdFlags::empty(), size).map_err(BackingError::Memfd)?, false),
            Self::Hugetlb2M => (hugetlb_memfd(HugePageSize::Size2M, size)?, false),
            Self::Hugetlb1G => (hugetlb_memfd(HugePageSize::Size1G, size)?, false),
            Self::File(path) => (open_file(path, size)?, true),
        };
        Ok(Some(MemoryFile { file: Arc::new(file), persists, size }))
    }
}

/// A file that backs guest memory.
#[derive(Debug)]
pub struct MemoryFile {
    file: Arc<File>,
    /// Whether it still exists after its machine has ended.
    persists: bool,
    size: u64,
}

/// Keeps the file of guest memory open, so that a machine that restarts uses the same file, whatever is at
/// its path by then.
#[derive(Debug, Default)]
pub struct KeptFile(Option<Arc<MemoryFile>>);

impl KeptFile {
    /// Returns the file, of `size` bytes and empty; opens it at the first call. None if `backing` has no file.
    pub(super) fn open(
        &mut self,
        backing: &Backing,
        size: u64,
    ) -> Result<Option<Arc<MemoryFile>>, BackingError> {
        match &self.0 {
            Some(file) => file.punch_hole(0..file.size).map_err(BackingError::Reuse)?,
            None => self.0 = backing.open(size)?.map(Arc::new),
        }
        Ok(self.0.clone())
    }
}

impl MemoryFile {
    /// The file, to map it.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Frees the memory of `offsets`. Unmapping or MADV_DONTNEED would leave it in the file.
    pub fn punch_hole(&self, offsets: Range<u64>) -> io::Result<()> {
        punch_hole(&self.file, offsets)
    }
}

impl Drop for MemoryFile {
    /// Empties a file that still exists, so that it can be used for the next machine. All threads that access
    /// the memory have ended.
    fn drop(&mut self) {
        if self.persists
            && let Err(error) = self.file.set_len(0)
        {
            warn!("cannot empty the file of guest memory: {error}");
        }
    }
}

fn punch_hole(file: &File, offsets: Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, offsets.start, offsets.end - offsets.start)?)
}

fn memfd(flags: MemfdFlags, size: u64) -> io::Result<File> {
    let file = rustix::fs::memfd_create(c"moat-guest-memory", flags | MemfdFlags::CLOEXEC)?;
    let file = File::from(file);
    file.set_len(size)?;
    Ok(file)
}

fn hugetlb_memfd(page_size: HugePageSize, size: u64) -> Result<File, BackingError> {
    let flag = match page_size {
        HugePageSize::Size2M => MemfdFlags::HUGE_2MB,
        HugePageSize::Size1G => MemfdFlags::HUGE_1GB,
    };
    memfd(MemfdFlags::HUGETLB | flag, size)
        .map_err(|source| BackingError::Hugetlb { size: page_size, source })
}

/// Opens an empty file of `size` bytes. A file that holds data is refused, since unplugging would erase it.
fn open_file(path: &Path, size: u64) -> Result<File, BackingError> {
    let file_error = |source| BackingError::File { path: path.into(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(file_error)?;
    if !file.metadata().map_err(file_error)?.is_file() {
        return Err(BackingError::NotAFile(path.into()));
    }
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => BackingError::InUse(path.into()),
        TryLockError::Error(source) => file_error(source),
    })?;
    match rustix::fs::seek(&file, SeekFrom::Data(0)) {
        Err(Errno::NXIO) => {}
        Ok(_) => return Err(BackingError::HoldsData(path.into())),
        Err(error) => return Err(file_error(error.into())),
    }
    file.set_len(size).map_err(file_error)?;
    punch_hole(&file, 0..size)
        .map_err(|source| BackingError::NoHoles { path: path.into(), source })?;
    Ok(file)
}

/// The file system of an existing file, or of its directory.
fn file_system(path: &Path) -> Option<StatFs> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    rustix::fs::statfs(path)
        .or_else(|_| rustix::fs::statfs(directory.unwrap_or(Path::new("."))))
        .ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn c1_each_backing_has_its_page_size() {
        assert_eq!(Backing::Memfd.page_size(), 4096);
        assert_eq!(Backing::Hugetlb2M.page_size(), 2 << 20);
        assert_eq!(Backing::Hugetlb1G.page_size(), 1 << 30);
        assert_eq!(Backing::File("not/there/yet".into()).page_size(), 4096);
    }

    #[test]
    fn a_file_is_created_or_must_be_empty_and_is_used_once() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("memory");
        let open = |path: &Path| Backing::File(path.into()).open(1 << 20);
        let file = open(&path).unwrap().unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (1 << 20, 0o600));
        assert!(matches!(open(&path), Err(BackingError::InUse(_))));
        fs::write(&path, "what the guest has left").unwrap();
        drop(file);
        // It has been emptied.
        drop(open(&path).unwrap());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(open(&path), Err(BackingError::HoldsData(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert!(matches!(open(Path::new("/dev/null")), Err(BackingError::NotAFile(_))));
        let message = open(&path.join("below")).unwrap_err().to_string();
        assert!(message.contains("memory/below"), "{message}");
    }
}
