//! Guest memory: where it lies, what stands behind it, and who reaches it.

pub mod host;
pub mod layout;
pub mod one_slot;
pub mod reachable;
pub mod slots;
pub mod strict;
#[cfg(test)]
mod strict_test;
pub mod violations;

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
