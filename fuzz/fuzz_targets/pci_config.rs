//! Configuration accesses, through memory and through I/O ports, to bridges and functions.
//!
//! No write may make a function appear, go away or become another one, reads must have no effects, and
//! both ways must lead to the same registers.
#![no_main]

use arbitrary::Arbitrary;
use devices::bus::BusDevice;
use devices::pci::{ConfigPorts, Ecam};
use libfuzzer_sys::fuzz_target;
use moat_fuzz::guest::AccessBytes;
use moat_fuzz::pci_machine::{ConfigOffset, ConfigTarget, Machine};

#[derive(Debug, Arbitrary)]
enum Action {
    WriteEcam { target: ConfigTarget, register: ConfigOffset, bytes: AccessBytes },
    ReadEcam { target: ConfigTarget, register: ConfigOffset, bytes: AccessBytes },
    WriteAnywhereInEcam { offset: u64, bytes: AccessBytes },
    WritePorts { offset: u8, bytes: AccessBytes },
    ReadPorts { offset: u8, bytes: AccessBytes },
    Compare { target: ConfigTarget, register: ConfigOffset },
    Configure,
    Process,
}

/// The vendor and device ID that read where there is no function.
const NOTHING: u32 = u32::MAX;
/// The registers whose reads only the PCI core answers: the header.
const HEADER: usize = 0x40;

fuzz_target!(|actions: Vec<Action>| {
    let mut machine = Machine::new();
    let identities = identities(&machine);
    for action in actions {
        run(&mut machine, action, &identities);
    }
    machine.assert_doorbells_ring();
    assert_eq!(self::identities(&machine), identities);
});

fn run(machine: &mut Machine, action: Action, identities: &[u32]) {
    match action {
        Action::WriteEcam { target, register, bytes } => {
            machine.ecam.write(ecam_offset(target, register), bytes.written());
        }
        Action::ReadEcam { target, register, mut bytes } => {
            machine.ecam.read(ecam_offset(target, register), bytes.room());
        }
        Action::WriteAnywhereInEcam { offset, bytes } => {
            machine.ecam.write(offset % Ecam::SIZE, bytes.written());
        }
        Action::WritePorts { offset, bytes } => {
            machine.config_ports.write(u64::from(offset) % ConfigPorts::PORTS, bytes.written());
        }
        Action::ReadPorts { offset, mut bytes } => {
            machine.config_ports.read(u64::from(offset) % ConfigPorts::PORTS, bytes.room());
        }
        Action::Compare { target, register } => {
            let register = (usize::from(register.0) % HEADER) & !3;
            let value = read_ecam(machine, target, register);
            assert_eq!(read_ecam(machine, target, register), value);
            assert_eq!(read_ports(machine, target, register), value);
            let identity = read_ecam(machine, target, 0);
            assert!(identity == NOTHING || identities.contains(&identity), "{identity:#x}");
        }
        Action::Configure => machine.configure(),
        Action::Process => machine.process(),
    }
}

/// Vendor and device ID of every function.
fn identities(machine: &Machine) -> Vec<u32> {
    let functions = machine.root.status().into_iter();
    functions
        .map(|function| u32::from(function.device) << 16 | u32::from(function.vendor))
        .collect()
}

fn ecam_offset(ConfigTarget(function): ConfigTarget, ConfigOffset(register): ConfigOffset) -> u64 {
    u64::from(function.requester_id()) << 12 | u64::from(register)
}

fn read_ecam(machine: &mut Machine, target: ConfigTarget, register: usize) -> u32 {
    let mut data = [0xa5; 4];
    machine.ecam.read(ecam_offset(target, ConfigOffset(register as u16)), &mut data);
    u32::from_le_bytes(data)
}

fn read_ports(machine: &mut Machine, ConfigTarget(function): ConfigTarget, register: usize) -> u32 {
    let mut data = [0xa5; 4];
    let address = 1 << 31 | u32::from(function.requester_id()) << 8 | register as u32;
    machine.config_ports.write(0, &address.to_le_bytes());
    machine.config_ports.read(4, &mut data);
    u32::from_le_bytes(data)
}
