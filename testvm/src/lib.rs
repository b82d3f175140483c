//! Linux guests with our agent in them, on moat or on QEMU: kernels, initramfs, monitors, and the client of
//! the agent. The test harness that checks, tests and benchmarks share.

pub mod guest;
pub mod huge_pages;
pub mod initramfs;
pub mod kernel;
pub mod vm;

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
