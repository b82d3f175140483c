//! Changes to directories: what is made, moved and removed.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode as FileMode, RenameFlags, chmodat, getxattr, linkat, mkdirat,
    mknodat, renameat_with, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::credentials::{ActingAs, owner};
use crate::descriptors::descriptor_path;
use crate::inodes::{Node, Status, open_node};
use crate::server::{Reply, Request, SharedDirectory};
use crate::wire::{LinkIn, MkdirIn, MknodIn, Rename2In, RenameIn};

impl SharedDirectory {
    pub(crate) fn mkdir(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let MkdirIn { mode, .. } = request.take()?;
        let name = request.take_name()?;
        let mode = FileMode::from_bits_truncate(mode & 0o7777);
        self.make(request, name, Some(mode), |directory| {
            mkdirat(&*directory.descriptor, name, mode)
        })
    }

    /// Device nodes are refused: in a share they would be nodes of the host's devices.
    pub(crate) fn mknod(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let MknodIn { mode, .. } = request.take()?;
        let name = request.take_name()?;
        let file_type = FileType::from_raw_mode(mode);
        let mode = FileMode::from_bits_truncate(mode & 0o7777);
        if !matches!(file_type, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            return Err(Errno::PERM);
        }
        self.make(request, name, Some(mode), |directory| {
            mknodat(&*directory.descriptor, name, file_type, mode, 0)
        })
    }

    pub(crate) fn symlink(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let name = request.take_name()?;
        let target = request.take_string()?;
        self.make(request, name, None, |directory| symlinkat(target, &*directory.descriptor, name))
    }

    /// Makes `name` in the request's directory, and gets the guest to know it.
    fn make(
        &self,
        request: &Request<'_>,
        name: &CStr,
        mode: Option<FileMode>,
        make: impl FnOnce(&Node) -> Result<(), Errno>,
    ) -> Result<Reply, Errno> {
        let directory = self.node_to_change(request.header.nodeid)?;
        self.inodes.check_room()?;
        let acting = ActingAs::guest(request.header.uid, request.header.gid)?;
        make(&directory)?;
        drop(acting);
        let descriptor = open_node(&*directory.descriptor, name)?;
        if let Some(mode) = mode {
            self.complete_mode(request, &directory, &descriptor, mode)?;
        }
        Reply::of(self.entry_of(directory.as_parent(), name, descriptor)?)
    }

    /// Gives a new file in `directory` the permissions that this process's umask took: the guest has
    /// applied its own. Where there is a default access control list, it decides, and no umask.
    pub(crate) fn complete_mode(
        &self,
        request: &Request<'_>,
        directory: &Node,
        file: impl AsFd,
        wanted: FileMode,
    ) -> Result<(), Errno> {
        let status = Status::of(&file)?;
        let mode = FileMode::from_raw_mode(status.0.stx_mode.into());
        let is_complete = mode.contains(wanted & FileMode::from_bits_truncate(0o777));
        // A process on the host may have put another file there.
        let is_ours = status.0.stx_uid == owner(request.header.uid);
        if is_complete || !is_ours || has_default_acl(directory) {
            return Ok(());
        }
        chmodat(CWD, descriptor_path(file), mode | wanted, AtFlags::empty())
    }

    pub(crate) fn link(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let LinkIn { oldnodeid } = request.take()?;
        let name = request.take_name()?;
        let node = self.node_to_change(oldnodeid)?;
        let directory = self.node_to_change(request.header.nodeid)?;
        // What is followed is proc's link to the descriptor's file, and no link that the file may be.
        let old = node.descriptor.path();
        linkat(CWD, old, &*directory.descriptor, name, AtFlags::SYMLINK_FOLLOW)?;
        Reply::of(self.entry(directory.as_parent(), name)?)
    }

    pub(crate) fn unlink(&self, request: &mut Request<'_>, flags: AtFlags) -> Result<Reply, Errno> {
        let name = request.take_name()?;
        let directory = self.node_to_change(request.header.nodeid)?;
        self.inodes.keep(&directory, name, |node| self.handles.has_open(node))?;
        unlinkat(&*directory.descriptor, name, flags)?;
        Reply::none()
    }

    pub(crate) fn rename(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let RenameIn { newdir } = request.take()?;
        self.move_to(request, newdir, RenameFlags::empty())
    }

    pub(crate) fn rename2(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let Rename2In { newdir, flags, .. } = request.take()?;
        // A whiteout would be a device node.
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        let flags = RenameFlags::from_bits_retain(flags);
        match known.contains(flags) {
            true => self.move_to(request, newdir, flags),
            false => Err(Errno::INVAL),
        }
    }

    fn move_to(
        &self,
        request: &mut Request<'_>,
        new_directory: u64,
        flags: RenameFlags,
    ) -> Result<Reply, Errno> {
        let (name, new_name) = (request.take_name()?, request.take_name()?);
        let directory = self.node_to_change(request.header.nodeid)?;
        let new_directory = self.node_to_change(new_directory)?;
        let exchanges = flags.contains(RenameFlags::EXCHANGE);
        if !exchanges {
            let is_open = |node| self.handles.has_open(node);
            match self.inodes.keep(&new_directory, new_name, is_open) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        let (from, to) = (&*directory.descriptor, &*new_directory.descriptor);
        renameat_with(from, name, to, new_name, flags)?;
        self.inodes.moved(&new_directory, new_name);
        if exchanges {
            self.inodes.moved(&directory, name);
        }
        Reply::none()
    }
}

/// Whether what is made in `directory` gets its permissions from a list (acl(5)).
fn has_default_acl(directory: &Node) -> bool {
    let mut list = [0_u8; 1];
    let list = getxattr(directory.descriptor.path(), c"system.posix_acl_default", &mut list[..]);
    matches!(list, Ok(_) | Err(Errno::RANGE))
}
