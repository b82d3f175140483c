//! Doorbells are notified of their addresses.

use proptest::prelude::*;
use proptest::sample::select;

use super::header::register;
use super::test_machine::*;
use super::*;
use crate::lock;

const BAR2: usize = register::BASE_ADDRESS + 8;
const AT: u32 = 0xfff0_0000;
const ALL: Command = Command::IO.union(Command::MEMORY).union(Command::MASTER);
const POWER_MANAGEMENT: u8 = 0x01;
const PCI_EXPRESS: u8 = 0x10;
const FUNCTION_LEVEL_RESET: u16 = 1 << 15;
const SECONDARY_BUS_RESET: u16 = 1 << 6;
const D3HOT: u16 = 3;

fn place(machine: &Machine, function: FunctionAddress) -> Option<u64> {
    machine.handles(function).bell.place()
}

/// The address of a doorbell in a range at `bar`.
fn in_range(bar: u32) -> Option<u64> {
    Some(u64::from(bar) + DOORBELL)
}

/// Puts BAR 2 of `function` to `address`, with all bridges open.
fn map(machine: &Machine, function: FunctionAddress, address: u32) {
    machine.write_config(function, BAR2, address);
    machine.map(function, 0x10_0000_0000);
}

#[test]
fn a_doorbell_is_notified_of_the_address_that_its_function_decodes() {
    for function in [FIRST, BELOW_PORT, NESTED] {
        let machine = Machine::new();
        machine.write_config(function, BAR2, AT);
        assert_eq!(place(&machine, function), None);
        map(&machine, function, AT);
        assert_eq!(place(&machine, function), in_range(AT));
        machine.write_config(function, BAR2, AT + 0x1000);
        assert_eq!(place(&machine, function), in_range(AT + 0x1000));
        // As a driver does to find out the size.
        machine.write_config(function, BAR2, u32::MAX);
        assert_eq!(place(&machine, function), in_range(0xffff_f000));
        machine.write_config(function, BAR2, AT);
        machine.command(function, Command::MASTER);
        assert_eq!(place(&machine, function), None);
        machine.command(function, ALL);
        assert_eq!(place(&machine, function), in_range(AT));
    }
}

#[test]
fn a_function_that_is_reset_or_asleep_has_no_doorbell() {
    let machine = Machine::new();
    map(&machine, FIRST, AT);
    let power = machine.capability(FIRST, POWER_MANAGEMENT).unwrap() + 4;
    machine.write_config_u16(FIRST, power, D3HOT);
    assert_eq!(place(&machine, FIRST), None);
    machine.write_config_u16(FIRST, power, 0);
    assert_eq!(place(&machine, FIRST), None, "the transition to D0 has reset it");
    map(&machine, FIRST, AT);
    assert_eq!(place(&machine, FIRST), in_range(AT));
    let express = machine.capability(FIRST, PCI_EXPRESS).unwrap() + 8;
    machine.write_config_u16(FIRST, express, FUNCTION_LEVEL_RESET);
    assert_eq!(place(&machine, FIRST), None);
}

#[test]
fn below_a_bridge_that_forwards_nothing_there_is_no_doorbell() {
    for (bridge, function) in [(PORT, BELOW_PORT), (BRIDGE, BELOW_BRIDGE), (NESTED_BRIDGE, NESTED)]
    {
        let machine = Machine::new();
        let opened = || {
            map(&machine, function, AT);
            assert_eq!(place(&machine, function), in_range(AT));
        };
        opened();
        machine.write_config(bridge, register::MEMORY_BASE, 0x0000_fff0);
        assert_eq!(place(&machine, function), None, "the window is closed");
        opened();
        machine.command(bridge, Command::MASTER);
        assert_eq!(place(&machine, function), None, "the window is off");
        opened();
        machine.write_config_u16(bridge, register::BRIDGE_CONTROL, SECONDARY_BUS_RESET);
        assert_eq!(place(&machine, function), None, "the bus below is in reset");
        machine.write_config_u16(bridge, register::BRIDGE_CONTROL, 0);
        assert_eq!(place(&machine, function), None, "and has been reset");
        opened();
    }
}

#[test]
fn of_two_at_one_address_the_one_that_answers_has_a_doorbell() {
    let machine = Machine::new();
    map(&machine, SECOND, AT);
    assert_eq!(place(&machine, SECOND), in_range(AT));
    map(&machine, FIRST, AT);
    assert_eq!((place(&machine, FIRST), place(&machine, SECOND)), (in_range(AT), None));
    machine.write_config(FIRST, BAR2, AT + 0x1000);
    assert_eq!(place(&machine, SECOND), in_range(AT));
    // The other one's ROM is half as long as the range.
    machine.write_config(FIRST, register::EXPANSION_ROM, AT | 1);
    assert_eq!(place(&machine, SECOND), in_range(AT), "the ROM ends before it");
    machine.write_config(FIRST, register::EXPANSION_ROM, (AT + 0x800) | 1);
    assert_eq!(place(&machine, SECOND), None);
}

/// Asserts that a write rings exactly those doorbells that have been notified of its address.
fn assert_doorbells_ring_at_their_addresses(machine: &Machine) -> Result<(), TestCaseError> {
    let functions = machine.root.status();
    let doorbell = |function: &FunctionStatus| {
        let range = function.ranges.iter().find(|range| range.kind == BarKind::Memory32)?;
        Some(range.address + DOORBELL)
    };
    for address in functions.iter().filter_map(doorbell) {
        let _ = machine.store(address, 0);
        for handles in &machine.functions {
            let writes = std::mem::take(&mut lock(&handles.device).writes);
            let rung = writes == [(BarIndex::Bar2, DOORBELL, vec![0; 4])];
            prop_assert_eq!(rung, handles.bell.place() == Some(address), "{:#x}", address);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn doorbells_are_notified_of_the_addresses_where_writes_ring_them(
        writes in prop::collection::vec(write(), 0..60),
    ) {
        let machine = Machine::new();
        // All at the same address.
        for function in ENDPOINTS {
            map(&machine, function, AT);
        }
        for (function, offset, value) in writes {
            machine.write_config(function, offset, value);
            assert_doorbells_ring_at_their_addresses(&machine)?;
        }
    }
}

const ENDPOINTS: [FunctionAddress; 5] = [BELOW_PORT, FIRST, SECOND, BELOW_BRIDGE, NESTED];

fn write() -> impl Strategy<Value = (FunctionAddress, usize, u32)> {
    let functions = [&ENDPOINTS[..], &[PORT, BRIDGE, NESTED_BRIDGE]].concat();
    let offset = prop_oneof![
        3 => Just(BAR2),
        2 => Just(register::COMMAND),
        1 => select(vec![register::EXPANSION_ROM, register::MEMORY_BASE, 0x3c, 0x44, 0x58]),
        1 => (0..0x40_usize).prop_map(|register| register * 4),
    ];
    let value = prop_oneof![
        4 => (0..4_u32).prop_map(|pages| AT + (pages << 11) + 1),
        2 => select(vec![0, 2, 3, 7, u32::MAX]),
        1 => any::<u32>(),
    ];
    (select(functions), offset, value)
}
