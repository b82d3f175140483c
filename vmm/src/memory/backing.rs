//! What guest memory can be made of, and how each gives memory back to the host.

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

/// What a piece of guest memory is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Backing {
    /// Private anonymous memory.
    #[default]
    Anonymous,
    /// A memfd, which other processes can be given.
    Memfd,
    /// Pages of 2 MiB of the host's pool of huge pages. The pool may be used up, so they are taken when
    /// they are plugged, always: a guest that touched one that is not there would be ended.
    #[serde(rename = "hugetlb-2m")]
    Hugetlb2M,
    /// Likewise, pages of 1 GiB.
    #[serde(rename = "hugetlb-1g")]
    Hugetlb1G,
    /// A file, shared with whoever else maps it. It is made if it is not there; if it is, it holds
    /// nothing but a hole, as it does again in the end.
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

/// A backing that cannot be had.
#[derive(Debug, Error)]
pub enum BackingError {
    /// The host has no memfd to give.
    #[error("the host gives no memfd: {0}")]
    Memfd(io::Error),
    /// The host does not know pages of this size.
    #[error("this host has no huge pages of {size}: {source}")]
    Hugetlb {
        /// The size.
        size: HugePageSize,
        /// What the host said.
        source: io::Error,
    },
    /// The file cannot be opened, made or resized.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is no regular file; guest memory needs one, or a path where one can be made", .0.display())]
    NotAFile(PathBuf),
    /// What is in it would be lost.
    #[error(
        "{} holds data, which guest memory would overwrite; remove it, or give another path",
        .0.display()
    )]
    HoldsData(PathBuf),
    /// Another device's or machine's memory is in it.
    #[error("{} is in use as memory of another device or machine", .0.display())]
    InUse(PathBuf),
    /// Memory could be plugged, and never be given back.
    #[error(
        "{}: its file system cannot take memory out of a file again ({source}); ext4, xfs, tmpfs \
         and hugetlbfs can",
        path.display()
    )]
    NoHoles {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A machine that restarts would find its old memory.
    #[error("cannot empty the file of guest memory for a restart: {0}")]
    Reuse(io::Error),
}

/// Bytes in an ordinary page.
const PAGE: u64 = 4096;

impl Backing {
    /// Bytes in a page of this backing: the least that can be given back.
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

    /// Whether it obeys a NUMA policy. Pages of a file on disk come from wherever the host's cache
    /// likes (mbind(2)).
    pub(super) fn obeys_memory_policy(&self) -> bool {
        match self {
            Self::Anonymous | Self::Memfd | Self::Hugetlb2M | Self::Hugetlb1G => true,
            Self::File(path) => file_system(path).is_some_and(|file_system| {
                [libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC].contains(&file_system.f_type)
            }),
        }
    }

    /// The file that `size` bytes of it are in, if it is one.
    fn open(&self, size: u64) -> Result<Option<MemoryFile>, BackingError> {
        let (file, outlasts) = match self {
            Self::Anonymous => return Ok(None),
            Self::Memfd => (memfd(MemfdFlags::empty(), size).map_err(BackingError::Memfd)?, false),
            Self::Hugetlb2M => (hugetlb_memfd(HugePageSize::Size2M, size)?, false),
            Self::Hugetlb1G => (hugetlb_memfd(HugePageSize::Size1G, size)?, false),
            Self::File(path) => (open_file(path, size)?, true),
        };
        Ok(Some(MemoryFile { file: Arc::new(file), outlasts, size }))
    }
}

/// The file that guest memory is in.
#[derive(Debug)]
pub struct MemoryFile {
    file: Arc<File>,
    /// Whether it is there after the memory is gone.
    outlasts: bool,
    size: u64,
}

/// The file of a piece of guest memory: the same one as long as this lives, so that a machine that
/// restarts does not depend on what is at a path by then.
#[derive(Debug, Default)]
pub struct KeptFile(Option<Arc<MemoryFile>>);

impl KeptFile {
    /// A file of `size` bytes, always the same, with nothing in it. None if `backing` is no file.
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
    /// The file, to be mapped.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Takes the memory of `offsets` out of it: unlike unmapping or MADV_DONTNEED, which leave it in
    /// the file.
    pub fn punch_hole(&self, offsets: Range<u64>) -> io::Result<()> {
        punch_hole(&self.file, offsets)
    }
}

impl Drop for MemoryFile {
    /// Memory ends with its machine, and the file can be used for the next. All that runs has ended.
    fn drop(&mut self) {
        if self.outlasts
            && let Err(error) = self.file.set_len(0)
        {
            warn!("guest memory is left in its file: {error}");
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

/// A file of `size` bytes with nothing in it: unplugged memory has no contents, and whatever was
/// there would be lost.
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

/// The file system that a file is on, or will be.
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
    fn c1_pages_are_as_large_as_the_backing_has_them() {
        assert_eq!(Backing::Memfd.page_size(), 4096);
        assert_eq!(Backing::Hugetlb2M.page_size(), 2 << 20);
        assert_eq!(Backing::Hugetlb1G.page_size(), 1 << 30);
        assert_eq!(Backing::File("not/there/yet".into()).page_size(), 4096);
    }

    #[test]
    fn a_file_is_made_or_was_empty_and_belongs_to_one() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("memory");
        let open = |path: &Path| Backing::File(path.into()).open(1 << 20);
        let file = open(&path).unwrap().unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (1 << 20, 0o600));
        assert!(matches!(open(&path), Err(BackingError::InUse(_))));
        fs::write(&path, "what the guest has left").unwrap();
        drop(file);
        // It holds nothing but a hole.
        drop(open(&path).unwrap());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(open(&path), Err(BackingError::HoldsData(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert!(matches!(open(Path::new("/dev/null")), Err(BackingError::NotAFile(_))));
        let message = open(&path.join("below")).unwrap_err().to_string();
        assert!(message.contains("memory/below"), "{message}");
    }
}
