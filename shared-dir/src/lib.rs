//! A directory of the host as a FUSE file system: what a virtio-fs device passes messages to.
//!
//! [`SharedDirectory::handle`] answers one message of linux/fuse.h, and knows neither virtio nor who the
//! guest is. The kernel reads and writes file data in the buffers that [`Message`] lends. There are no
//! threads in here; several may call at once.
//!
//! # What a guest can reach
//! The guest names files by node IDs that it got from a lookup in a directory that it had before, one
//! name at a time; `.`, `..` and names with a slash are refused. A node is an `O_PATH` descriptor, so it
//! stays the same file whatever is renamed around it, and symbolic links are handed to the guest and
//! never followed. Only regular files and directories are opened; device nodes, FIFOs and sockets are
//! only shown. No path is ever opened but the share's own at the start and `/proc/self/fd/N` of a
//! descriptor at hand. If a process on the host moves a directory out of the share, a guest that has used
//! it keeps what it holds, as a process on the host would, and has no way up from there.
//!
//! What is mounted below the share belongs to it, but for interfaces of the host's kernel (proc, sysfs
//! and the like): those are empty directories, on which the guest can mount its own.
//!
//! A read-only share refuses in this process whatever would change it. What the guest's kernel thinks of
//! the mount does not matter.
//!
//! # Owners
//! IDs are the host's, on both sides. Where moat is root, what the guest creates belongs to the user and
//! group that asked; root in the guest of a writable share may then do what root may in that
//! directory (but make device nodes), so share with guests that are trusted with that. Where moat is
//! another user, files belong to that user, and the host refuses other owners with `EPERM`. Access is
//! checked by the guest's kernel, by mode bits, and by the host's for moat's user. There, as for any
//! user, a write clears set-user-ID bits even if root in the guest made it.
//!
//! # Memory and descriptors
//! A node costs a few hundred bytes, and one descriptor while there are enough ([`Descriptors`]).
//! Beyond, it is kept as the name in its directory by which it was looked up, opened for each use, and
//! is `ESTALE` if the name leads elsewhere by then, on which Linux looks it up again. Nothing is
//! evicted: the guest forgets, which Linux does as its own memory runs short. A share has at most 2^21
//! nodes; a guest that looks up more gets `ENFILE` until it forgets some. File handles
//! (name_to_handle_at) would need no descriptor and CAP_DAC_READ_SEARCH.
//!
//! # Caches
//! Linux may keep names, attributes and the absence of names for one second, and file data for as long
//! as size and modification time stay the same. So a change on the host is seen within a second, and
//! unchanged files are read once. Linux writes through; it does not collect writes
//! (FUSE_WRITEBACK_CACHE), with which it would hold on to sizes and times of its own. File locks are
//! among the guest's processes only. FUSE_SUBMOUNTS is not accepted, since overlayfs refuses directories
//! of its lower layer that are mounted on demand (`EREMOTE`); inode numbers of other file systems get a
//! prefix instead, so that no two files have the same.
//!
//! # Why not fuse-backend-rs
//! Its version 0.14 depends on exactly vm-memory 0.17.1 with any features, so there would be two, and
//! our buffers would have to be copied to it as bytes. It has no read-only mode, holds a descriptor per
//! node or needs `CAP_DAC_READ_SEARCH`, and would show the host's /proc.

mod attributes;
mod boundary;
mod changes;
mod credentials;
mod descriptors;
mod directories;
mod extended_attributes;
mod files;
mod handles;
mod inodes;
mod listing;
mod lookup;
mod message;
mod server;
mod wire;

pub use descriptors::Descriptors;
pub use message::{Access, Buffers, Message};
pub use server::{Mode, OpenError, SharedDirectory};

#[cfg(test)]
mod escape_test;
#[cfg(test)]
mod file_test;
#[cfg(test)]
mod protocol_test;
#[cfg(test)]
mod read_only_test;
#[cfg(test)]
mod test_guest;
#[cfg(test)]
mod tree_test;
