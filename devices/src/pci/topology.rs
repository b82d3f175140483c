//! What a machine has on PCI, as a tree.
//!
//! Device numbers follow from the order: the host bridge is device 0 of bus 0, everything else on
//! a bus counts up from there (from 0 behind a bridge). Bus numbers are assigned depth first, as
//! firmware would.

use super::Function;

/// What is on bus 0 beside the host bridge.
#[derive(Default)]
pub struct Topology {
    /// From device 1 on.
    pub root: Vec<RootNode>,
}

/// What may be on bus 0.
pub enum RootNode {
    /// A port of the root complex.
    Port(RootPort),
    /// Something integrated into the root complex.
    Integrated(Node),
}

/// A root port (PCI Express Base 6.0, section 1.3.1): a link to one device.
pub struct RootPort {
    /// Whether the port has Access Control Services, so that Linux isolates what is below.
    pub access_control: bool,
    /// Device 0 of the link, if something is plugged in.
    pub below: Option<Node>,
}

/// What may be anywhere.
pub enum Node {
    /// A device: its functions from 0 on.
    Device(Vec<Function>),
    /// A bridge to conventional PCI.
    Bridge(BridgeNode),
}

/// A PCI Express to PCI bridge (PCI Express to PCI/PCI-X Bridge 1.0), or, on a conventional bus, a
/// PCI-to-PCI bridge.
#[derive(Default)]
pub struct BridgeNode {
    /// From device 0 on.
    pub below: Vec<Node>,
}
