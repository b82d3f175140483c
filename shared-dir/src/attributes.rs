//! What files are like.

use rustix::fs::{
    AtFlags, CWD, FileType, Mode as FileMode, OFlags, StatVfs, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, chmodat, chownat, fstatvfs, ftruncate, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::credentials::WithoutFsetid;
use crate::inodes::{Node, Status};
use crate::server::{Reply, Request, SharedDirectory};
use crate::wire::{
    Attr, AttrOut, GETATTR_FH, GetAttrIn, SetAttrIn, StatfsOut, VALID_SECONDS, Valid,
};

impl SharedDirectory {
    /// What the guest sees of `status`.
    pub(crate) fn attributes(&self, status: &Status) -> Attr {
        let device = status.device();
        let status = &status.0;
        Attr {
            ino: self.inodes.number(device, status.stx_ino),
            size: status.stx_size,
            blocks: status.stx_blocks,
            atime: status.stx_atime.tv_sec as u64,
            mtime: status.stx_mtime.tv_sec as u64,
            ctime: status.stx_ctime.tv_sec as u64,
            atimensec: status.stx_atime.tv_nsec,
            mtimensec: status.stx_mtime.tv_nsec,
            ctimensec: status.stx_ctime.tv_nsec,
            mode: status.stx_mode.into(),
            nlink: status.stx_nlink,
            uid: status.stx_uid,
            gid: status.stx_gid,
            rdev: encode_device(status.stx_rdev_major, status.stx_rdev_minor),
            blksize: status.stx_blksize,
            flags: 0,
        }
    }

    fn attributes_reply(&self, status: &Status) -> Result<Reply, Errno> {
        let attr = self.attributes(status);
        Reply::of(AttrOut { attr_valid: VALID_SECONDS, attr, ..AttrOut::default() })
    }

    pub(crate) fn get_attributes(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let GetAttrIn { flags, fh, .. } = request.take()?;
        let status = match flags & GETATTR_FH {
            0 => Status::of(&*self.inodes.node(request.header.nodeid)?.descriptor),
            _ => Status::of(&self.handles.file(fh)?.descriptor),
        };
        self.attributes_reply(&status?)
    }

    pub(crate) fn set_attributes(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let wanted: SetAttrIn = request.take()?;
        let valid = Valid::from_bits_retain(wanted.valid);
        let node = self.node_to_change(request.header.nodeid)?;
        if valid.contains(Valid::MODE) {
            let mode = FileMode::from_bits_truncate(wanted.mode & 0o7777);
            chmodat(CWD, node.descriptor.path(), mode, AtFlags::empty())?;
        }
        if valid.intersects(Valid::UID | Valid::GID) {
            // The ID of all ones means "no change" to the host; for the guest it is not a valid ID.
            let id = |which, id: u32| match valid.contains(which) {
                true if id == u32::MAX => Err(Errno::INVAL),
                is_wanted => Ok(is_wanted.then_some(id)),
            };
            let uid = id(Valid::UID, wanted.uid)?.map(Uid::from_raw);
            let gid = id(Valid::GID, wanted.gid)?.map(Gid::from_raw);
            chownat(&*node.descriptor, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if valid.contains(Valid::SIZE) {
            self.truncate(&node, valid, &wanted)?;
        }
        if valid.intersects(Valid::ATIME | Valid::MTIME) {
            let times = Timestamps {
                last_access: time(
                    valid,
                    [Valid::ATIME, Valid::ATIME_NOW],
                    wanted.atime,
                    wanted.atimensec,
                ),
                last_modification: time(
                    valid,
                    [Valid::MTIME, Valid::MTIME_NOW],
                    wanted.mtime,
                    wanted.mtimensec,
                ),
            };
            utimensat(CWD, node.descriptor.path(), &times, AtFlags::empty())?;
        }
        self.attributes_reply(&Status::of(&*node.descriptor)?)
    }

    fn truncate(&self, node: &Node, valid: Valid, wanted: &SetAttrIn) -> Result<(), Errno> {
        let kills = valid.contains(Valid::KILL_SUIDGID);
        let _without = kills.then(WithoutFsetid::new).transpose()?;
        match valid.contains(Valid::FH) {
            true => ftruncate(&self.handles.file(wanted.fh)?.descriptor, wanted.size),
            false => {
                let file = self.reopen(node, FileType::RegularFile, OFlags::WRONLY)?;
                ftruncate(file, wanted.size)
            }
        }
    }

    /// The node of this ID, unless it must not be changed.
    pub(crate) fn node_to_change(&self, id: u64) -> Result<Node, Errno> {
        self.check_writable()?;
        let node = self.inodes.node(id)?;
        match node.is_boundary {
            true => Err(Errno::ACCESS),
            false => Ok(node),
        }
    }

    pub(crate) fn statfs(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let node = self.inodes.node(request.header.nodeid)?;
        let status: StatVfs = fstatvfs(&*node.descriptor)?;
        Reply::of(StatfsOut {
            blocks: status.f_blocks,
            bfree: status.f_bfree,
            bavail: status.f_bavail,
            files: status.f_files,
            ffree: status.f_ffree,
            bsize: status.f_bsize as u32,
            namelen: status.f_namemax as u32,
            frsize: status.f_frsize as u32,
            ..StatfsOut::default()
        })
    }
}

/// A device number in 32 bits (the kernel's new_encode_dev).
fn encode_device(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// A time to set: this one, the host's, or none.
fn time(valid: Valid, [wanted, now]: [Valid; 2], seconds: u64, nanoseconds: u32) -> Timespec {
    let tv_nsec = match (valid.contains(wanted), valid.contains(now)) {
        (false, _) => UTIME_OMIT,
        (true, true) => UTIME_NOW,
        // Other values mean something else to the host.
        (true, false) => nanoseconds.min(999_999_999).into(),
    };
    Timespec { tv_sec: seconds as i64, tv_nsec }
}
