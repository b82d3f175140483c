//! IOMMU groups: what belongs to one, and who owns it.

pub mod members;
pub mod orders;
pub mod ownership;
pub mod topology;
