//! What firmware tells a kernel.

pub mod acpi;
