//! The probe: a PCI endpoint for finding out which accesses reach a device's memory.
//!
//! It has a range of every kind, and counts and logs every access that gets to one. Its identity reads
//! the same at any width, so that a process that mapped the registers can find out whether it still
//! reaches them; the host reads from [`ProbeStatus`] whether any access did. A DMA engine reads and
//! writes memory at any address, and interrupts are raised on request.
//!
//! `docs/probe.md` is the programmer's manual, [`registers`] the same as code. The root complex serves
//! everything that needs no device (configuration space, the MSI-X structures, the ROM, accesses that
//! no function decodes), and counts it.

mod access_log;
mod device;
mod dma_engine;
pub mod registers;
mod rom;

#[cfg(test)]
mod dma_test;
#[cfg(test)]
mod iommu_test;
#[cfg(test)]
mod probe_test;
#[cfg(test)]
mod scribble_test;
#[cfg(test)]
mod test_machine;

pub use access_log::{AccessCounts, LoggedAccess};
pub use device::{Probe, ProbeStatus, ResetCounts};
pub use dma_engine::{DmaCounts, DmaFault, DmaStatus};
