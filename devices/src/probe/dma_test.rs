//! DMA transfers, from the guest's registers to guest memory.

use std::sync::{Arc, Mutex, OnceLock};

use vm_memory::{Bytes, GuestAddress};

use super::test_machine::*;
use super::{DmaCounts, DmaFault, DmaStatus, Probe};
use crate::pci::test_machine::address;
use crate::pci::{
    BarIndex, BarKind, Command, FunctionAddress, FunctionBuilder, PciDevice, ResetKind, RootComplex,
};

pub const READ: u32 = 1;
pub const WRITE: u32 = 2;
pub const FILL: u32 = 3;

const STATUS: u64 = 0x008;
const COMPLETED: u64 = 0x010;
const FAULTED: u64 = 0x018;
const ADDRESS: u64 = 0x108;
const LENGTH: u64 = 0x110;
pub const BYTE: u64 = 0x114;
const VECTOR: u64 = 0x118;
const COMMAND: u64 = 0x11c;

pub fn start(machine: &Machine, command: u32, address: u64, length: u32) {
    machine.write_bytes(BAR0 + ADDRESS, &address.to_le_bytes());
    machine.write(BAR0 + LENGTH, length);
    machine.write(BAR0 + COMMAND, command);
}

/// Has a transfer carried out and returns its status.
pub fn transfer(machine: &Machine, command: u32, address: u64, length: u32) -> DmaStatus {
    start(machine, command, address, length);
    machine.process();
    machine.status().dma_status
}

pub fn memory(machine: &Machine, address: u64, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    machine.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
    data
}

#[test]
fn memory_is_read_written_and_filled() {
    let machine = Machine::new();
    assert_eq!(machine.read(BAR0 + STATUS), 0);
    let text = b"who goes there?";
    machine.memory.write_slice(text, GuestAddress(MEMORY + 0x123)).unwrap();
    assert_eq!(transfer(&machine, READ, MEMORY + 0x123, 15), DmaStatus::Done);
    assert_eq!(machine.read_bytes(BAR0 + BUFFER, 16), b"who goes there?\0");

    machine.write_bytes(BAR0 + BUFFER, b"WHO");
    assert_eq!(transfer(&machine, WRITE, MEMORY + 0x1ff8, 8), DmaStatus::Done);
    assert_eq!(memory(&machine, MEMORY + 0x1ff7, 9), b"\0WHO goes");

    machine.write(BAR0 + BYTE, 0x1255);
    assert_eq!(transfer(&machine, FILL, MEMORY + 1, 0x1000), DmaStatus::Done);
    let mut expected = vec![0x55; 0x1002];
    (expected[0], expected[0x1001]) = (0, 0);
    assert_eq!(memory(&machine, MEMORY, 0x1002), expected);
    assert_eq!(machine.read_bytes(BAR0 + BUFFER, 3), b"WHO");

    assert_eq!(machine.read(BAR0 + STATUS), 2);
    assert_eq!(machine.read_u64(BAR0 + COMPLETED), 3);
    assert_eq!(machine.status().dma, DmaCounts { completed: 3, faulted: 0 });
}

#[test]
fn a_transfer_is_made_by_process_with_the_registers_at_its_start() {
    let machine = Machine::new();
    machine.process();
    assert_eq!((machine.rings(), machine.status().dma), (0, DmaCounts::default()));

    machine.write(BAR0 + BYTE, 1);
    start(&machine, FILL, MEMORY, 1);
    assert_eq!((machine.rings(), machine.read(BAR0 + STATUS)), (1, 1));
    assert_eq!(memory(&machine, MEMORY, 1), [0]);
    // A second command is ignored, with any other registers.
    machine.write(BAR0 + BYTE, 2);
    start(&machine, FILL, MEMORY + 1, 2);
    assert_eq!(machine.rings(), 1);
    machine.process();
    machine.process();
    assert_eq!(memory(&machine, MEMORY, 3), [1, 0, 0]);
    assert_eq!(machine.status().dma, DmaCounts { completed: 1, faulted: 0 });
}

#[test]
fn an_invalid_transfer_is_a_fault_with_a_reason() {
    let machine = Machine::new();
    let end = MEMORY + MEMORY_SIZE as u64;
    let cases = [
        (0, MEMORY, 1, DmaFault::Command, 0x101),
        (4, MEMORY, 1, DmaFault::Command, 0x101),
        (u32::MAX, MEMORY, 1, DmaFault::Command, 0x101),
        (READ, MEMORY, 0, DmaFault::Length, 0x102),
        (READ, MEMORY, 0x1001, DmaFault::Length, 0x102),
        (WRITE, MEMORY, u32::MAX, DmaFault::Length, 0x102),
        (READ, 0, 1, DmaFault::Address, 0x104),
        (READ, end, 1, DmaFault::Address, 0x104),
        (WRITE, end - 1, 2, DmaFault::Address, 0x104),
        (FILL, MEMORY - 1, 2, DmaFault::Address, 0x104),
        (READ, u64::MAX, 0x1000, DmaFault::Address, 0x104),
        (WRITE, u64::MAX - 0xfff, 0x1000, DmaFault::Address, 0x104),
    ];
    for (faulted, (command, address, length, fault, code)) in (1..).zip(cases) {
        assert_eq!(transfer(&machine, command, address, length), DmaStatus::Fault(fault));
        assert_eq!(machine.read(BAR0 + STATUS), code);
        assert_eq!(machine.read_u64(BAR0 + FAULTED), faulted);
    }
    assert_eq!(transfer(&machine, READ, end - 1, 1), DmaStatus::Done);
}

#[test]
fn without_bus_mastering_memory_is_not_accessed() {
    let machine = Machine::new();
    machine.write(BAR0 + BYTE, 1);
    machine.enable(Command::MEMORY);
    assert_eq!(transfer(&machine, FILL, MEMORY, 1), DmaStatus::Fault(DmaFault::BusMaster));
    assert_eq!(machine.read(BAR0 + STATUS), 0x103);
    machine.enable(Command::MEMORY | Command::MASTER);
    start(&machine, FILL, MEMORY, 1);
    // Bus mastering is checked when the transfer is carried out.
    machine.enable(Command::MEMORY);
    machine.process();
    assert_eq!(machine.status().dma, DmaCounts { completed: 0, faulted: 2 });
    assert_eq!(memory(&machine, MEMORY, 1), [0]);
}

#[test]
fn the_end_of_a_transfer_interrupts_if_a_vector_is_set() {
    let machine = Machine::new();
    machine.enable_msix();
    let _ = transfer(&machine, READ, MEMORY, 1);
    assert!(machine.raised().is_empty());
    machine.write(BAR0 + VECTOR, 4);
    start(&machine, READ, MEMORY, 1);
    assert!(machine.raised().is_empty());
    machine.process();
    assert_eq!(machine.raised(), [4]);
    let _ = transfer(&machine, READ, 0, 1);
    assert_eq!(machine.raised(), [4], "a fault ends it too");
}

#[test]
fn a_reset_drops_the_pending_transfer() {
    let machine = Machine::new();
    machine.write(BAR0 + BYTE, 1);
    start(&machine, FILL, MEMORY, 1);
    machine.write_config(PROBE, machine.capability(PROBE, 0x10).unwrap() + 8, 1 << 15);
    machine.configure();
    assert_eq!(machine.status().dma_status, DmaStatus::Idle);
    machine.process();
    assert_eq!(machine.status().dma, DmaCounts::default());
    assert_eq!(memory(&machine, MEMORY, 1), [0]);
}

#[test]
fn registers_of_a_function_are_read_and_written_as_far_as_they_are_decoded() {
    let machine = Machine::new();
    // Its own registers: the transfer must not hold the probe's lock.
    machine.write_bytes(BAR2 + 0x123, b"who goes there?");
    assert_eq!(transfer(&machine, READ, BAR2 + 0x123, 15), DmaStatus::Done);
    assert_eq!(machine.read_bytes(BAR0 + BUFFER, 16), b"who goes there?\0");
    assert_eq!(transfer(&machine, WRITE, BAR2 + 0x1001, 15), DmaStatus::Done);
    assert_eq!(machine.read_bytes(BAR2 + 0x1000, 17), b"\0who goes there?\0");
    machine.write(BAR0 + BYTE, 0x55);
    assert_eq!(transfer(&machine, FILL, BAR0 + SCRATCH + 2, 3), DmaStatus::Done);
    assert_eq!(machine.read_bytes(BAR0 + SCRATCH, 6), b"\0\0\x55\x55\x55\0");
    // Nothing is behind the last byte, and the buffer is left alone.
    let fault = DmaStatus::Fault(DmaFault::Address);
    assert_eq!(transfer(&machine, READ, BAR2 + u64::from(RAM_SIZE) - 4, 8), fault);
    assert_eq!(machine.read_bytes(BAR0 + BUFFER, 3), b"who");
}

/// A function that takes bus mastering away from the probe while it is written to for the third time.
#[derive(Default)]
struct Peer {
    writes: usize,
    root: Arc<OnceLock<Arc<RootComplex>>>,
}

impl PciDevice for Peer {
    fn read_bar(&mut self, _bar: BarIndex, _offset: u64, _data: &mut [u8]) {}

    fn write_bar(&mut self, _bar: BarIndex, _offset: u64, _data: &[u8]) {
        self.writes += 1;
        if self.writes == 3 {
            let command = Command::MEMORY.bits().to_le_bytes();
            self.root.get().unwrap().write_config(PROBE, 4, &command);
        }
    }

    fn reset(&mut self, _kind: ResetKind) {}
}

#[test]
fn no_register_is_accessed_after_bus_mastering_ends() {
    const PEER: FunctionAddress = address(1, 0, 1);
    const PEER_BAR: u64 = 0xe000_8000;
    let root = Arc::new(OnceLock::new());
    let peer = Arc::new(Mutex::new(Peer { root: Arc::clone(&root), ..Peer::default() }));
    let mut function = FunctionBuilder::new(Probe::IDENTITY);
    function.bar(BarIndex::Bar0, BarKind::Memory32, 0x1000).unwrap();
    let machine = Machine::beside(function.build(Arc::clone(&peer) as _));
    machine.write_config(PEER, 0x10, PEER_BAR as u32);
    machine.write_config(PEER, 4, Command::MEMORY.bits().into());
    root.set(Arc::clone(&machine.root)).unwrap_or_else(|_| panic!("it is set once"));
    let fault = DmaStatus::Fault(DmaFault::BusMaster);
    assert_eq!(transfer(&machine, FILL, PEER_BAR, 64), fault);
    assert_eq!(peer.lock().unwrap().writes, 3);
    // With bus mastering it is 16 writes.
    machine.enable(Command::MEMORY | Command::MASTER);
    assert_eq!(transfer(&machine, FILL, PEER_BAR, 64), DmaStatus::Done);
    assert_eq!(peer.lock().unwrap().writes, 3 + 16);
}
