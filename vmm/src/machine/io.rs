//! What of a machine is live: the far ends of its devices in this process.

use std::sync::Arc;

use devices::virtio::fs::FileServer;

use crate::board::console_port::ConsolePorts;
use crate::board::serial::SerialEndpoint;

/// The far ends of a machine's devices.
pub struct MachineIo {
    /// That of ttyS0.
    pub console: SerialEndpoint,
    /// That of ttyS1, which serves before any virtio driver is loaded.
    pub agent: SerialEndpoint,
    /// Those of a virtio console's ports. Without, the machine has no such device.
    pub console_ports: Option<ConsolePorts>,
    /// Those of virtio file systems, one each.
    pub file_systems: Vec<SharedFiles>,
}

/// Files for a guest.
#[derive(Clone)]
pub struct SharedFiles {
    /// By which the guest mounts them.
    pub tag: String,
    /// Who has them.
    pub server: Arc<dyn FileServer>,
}

impl Default for MachineIo {
    /// Nobody is at any far end.
    fn default() -> Self {
        Self {
            console: SerialEndpoint::null(),
            agent: SerialEndpoint::null(),
            console_ports: None,
            file_systems: Vec::new(),
        }
    }
}
