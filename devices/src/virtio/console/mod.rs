//! The console device (virtio 1.3, section 5.3): streams of bytes between the guest and the host.
//!
//! Of its ports the guest uses the generic ones, which Linux has as `/dev/vportNpM`: none is for a
//! terminal of the kernel's, which the serial port is for. A port is flow-controlled in both directions
//! and ends in both: output waits in its queue as long as the host has no room, input in the host as long
//! as the guest has not opened the port.

mod device;
mod port;
mod wire;

#[cfg(test)]
mod device_test;

pub use device::{Console, ConsoleError, ConsoleState};
pub use port::{HostEnd, Input, Port, PortState};
