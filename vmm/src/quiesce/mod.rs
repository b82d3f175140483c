//! Stopping guest code: vCPUs are taken out of KVM_RUN together, and let back in.

mod gate;
mod kick;

pub use gate::{Closed, Entered, VcpuGate};
pub use kick::KickTarget;
