//! The memory device, virtio-mem (virtio 1.3, section 5.15).
//!
//! Read in this order: [`wire`] is what the driver sees; [`region`] turns addresses into blocks;
//! [`block_map`] is which blocks are plugged; [`device`] decides requests, has them carried out by
//! a [`BlockBackend`], and only then commits.
//!
//! Row names such as P6 or C11 in comments and tests are those of `docs/virtio-mem.md`.

pub mod block_map;
pub mod device;
pub mod region;
pub mod wire;

#[cfg(test)]
mod config_test;
#[cfg(test)]
mod device_test;
#[cfg(test)]
mod queue_test;
#[cfg(test)]
mod resize_test;
#[cfg(test)]
pub(crate) mod test_machine;

use std::sync::Arc;

use thiserror::Error;

pub use device::{RequestCounters, ResizeError, UnpluggedAccess, VirtioMem, VirtioMemConfig};
pub use region::{BlockIndex, BlockRange, Region, RegionError};

/// The machine cannot plug or unplug now. Nothing has changed; the driver may try again.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct BackendBusy(#[from] pub Box<dyn std::error::Error + Send + Sync>);

/// Adds and removes the memory of blocks.
///
/// The device calls it only with ranges whose state it has checked, one call after the other. A call may
/// take as long as the host does. An error means that nothing has changed: whatever was done half-way
/// has been undone.
pub trait BlockBackend: Send + Sync {
    /// Makes `range`, all unplugged, accessible; it reads as zeros.
    fn plug(&self, range: BlockRange) -> Result<(), BackendBusy>;

    /// Makes `range`, all plugged, inaccessible to vCPUs and devices, and gives its host memory
    /// back.
    fn unplug(&self, range: BlockRange) -> Result<(), BackendBusy>;

    /// Does the same for every plugged block.
    fn unplug_all(&self) -> Result<(), BackendBusy>;
}

/// A backend that is shared.
impl<B: BlockBackend> BlockBackend for Arc<B> {
    fn plug(&self, range: BlockRange) -> Result<(), BackendBusy> {
        (**self).plug(range)
    }

    fn unplug(&self, range: BlockRange) -> Result<(), BackendBusy> {
        (**self).unplug(range)
    }

    fn unplug_all(&self) -> Result<(), BackendBusy> {
        (**self).unplug_all()
    }
}
