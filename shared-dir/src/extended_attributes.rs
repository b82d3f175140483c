//! Extended attributes: `user.` and `security.` ones, as far as the host permits.
//!
//! `trusted.` ones are how overlayfs marks its layers, and a guest has its own overlays. `system.` ones
//! are access control lists, which the guest's kernel does not check without FUSE_POSIX_ACL.

use std::ffi::CStr;

use rustix::buffer::spare_capacity;
use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;

use crate::server::{Reply, Request, SharedDirectory};
use crate::wire::{GetXattrIn, GetXattrOut, SetXattrIn};

/// The longest value, and the longest list, of Linux (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const LONGEST: usize = 64 << 10;

/// Whether the guest may know of the attribute.
fn is_shared(name: &CStr) -> bool {
    [b"user.".as_slice(), b"security."].iter().any(|prefix| name.to_bytes().starts_with(prefix))
}

fn check(name: &CStr) -> Result<&CStr, Errno> {
    is_shared(name).then_some(name).ok_or(Errno::OPNOTSUPP)
}

/// `value`, or its length for a guest that has said that it has room for nothing.
fn reply(value: Vec<u8>, size: u32) -> Result<Reply, Errno> {
    match size as usize {
        0 => Reply::of(GetXattrOut { size: value.len() as u32, padding: 0 }),
        size if value.len() > size => Err(Errno::RANGE),
        _ => Ok(Reply::Bytes(value)),
    }
}

impl SharedDirectory {
    pub(crate) fn get_extended_attribute(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let GetXattrIn { size, .. } = request.take()?;
        let name = check(request.take_string()?)?;
        let node = self.inodes.node(request.header.nodeid)?;
        let mut value = Vec::with_capacity(LONGEST);
        getxattr(node.descriptor.path(), name, spare_capacity(&mut value))?;
        reply(value, size)
    }

    pub(crate) fn list_extended_attributes(
        &self,
        request: &mut Request<'_>,
    ) -> Result<Reply, Errno> {
        let GetXattrIn { size, .. } = request.take()?;
        let node = self.inodes.node(request.header.nodeid)?;
        let mut names = Vec::with_capacity(LONGEST);
        listxattr(node.descriptor.path(), spare_capacity(&mut names))?;
        let shared = names
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| CStr::from_bytes_with_nul(name).is_ok_and(is_shared));
        reply(shared.flatten().copied().collect(), size)
    }

    pub(crate) fn set_extended_attribute(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let SetXattrIn { size, flags } = request.take()?;
        let name = check(request.take_string()?)?;
        let value = request.take_bytes(size as usize)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let node = self.node_to_change(request.header.nodeid)?;
        setxattr(node.descriptor.path(), name, value, flags)?;
        Reply::none()
    }

    pub(crate) fn remove_extended_attribute(
        &self,
        request: &mut Request<'_>,
    ) -> Result<Reply, Errno> {
        let name = check(request.take_string()?)?;
        let node = self.node_to_change(request.header.nodeid)?;
        removexattr(node.descriptor.path(), name)?;
        Reply::none()
    }
}
