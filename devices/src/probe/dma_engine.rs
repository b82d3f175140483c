//! The DMA engine: one transfer at a time between a buffer and guest memory.

use std::sync::Arc;

use log::debug;
use vm_memory::{Bytes, GuestAddress};

use super::registers::bar0::BUFFER_SIZE;
use super::registers::{Control, dma_command, dma_status};
use crate::Signal;
use crate::dma::DmaView;
use crate::pci::FunctionState;

/// What the engine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaStatus {
    /// There was no transfer since the last reset.
    Idle,
    /// One is under way.
    Busy,
    /// The last one went well.
    Done,
    /// The last one did not.
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

/// Why a transfer went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaFault {
    /// There is no such command.
    Command,
    /// The length is zero or more than the buffer's.
    Length,
    /// The function is no bus master.
    BusMaster,
    /// Not all of that memory is there for the device.
    Address,
}

/// How transfers went since the machine was built.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct DmaCounts {
    /// Well.
    pub completed: u64,
    /// Not well.
    pub faulted: u64,
}

pub(super) struct DmaEngine {
    pub buffer: Box<[u8]>,
    pub counts: DmaCounts,
    /// The registers as they were when the transfer under way was started.
    pending: Option<Control>,
    /// Of the last transfer, if there was one since the last reset.
    result: Option<Result<(), DmaFault>>,
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

    /// Carries out the transfer that waits, and gives the number of the vector to raise for it.
    pub fn process(&mut self) -> Option<u32> {
        let control = self.pending.take()?;
        let result = self.transfer(&control);
        match result {
            Ok(()) => self.counts.completed += 1,
            Err(fault) => {
                self.counts.faulted += 1;
                debug!("{}: DMA fault {fault:?} in {control:x?}", self.function);
            }
        }
        self.result = Some(result);
        Some(control.dma_vector.get())
    }

    fn transfer(&mut self, control: &Control) -> Result<(), DmaFault> {
        let length = control.dma_length.get() as usize;
        let address = GuestAddress(control.dma_address.get());
        if !(1..=BUFFER_SIZE).contains(&length) {
            return Err(DmaFault::Length);
        }
        if !self.function.is_bus_master() {
            return Err(DmaFault::BusMaster);
        }
        let buffer = &mut self.buffer[..length];
        let moved = match control.dma_command.get() {
            dma_command::READ => self.memory.read_slice(buffer, address),
            dma_command::WRITE => self.memory.write_slice(buffer, address),
            dma_command::FILL => {
                let byte = control.dma_fill.get() as u8;
                self.memory.write_slice(&[byte; BUFFER_SIZE][..length], address)
            }
            _ => return Err(DmaFault::Command),
        };
        moved.map_err(|_| DmaFault::Address)
    }

    /// The counts stay.
    pub fn reset(&mut self) {
        self.buffer.fill(0);
        self.pending = None;
        self.result = None;
    }
}
