//! Names to nodes, and forgetting them.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::readlinkat;
use rustix::io::Errno;

use crate::boundary;
use crate::inodes::{Node, Place, Status, open_node};
use crate::server::{Reply, Request, SharedDirectory};
use crate::wire::{BatchForgetIn, EntryOut, ForgetIn, ForgetOne, VALID_SECONDS};

/// A directory, as the parent of what is looked up.
#[derive(Clone, Copy)]
pub struct Parent<'a> {
    pub id: u64,
    pub descriptor: BorrowedFd<'a>,
    pub device: u64,
    pub is_boundary: bool,
}

impl Node {
    /// The node as a directory in which to look up.
    pub fn as_parent(&self) -> Parent<'_> {
        let Self { id, ref descriptor, device, is_boundary, .. } = *self;
        Parent { id, descriptor: descriptor.as_fd(), device, is_boundary }
    }
}

impl SharedDirectory {
    pub(crate) fn lookup(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let name = request.take_name()?;
        match self.entry(self.inodes.node(request.header.nodeid)?.as_parent(), name) {
            // That there is nothing may be remembered too.
            Err(Errno::NOENT) => {
                Reply::of(EntryOut { entry_valid: VALID_SECONDS, ..EntryOut::default() })
            }
            entry => Reply::of(entry?),
        }
    }

    /// The guest gets to know what `name` in `parent` is.
    pub(crate) fn entry(&self, parent: Parent<'_>, name: &CStr) -> Result<EntryOut, Errno> {
        if parent.is_boundary {
            return Err(Errno::NOENT);
        }
        self.entry_of(parent, name, open_node(parent.descriptor, name)?)
    }

    /// The guest gets to know the file of an `O_PATH` descriptor, which `name` in `parent` is.
    pub(crate) fn entry_of(
        &self,
        parent: Parent<'_>,
        name: &CStr,
        descriptor: OwnedFd,
    ) -> Result<EntryOut, Errno> {
        let status = Status::of(&descriptor)?;
        let is_boundary =
            status.device() != parent.device && boundary::is_kernel_interface(descriptor.as_fd())?;
        let place = Place { parent: parent.id, name: name.to_owned() };
        Ok(EntryOut {
            nodeid: self.inodes.remember(descriptor, &status, place, is_boundary)?,
            entry_valid: VALID_SECONDS,
            attr_valid: VALID_SECONDS,
            attr: self.attributes(&status),
            ..EntryOut::default()
        })
    }

    pub(crate) fn forget(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let ForgetIn { nlookup } = request.take()?;
        self.inodes.forget(request.header.nodeid, nlookup);
        Reply::none()
    }

    pub(crate) fn batch_forget(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let BatchForgetIn { count, .. } = request.take()?;
        for _ in 0..count {
            let ForgetOne { nodeid, nlookup } = request.take()?;
            self.inodes.forget(nodeid, nlookup);
        }
        Reply::none()
    }

    pub(crate) fn read_link(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let node = self.inodes.node(request.header.nodeid)?;
        let target = readlinkat(&*node.descriptor, c"", Vec::new())?;
        Ok(Reply::Bytes(target.into_bytes()))
    }
}
