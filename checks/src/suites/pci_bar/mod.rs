//! BARs of PCI functions: what user space gets of them, before a driver claims them and afterwards.

pub mod bar;
pub mod drivers;
pub mod exclusion;
pub mod page_boundary;
pub mod revocation;
