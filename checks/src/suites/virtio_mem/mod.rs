//! The virtio-mem region: what user space gets of it, before its driver has it and afterwards.

pub mod bar_over_region;
pub mod configuration;
pub mod dev_mem;
pub mod exclusion;
pub mod host_view;
pub mod revocation;
pub mod unload;
