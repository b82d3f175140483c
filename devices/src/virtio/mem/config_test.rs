//! The device's configuration and its rules beyond requests: rows C, I and X of `docs/virtio-mem.md`,
//! from the driver's side.

use super::test_machine::*;
use super::{ResizeError, UnpluggedAccess, VirtioMem, VirtioMemConfig};
use crate::virtio::Features;
use crate::virtio::test_driver::{
    CONFIG_CHANGE, Register, Rings, TransportKind, USED_BUFFER, on_each_transport,
};

on_each_transport! {
    c2_only_whole_blocks_can_be_requested
    c3_the_layout_never_changes
    c4_plugged_size_is_that_of_the_plugged_blocks
    c5_c6_c11_usable_is_requested_and_256_mib_and_never_shrinks_by_a_resize
    c7_a_resize_interrupts_and_changes_the_generation
    c7_c8_requests_never_raise_a_configuration_interrupt
    c9_config_reads_at_any_width_and_offset_and_is_not_written
    c10_i5_features_are_offered_if_the_configuration_has_them
    i1_everything_is_unplugged_at_first
    i2_a_device_reset_changes_no_block
    i4_a_machine_may_insist_on_unplugged_inaccessible
    x2_x3_only_reads_of_usable_memory_are_permitted_and_only_if_not_negotiated_away
}

fn c2_only_whole_blocks_can_be_requested(on: TransportKind) {
    let too_odd =
        |requested, nearest| Err(ResizeError::NotBlocks { requested, block_size: BLOCK, nearest });
    let too_large =
        |requested| Err(ResizeError::TooLarge { requested, region_size: BLOCKS * BLOCK });
    let machine = TestMachine::up(on);
    let device = &machine.device;
    assert_eq!(device.set_requested_size(1), too_odd(1, 0));
    assert_eq!(device.set_requested_size(5 * MIB), too_odd(5 * MIB, 6 * MIB));
    assert_eq!(device.set_requested_size(6 * MIB - 1), too_odd(6 * MIB - 1, 6 * MIB));
    let most = BLOCKS * BLOCK;
    assert_eq!(device.set_requested_size(most - 1), too_odd(most - 1, most));
    assert_eq!(device.set_requested_size(most + 1), too_large(most + 1));
    assert_eq!(device.set_requested_size(u64::MAX), too_large(u64::MAX));
    assert_eq!(device.requested_size(), config().requested_size);
    assert_eq!(device.set_requested_size(most), Ok(true));

    let config = VirtioMemConfig { requested_size: 1, ..config() };
    let device = VirtioMem::new(config, Box::new(machine.memory));
    assert_eq!(device.err(), too_odd(1, 0).err());
}

fn c3_the_layout_never_changes(on: TransportKind) {
    let layout = |machine: &mut TestMachine| {
        let config = machine.config();
        (config.block_size, config.node_id, config.addr, config.region_size)
    };
    let mut machine = TestMachine::new(on, VirtioMemConfig { node_id: Some(3), ..config() });
    let expected = (BLOCK, 3, REGION, BLOCKS * BLOCK);
    assert_eq!(layout(&mut machine), expected);
    machine.driver.bring_up(0, Rings::default());
    assert_eq!(machine.plug(0..10), ACK);
    machine.resize(BLOCKS);
    assert_eq!(layout(&mut machine), expected);
    assert_eq!(machine.unplug_all(), ACK);
    machine.driver.reset();
    assert_eq!(layout(&mut machine), expected);
}

fn c4_plugged_size_is_that_of_the_plugged_blocks(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    let plugged = |machine: &mut TestMachine| machine.config().plugged_size / BLOCK;
    assert_eq!(machine.plug(3..10), ACK);
    assert_eq!(plugged(&mut machine), 7);
    assert_eq!(machine.plug(60..130), ACK);
    assert_eq!(plugged(&mut machine), 77);
    assert_eq!(machine.unplug(63..66), ACK);
    assert_eq!(plugged(&mut machine), 74);
    assert_eq!(machine.unplug_all(), ACK);
    assert_eq!(plugged(&mut machine), 0);
}

fn c5_c6_c11_usable_is_requested_and_256_mib_and_never_shrinks_by_a_resize(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    let mut usable_after = |blocks| {
        machine.resize(blocks);
        machine.config().usable_region_size / BLOCK
    };
    assert_eq!(usable_after(128), 256);
    assert_eq!(usable_after(129), 257);
    assert_eq!(usable_after(0), 257);
    assert_eq!(usable_after(BLOCKS - 129), BLOCKS - 1);
    assert_eq!(usable_after(BLOCKS - 100), BLOCKS);
    assert_eq!(usable_after(BLOCKS), BLOCKS);
    assert_eq!(usable_after(1), BLOCKS);
}

fn c7_a_resize_interrupts_and_changes_the_generation(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    let generation = machine.driver.read(Register::ConfigGeneration);
    machine.config();
    machine.resize(10);
    assert_ne!(machine.driver.read(Register::ConfigGeneration), generation);
    assert_eq!(machine.driver.interrupts.take(), 1);
    assert_eq!(machine.driver.take_interrupt_status(), CONFIG_CHANGE);
    // To request the same size again is not a change.
    machine.resize(10);
    assert_eq!(machine.driver.interrupts.take(), 0);
    // There is no driver to interrupt.
    machine.driver.reset();
    let generation = machine.driver.read(Register::ConfigGeneration);
    machine.config();
    machine.resize(20);
    assert_ne!(machine.driver.read(Register::ConfigGeneration), generation);
    assert_eq!(machine.driver.interrupts.take(), 0);
    assert_eq!(machine.driver.take_interrupt_status(), 0);
}

fn c7_c8_requests_never_raise_a_configuration_interrupt(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    machine.resize(BLOCKS);
    machine.resize(10);
    machine.driver.take_interrupt_status();
    assert_eq!(machine.plug(0..10), ACK);
    assert_eq!(machine.driver.take_interrupt_status(), USED_BUFFER);
    assert_eq!(machine.unplug(0..5), ACK);
    assert_eq!(machine.driver.take_interrupt_status(), USED_BUFFER);
    // Not even this one, although it shrinks the usable size.
    let usable = machine.config().usable_region_size;
    assert_eq!(machine.unplug_all(), ACK);
    assert!(machine.config().usable_region_size < usable);
    assert_eq!(machine.driver.take_interrupt_status(), USED_BUFFER);
}

fn c9_config_reads_at_any_width_and_offset_and_is_not_written(on: TransportKind) {
    let mut machine = TestMachine::new(on, VirtioMemConfig { node_id: Some(0x1234), ..config() });
    machine.driver.bring_up(0, Rings::default());
    assert_eq!(machine.plug(0..5), ACK);
    let mut expected = vec![];
    for field in [
        BLOCK,
        0x1234, // and six bytes of padding
        REGION,
        BLOCKS * BLOCK,
        256 * BLOCK,
        5 * BLOCK,
        128 * BLOCK,
    ] {
        expected.extend(field.to_le_bytes());
    }
    expected.resize(0x1000, 0);
    for width in [1, 2, 4, 8] {
        for offset in 0..100 {
            machine.driver.write_config(offset as u64, &[0xff; 8][..width]);
            let mut data = [0xa5; 8];
            machine.driver.read_config(offset as u64, &mut data[..width]);
            assert_eq!(data[..width], expected[offset..offset + width], "{width} at {offset}");
            assert_eq!(data[width..], [0xa5; 8][width..]);
        }
    }
    let mut whole = vec![0xa5; 0xf00];
    machine.driver.read_config(0, &mut whole);
    assert_eq!(whole, expected[..0xf00]);
}

fn c10_i5_features_are_offered_if_the_configuration_has_them(on: TransportKind) {
    let mut without_node = TestMachine::new(on, config());
    let features = without_node.driver.offered_features();
    assert_eq!(features & 0xff_ffff, UNPLUGGED_INACCESSIBLE);
    let mut with_node = TestMachine::new(on, VirtioMemConfig { node_id: Some(0), ..config() });
    let features = with_node.driver.offered_features();
    assert_eq!(features & 0xff_ffff, UNPLUGGED_INACCESSIBLE | ACPI_PXM);
    assert_eq!(features & PERSISTENT_SUSPEND, 0);
}

fn i1_everything_is_unplugged_at_first(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.config().plugged_size, 0);
    assert_eq!(machine.config().requested_size, 128 * BLOCK);
    assert_eq!(machine.state(0..256), UNPLUGGED);
    assert_eq!(machine.memory.take_calls(), []);
}

fn i2_a_device_reset_changes_no_block(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.plug(5..77), ACK);
    machine.memory.take_calls();
    machine.assert_unchanged_by(|machine| {
        machine.driver.reset();
        machine.driver.bring_up(0, Rings::default());
    });
    assert_eq!(machine.memory.take_calls(), []);
}

fn i4_a_machine_may_insist_on_unplugged_inaccessible(on: TransportKind) {
    let version_1 = Features::VERSION_1.bits();
    let mut driver = TestMachine::new(on, config()).driver;
    assert!(driver.negotiate(version_1));
    assert!(driver.negotiate(version_1 | UNPLUGGED_INACCESSIBLE));
    let insisting = VirtioMemConfig { insist_on_inaccessible: true, ..config() };
    let mut driver = TestMachine::new(on, insisting).driver;
    assert!(!driver.negotiate(version_1));
    assert!(driver.negotiate(version_1 | UNPLUGGED_INACCESSIBLE));
}

fn x2_x3_only_reads_of_usable_memory_are_permitted_and_only_if_not_negotiated_away(
    on: TransportKind,
) {
    let mut machine = TestMachine::new(on, config());
    let permitted = |machine: &TestMachine| {
        let device = &machine.device;
        [block(0), block(256) - 1, block(256), block(BLOCKS) - 1].map(|address| {
            let is = |is_write, expected| {
                device.classify_unplugged_access(address, is_write) == expected
            };
            assert!(is(true, UnpluggedAccess::Violation));
            is(false, UnpluggedAccess::Permitted)
        })
    };
    machine.driver.bring_up(0, Rings::default());
    assert_eq!(permitted(&machine), [true, true, false, false]);
    machine.driver.bring_up(UNPLUGGED_INACCESSIBLE, Rings::default());
    assert_eq!(permitted(&machine), [false; 4]);
    machine.driver.reset();
    assert_eq!(permitted(&machine), [true, true, false, false]);
}
