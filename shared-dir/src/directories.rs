//! What is in a directory.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::descriptors::Descriptor;
use crate::handles::{Handle, OpenDirectory};
use crate::listing::ListedEntry;
use crate::lookup::Parent;
use crate::server::{Reply, Request, SharedDirectory};
use crate::wire::{Dirent, EntryOut, OpenIn, OpenOut, ReadIn};

/// Bytes of entries in one reply at most.
const MOST_ENTRIES: u32 = 64 << 10;
impl SharedDirectory {
    pub(crate) fn open_directory(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let OpenIn { .. } = request.take()?;
        let node = self.inodes.node(request.header.nodeid)?;
        let permit = self.permit_to_open()?;
        let directory = self.reopen(&node, FileType::Directory, OFlags::DIRECTORY)?;
        let fh = self.handles.add(Handle {
            node: node.id,
            descriptor: Descriptor::held(directory, permit),
            directory: Some(OpenDirectory {
                device: node.device,
                is_boundary: node.is_boundary,
                listing: Mutex::default(),
            }),
        });
        Reply::of(OpenOut { fh, ..OpenOut::default() })
    }

    /// Lists entries from an offset on, which is one that an entry had before, or 0. With `attributes`,
    /// the guest also gets to know what each of them is.
    pub(crate) fn read_directory(
        &self,
        request: &mut Request<'_>,
        attributes: bool,
    ) -> Result<Reply, Errno> {
        let ReadIn { fh, offset, size, .. } = request.take()?;
        let handle = self.handles.directory(fh)?;
        let Some(directory) = &handle.directory else { return Err(Errno::BADF) };
        if directory.is_boundary {
            return Reply::none();
        }
        let parent = Parent {
            id: handle.node,
            descriptor: handle.descriptor.as_fd(),
            device: directory.device,
            is_boundary: false,
        };
        let room = request.room(size.min(MOST_ENTRIES));
        let mut entries = Vec::with_capacity(room);
        let mut listing = directory.listing.lock().unwrap_or_else(PoisonError::into_inner);
        listing.go_to(parent.descriptor, offset)?;
        loop {
            let entry = match listing.next(parent.descriptor) {
                // The guest has got to know those before it, and asks for this one again.
                Err(_) if !entries.is_empty() => break,
                entry => entry?,
            };
            let Some(entry) = entry else { break };
            if entries.len() + length(&entry.name, attributes) > room {
                break;
            }
            if attributes {
                entries.extend(self.entry_of_listed(parent, &entry.name).as_bytes());
            }
            self.append(&mut entries, entry, directory.device);
            listing.pass();
        }
        Ok(Reply::Bytes(entries))
    }

    /// What READDIRPLUS returns for an entry: nothing for `.`, `..`, and what cannot be looked up (any more).
    fn entry_of_listed(&self, parent: Parent<'_>, name: &CStr) -> EntryOut {
        match name.to_bytes() {
            b"." | b".." => EntryOut::default(),
            _ => self.entry(parent, name).unwrap_or_default(),
        }
    }

    /// Appends a fuse_dirent.
    fn append(&self, entries: &mut Vec<u8>, entry: &ListedEntry, device: u64) {
        let name = entry.name.to_bytes();
        let header = Dirent {
            ino: self.inodes.number(device, entry.ino),
            off: entry.next,
            namelen: name.len() as u32,
            // A d_type is the file type's part of the mode.
            kind: entry.kind.as_raw_mode() >> 12,
        };
        entries.extend(header.as_bytes());
        entries.extend(name);
        entries.resize(entries.len().next_multiple_of(8), 0);
    }
}

/// How long an entry of this name is in a reply.
fn length(name: &CStr, attributes: bool) -> usize {
    let before = if attributes { size_of::<EntryOut>() } else { 0 };
    before + (size_of::<Dirent>() + name.count_bytes()).next_multiple_of(8)
}
