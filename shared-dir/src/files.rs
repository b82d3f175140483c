//! Open files, and what is in them.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    CWD, FallocateFlags, FileType, Mode as FileMode, OFlags, SeekFrom, copy_file_range, fallocate,
    fdatasync, fsync, openat, seek,
};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::credentials::{ActingAs, WithoutFsetid};
use crate::descriptors::{Descriptor, Permit, Purpose, descriptor_path};
use crate::handles::Handle;
use crate::inodes::{Node, Status};
use crate::message::{read_file, write_file};
use crate::server::{REPLY_HEADER, Reply, Request, SharedDirectory, WRITE_HEADER, errno};
use crate::wire::{
    CopyFileRangeIn, CreateIn, FOPEN_KEEP_CACHE, FSYNC_DATA_ONLY, FallocateIn, FsyncIn, LseekIn,
    LseekOut, MOST_DATA, OPEN_KILL_SUIDGID, OpenIn, OpenOut, ReadIn, ReleaseIn, WRITE_KILL_SUIDGID,
    WriteIn, WriteOut,
};

/// Bytes that one COPY_FILE_RANGE copies at most. Linux's caller goes on by itself.
const MOST_COPIED: usize = 64 << 20;

/// How the host opens a file that the guest opens with `flags`.
///
/// O_APPEND is left to the guest, which knows the end of the file and sends the offset to write at: with it,
/// Linux would append whatever the guest writes back from a mapping. O_DIRECT wants an alignment that
/// the guest's buffers need not have.
fn open_flags(flags: u32) -> OFlags {
    let passed = OFlags::ACCMODE | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC;
    OFlags::from_bits_truncate(flags) & passed
}

impl SharedDirectory {
    /// Opens a node, if it is of this type, which only files and directories may be. A node's type never
    /// changes.
    pub(crate) fn reopen(
        &self,
        node: &Node,
        file_type: FileType,
        flags: OFlags,
    ) -> Result<OwnedFd, Errno> {
        if flags.intersects(OFlags::ACCMODE | OFlags::TRUNC) {
            self.check_writable()?;
        }
        match node.file_type {
            actual if actual == file_type => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            _ if file_type == FileType::Directory => return Err(Errno::NOTDIR),
            _ => return Err(Errno::NXIO),
        }
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        openat(CWD, node.descriptor.path(), flags, FileMode::empty())
    }

    pub(crate) fn permit_to_open(&self) -> Result<Permit, Errno> {
        self.descriptors.permit(Purpose::Required).ok_or(Errno::NFILE)
    }

    /// Gives the guest a handle of `file`, which is of `node`.
    fn add_file(&self, node: u64, file: OwnedFd, permit: Permit) -> OpenOut {
        let descriptor = Descriptor::held(file, permit);
        let fh = self.handles.add(Handle { node, descriptor, directory: None });
        OpenOut { fh, open_flags: FOPEN_KEEP_CACHE, backing_id: 0 }
    }

    fn open_node_as_file(&self, node: &Node, request: OpenIn) -> Result<OpenOut, Errno> {
        if node.is_boundary {
            return Err(Errno::ACCESS);
        }
        let permit = self.permit_to_open()?;
        let kills = request.open_flags & OPEN_KILL_SUIDGID != 0;
        let _without = kills.then(WithoutFsetid::new).transpose()?;
        let file = self.reopen(node, FileType::RegularFile, open_flags(request.flags))?;
        Ok(self.add_file(node.id, file, permit))
    }

    pub(crate) fn open_file(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let node = self.inodes.node(request.header.nodeid)?;
        Reply::of(self.open_node_as_file(&node, request.take()?)?)
    }

    pub(crate) fn create(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let CreateIn { flags, mode, open_flags: fuse_flags, .. } = request.take()?;
        let name = request.take_name()?;
        let directory = self.node_to_change(request.header.nodeid)?;
        let parent = directory.as_parent();
        let mode = FileMode::from_bits_truncate(mode & 0o7777);
        let permit = self.permit_to_open()?;
        self.inodes.check_room()?;
        let acting = ActingAs::guest(request.header.uid, request.header.gid)?;
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let created = openat(parent.descriptor, name, open_flags(flags) | new, mode);
        drop(acting);
        let (entry, open) = match created {
            Ok(file) => {
                self.complete_mode(request, &directory, &file, mode)?;
                let path = OFlags::PATH | OFlags::CLOEXEC;
                let node = openat(CWD, descriptor_path(&file), path, FileMode::empty())?;
                let entry = self.entry_of(parent, name, node)?;
                (entry, self.add_file(entry.nodeid, file, permit))
            }
            Err(Errno::EXIST) if !OFlags::from_bits_truncate(flags).contains(OFlags::EXCL) => {
                let entry = self.entry(parent, name)?;
                let open = OpenIn { flags, open_flags: fuse_flags };
                let opened = self.inodes.node(entry.nodeid);
                let opened = opened.and_then(|node| self.open_node_as_file(&node, open));
                // The guest does not get to know it.
                (entry, opened.inspect_err(|_| self.inodes.forget(entry.nodeid, 1))?)
            }
            Err(error) => return Err(error),
        };
        Ok(Reply::Bytes([entry.as_bytes(), open.as_bytes()].concat()))
    }

    pub(crate) fn release(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let ReleaseIn { fh, .. } = request.take()?;
        self.handles.remove(fh)?;
        Reply::none()
    }

    pub(crate) fn read(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let ReadIn { fh, offset, size, .. } = request.take()?;
        let handle = self.handles.file(fh)?;
        let end = REPLY_HEADER + request.room(size);
        let file = handle.descriptor.as_fd();
        request
            .message
            .with_reply(REPLY_HEADER..end, &mut |slices| read_file(file, offset, slices))
            .map(Reply::Data)
            .map_err(errno)
    }

    pub(crate) fn write(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let WriteIn { fh, offset, size, write_flags, .. } = request.take()?;
        let length = size as usize;
        if length > MOST_DATA || length > request.header.len as usize - WRITE_HEADER {
            return Err(Errno::INVAL);
        }
        let handle = self.handles.file(fh)?;
        let file = handle.descriptor.as_fd();
        // Most files have no such bits, and then there is nothing to do.
        let kills = write_flags & WRITE_KILL_SUIDGID != 0
            && u32::from(Status::of(file)?.0.stx_mode) & (libc::S_ISUID | libc::S_ISGID) != 0;
        let _without = kills.then(WithoutFsetid::new).transpose()?;
        let data = WRITE_HEADER..WRITE_HEADER + length;
        let written = request
            .message
            .with_request(data, &mut |slices| write_file(file, offset, slices))
            .map_err(errno)?;
        Reply::of(WriteOut { size: written as u32, padding: 0 })
    }

    pub(crate) fn fsync(
        &self,
        request: &mut Request<'_>,
        is_directory: bool,
    ) -> Result<Reply, Errno> {
        let FsyncIn { fh, fsync_flags, .. } = request.take()?;
        let handle = match is_directory {
            true => self.handles.directory(fh),
            false => self.handles.file(fh),
        }?;
        match fsync_flags & FSYNC_DATA_ONLY {
            0 => fsync(&handle.descriptor)?,
            _ => fdatasync(&handle.descriptor)?,
        }
        Reply::none()
    }

    /// FUSE_LSEEK, which Linux sends for SEEK_DATA and SEEK_HOLE. No other call uses a file's position.
    pub(crate) fn lseek(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let LseekIn { fh, offset, whence, .. } = request.take()?;
        let handle = self.handles.file(fh)?;
        let to = match whence as i32 {
            _ if i64::try_from(offset).is_err() => return Err(Errno::INVAL),
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        Reply::of(LseekOut { offset: seek(&handle.descriptor, to)? })
    }

    pub(crate) fn fallocate(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let FallocateIn { fh, offset, length, mode, .. } = request.take()?;
        let handle = self.handles.file(fh)?;
        let known =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let mode = FallocateFlags::from_bits_retain(mode);
        if !known.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        fallocate(&handle.descriptor, mode, offset, length)?;
        Reply::none()
    }

    pub(crate) fn copy_file_range(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let range: CopyFileRangeIn = request.take()?;
        if range.flags != 0 {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.handles.file(range.fh_in)?, self.handles.file(range.fh_out)?);
        let (mut from_offset, mut to_offset) = (range.off_in, range.off_out);
        let length = usize::try_from(range.len).map_or(MOST_COPIED, |len| len.min(MOST_COPIED));
        let copied = copy_file_range(
            &from.descriptor,
            Some(&mut from_offset),
            &to.descriptor,
            Some(&mut to_offset),
            length,
        )?;
        Reply::of(WriteOut { size: copied as u32, padding: 0 })
    }
}
