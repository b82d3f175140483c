//! A guest that writes random values anywhere: nothing panics, and nothing grows.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;

use super::test_machine::*;
use super::*;
use crate::bus::BusDevice;

#[derive(Debug, Clone)]
enum Action {
    Ecam(u64, Vec<u8>),
    Ports(u64, Vec<u8>),
    Memory(u64, Vec<u8>),
    Io(u16, Vec<u8>),
    Raise(usize, u16),
    Level(usize, bool),
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![any::<u8>(), select(vec![0, 1, 7, 0xff])];
    prop_oneof![
        prop::collection::vec(byte.clone(), 1..9),
        prop::collection::vec(byte, 9..70),
        Just(0x8000_0000_u32.to_le_bytes().to_vec()),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let functions = [PORT, BELOW_PORT, FIRST, SECOND, BRIDGE, BELOW_BRIDGE, NESTED_BRIDGE, NESTED];
    let register = prop_oneof![0..0x50_u64, 0..0x100_u64, 0..0x1000_u64];
    let function = select(functions.map(FunctionAddress::requester_id).to_vec());
    let known = (function, register).prop_map(|(function, at)| u64::from(function) << 12 | at);
    let ecam = prop_oneof![8 => known, 1 => 0..Ecam::SIZE, 1 => any::<u64>()];
    let memory = prop_oneof![
        0..0x5000_u64,
        0xe000_0000..0xe000_8000_u64,
        any::<u64>(),
        select(vec![u64::MAX, u64::MAX - 3])
    ];
    prop_oneof![
        6 => (ecam, bytes()).prop_map(|(at, bytes)| Action::Ecam(at, bytes)),
        2 => (0..9_u64, bytes()).prop_map(|(at, bytes)| Action::Ports(at, bytes)),
        3 => (memory, bytes()).prop_map(|(at, bytes)| Action::Memory(at, bytes)),
        1 => (any::<u16>(), bytes()).prop_map(|(at, bytes)| Action::Io(at, bytes)),
        1 => (0..5_usize, any::<u16>()).prop_map(|(at, vector)| Action::Raise(at, vector % 5)),
        1 => (0..5_usize, any::<bool>()).prop_map(|(at, level)| Action::Level(at, level)),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics(actions in prop::collection::vec(action(), 0..200)) {
        let machine = Machine::new();
        machine.map(FIRST, 0xe000_0000);
        machine.map(NESTED, 0xe000_4000);
        let root = &machine.root;
        let mut ecam = Ecam::new(Arc::clone(root));
        let mut ports = ConfigPorts::new(Arc::clone(root), Arc::new(Requests::default()).reset_control());
        let functions = root.status().len();
        let mut raised = 0;
        for action in actions {
            match action {
                Action::Ecam(at, mut bytes) => {
                    ecam.write(at, &bytes);
                    ecam.read(at, &mut bytes);
                }
                Action::Ports(at, mut bytes) => {
                    ports.write(at, &bytes);
                    ports.read(at, &mut bytes);
                }
                Action::Memory(at, mut bytes) => {
                    let written = root.write_memory(at, &bytes);
                    prop_assert_eq!(
                        std::mem::discriminant(&root.read_memory(at, &mut bytes)),
                        std::mem::discriminant(&written)
                    );
                    prop_assert!(written == Access::Claimed || bytes.iter().all(|&byte| byte == 0xff));
                }
                Action::Io(at, mut bytes) => {
                    let _ = root.write_io(at, &bytes);
                    let _ = root.read_io(at, &mut bytes);
                }
                Action::Raise(function, vector) => {
                    machine.functions[function].msix.raise(vector);
                    raised += 1;
                }
                Action::Level(function, level) => machine.functions[function].intx.set_level(level),
            }
        }
        prop_assert_eq!(root.status().len(), functions);
        prop_assert!(machine.messages.take().len() <= raised);
    }
}
