//! A guest that writes random values anywhere: nothing panics, nothing grows, and every access is
//! counted.

use proptest::prelude::*;
use proptest::sample::select;

use super::registers::bar0::LOG_ENTRIES;
use super::test_machine::*;
use crate::pci::Access;

#[derive(Debug, Clone)]
enum Action {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    ReadPort(u16, usize),
    WritePort(u16, Vec<u8>),
    Config(usize, Vec<u8>),
    Process,
}

fn memory() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => BAR0..BAR0 + 0x2000,
        4 => BAR0 + 0xf8..BAR0 + 0x128,
        1 => BAR2..BAR2 + u64::from(RAM_SIZE),
        1 => BAR4..BAR4 + 0x1000,
        1 => ROM..ROM + 0x800,
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![any::<u8>(), select(vec![0, 1, 2, 3, 7, 0xff])];
    prop_oneof![
        prop::collection::vec(byte.clone(), 1..9),
        prop::collection::vec(byte, 9..100),
        Just(MEMORY.to_le_bytes().to_vec()),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let port = || BAR5..BAR5 + 0x10;
    prop_oneof![
        4 => (memory(), 1..100_usize).prop_map(|(at, length)| Action::Read(at, length)),
        8 => (memory(), bytes()).prop_map(|(at, bytes)| Action::Write(at, bytes)),
        1 => (port(), 1..20_usize).prop_map(|(at, length)| Action::ReadPort(at, length)),
        1 => (port(), bytes()).prop_map(|(at, bytes)| Action::WritePort(at, bytes)),
        1 => (0..0x100_usize, bytes()).prop_map(|(at, bytes)| Action::Config(at, bytes)),
        2 => Just(Action::Process),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics(actions in prop::collection::vec(action(), 0..200)) {
        let machine = Machine::new();
        let mut claimed = 0;
        for action in actions {
            let access = match action {
                Action::Read(at, length) => machine.root.read_memory(at, &mut vec![0; length]),
                Action::Write(at, bytes) => machine.root.write_memory(at, &bytes),
                Action::ReadPort(at, length) => machine.root.read_io(at, &mut vec![0; length]),
                Action::WritePort(at, bytes) => machine.root.write_io(at, &bytes),
                Action::Config(at, bytes) => {
                    machine.root.write_config(PROBE, at, &bytes);
                    machine.configure();
                    continue;
                }
                Action::Process => {
                    machine.process();
                    continue;
                }
            };
            claimed += u64::from(access == Access::Claimed);
        }
        let status = machine.status();
        prop_assert!(status.log.len() <= LOG_ENTRIES);
        prop_assert!(status.log.is_sorted_by_key(|access| access.sequence));
        let counted: u64 = status.accesses.iter().map(|counts| counts.reads + counts.writes).sum();
        // The rest went to the MSI-X structures and the ROM.
        prop_assert!(counted <= claimed);
        prop_assert!(counted >= status.log.last().map_or(0, |access| access.sequence));
        prop_assert!(status.dma.completed + status.dma.faulted <= machine.rings() as u64);
    }
}
