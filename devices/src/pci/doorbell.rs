//! Doorbells: registers that do nothing but signal, so that a machine can do it in their stead.

use std::sync::Arc;

use super::BarIndex;
use crate::Signal;

/// What a register rings when the guest writes to it, whatever the guest writes.
///
/// To ring takes no device, so a machine may do it by itself for writes that start at the
/// register's address (KVM's ioeventfd). Nothing counts those ([`Counters`](super::Counters)).
/// All others get to the device as ever.
pub trait Doorbell: Signal {
    /// The register is at memory address `address` now, or nowhere, as it was at first.
    ///
    /// What is said is never more than the truth: the register is gone from an address only after
    /// this, and is at the next one before it. No two registers are ever said to be at the same
    /// address, since only one of those that decode it answers. Called on a vCPU's thread with all
    /// of configuration space locked, so it must neither wait nor access any of that.
    fn moved(&self, address: Option<u64>);
}

/// The register of a function that rings.
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
    /// What is not the same `before` and `after`, which have the same doorbells in the same order.
    pub fn between(before: &[PlacedDoorbell], after: &[PlacedDoorbell]) -> Self {
        let moves = before.iter().cloned().zip(after.iter().map(|placed| placed.address));
        Self(moves.filter(|(before, after)| before.address != *after).collect())
    }

    /// Tells all of them to leave, so that each finds its new place free.
    pub fn leave(&self) {
        for (before, _) in &self.0 {
            if before.address.is_some() {
                before.doorbell.moved(None);
            }
        }
    }

    /// Tells those that are somewhere again.
    pub fn arrive(self) {
        for (before, after) in self.0 {
            if after.is_some() {
                before.doorbell.moved(after);
            }
        }
    }
}
