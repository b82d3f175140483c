//! What fuzz targets have in common: what a guest may do, and machines to do it to.
//!
//! Each target is a guest that makes random accesses. It derives them from the fuzzer's bytes, and
//! fails if one of them panics or breaks an invariant.

pub mod blocks;
pub mod guest;
pub mod iommu_model;
#[path = "../../vmm/src/symbols/kallsyms_encoder.rs"]
pub mod kallsyms_encoder;
pub mod mmio_driver;
pub mod pci_machine;
