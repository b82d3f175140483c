//! The devices at a guest's ports and addresses, and the threads that do their work.

pub mod buses;
pub mod console_port;
pub mod memory_device;
pub mod pci;
pub mod serial;
pub mod worker;
