//! What is in a directory.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, OFlags, RawDir, RawDirEntry, SeekFrom, seek};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::descriptors::Descriptor;
use crate::handles::{Handle, OpenDirectory};
use crate::lookup::Parent;
use crate::server::{Reply, Request, SharedDirectory};
use crate::wire::{Dirent, EntryOut, OpenIn, OpenOut, ReadIn};

/// Bytes of entries in one reply at most.
const MOST_ENTRIES: u32 = 64 << 10;
/// Room for the longest entry of the host.
const LONGEST_ENTRY: usize = 512;

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
                position: Mutex::new(()),
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
        // An entry with attributes is at least four times as long as the host's.
        let read = room / if attributes { 4 } else { 1 };
        let mut buffer = vec![MaybeUninit::uninit(); read.max(LONGEST_ENTRY)];
        let mut entries = Vec::with_capacity(room);
        let _position = directory.position.lock().unwrap_or_else(PoisonError::into_inner);
        seek(parent.descriptor, SeekFrom::Start(offset))?;
        let mut listed = RawDir::new(parent.descriptor, &mut buffer);
        while let Some(entry) = listed.next() {
            let entry = match entry {
                // The guest has got to know those before it, and asks for this one again.
                Err(_) if !entries.is_empty() => break,
                entry => entry?,
            };
            let length = length(entry.file_name(), attributes);
            if entries.len() + length > room {
                break;
            }
            if attributes {
                entries.extend(self.entry_of_listed(parent, entry.file_name()).as_bytes());
            }
            self.append(&mut entries, &entry, directory.device);
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
    fn append(&self, entries: &mut Vec<u8>, entry: &RawDirEntry<'_>, device: u64) {
        let name = entry.file_name().to_bytes();
        let header = Dirent {
            ino: self.inodes.number(device, entry.ino()),
            off: entry.next_entry_cookie(),
            namelen: name.len() as u32,
            // A d_type is the file type's part of the mode.
            kind: entry.file_type().as_raw_mode() >> 12,
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
