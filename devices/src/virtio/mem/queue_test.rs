//! Rows Q1 and Q3 of `docs/virtio-mem.md`: the queue of the memory device with a hostile driver. The
//! tests that are common to all devices are in `virtio/hostile_queue.rs`.

use std::thread;

use super::test_machine::*;
use crate::virtio::DeviceStatus;
use crate::virtio::hostile_queue::{Fixture, hostile_queue_tests};
use crate::virtio::test_driver::memory::{RAM_SIZE, STAGE, STAGE_SIZE};
use crate::virtio::test_driver::{Buffer, Rings, TransportKind, on_each_transport};

on_each_transport! {
    q1_without_room_for_the_response_the_request_is_not_carried_out
    q1_a_request_cut_short_is_an_error
    q1_a_request_outside_of_memory_is_an_error
    q1_with_its_response_in_an_unplugged_block_a_request_is_not_carried_out
    q1_plugged_blocks_are_memory_like_any_other
    q1_a_response_in_the_block_that_its_request_unplugs_is_not_written
    q1_i2_rings_in_a_block_that_is_unplugged_need_a_reset_which_keeps_the_plug_state
    q3_requests_of_one_kick_are_carried_out_in_order
    q3_a_slow_request_does_not_block_the_registers
    q3_a_request_that_a_reset_overtakes_is_not_answered
}

fn fixture(on: TransportKind) -> Fixture {
    fixture_of(TestMachine::up(on))
}

fn fixture_of(mut machine: TestMachine) -> Fixture {
    let request = machine.write_request(STATE, block(0), 1).to_vec();
    Fixture { driver: machine.driver, request, answer: RESPONSE }
}

hostile_queue_tests!(fixture);

mod behind_an_iommu {
    use super::*;
    use crate::virtio::iommu::test_machine::page_by_page;

    fn fixture(on: TransportKind) -> Fixture {
        fixture_of(TestMachine::up_behind(page_by_page(), on))
    }

    hostile_queue_tests!(fixture);
}

fn q1_without_room_for_the_response_the_request_is_not_carried_out(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    let [request, response] = machine.write_request(PLUG, block(0), 1);
    machine.driver.store(RESPONSE_AT, [0xee_u8; 16]);
    machine.assert_unchanged_by(|machine| {
        assert_eq!(machine.driver.send(&[request]), 0);
        for len in 0..RESPONSE {
            let too_small = Buffer { len, ..response };
            assert_eq!(machine.driver.send(&[request, too_small]), 0);
        }
        assert_eq!(machine.driver.load::<[u8; 16]>(RESPONSE_AT), [0xee; 16]);
    });
    assert_eq!(machine.memory.take_calls(), []);
}

fn q1_a_request_cut_short_is_an_error(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    machine.assert_unchanged_by(|machine| {
        let [request, response] = machine.write_request(PLUG, block(0), 1);
        let mut send = |chain: &[Buffer]| {
            machine.driver.store(RESPONSE_AT, [0xee_u8; 16]);
            assert_eq!(machine.driver.send(chain), RESPONSE);
            assert_eq!(machine.response_at(RESPONSE_AT), (ERROR, 0));
        };
        send(&[response]);
        for len in 0..REQUEST {
            send(&[Buffer { len, ..request }, response]);
        }
    });
    assert_eq!(machine.memory.take_calls(), []);
    assert_eq!(machine.device.counters().error, 1 + u64::from(REQUEST));
}

fn q1_a_request_outside_of_memory_is_an_error(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    machine.driver.stage.set_present(false);
    assert_eq!(machine.plug(0..1), ACK);
    machine.memory.take_calls();
    machine.assert_unchanged_by(|machine| {
        let [request, response] = machine.write_request(PLUG, block(2), 1);
        for address in [
            RAM_SIZE - 1,
            RAM_SIZE,
            STAGE,
            STAGE + STAGE_SIZE - 1,
            block(0) - 1,
            block(1) - 1, // half in an unplugged block
            block(1),
            block(BLOCKS) - 1,
            u64::MAX,
        ] {
            let chain = [Buffer { address, ..request }, response];
            assert_eq!(machine.driver.send(&chain), RESPONSE);
            assert_eq!(machine.response_at(RESPONSE_AT), (ERROR, 0), "{address:#x}");
        }
    });
    assert_eq!(machine.memory.take_calls(), []);
}

fn q1_with_its_response_in_an_unplugged_block_a_request_is_not_carried_out(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.plug(0..1), ACK);
    machine.memory.take_calls();
    machine.assert_unchanged_by(|machine| {
        let [request, response] = machine.write_request(PLUG, block(2), 1);
        for address in [block(0) - 1, block(1) - 1, block(1), block(2), block(BLOCKS) - 1] {
            let chain = [request, Buffer { address, ..response }];
            assert_eq!(machine.driver.send(&chain), 0, "{address:#x}");
        }
    });
    assert_eq!(machine.memory.take_calls(), []);
}

fn q1_plugged_blocks_are_memory_like_any_other(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.plug(0..4), ACK);
    // Across a block boundary, and with the rings in a block of their own.
    let (request_at, response_at) = (block(1) - 10, block(2) - 5);
    machine.driver.bring_up(0, Rings::at(block(3)));
    machine.write_request_at(request_at, PLUG, block(8), 2);
    let chain = [Buffer::readable(request_at, REQUEST), Buffer::writable(response_at, RESPONSE)];
    assert_eq!(machine.driver.send(&chain), RESPONSE);
    assert_eq!(machine.response_at(response_at), (ACK, 0));
    assert_eq!(machine.state(8..10), PLUGGED);
}

fn q1_a_response_in_the_block_that_its_request_unplugs_is_not_written(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.plug(0..2), ACK);
    for (kind, left) in [(UNPLUG, BLOCK), (UNPLUG_ALL, 0)] {
        let [request, response] = machine.write_request(kind, block(0), 1);
        machine.driver.store(block(0), [0xee_u8; 16]);
        assert_eq!(machine.driver.send(&[request, Buffer { address: block(0), ..response }]), 0);
        assert_eq!(machine.driver.load::<[u8; 16]>(block(0)), [0xee; 16]);
        assert_eq!(machine.config().plugged_size, left);
        if kind == UNPLUG {
            assert_eq!(machine.plug(0..1), ACK);
        }
    }
}

fn q1_i2_rings_in_a_block_that_is_unplugged_need_a_reset_which_keeps_the_plug_state(
    on: TransportKind,
) {
    let good = Rings::default();
    // While there is a used ring, the request is still answered there.
    for (rings, answers) in [
        (Rings { available: block(0), ..good }, 1),
        (Rings { used: block(0), ..good }, 0),
        (Rings::at(block(0)), 0),
    ] {
        let mut machine = TestMachine::up(on);
        assert_eq!(machine.plug(0..10), ACK);
        machine.driver.bring_up(0, rings);
        assert_eq!(machine.state(0..10), PLUGGED);
        let chain = machine.write_request(UNPLUG, block(0), 5);
        let head = machine.driver.write_chain(&chain);
        machine.driver.publish(head);
        machine.driver.kick();
        assert_eq!(machine.driver.take_used().len(), answers);
        assert!(machine.driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
        machine.driver.bring_up(0, good);
        assert_eq!(machine.state(0..5), UNPLUGGED);
        assert_eq!(machine.state(5..10), PLUGGED);
    }
}

fn q3_requests_of_one_kick_are_carried_out_in_order(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    let mut chains = vec![];
    for i in 0..20 {
        let (request_at, response_at) = (REQUEST_AT + 0x200 * i, RESPONSE_AT + 0x200 * i);
        let kind = if i % 3 == 2 { UNPLUG } else { PLUG };
        machine.write_request_at(request_at, kind, block(i / 3), 1);
        chains
            .push([Buffer::readable(request_at, REQUEST), Buffer::writable(response_at, RESPONSE)]);
    }
    for chain in &chains {
        let head = machine.driver.write_chain(chain);
        machine.driver.publish(head);
    }
    machine.driver.kick();
    assert_eq!(machine.driver.take_used().len(), chains.len());
    // Each block is plugged, plugged again, and unplugged; the last one only twice plugged.
    for (i, [_, response]) in chains.iter().enumerate() {
        let expected = if i % 3 == 1 { ERROR } else { ACK };
        assert_eq!(machine.response_at(response.address), (expected, 0), "request {i}");
    }
    assert_eq!(machine.state(0..6), UNPLUGGED);
    assert_eq!(machine.state(6..7), PLUGGED);
}

/// Makes a PLUG request that takes its time available, has it processed by another thread, and does
/// `meanwhile` while it is under way.
fn during_a_slow_plug(machine: &mut TestMachine, meanwhile: impl FnOnce(&mut TestMachine)) {
    machine.driver.store(RESPONSE_AT, [0xee_u8; 16]);
    let chain = machine.write_request(PLUG, block(0), 4);
    let head = machine.driver.write_chain(&chain);
    machine.driver.publish(head);
    let slow = machine.memory.slow_down();
    let transport = machine.driver.transport();
    thread::scope(|scope| {
        scope.spawn(move || transport.process_queues());
        slow.wait_until_begun();
        meanwhile(machine);
        slow.end();
    });
}

fn q3_a_slow_request_does_not_block_the_registers(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    during_a_slow_plug(&mut machine, |machine| {
        assert!(machine.driver.status().contains(DeviceStatus::DRIVER_OK));
        assert_eq!(machine.config().plugged_size, 0);
        machine.resize(64);
        assert!(machine.driver.interrupts.take() > 0, "the driver is notified of the new size");
        assert_eq!(machine.config().requested_size, 64 * BLOCK);
        assert_eq!(machine.device.counters().plug, 0);
    });
    assert_eq!(machine.response_at(RESPONSE_AT), (ACK, 0));
    assert_eq!(machine.driver.take_used().len(), 1);
    assert_eq!(machine.config().plugged_size, 4 * BLOCK);
}

fn q3_a_request_that_a_reset_overtakes_is_not_answered(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    during_a_slow_plug(&mut machine, |machine| {
        machine.driver.bring_up(UNPLUGGED_INACCESSIBLE, Rings::default());
    });
    assert_eq!(machine.driver.load::<[u8; 16]>(RESPONSE_AT), [0xee; 16]);
    assert_eq!(machine.driver.take_used(), []);
    assert_eq!(machine.driver.interrupts.take(), 0);
    // It was carried out all the same, as STATE shows.
    assert_eq!(machine.state(0..4), PLUGGED);
}
