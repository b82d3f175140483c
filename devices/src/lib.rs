//! Device models as plain state machines.
//!
//! Nothing here depends on KVM or a file system, or on which thread runs the devices. What a device
//! needs from the machine is a small trait that this crate owns and the machine implements: [`Signal`]
//! to raise an interrupt, [`virtio::mem::BlockBackend`] to make memory appear and go away,
//! [`dma::Reachability`] to say which guest memory exists at this moment, [`pci::MessageSink`] and
//! [`pci::InterruptLine`] to interrupt from PCI.

pub mod bus;
pub mod dma;
pub mod pci;
pub mod platform;
pub mod probe;
pub mod serial;
pub mod virtio;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex` even if a thread panicked while it held it: to go on with what it left is better than
/// to end the VM.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something that can be signalled without waiting: an interrupt line or a doorbell.
pub trait Signal: Send + Sync {
    /// Signals once. An edge: there is nothing to take back.
    fn signal(&self);
}
