//! Guest memory: its host memory, its memory slots, and which blocks of it are reachable.

pub mod backing;
pub mod busy;
pub mod host;
mod numa;
pub mod one_slot;
pub mod reachable;
pub mod slots;
pub mod strict;
#[cfg(test)]
mod strict_test;
mod windows;

use std::io;

use thiserror::Error;

/// Why guest memory cannot be allocated.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host cannot map it.
    #[error("cannot map {size} bytes of guest memory: {source}")]
    Map {
        /// Bytes requested.
        size: u64,
        /// The host's error.
        source: io::Error,
    },
    /// Its backing cannot be used.
    #[error(transparent)]
    Backing(#[from] backing::BackingError),
    /// Its size is not a multiple of the page size.
    #[error("{size} bytes of guest memory are not whole pages of {page_size} bytes")]
    NotPages {
        /// Bytes requested.
        size: u64,
        /// Bytes in a page of its backing.
        page_size: u64,
    },
    /// The host cannot populate it in advance.
    #[error("prealloc and huge pages need Linux 5.14 on the host, for MADV_POPULATE_WRITE: {0}")]
    Prealloc(io::Error),
    /// The host does not have that much memory.
    #[error("cannot allocate {size} bytes of guest memory in advance: {source}")]
    Populate {
        /// Bytes requested.
        size: u64,
        /// The host's error.
        source: io::Error,
    },
    /// The host has no memory on that node.
    #[error(
        "cannot allocate memory on the host's NUMA node {node}: {source}; nodes with memory: {}",
        numa::nodes_with_memory()
    )]
    Node {
        /// The node.
        node: u16,
        /// The host's error.
        source: io::Error,
    },
    /// The backing does not obey a NUMA policy.
    #[error(
        "host-node {node} has no effect on a file on disk, whose pages may be on any node; put it on \
         tmpfs or hugetlbfs, or use another backing"
    )]
    NodeOfFile {
        /// The node.
        node: u16,
    },
    /// It does not fit any address space.
    #[error("{size} bytes of guest memory do not fit this machine's address space")]
    TooLarge {
        /// Bytes requested.
        size: u64,
    },
    /// It cannot be put into a memory slot.
    #[error(transparent)]
    Slot(#[from] slots::SlotError),
}
