//! Messages of linux/fuse.h, major version 7.

use bitflags::bitflags;
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The one major version.
pub const MAJOR: u32 = 7;
/// The minor version used here. Flags select features within it.
pub const MINOR: u32 = 33;
/// Linux 5.4, the first with virtio-fs.
pub const OLDEST_MINOR: u32 = 31;

/// The node ID of the share's root.
pub const ROOT: u64 = 1;

/// Bytes of file data in one message at most: what Linux uses by default with FUSE_MAX_PAGES.
pub const MOST_DATA: usize = 1 << 20;
/// [`MOST_DATA`] in pages.
pub const MOST_PAGES: u16 = (MOST_DATA / 4096) as u16;
/// Bytes of arguments that are no file data, at most: an extended attribute of 64 KiB and its name fit.
pub const MOST_ARGUMENTS: usize = 128 << 10;

/// For so long may the guest rely on names and attributes that it has seen.
pub const VALID_SECONDS: u64 = 1;

/// Structures as they are in memory: the guest's byte order is ours.
macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $(pub $field: $type,)* }
    )*};
}

structures! {
    /// fuse_in_header.
    InHeader {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        total_extlen: u16, padding: u16,
    }
    /// fuse_out_header.
    OutHeader { len: u32, error: i32, unique: u64, }
    /// fuse_init_in as before 7.36; what came later is ignored.
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    /// fuse_init_out.
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16,
        congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16,
        map_alignment: u16, flags2: u32, unused: [u32; 7],
    }
    /// fuse_attr.
    Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32,
        mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32,
        blksize: u32, flags: u32,
    }
    /// fuse_attr_out.
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
    /// fuse_entry_out.
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32, attr: Attr,
    }
    /// fuse_forget_in.
    ForgetIn { nlookup: u64, }
    /// fuse_forget_one.
    ForgetOne { nodeid: u64, nlookup: u64, }
    /// fuse_batch_forget_in.
    BatchForgetIn { count: u32, dummy: u32, }
    /// fuse_getattr_in.
    GetAttrIn { flags: u32, dummy: u32, fh: u64, }
    /// fuse_setattr_in.
    SetAttrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64,
        ctime: u64, atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32,
        uid: u32, gid: u32, unused5: u32,
    }
    /// fuse_mknod_in.
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32, }
    /// fuse_mkdir_in.
    MkdirIn { mode: u32, umask: u32, }
    /// fuse_rename_in.
    RenameIn { newdir: u64, }
    /// fuse_rename2_in.
    Rename2In { newdir: u64, flags: u32, padding: u32, }
    /// fuse_link_in.
    LinkIn { oldnodeid: u64, }
    /// fuse_open_in.
    OpenIn { flags: u32, open_flags: u32, }
    /// fuse_create_in.
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    /// fuse_open_out.
    OpenOut { fh: u64, open_flags: u32, backing_id: i32, }
    /// fuse_release_in.
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    /// fuse_read_in.
    ReadIn {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    /// fuse_write_in.
    WriteIn {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    /// fuse_write_out.
    WriteOut { size: u32, padding: u32, }
    /// fuse_statfs_out.
    StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32,
        frsize: u32, padding: u32, spare: [u32; 6],
    }
    /// fuse_fsync_in.
    FsyncIn { fh: u64, fsync_flags: u32, padding: u32, }
    /// fuse_setxattr_in without FUSE_SETXATTR_EXT.
    SetXattrIn { size: u32, flags: u32, }
    /// fuse_getxattr_in, for FUSE_GETXATTR and FUSE_LISTXATTR.
    GetXattrIn { size: u32, padding: u32, }
    /// fuse_getxattr_out.
    GetXattrOut { size: u32, padding: u32, }
    /// fuse_fallocate_in.
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    /// fuse_lseek_in.
    LseekIn { fh: u64, offset: u64, whence: u32, padding: u32, }
    /// fuse_lseek_out.
    LseekOut { offset: u64, }
    /// fuse_copy_file_range_in.
    CopyFileRangeIn {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    /// fuse_dirent without the name.
    Dirent { ino: u64, off: u64, namelen: u32, kind: u32, }
}

macro_rules! opcodes {
    ($(#[$doc:meta])* $($name:ident = $value:literal,)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Opcode { $($name,)* }

        impl TryFrom<u32> for Opcode {
            type Error = Errno;

            fn try_from(opcode: u32) -> Result<Self, Errno> {
                match opcode {
                    $($value => Ok(Self::$name),)*
                    _ => Err(Errno::NOSYS),
                }
            }
        }
    };
}

opcodes! {
    /// fuse_opcode, as far as we answer it. Others are ENOSYS, after which Linux does without them:
    /// FLUSH (what is written is written through, and has its error), ACCESS (Linux checks permissions
    /// itself), locks, IOCTL, POLL, SYNCFS, TMPFILE, STATX.
    Lookup = 1,
    Forget = 2,
    GetAttr = 3,
    SetAttr = 4,
    ReadLink = 5,
    Symlink = 6,
    Mknod = 8,
    Mkdir = 9,
    Unlink = 10,
    Rmdir = 11,
    Rename = 12,
    Link = 13,
    Open = 14,
    Read = 15,
    Write = 16,
    Statfs = 17,
    Release = 18,
    Fsync = 20,
    SetXattr = 21,
    GetXattr = 22,
    ListXattr = 23,
    RemoveXattr = 24,
    Init = 26,
    OpenDir = 27,
    ReadDir = 28,
    ReleaseDir = 29,
    FsyncDir = 30,
    Create = 35,
    Destroy = 38,
    BatchForget = 42,
    Fallocate = 43,
    ReadDirPlus = 44,
    Rename2 = 45,
    Lseek = 46,
    CopyFileRange = 47,
}

impl Opcode {
    /// Whether it always changes the file system. OPEN does only with some flags.
    pub fn is_change(self) -> bool {
        use Opcode::*;
        matches!(
            self,
            SetAttr
                | Symlink
                | Mknod
                | Mkdir
                | Unlink
                | Rmdir
                | Rename
                | Rename2
                | Link
                | Write
                | SetXattr
                | RemoveXattr
                | Create
                | Fallocate
                | CopyFileRange
        )
    }

    /// Whether it is never replied to.
    pub fn is_one_way(self) -> bool {
        matches!(self, Self::Forget | Self::BatchForget)
    }
}

bitflags! {
    /// FUSE_INIT flags that we accept where the guest offers them. The crate's documentation explains why
    /// others are missing.
    #[derive(Debug, Clone, Copy)]
    pub struct InitFlags: u32 {
        const ASYNC_READ = 1 << 0;
        /// OPEN truncates by itself: one message, and no moment between.
        const ATOMIC_O_TRUNC = 1 << 3;
        const BIG_WRITES = 1 << 5;
        /// Cached data goes when size or modification time change.
        const AUTO_INVAL_DATA = 1 << 12;
        const DO_READDIRPLUS = 1 << 13;
        /// Only where attributes seem wanted.
        const READDIRPLUS_AUTO = 1 << 14;
        const ASYNC_DIO = 1 << 15;
        const PARALLEL_DIROPS = 1 << 18;
        const MAX_PAGES = 1 << 22;
        const CACHE_SYMLINKS = 1 << 23;
        /// The host's kernel clears set-user-ID and set-group-ID bits, without the guest asking for
        /// attributes before each write.
        const HANDLE_KILLPRIV_V2 = 1 << 28;
    }

    /// fuse_setattr_in.valid.
    #[derive(Debug, Clone, Copy)]
    pub struct Valid: u32 {
        const MODE = 1 << 0;
        const UID = 1 << 1;
        const GID = 1 << 2;
        const SIZE = 1 << 3;
        const ATIME = 1 << 4;
        const MTIME = 1 << 5;
        const FH = 1 << 6;
        const ATIME_NOW = 1 << 7;
        const MTIME_NOW = 1 << 8;
        const KILL_SUIDGID = 1 << 11;
    }
}

/// FUSE_GETATTR_FH.
pub const GETATTR_FH: u32 = 1 << 0;
/// FUSE_FSYNC_FDATASYNC.
pub const FSYNC_DATA_ONLY: u32 = 1 << 0;
/// FUSE_OPEN_KILL_SUIDGID.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// FUSE_WRITE_KILL_SUIDGID.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// FOPEN_KEEP_CACHE.
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::size_of;

    #[test]
    fn structures_have_the_sizes_of_the_header() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<OutHeader>(), 16);
        assert_eq!(size_of::<InitOut>(), 64);
        assert_eq!(size_of::<Attr>(), 88);
        assert_eq!(size_of::<AttrOut>(), 104);
        assert_eq!(size_of::<EntryOut>(), 128);
        assert_eq!(size_of::<SetAttrIn>(), 88);
        assert_eq!(size_of::<ReadIn>(), 40);
        assert_eq!(size_of::<WriteIn>(), 40);
        assert_eq!(size_of::<StatfsOut>(), 80);
        assert_eq!(size_of::<FallocateIn>(), 32);
        assert_eq!(size_of::<CopyFileRangeIn>(), 56);
        assert_eq!(size_of::<Dirent>(), 24);
    }

    #[test]
    fn an_opcode_that_is_not_answered_is_enosys() {
        assert_eq!(Opcode::try_from(1), Ok(Opcode::Lookup));
        // FUSE_IOCTL, FUSE_SETLK, CUSE_INIT and nothing at all.
        for unknown in [39, 32, 4096, 0, 7, u32::MAX] {
            assert_eq!(Opcode::try_from(unknown), Err(Errno::NOSYS));
        }
    }
}
