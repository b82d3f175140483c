//! Stops guest code, by taking all vCPUs out of KVM_RUN, and the threads that do devices' work.

mod devices;
mod gate;
mod kick;

pub use devices::{DeviceGate, Working};
pub use gate::{Closed, Entered, VcpuGate};
pub use kick::{KICK, KickTarget};
