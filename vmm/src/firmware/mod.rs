//! Tables that firmware provides to a kernel.

pub mod acpi;
