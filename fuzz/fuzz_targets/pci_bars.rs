//! Accesses to base address ranges, MSI-X structures, expansion ROMs and I/O ports, while
//! configuration accesses move them about.
//!
//! A read and a write of the same address must end alike, reads of unmapped addresses must give ones,
//! and memory must change only while devices are processed, one of them is a bus master, and a doorbell
//! has rung.
#![no_main]

use std::mem::discriminant;

use arbitrary::Arbitrary;
use devices::pci::{Access, Command};
use libfuzzer_sys::fuzz_target;
use moat_fuzz::guest::AccessBytes;
use moat_fuzz::pci_machine::{ConfigOffset, ConfigTarget, MEMORY, Machine, ROM_OFFSET};

#[derive(Debug, Arbitrary)]
enum Action {
    Config { target: ConfigTarget, register: ConfigOffset, bytes: AccessBytes },
    Configure,
    Memory { place: Place, bytes: AccessBytes },
    AnyMemory { address: u64, bytes: AccessBytes },
    Io { function: u8, offset: u8, bytes: AccessBytes },
    AnyIo { port: u16, bytes: AccessBytes },
    StartDma { function: u8, dma: Dma },
    Process,
}

/// An address in a range of a function, where the machine has put it.
#[derive(Debug, Arbitrary)]
struct Place {
    function: u8,
    range: Range,
    offset: u16,
}

#[derive(Debug, Arbitrary)]
enum Range {
    Bar0,
    Bar2,
    Bar4,
    Rom,
}

impl Place {
    fn address(&self) -> u64 {
        let range = match self.range {
            Range::Bar0 => 0,
            Range::Bar2 => 0x1_0000,
            Range::Bar4 => 0x2_0000,
            Range::Rom => ROM_OFFSET,
        };
        Machine::bars(self.function) + range + u64::from(self.offset)
    }
}

/// The probe's registers for a transfer: mostly valid values.
#[derive(Debug, Arbitrary)]
struct Dma {
    address: u16,
    length: u16,
    fill: u8,
    vector: u8,
    command: u8,
}

impl Dma {
    /// Offset in BAR 0 of what follows.
    const REGISTERS: u64 = 0x108;

    fn bytes(&self) -> Vec<u8> {
        let Self { address, length, fill, vector, command } = *self;
        let address = MEMORY + u64::from(address);
        let words = [length.into(), fill.into(), vector.into(), u32::from(command % 5)];
        [&address.to_le_bytes()[..], words.map(u32::to_le_bytes).as_flattened()].concat()
    }
}

fuzz_target!(|actions: Vec<Action>| {
    let machine = Machine::new();
    for action in actions {
        let memory = machine.contents();
        let may_change = match action {
            Action::Process => bus_masters(&machine) && machine.doorbells.get() > 0,
            _ => false,
        };
        run(&machine, action);
        assert!(may_change || machine.contents() == memory);
    }
    let transfers: u64 = machine
        .probes()
        .map(|probe| probe.status().dma)
        .map(|dma| dma.completed + dma.faulted)
        .sum();
    assert!(transfers <= machine.doorbells.get() as u64);
    machine.assert_doorbells_ring();
});

fn run(machine: &Machine, action: Action) {
    match action {
        Action::Config { target, register, mut bytes } => {
            let (ConfigTarget(function), ConfigOffset(register)) = (target, register);
            machine.root.write_config(function, register.into(), bytes.written());
            machine.root.read_config(function, register.into(), bytes.room());
        }
        Action::Configure => machine.configure(),
        Action::Memory { place, bytes } => access_memory(machine, place.address(), bytes),
        Action::AnyMemory { address, bytes } => access_memory(machine, address, bytes),
        Action::Io { function, offset, bytes } => {
            access_io(machine, Machine::ports(function) + u16::from(offset % 0x20), bytes);
        }
        Action::AnyIo { port, bytes } => access_io(machine, port, bytes),
        Action::StartDma { function, dma } => {
            let _ =
                machine.root.write_memory(Machine::bars(function) + Dma::REGISTERS, &dma.bytes());
        }
        Action::Process => machine.process(),
    }
}

fn access_memory(machine: &Machine, address: u64, mut bytes: AccessBytes) {
    let written = machine.root.write_memory(address, bytes.written());
    let read = machine.root.read_memory(address, bytes.room());
    assert_alike(written, read, bytes.written());
}

fn access_io(machine: &Machine, port: u16, mut bytes: AccessBytes) {
    let written = machine.root.write_io(port, bytes.written());
    let read = machine.root.read_io(port, bytes.room());
    assert_alike(written, read, bytes.written());
}

fn assert_alike(written: Access, read: Access, bytes: &[u8]) {
    assert_eq!(discriminant(&written), discriminant(&read));
    assert!(read == Access::Claimed || bytes.iter().all(|&byte| byte == u8::MAX));
}

/// Whether any function is a bus master.
fn bus_masters(machine: &Machine) -> bool {
    machine.root.status().iter().any(|function| function.command.contains(Command::MASTER))
}
