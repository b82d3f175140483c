//! x86-64: memory layout, boot protocols, CPUID, initial registers, clocks and machine checks.

pub mod boot;
pub mod clocks;
pub mod cpuid;
mod cpuid_features;
pub mod layout;
pub mod machine_check;
pub mod registers;
