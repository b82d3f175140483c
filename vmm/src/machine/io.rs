//! What a spec cannot hold: live objects of this process, above all the host's side of devices.

use std::sync::Arc;

use devices::virtio::fs::FileServer;

use crate::board::console_port::ConsolePorts;
use crate::board::serial::SerialEndpoint;

/// What a machine gets from this process.
pub struct MachineIo {
    /// Where ttyS0 leads.
    pub console: SerialEndpoint,
    /// Where ttyS1 leads, which works before any virtio driver is loaded.
    pub agent: SerialEndpoint,
    /// The contents of an initramfs that is not in a file. None to read the one that the spec names.
    pub initrd: Option<Vec<u8>>,
    /// The ports of a virtio console. None for a machine without that device.
    pub console_ports: Option<ConsolePorts>,
    /// What virtio-fs devices share, one device each.
    pub file_systems: Vec<SharedFiles>,
}

/// Files that a virtio-fs device shares with the guest.
#[derive(Clone)]
pub struct SharedFiles {
    /// The tag by which the guest mounts them.
    pub tag: String,
    /// What serves them.
    pub server: Arc<dyn FileServer>,
}

impl Default for MachineIo {
    /// Serial output is discarded, and there are no other devices.
    fn default() -> Self {
        Self {
            console: SerialEndpoint::null(),
            agent: SerialEndpoint::null(),
            initrd: None,
            console_ports: None,
            file_systems: Vec::new(),
        }
    }
}
