//! Stopping guest code: vCPUs are taken out of KVM_RUN together, and let back in. And stopping the threads
//! that do devices' work.

mod devices;
mod gate;
mod kick;

pub use devices::{DeviceGate, Working};
pub use gate::{Closed, Entered, VcpuGate};
pub use kick::{KICK, KickTarget};
