//! Doorbells: registers that do nothing but signal, so that a machine can serve writes to them without
//! the device.

use std::sync::Arc;

use super::BarIndex;
use crate::Signal;

/// What a register rings when the guest writes to it, whatever the guest writes.
///
/// Ringing does not involve the device, so a machine may do it by itself for writes that start at the
/// register's address (KVM's ioeventfd). Those are not counted ([`Counters`](super::Counters)). All
/// other writes get to the device as usual.
pub trait Doorbell: Signal {
    /// The register is at memory address `address` now, or at none, as initially.
    ///
    /// The register leaves an address only after the call that removes it from there, and is at a new
    /// one before the call that reports it. No two registers are ever reported at the same address,
    /// since only one of those that decode it answers. Called on a vCPU's thread with all
    /// of configuration space locked, so it must neither wait nor access any of that.
    fn moved(&self, address: Option<u64>);
}

/// A function's register that rings a doorbell.
pub(super) struct DoorbellRegister {
    pub bar: BarIndex,
    /// Bytes from the start of the range.
    pub offset: u64,
    pub doorbell: Arc<dyn Doorbell>,
}

/// A doorbell, and where it answers.
#[derive(Clone)]
pub(super) struct PlacedDoorbell {
    pub doorbell: Arc<dyn Doorbell>,
    pub address: Option<u64>,
}

/// The doorbells that a new map of addresses moves, as they are before, and where they will be.
pub(super) struct Moves(Vec<(PlacedDoorbell, Option<u64>)>);

impl Moves {
    /// The differences between `before` and `after`, which have the same doorbells in the same order.
    pub fn between(before: &[PlacedDoorbell], after: &[PlacedDoorbell]) -> Self {
        let moves = before.iter().cloned().zip(after.iter().map(|placed| placed.address));
        Self(moves.filter(|(before, after)| before.address != *after).collect())
    }

    /// Removes all of them from their old addresses, so that each new address is free.
    pub fn leave(&self) {
        for (before, _) in &self.0 {
            if before.address.is_some() {
                before.doorbell.moved(None);
            }
        }
    }

    /// Reports the new addresses of those that have one.
    pub fn arrive(self) {
        for (before, after) in self.0 {
            if after.is_some() {
                before.doorbell.moved(after);
            }
        }
    }
}
