//! Functions that user space has through VFIO: their BARs, interrupts, resets and DMA.

pub mod assigned;
pub mod dma_to_bar;
pub mod interrupts;
pub mod iommu_dma;
pub mod iommufd;
pub mod memory;
pub mod regions;
pub mod reset;
pub mod unbind;
