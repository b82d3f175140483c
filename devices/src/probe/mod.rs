//! The probe: a PCI endpoint made for finding out who touches device memory.
//!
//! It has a range of every kind, and counts and logs every access that gets to one. Its identity
//! reads the same at any width, so that a process that mapped the registers knows whether it
//! still reaches them; the host knows from [`ProbeStatus`] whether anybody did. A DMA engine
//! reads and writes memory wherever it is told to, and interrupts come when asked for.
//!
//! `docs/probe.md` is the programmer's manual, [`registers`] the same as code. What needs no
//! device (configuration space, the MSI-X structures, the ROM, accesses that nobody decodes) is
//! the root complex's, and counted there.

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
