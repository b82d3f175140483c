//! x86-64: what is where, how a kernel is entered, and what a processor says and starts with.

pub mod boot;
pub mod clocks;
pub mod cpuid;
mod cpuid_features;
pub mod layout;
pub mod machine_check;
pub mod registers;
