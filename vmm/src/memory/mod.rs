//! Guest memory: where it lies, what stands behind it, and who reaches it.

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

/// Guest memory that cannot be had.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host does not give it.
    #[error("cannot map {size} bytes of guest memory: {source}")]
    Map {
        /// Bytes asked for.
        size: u64,
        /// What the host said.
        source: io::Error,
    },
    /// What it is to be made of cannot be had.
    #[error(transparent)]
    Backing(#[from] backing::BackingError),
    /// It ends within a page.
    #[error("{size} bytes of guest memory are not whole pages of {page_size} bytes")]
    NotPages {
        /// Bytes asked for.
        size: u64,
        /// Bytes in a page of what it is to be made of.
        page_size: u64,
    },
    /// The host cannot populate it in advance.
    #[error("prealloc and huge pages need Linux 5.14 on the host, for MADV_POPULATE_WRITE: {0}")]
    Prealloc(io::Error),
    /// The host has not so much.
    #[error("cannot have {size} bytes of guest memory in advance: {source}")]
    Populate {
        /// Bytes asked for.
        size: u64,
        /// What the host said.
        source: io::Error,
    },
    /// The host has no memory on that node.
    #[error(
        "cannot take memory from the host's NUMA node {node}: {source}; nodes with memory: {}",
        numa::nodes_with_memory()
    )]
    Node {
        /// The node.
        node: u16,
        /// What the host said.
        source: io::Error,
    },
    /// The host would not heed it.
    #[error(
        "host-node {node} means nothing for a file on disk, whose pages come from anywhere; put it \
         on tmpfs or hugetlbfs, or use another backing"
    )]
    NodeOfFile {
        /// The node.
        node: u16,
    },
    /// It does not fit any address space.
    #[error("{size} bytes of guest memory do not fit this machine's address space")]
    TooLarge {
        /// Bytes asked for.
        size: u64,
    },
    /// KVM does not take it.
    #[error(transparent)]
    Slot(#[from] slots::SlotError),
}
