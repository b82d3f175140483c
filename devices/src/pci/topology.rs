//! What a machine has on PCI, as a tree.
//!
//! Device numbers follow from the order: the host bridge is device 0 of bus 0, everything else
//! counts up from there, or from 0 behind a bridge. Bus numbers are assigned depth first, as
//! firmware would.

use thiserror::Error;

use super::{Function, Slot};

/// What is on bus 0 beside the host bridge, from device 1 on.
#[derive(Default)]
pub struct Topology {
    /// In the order of device numbers.
    pub root: Vec<RootNode>,
}

impl Topology {
    /// The largest number of buses: enough for root ports on all device numbers of bus 0 and a
    /// conventional bus below one of them. Each further bus adds 32 configuration reads to Linux's
    /// boot, which looks for host bridges that firmware did not report (`pcibios_fixup_peer_bridges`,
    /// 6.12).
    pub const BUSES: u8 = 64;
}

/// What may be on bus 0.
pub enum RootNode {
    /// A port of the root complex.
    Port(RootPort),
    /// A node integrated into the root complex.
    Integrated(Node),
}

/// A root port (PCI Express Base 6.0, section 1.3.1): a link to one device.
pub struct RootPort {
    /// Whether the port has Access Control Services. Without them Linux does not isolate what is
    /// below the port from what is below others.
    pub access_control: bool,
    /// Device 0 of the link, if something is plugged in.
    pub below: Option<Node>,
}

/// What may be on any bus.
pub enum Node {
    /// A device: its functions from 0 on.
    Device(Vec<Function>),
    /// A bridge to conventional PCI, and what is on its bus from device 0 on.
    ConventionalBridge(Vec<Node>),
}

/// Why a topology cannot be built.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TopologyError {
    /// A bus has too many devices.
    #[error("too many devices on bus {bus}: expected at most {}", Slot::DEVICES)]
    TooManyDevices {
        /// The bus.
        bus: u8,
    },
    /// A device has no or too many functions.
    #[error(
        "invalid number of functions {functions} in device {device} of bus {bus}: expected 1 to {}",
        Slot::FUNCTIONS
    )]
    Functions {
        /// The bus.
        bus: u8,
        /// The device number.
        device: u8,
        /// The number of functions.
        functions: usize,
    },
    /// There are more bridges than buses.
    #[error("too many buses: expected at most {}", Topology::BUSES)]
    TooManyBuses,
}
