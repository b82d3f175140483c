//! The DMA engine: one transfer at a time between a buffer and guest memory.

use std::sync::Arc;

use log::debug;
use vm_memory::{Bytes, GuestAddress, Permissions};

use super::registers::bar0::BUFFER_SIZE;
use super::registers::{Control, dma_command, dma_status};
use crate::Signal;
use crate::dma::{DmaView, NotPermitted, PhysicalRange, Refused};
use crate::pci::{Access, Direction, FunctionState, RootComplex};

/// The state of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaStatus {
    /// There was no transfer since the last reset.
    Idle,
    /// One is under way.
    Busy,
    /// The last one succeeded.
    Done,
    /// The last one failed.
    Fault(DmaFault),
}

impl DmaStatus {
    pub(super) fn code(self) -> u32 {
        match self {
            Self::Idle => dma_status::IDLE,
            Self::Busy => dma_status::BUSY,
            Self::Done => dma_status::DONE,
            Self::Fault(DmaFault::Command) => dma_status::FAULT_COMMAND,
            Self::Fault(DmaFault::Length) => dma_status::FAULT_LENGTH,
            Self::Fault(DmaFault::BusMaster) => dma_status::FAULT_BUS_MASTER,
            Self::Fault(DmaFault::Address) => dma_status::FAULT_ADDRESS,
        }
    }
}

/// Why a transfer failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaFault {
    /// There is no such command.
    Command,
    /// The length is zero or more than the buffer's.
    Length,
    /// The function is not a bus master.
    BusMaster,
    /// The device may not access all of the range: part of it is neither memory nor registers of a
    /// function.
    Address,
}

/// Transfers since the machine was built.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct DmaCounts {
    /// Successful.
    pub completed: u64,
    /// Failed.
    pub faulted: u64,
}

/// A transfer to or from registers of functions. These may be the probe's own, so it is made without
/// the probe's lock.
pub(super) struct PeerTransfer {
    control: Control,
    direction: Direction,
    data: Vec<u8>,
    memory: DmaView,
    /// How often the engine had been reset when it began.
    resets: u64,
}

impl PeerTransfer {
    /// Makes the transfer, at most 4 aligned bytes at a time. Each access is made only if it is
    /// permitted then.
    pub fn run(&mut self, peers: &RootComplex) -> Result<(), DmaFault> {
        let mut address = self.control.dma_address.get();
        let mut rest = &mut self.data[..];
        while !rest.is_empty() {
            let length = rest.len().min(4 - (address % 4) as usize);
            let (bytes, after) = rest.split_at_mut(length);
            access_peer(&self.memory, peers, self.direction, address, bytes)?;
            (rest, address) = (after, address.wrapping_add(length as u64));
        }
        Ok(())
    }
}

/// One access to registers, within a page.
fn access_peer(
    memory: &DmaView,
    peers: &RootComplex,
    direction: Direction,
    address: u64,
    bytes: &mut [u8],
) -> Result<(), DmaFault> {
    let lease = memory.lease()?;
    let pieces = lease.pieces(GuestAddress(address), bytes.len(), permissions(direction))?;
    let [PhysicalRange { address, .. }] = pieces[..] else {
        return Err(DmaFault::Address);
    };
    let access = match direction {
        Direction::Read => peers.read_memory(address, bytes),
        Direction::Write => peers.write_memory(address, bytes),
    };
    (access == Access::Claimed).then_some(()).ok_or(DmaFault::Address)
}

fn permissions(direction: Direction) -> Permissions {
    match direction {
        Direction::Read => Permissions::Read,
        Direction::Write => Permissions::Write,
    }
}

impl From<NotPermitted> for DmaFault {
    fn from(_: NotPermitted) -> Self {
        Self::BusMaster
    }
}

impl From<Refused> for DmaFault {
    fn from(_: Refused) -> Self {
        Self::Address
    }
}

/// The result of [`DmaEngine::process`].
pub(super) enum Processed {
    /// There was no pending transfer.
    Nothing,
    /// The transfer is complete; this is the number of the vector to raise for it.
    Finished(u32),
    /// The transfer is not to or from memory, and has still to be made.
    Peer(PeerTransfer),
}

pub(super) struct DmaEngine {
    pub buffer: Box<[u8]>,
    pub counts: DmaCounts,
    /// The registers as they were when the transfer under way was started.
    pending: Option<Control>,
    /// Of the last transfer, if there was one since the last reset.
    result: Option<Result<(), DmaFault>>,
    resets: u64,
    function: Arc<FunctionState>,
    memory: DmaView,
    doorbell: Arc<dyn Signal>,
}

impl DmaEngine {
    pub fn new(function: Arc<FunctionState>, memory: DmaView, doorbell: Arc<dyn Signal>) -> Self {
        Self {
            buffer: Box::new([0; BUFFER_SIZE]),
            counts: DmaCounts::default(),
            pending: None,
            result: None,
            resets: 0,
            function,
            memory,
            doorbell,
        }
    }

    /// Leaves the transfer that `control` describes to [`Self::process`].
    pub fn start(&mut self, control: Control) {
        if self.pending.is_none() {
            self.pending = Some(control);
            self.doorbell.signal();
        }
    }

    pub fn status(&self) -> DmaStatus {
        match (self.pending, self.result) {
            (Some(_), _) => DmaStatus::Busy,
            (None, None) => DmaStatus::Idle,
            (None, Some(Ok(()))) => DmaStatus::Done,
            (None, Some(Err(fault))) => DmaStatus::Fault(fault),
        }
    }

    /// Carries out the transfer that waits, if it is to or from memory.
    pub fn process(&mut self) -> Processed {
        let Some(control) = self.pending else {
            return Processed::Nothing;
        };
        match self.transfer(control) {
            Ok(None) => Processed::Finished(self.finish(&control, Ok(()))),
            Ok(Some(transfer)) => Processed::Peer(transfer),
            Err(fault) => Processed::Finished(self.finish(&control, Err(fault))),
        }
    }

    /// Ends a transfer that has been made, and returns the number of the vector to raise for it; none
    /// after a reset.
    pub fn finish_peer(
        &mut self,
        transfer: PeerTransfer,
        result: Result<(), DmaFault>,
    ) -> Option<u32> {
        let PeerTransfer { control, direction, data, resets, .. } = transfer;
        if resets != self.resets {
            return None;
        }
        if result.is_ok() && direction == Direction::Read {
            self.buffer[..data.len()].copy_from_slice(&data);
        }
        Some(self.finish(&control, result))
    }

    fn finish(&mut self, control: &Control, result: Result<(), DmaFault>) -> u32 {
        self.pending = None;
        match result {
            Ok(()) => self.counts.completed += 1,
            Err(fault) => {
                self.counts.faulted += 1;
                debug!("{}: DMA fault {fault:?} in {control:x?}", self.function);
            }
        }
        self.result = Some(result);
        control.dma_vector.get()
    }

    /// Makes a transfer to or from memory, and returns any other one.
    fn transfer(&mut self, control: Control) -> Result<Option<PeerTransfer>, DmaFault> {
        let length = control.dma_length.get() as usize;
        let address = GuestAddress(control.dma_address.get());
        if !(1..=BUFFER_SIZE).contains(&length) {
            return Err(DmaFault::Length);
        }
        let lease = self.memory.lease()?;
        let buffer = &mut self.buffer[..length];
        let (direction, mut data) = match control.dma_command.get() {
            dma_command::READ => (Direction::Read, vec![0; length]),
            dma_command::WRITE => (Direction::Write, buffer.to_vec()),
            dma_command::FILL => (Direction::Write, vec![control.dma_fill.get() as u8; length]),
            _ => return Err(DmaFault::Command),
        };
        lease.pieces(address, length, permissions(direction))?;
        let moved = match direction {
            Direction::Read => lease.read_slice(&mut data, address),
            Direction::Write => lease.write_slice(&data, address),
        };
        if moved.is_err() {
            let (memory, resets) = (self.memory.clone(), self.resets);
            return Ok(Some(PeerTransfer { control, direction, data, memory, resets }));
        }
        if direction == Direction::Read {
            buffer.copy_from_slice(&data);
        }
        Ok(None)
    }

    /// The counts stay.
    pub fn reset(&mut self) {
        self.buffer.fill(0);
        self.pending = None;
        self.result = None;
        self.resets += 1;
    }
}
