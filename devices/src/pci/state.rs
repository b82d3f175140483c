//! The state of its function that a device model may query, on any thread.

use std::fmt;

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::FunctionAddress;
use crate::Signal;
use crate::dma::Requester;

/// Power states of a function (PCI Express Base 6.0, section 5.3.1), less the optional ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerState {
    /// Working.
    D0,
    /// Asleep: only configuration space answers.
    D3hot,
}

/// Counters of accesses and resets since the machine was built.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Reads of base address ranges that the function decoded.
    pub reads: u64,
    /// Writes to base address ranges that the function decoded, less those that the machine served
    /// by itself ([`Doorbell`](super::Doorbell)).
    pub writes: u64,
    /// Accesses to base address ranges that the function did not decode at that time.
    pub refused: u64,
    /// Resets of any kind.
    pub resets: u64,
}

/// The part of a function's registers that its device model acts on.
#[derive(Default)]
pub struct FunctionState {
    name: OnceLock<String>,
    address: OnceLock<FunctionAddress>,
    requester_id: AtomicU16,
    bus_master: AtomicBool,
    bus_master_signal: OnceLock<Arc<dyn Signal>>,
    asleep: AtomicBool,
    reads: AtomicU64,
    writes: AtomicU64,
    refused: AtomicU64,
    resets: AtomicU64,
}

impl FunctionState {
    /// The name that the machine has given to it, if it has.
    pub fn name(&self) -> Option<&str> {
        self.name.get().map(String::as_str)
    }

    /// Where the function was when the machine was built; none before that.
    pub fn address(&self) -> Option<FunctionAddress> {
        self.address.get().copied()
    }

    /// Whether the function may make requests of its own: Bus Master Enable is set in it and in
    /// every bridge above it, and all of them are awake.
    pub fn is_bus_master(&self) -> bool {
        self.bus_master.load(Ordering::Acquire)
    }

    /// Has `signal` signalled whenever the function becomes a bus master, so that the device model can
    /// go on with what it must not do before. Later calls have no effect.
    pub fn signal_bus_master(&self, signal: Arc<dyn Signal>) {
        let _ = self.bus_master_signal.set(signal);
    }

    /// The power state that the function is in.
    pub fn power_state(&self) -> PowerState {
        if self.asleep.load(Ordering::Acquire) { PowerState::D3hot } else { PowerState::D0 }
    }

    /// The counters.
    pub fn counters(&self) -> Counters {
        Counters {
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            resets: self.resets.load(Ordering::Relaxed),
        }
    }

    pub(super) fn set_name(&self, name: String) {
        // A function is named once: naming takes it by value.
        let _ = self.name.set(name);
    }

    pub(super) fn set_address(&self, address: FunctionAddress) {
        // A function is placed once: the topology takes it by value.
        let _ = self.address.set(address);
    }

    pub(super) fn set_requester_id(&self, requester_id: FunctionAddress) {
        self.requester_id.store(requester_id.requester_id(), Ordering::Release);
    }

    pub(super) fn set_power_state(&self, state: PowerState) {
        self.asleep.store(state == PowerState::D3hot, Ordering::Release);
    }

    pub(super) fn set_bus_master(&self, bus_master: bool) {
        let before = self.bus_master.swap(bus_master, Ordering::AcqRel);
        if let (false, true, Some(signal)) = (before, bus_master, self.bus_master_signal.get()) {
            signal.signal();
        }
    }

    pub(super) fn count_read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_write(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
}

/// The ID that the function's requests carry once they get to the root complex. It changes when the
/// guest renumbers buses.
impl Requester for FunctionState {
    fn id(&self) -> u32 {
        self.requester_id.load(Ordering::Acquire).into()
    }

    fn is_permitted(&self) -> bool {
        self.is_bus_master()
    }
}

impl fmt::Display for FunctionState {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.address() {
            Some(address) => address.fmt(f),
            None => f.write_str("function without a place"),
        }
    }
}
