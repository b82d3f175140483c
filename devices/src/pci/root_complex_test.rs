//! The root complex as a guest meets it.

use std::sync::Arc;

use super::header::register;
use super::test_machine::*;
use super::*;
use crate::bus::BusDevice;
use crate::lock;

const NOTHING: u32 = u32::MAX;
const AT: u64 = 0xe000_0000;
const ALL: Command = Command::IO.union(Command::MEMORY).union(Command::MASTER);

const POWER_MANAGEMENT: u8 = 0x01;
const VENDOR_SPECIFIC: u8 = 0x09;
const PCI_EXPRESS: u8 = 0x10;
const MSI_X: u8 = 0x11;
const MSI_X_ENABLE: u16 = 1 << 15;
const SECONDARY_BUS_RESET: u16 = 1 << 6;

fn refusal(access: Access) -> Refusal {
    match access {
        Access::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

fn power(machine: &Machine, address: FunctionAddress, state: u16) {
    let capability = machine.capability(address, POWER_MANAGEMENT).unwrap();
    machine.write_config_u16(address, capability + 4, state);
}

fn function_level_reset(machine: &Machine, address: FunctionAddress) {
    let capability = machine.capability(address, PCI_EXPRESS).unwrap();
    machine.write_config_u16(address, capability + 8, 1 << 15);
}

#[test]
fn functions_are_where_the_topology_puts_them_and_nowhere_else() {
    let machine = Machine::new();
    let places: Vec<_> = machine.root.status().iter().map(|status| status.address).collect();
    let host = address(0, 0, 0);
    let expected = [
        host,
        PORT,
        BELOW_PORT,
        FIRST,
        SECOND,
        BRIDGE,
        BELOW_BRIDGE,
        NESTED_BRIDGE,
        NESTED,
        EMPTY_PORT,
    ];
    assert_eq!(places, expected);
    for requester_id in 0..=u16::MAX {
        let address = FunctionAddress::from(requester_id);
        assert_eq!(address.requester_id(), requester_id);
        let there = machine.read_config(address, register::VENDOR_ID) != NOTHING;
        assert_eq!(there, expected.contains(&address), "{address}");
    }
}

#[test]
fn headers_identify_functions() {
    let machine = Machine::new();
    assert_eq!(machine.read_config(FIRST, register::VENDOR_ID), 0x5678_1234);
    assert_eq!(machine.read_config(FIRST, register::REVISION_ID), 0xff01_0209);
    assert_eq!(machine.read_config(FIRST, register::SUBSYSTEM_VENDOR_ID), 0xef01_abcd);
    for (address, header_type) in
        [(FIRST, 0x80), (SECOND, 0x80), (BELOW_PORT, 0), (PORT, 1), (BRIDGE, 1), (NESTED, 0)]
    {
        let found = machine.read_config(address, register::HEADER_TYPE) as u8;
        assert_eq!(found, header_type, "{address}");
    }
    // Primary, secondary, subordinate.
    for (bridge, buses) in [
        (PORT, 0x01_0100),
        (BRIDGE, 0x03_0200),
        (NESTED_BRIDGE, 0x03_0302),
        (EMPTY_PORT, 0x04_0400),
    ] {
        assert_eq!(machine.read_config(bridge, register::PRIMARY_BUS), buses, "{bridge}");
    }
}

#[test]
fn functions_on_pci_express_have_the_port_type_of_their_place() {
    let machine = Machine::new();
    for (address, port_type) in [(FIRST, 9), (BELOW_PORT, 0), (PORT, 4), (BRIDGE, 7)] {
        let capability = machine.capability(address, PCI_EXPRESS).unwrap();
        assert_eq!(
            machine.read_config_u16(address, capability + 2),
            port_type << 4 | 2,
            "{address}"
        );
    }
    let link_status = |port| {
        let capability = machine.capability(port, PCI_EXPRESS).unwrap();
        machine.read_config_u16(port, capability + 0x12)
    };
    assert_eq!(link_status(PORT), 0x3011);
    assert_eq!(link_status(EMPTY_PORT), 0x1000);
    assert_eq!(machine.read_config(PORT, 0x100), 0x0001_000d, "access control services");
    assert_eq!(machine.read_config(EMPTY_PORT, 0x100), 0);
}

#[test]
fn functions_on_conventional_pci_have_256_bytes() {
    let machine = Machine::new();
    for address in [BELOW_BRIDGE, NESTED_BRIDGE, NESTED] {
        assert_eq!(machine.capability(address, PCI_EXPRESS), None, "{address}");
        assert!(machine.capability(address, POWER_MANAGEMENT).is_some());
        assert_eq!(machine.read_config(address, 0xfc), 0);
        assert_eq!(machine.read_config(address, 0x100), NOTHING);
    }
}

#[test]
fn requests_follow_the_bus_numbers_that_bridges_have_now() {
    let machine = Machine::new();
    let moved = |bus| address(bus, 0, 0);
    let exists = |address| machine.read_config(address, register::VENDOR_ID) != NOTHING;
    machine.write_config(BRIDGE, register::PRIMARY_BUS, 0x20_1000);
    assert!(exists(moved(0x10)));
    assert!(!exists(moved(2)) && !exists(NESTED), "the bridge no longer passes on 2 and 3");
    machine.write_config(address(0x10, 1, 0), register::PRIMARY_BUS, 0x20_2010);
    assert!(exists(moved(0x20)));
    machine.write_config(BRIDGE, register::PRIMARY_BUS, 0x1f_1000);
    assert!(!exists(moved(0x20)));
    // The port's secondary bus is 0 and its subordinate bus covers everything: routing must not loop.
    machine.write_config(PORT, register::PRIMARY_BUS, 0xff_0000);
    assert!(exists(FIRST));
    assert!(!exists(moved(1)) && !exists(moved(0x10)));
    power(&machine, BRIDGE, 3);
    machine.write_config(PORT, register::PRIMARY_BUS, 0);
    assert!(!exists(moved(0x10)), "there is no bus below a bridge in D3hot");
}

#[test]
fn both_ways_lead_to_the_same_registers() {
    let machine = Machine::new();
    let mut ecam = Ecam::new(Arc::clone(&machine.root));
    let resets = Arc::new(Requests::default());
    let mut ports = ConfigPorts::new(Arc::clone(&machine.root), resets.reset_control());
    let line = 0x3c;
    ports.write(0, &0x8100_103f_u32.to_le_bytes());
    let mut config_address = [0; 4];
    ports.read(0, &mut config_address);
    assert_eq!(u32::from_le_bytes(config_address), 0x8000_103c, "reserved bits read as 0");
    ports.write(4, &[7]);
    let mut data = [0; 2];
    ecam.read(u64::from(FIRST.requester_id()) << 12 | line, &mut data);
    assert_eq!(data, [7, 1]);
    ecam.write(u64::from(FIRST.requester_id()) << 12 | line, &[9]);
    ports.read(4, &mut data);
    assert_eq!(data, [9, 1]);
    ports.read(5, &mut data);
    assert_eq!(data, [1, 0]);
    // Nothing but 1, 2 or 4 bytes within the data register, and 4 of the address register.
    for (offset, size) in [(4, 3), (4, 8), (6, 4), (7, 2), (8, 1), (0, 2), (1, 4), (u64::MAX, 4)] {
        let mut data = vec![0; size];
        ports.read(offset, &mut data);
        assert_eq!(data, vec![0xff; size], "{size} bytes at {offset}");
        ports.write(offset, &data);
    }
    ports.read(4, &mut data);
    assert_eq!(data, [9, 1], "none of those writes did anything");
    assert_eq!(resets.count(), 0);
    ports.write(1, &[0x06]);
    assert_eq!(resets.count(), 1, "a byte at 0xcf9 is for the reset register");
    ports.write(0, &0x1000_u32.to_le_bytes());
    ports.read(4, &mut data);
    assert_eq!(data, [0xff; 2], "not enabled");
}

#[test]
fn a_range_is_decoded_while_command_enables_it() {
    let machine = Machine::new();
    machine.map(FIRST, AT);
    let mut data = [0; 2];
    assert_eq!(machine.root.read_memory(AT + 0x123, &mut data), Access::Claimed);
    assert_eq!(machine.store(AT + 0x10, 0x0403_0201), Access::Claimed);
    let handles = machine.handles(FIRST);
    assert_eq!(lock(&handles.device).reads, [(BarIndex::Bar0, 0x123, 2)]);
    assert_eq!(lock(&handles.device).writes, [(BarIndex::Bar0, 0x10, vec![1, 2, 3, 4])]);

    machine.command(FIRST, ALL - Command::MEMORY);
    let (value, access) = machine.load(AT + 0x20);
    assert_eq!(value, NOTHING);
    let expected = Refusal {
        function: FIRST,
        register: BaseRegister::Bar(BarIndex::Bar0),
        space: AddressSpace::Memory,
        offset: 0x20,
        size: 4,
        direction: Direction::Read,
        reason: RefusalReason::DecodingOff,
    };
    assert_eq!(access, Access::Refused(expected));
    assert_eq!(machine.load(AT + BAR0_SIZE).1, Access::Unmapped);
    assert_eq!(machine.load(AT - 4).1, Access::Unmapped);
    let counters = Counters { reads: 1, writes: 1, refused: 1, resets: 0 };
    assert_eq!(handles.state.counters(), counters);
}

#[test]
fn an_access_ends_where_the_range_does() {
    let machine = Machine::new();
    machine.map(FIRST, AT);
    let mut data = [0x55; 8];
    assert_eq!(machine.root.read_memory(AT + BAR0_SIZE - 3, &mut data), Access::Claimed);
    assert_eq!(data, [0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff]);
    machine.root.write_config(FIRST, register::BASE_ADDRESS, &[0xff; 8]);
    let mut data = [0x55; 4];
    assert_eq!(machine.root.read_memory(u64::MAX, &mut data), Access::Claimed);
    assert_eq!(data, [0, 0xff, 0xff, 0xff]);
}

#[test]
fn io_ranges_and_roms_have_their_own_enable_bits() {
    let machine = Machine::new();
    machine.write_config(FIRST, register::BASE_ADDRESS + 12, 0xc000);
    machine.write_config(FIRST, register::EXPANSION_ROM, AT as u32);
    machine.command(FIRST, Command::IO | Command::MEMORY);
    let mut data = [0; 1];
    assert_eq!(machine.root.read_io(0xc01f, &mut data), Access::Claimed);
    assert_eq!(data, [3]);
    assert_eq!(machine.root.read_io(0xc020, &mut data), Access::Unmapped);
    assert_eq!(refusal(machine.load(AT).1).register, BaseRegister::ExpansionRom);
    machine.write_config(FIRST, register::EXPANSION_ROM, AT as u32 | 1);
    assert_eq!(machine.load(AT), (u32::from_le_bytes(ROM), Access::Claimed));
    assert_eq!(machine.load(AT + 0x7fc), (0, Access::Claimed));
    assert_eq!(machine.store(AT, 0), Access::Claimed);
    assert_eq!(machine.load(AT).0, u32::from_le_bytes(ROM));
    machine.command(FIRST, Command::MEMORY);
    assert_eq!(refusal(machine.root.write_io(0xc000, &data)).reason, RefusalReason::DecodingOff);
    assert_eq!(lock(&machine.handles(FIRST).device).reads.len(), 1);
}

#[test]
fn bridges_pass_on_what_is_in_their_open_windows() {
    let machine = Machine::new();
    machine.map(NESTED, AT);
    assert_eq!(machine.load(AT).1, Access::Claimed);
    let reason = || refusal(machine.load(AT).1).reason;
    for bridge in [BRIDGE, NESTED_BRIDGE] {
        machine.command(bridge, Command::IO | Command::MASTER);
        assert_eq!(reason(), RefusalReason::NotForwarded);
        machine.command(bridge, ALL);
        // A window that ends below, and the prefetchable one around it.
        machine.write_config(bridge, register::MEMORY_BASE, 0xdff0_0000);
        assert_eq!(reason(), RefusalReason::NotForwarded);
        machine.write_config(bridge, register::PREFETCHABLE_BASE, 0xe000_e000);
        assert_eq!(machine.load(AT).1, Access::Claimed);
        machine.write_config(bridge, register::PREFETCHABLE_LIMIT_UPPER, 1);
        assert_eq!(machine.load(AT).1, Access::Claimed);
        machine.write_config(bridge, register::PREFETCHABLE_BASE_UPPER, 1);
        assert_eq!(reason(), RefusalReason::NotForwarded);
        machine.write_config(bridge, register::MEMORY_BASE, 0xfff0_0000);
        power(&machine, bridge, 3);
        assert_eq!(reason(), RefusalReason::NotForwarded);
        power(&machine, bridge, 0);
        assert_eq!(machine.load(AT).1, Access::Claimed);
    }
    machine.write_config(NESTED, register::BASE_ADDRESS + 12, 0xd000);
    let mut data = [0; 4];
    assert_eq!(machine.root.read_io(0xd000, &mut data), Access::Claimed);
    machine.write_config_u16(BRIDGE, register::IO_BASE, 0xf0e0);
    assert_eq!(refusal(machine.root.read_io(0xd004, &mut data)).offset, 4);
}

#[test]
fn the_first_function_on_the_bus_gets_what_two_decode() {
    let machine = Machine::new();
    machine.map(SECOND, AT);
    machine.map(FIRST, AT);
    assert_eq!(machine.load(AT).1, Access::Claimed);
    assert_eq!(lock(&machine.handles(FIRST).device).reads.len(), 1);
    machine.command(FIRST, Command::MASTER);
    assert_eq!(machine.load(AT).1, Access::Claimed);
    assert_eq!(lock(&machine.handles(SECOND).device).reads.len(), 1);
}

#[test]
fn a_sleeping_function_decodes_nothing_and_wakes_up_as_after_power_on() {
    let machine = Machine::new();
    machine.map(FIRST, AT);
    let state = &machine.handles(FIRST).state;
    assert!(state.is_bus_master());
    power(&machine, FIRST, 3);
    assert_eq!(refusal(machine.load(AT).1).reason, RefusalReason::LowPower);
    assert_eq!((state.power_state(), state.is_bus_master()), (PowerState::D3hot, false));
    // There is no D1: the function stays where it is.
    power(&machine, FIRST, 1);
    assert_eq!(state.power_state(), PowerState::D3hot);
    assert_eq!(lock(&machine.handles(FIRST).device).resets, []);
    power(&machine, FIRST, 0);
    assert_eq!(lock(&machine.handles(FIRST).device).resets, [ResetKind::PowerManagement]);
    assert_eq!(machine.read_config_u16(FIRST, register::COMMAND), 0);
    assert_eq!(machine.read_config(FIRST, register::BASE_ADDRESS), 0xc);
    assert_eq!(refusal(machine.load(AT).1).reason, RefusalReason::Reset);
}

#[test]
fn a_function_level_reset_concerns_one_function() {
    let machine = Machine::new();
    machine.map(FIRST, AT);
    machine.map(SECOND, AT + BAR0_SIZE);
    function_level_reset(&machine, FIRST);
    assert_eq!(lock(&machine.handles(FIRST).device).resets, [ResetKind::FunctionLevel]);
    assert_eq!(lock(&machine.handles(SECOND).device).resets, []);
    assert_eq!(refusal(machine.load(AT).1).reason, RefusalReason::Reset);
    assert_eq!(machine.load(AT + BAR0_SIZE).1, Access::Claimed);
    let capability = machine.capability(FIRST, PCI_EXPRESS).unwrap();
    assert_eq!(machine.read_config_u16(FIRST, capability + 8), 0x2810);
    assert_eq!(machine.read_config(FIRST, register::HEADER_TYPE) as u8, 0x80);
    // The range that it decoded last is dropped once it decodes another one.
    machine.map(FIRST, AT + 0x10_0000);
    assert_eq!(machine.load(AT).1, Access::Unmapped);
    machine.command(FIRST, Command::empty());
    assert_eq!(refusal(machine.load(AT + 0x10_0000).1).reason, RefusalReason::DecodingOff);
}

#[test]
fn a_secondary_bus_reset_concerns_everything_below() {
    let machine = Machine::new();
    machine.map(NESTED, AT);
    machine.write_config_u16(BRIDGE, register::BRIDGE_CONTROL, SECONDARY_BUS_RESET);
    for address in [BELOW_BRIDGE, NESTED] {
        assert_eq!(lock(&machine.handles(address).device).resets, [ResetKind::Hot], "{address}");
        assert_eq!(machine.read_config(address, register::VENDOR_ID), NOTHING);
    }
    assert_eq!(lock(&machine.handles(BELOW_PORT).device).resets, []);
    assert_eq!(refusal(machine.load(AT).1).reason, RefusalReason::Reset);
    // The bit stays set: the reset goes on, and does not start anew.
    machine.write_config_u16(BRIDGE, register::BRIDGE_CONTROL, SECONDARY_BUS_RESET | 1);
    machine.write_config_u16(BRIDGE, register::BRIDGE_CONTROL, 0);
    assert_eq!(lock(&machine.handles(NESTED).device).resets, [ResetKind::Hot]);
    assert_ne!(machine.read_config(BELOW_BRIDGE, register::VENDOR_ID), NOTHING);
    assert_eq!(machine.read_config(NESTED_BRIDGE, register::PRIMARY_BUS), 0, "numbers are lost");
    assert_eq!(machine.read_config(NESTED, register::VENDOR_ID), NOTHING);
    assert_eq!(machine.read_config(BRIDGE, register::PRIMARY_BUS), 0x03_0200);
}

#[test]
fn msix_is_pending_until_it_is_enabled_unmasked_and_a_bus_master() {
    let machine = Machine::new();
    machine.map(BELOW_PORT, AT);
    let Handles { msix, device, .. } = machine.handles(BELOW_PORT);
    let control = machine.capability(BELOW_PORT, MSI_X).unwrap() + 2;
    let entry = AT + u64::from(MSIX.table) + 16;
    for (offset, value) in [(0, 0xfee0_1000), (4, 1), (8, 0x41), (12, 0xffff_fffe)] {
        assert_eq!(machine.store(entry + offset, value), Access::Claimed);
    }
    assert_eq!(machine.load(entry + 12).0, 0, "reserved bits read as 0");
    let pending = || machine.load(AT + u64::from(MSIX.pending)).0;
    let message = Message { address: 0x1_fee0_1000, data: 0x41 };

    msix.raise(1);
    assert_eq!(pending(), 0b10, "MSI-X is disabled");
    machine.write_config_u16(BELOW_PORT, control, MSI_X_ENABLE);
    assert_eq!(machine.messages.take(), [message]);
    msix.raise(1);
    assert_eq!(machine.messages.take(), [message]);
    msix.raise(0);
    msix.raise(3);
    msix.raise(u16::MAX);
    assert_eq!(machine.messages.take(), [], "vector 0 is masked, the others do not exist");
    assert_eq!(pending(), 0b01);

    assert_eq!(machine.store(entry + 12, 1), Access::Claimed);
    msix.raise(1);
    assert_eq!(machine.store(entry + 12, 0), Access::Claimed);
    assert_eq!(machine.messages.take(), [message]);
    machine.write_config_u16(BELOW_PORT, control, MSI_X_ENABLE | 1 << 14);
    msix.raise(1);
    machine.write_config_u16(BELOW_PORT, control, MSI_X_ENABLE);
    assert_eq!(machine.messages.take(), [message]);
    for (function, without) in [(BELOW_PORT, ALL - Command::MASTER), (PORT, ALL - Command::MASTER)]
    {
        machine.command(function, without);
        msix.raise(1);
        msix.raise(1);
        assert_eq!(machine.messages.take(), []);
        machine.command(function, ALL);
        assert_eq!(machine.messages.take(), [message], "{function}");
    }
    machine.command(BELOW_PORT, Command::MASTER);
    msix.raise(1);
    assert_eq!(machine.messages.take(), [message], "memory decoding is not needed");

    assert_eq!(lock(device).reads, [], "the device does not see these accesses");
    assert_eq!(lock(device).writes, []);
    function_level_reset(&machine, BELOW_PORT);
    machine.map(BELOW_PORT, AT);
    assert_eq!((machine.load(entry + 8).0, machine.load(entry + 12).0, pending()), (0, 1, 0));
}

#[test]
fn the_device_keeps_the_rest_of_the_bar_that_msix_is_in() {
    let machine = Machine::new();
    machine.map(FIRST, AT);
    let device = &machine.handles(FIRST).device;
    let table_end = MSIX.table_range().end;
    let mut data = [0x55; 8];
    assert_eq!(machine.root.read_memory(AT + table_end - 4, &mut data), Access::Claimed);
    assert_eq!(data, [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(lock(device).reads, []);
    assert_eq!(machine.load(AT + table_end).1, Access::Claimed);
    assert_eq!(lock(device).reads, [(BarIndex::Bar0, table_end, 4)]);
    assert_eq!(machine.store(AT + u64::from(MSIX.pending), u32::MAX), Access::Claimed);
    assert_eq!(machine.load(AT + u64::from(MSIX.pending)).0, 0, "read-only");
    machine.command(FIRST, Command::empty());
    assert_eq!(refusal(machine.load(AT + 0x2004).1).offset, 0x2004);
}

#[test]
fn intx_is_swizzled_to_the_line_and_can_be_disabled() {
    let machine = Machine::new();
    let levels = || machine.lines.each_ref().map(|line| line.level());
    // Device and pin, added up along the way: 1 + 0; 2 + 0; 2 + 1; 3 + 0; 3 + 1 + 0 + 2.
    for (address, line) in
        [(BELOW_PORT, 1), (FIRST, 2), (SECOND, 3), (BELOW_BRIDGE, 3), (NESTED, 2)]
    {
        machine.handles(address).intx.set_level(true);
        assert_eq!(levels(), [0, 1, 2, 3].map(|number| number == line), "{address}");
        machine.handles(address).intx.set_level(false);
        assert_eq!(levels(), [false; 4]);
    }
    let Handles { intx, device, .. } = machine.handles(FIRST);
    let status = || machine.read_config_u16(FIRST, register::STATUS);
    assert_eq!(status(), 0x10);
    intx.set_level(true);
    assert_eq!(status(), 0x18);
    let control = machine.capability(FIRST, MSI_X).unwrap() + 2;
    for (offset, off, on) in
        [(register::COMMAND, Command::INTX_DISABLE.bits(), 0), (control, MSI_X_ENABLE, 0)]
    {
        machine.write_config_u16(FIRST, offset, off);
        assert_eq!((levels(), status()), ([false; 4], 0x18));
        machine.write_config_u16(FIRST, offset, on);
        assert_eq!(levels(), [false, false, true, false]);
    }
    function_level_reset(&machine, FIRST);
    assert_eq!((levels(), status()), ([false; 4], 0x10));
    assert_eq!(lock(device).resets.len(), 1);
}

#[test]
fn the_device_answers_for_its_own_bytes_of_a_capability() {
    let machine = Machine::new();
    let capability = machine.capability(FIRST, VENDOR_SPECIFIC).unwrap();
    assert_eq!(
        machine.read_config(FIRST, capability) >> 16,
        0xee0c,
        "length, and a byte of the body"
    );
    machine.write_config(FIRST, capability, NOTHING);
    assert_eq!(machine.read_config(FIRST, capability) >> 16, 0xff0c, "the length is read-only");
    machine.write_config(FIRST, capability + 4, 0x1234_5678);
    assert_eq!(machine.read_config(FIRST, capability + 4), 0x1234_5678);

    machine.write_config_u16(FIRST, capability + OWN_BYTES + 2, 0xbeef);
    assert_eq!(lock(&machine.handles(FIRST).device).own_bytes, [0, 0, 0xef, 0xbe]);
    assert_eq!(machine.read_config(FIRST, capability + OWN_BYTES), 0xbeef_0000);
    assert_eq!(
        machine.read_config_u16(FIRST, capability + OWN_BYTES - 1),
        0xee12,
        "not all bytes are the device's own"
    );
}

#[test]
fn a_busy_device_does_not_delay_other_accesses() {
    let machine = Machine::new();
    machine.map(FIRST, AT);
    machine.map(SECOND, AT + BAR0_SIZE);
    let busy = lock(&machine.handles(FIRST).device);
    machine.command(FIRST, ALL - Command::MEMORY);
    assert_ne!(machine.read_config(FIRST, register::VENDOR_ID), NOTHING);
    assert_eq!(machine.load(AT + BAR0_SIZE).1, Access::Claimed);
    assert_eq!(refusal(machine.load(AT).1).function, FIRST);
    drop(busy);
}

#[test]
fn status_shows_where_ranges_are() {
    let machine = Machine::new();
    machine.map(FIRST, AT);
    let status = machine.root.status();
    let status = status.iter().find(|status| status.address == FIRST).unwrap();
    assert_eq!(
        (status.vendor, status.device, status.command, status.power_state),
        (0x1234, 0x5678, ALL, PowerState::D0)
    );
    let bar = RangeStatus {
        register: BaseRegister::Bar(BarIndex::Bar0),
        kind: BarKind::Memory64Prefetchable,
        address: AT,
        size: BAR0_SIZE,
        enabled: true,
    };
    assert_eq!(status.ranges[0], bar);
    assert!(!status.ranges[3].enabled, "the ROM");
}
