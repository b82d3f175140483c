//! What the device answers: rows P, U, A, S and Q2 of `docs/virtio-mem.md`, from the driver's side.

use super::test_machine::*;
use crate::virtio::test_driver::{Buffer, TransportKind, on_each_transport};

on_each_transport! {
    p1_u1_s1_an_unaligned_address_is_an_error
    p2_u2_s2_no_blocks_are_an_error
    p3_u3_s3_blocks_outside_the_usable_region_are_an_error
    p4_u4_s4_a_range_that_wraps_is_an_error
    p5_plugging_what_is_plugged_is_an_error
    p6_plugging_beyond_the_requested_size_is_nack
    p7_u6_a_request_that_the_backend_refuses_is_busy_and_changes_nothing
    p8_u7_the_backend_is_called_once_and_before_the_answer
    p9_bytes_beyond_the_request_and_the_response_are_left_alone
    u5_unplugging_what_is_unplugged_is_an_error
    u8_u9_any_run_of_plugged_blocks_can_be_unplugged
    u10_unplugging_below_the_requested_size_is_accepted
    a1_a2_unplug_all_leaves_nothing_plugged
    a3_unplug_all_ignores_everything_but_its_type
    a4_unplug_all_takes_usable_back_to_what_is_requested_and_256_mib
    s5_s6_s7_s8_state_is_plugged_unplugged_or_mixed_and_changes_nothing
    q2_an_unknown_type_is_an_error
    requests_and_refusals_are_counted
}

/// A machine with blocks 0 to 4 plugged, and a request of each type with a range that suits it.
fn good_requests(on: TransportKind) -> (TestMachine, [(u16, u64); 3]) {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.plug(0..4), ACK);
    (machine, [(PLUG, block(8)), (UNPLUG, block(0)), (STATE, block(0))])
}

fn p1_u1_s1_an_unaligned_address_is_an_error(on: TransportKind) {
    let (mut machine, requests) = good_requests(on);
    machine.assert_unchanged_by(|machine| {
        for (kind, address) in requests {
            for offset in [1, 4096, BLOCK / 2, BLOCK - 1] {
                assert_eq!(machine.request(kind, address + offset, 1).0, ERROR);
            }
        }
    });
}

fn p2_u2_s2_no_blocks_are_an_error(on: TransportKind) {
    let (mut machine, requests) = good_requests(on);
    machine.assert_unchanged_by(|machine| {
        for (kind, address) in requests {
            assert_eq!(machine.request(kind, address, 0).0, ERROR);
        }
    });
}

fn p3_u3_s3_blocks_outside_the_usable_region_are_an_error(on: TransportKind) {
    let (mut machine, _) = good_requests(on);
    let usable = 256;
    machine.assert_unchanged_by(|machine| {
        for kind in [PLUG, UNPLUG, STATE] {
            for (address, blocks) in [
                (block(usable), 1),
                (block(usable - 1), 2),
                (block(0), usable as u16 + 1),
                (block(0), u16::MAX),
                (block(BLOCKS - 1), 1),
                (block(BLOCKS), 1),
                (REGION - BLOCK, 1),
                (REGION - BLOCK, 2),
                (0, 1),
            ] {
                assert_eq!(machine.request(kind, address, blocks).0, ERROR, "{kind} {address:#x}");
            }
        }
    });
    assert_eq!(machine.plug(usable - 1..usable), ACK);
}

fn p4_u4_s4_a_range_that_wraps_is_an_error(on: TransportKind) {
    let (mut machine, _) = good_requests(on);
    machine.assert_unchanged_by(|machine| {
        for kind in [PLUG, UNPLUG, STATE] {
            for address in [0_u64.wrapping_sub(BLOCK), 0_u64.wrapping_sub(u64::from(u16::MAX))] {
                for blocks in [1, 2, u16::MAX] {
                    assert_eq!(machine.request(kind, address, blocks).0, ERROR);
                }
            }
        }
    });
}

fn p5_plugging_what_is_plugged_is_an_error(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.plug(10..20), ACK);
    machine.resize(10);
    machine.assert_unchanged_by(|machine| {
        for blocks in [10..20, 10..11, 19..20, 9..11, 19..21, 0..30] {
            assert_eq!(machine.plug(blocks), ERROR);
        }
    });
}

fn p6_plugging_beyond_the_requested_size_is_nack(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    machine.resize(10);
    machine.assert_unchanged_by(|machine| assert_eq!(machine.plug(0..11), NACK));
    assert_eq!(machine.plug(0..10), ACK);
    machine.assert_unchanged_by(|machine| assert_eq!(machine.plug(10..11), NACK));
    // Less is requested than is plugged.
    machine.resize(5);
    machine.assert_unchanged_by(|machine| assert_eq!(machine.plug(10..11), NACK));
    machine.resize(11);
    assert_eq!(machine.plug(10..11), ACK);
}

fn p7_u6_a_request_that_the_backend_refuses_is_busy_and_changes_nothing(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.plug(0..4), ACK);
    machine.resize(0);
    machine.resize(200);
    machine.resize(100);
    machine.memory.take_calls();
    machine.memory.set_busy(true);
    machine.assert_unchanged_by(|machine| {
        assert_eq!(machine.plug(8..10), BUSY);
        assert_eq!(machine.unplug(1..3), BUSY);
        assert_eq!(machine.unplug_all(), BUSY);
    });
    let calls = [Call::Plug(8..10), Call::Unplug(1..3), Call::UnplugAll];
    assert_eq!(machine.memory.take_calls(), calls);
    machine.memory.set_busy(false);
    assert_eq!(machine.plug(8..10), ACK);
    assert_eq!(machine.unplug(1..3), ACK);
    assert_eq!(machine.memory.take_calls(), calls[..2]);
}

fn p8_u7_the_backend_is_called_once_and_before_the_answer(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.plug(7..9), ACK);
    assert_eq!(machine.memory.take_calls(), [Call::Plug(7..9)]);
    assert_eq!(machine.unplug(8..9), ACK);
    assert_eq!(machine.memory.take_calls(), [Call::Unplug(8..9)]);
}

fn p9_bytes_beyond_the_request_and_the_response_are_left_alone(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    let [request, response] = machine.write_request(PLUG, block(0), 3);
    machine.driver.store(REQUEST_AT + u64::from(REQUEST), [0xff_u8; 32]);
    machine.driver.store(RESPONSE_AT, [0xee_u8; 32]);
    let chain = [Buffer { len: 56, ..request }, Buffer { len: 32, ..response }];
    assert_eq!(machine.driver.send(&chain), RESPONSE);
    assert_eq!(machine.response_at(RESPONSE_AT), (ACK, 0));
    assert_eq!(machine.driver.load::<[u8; 22]>(RESPONSE_AT + 10), [0xee; 22]);
    assert_eq!(machine.memory.take_calls(), [Call::Plug(0..3)]);
}

fn u5_unplugging_what_is_unplugged_is_an_error(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.plug(10..20), ACK);
    assert_eq!(machine.unplug(14..15), ACK);
    machine.assert_unchanged_by(|machine| {
        for blocks in [10..20, 14..15, 9..10, 9..11, 19..21, 20..21, 0..30] {
            assert_eq!(machine.unplug(blocks), ERROR);
        }
    });
}

fn u8_u9_any_run_of_plugged_blocks_can_be_unplugged(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.plug(10..20), ACK);
    assert_eq!(machine.plug(20..30), ACK);
    assert_eq!(machine.unplug(12..14), ACK);
    assert_eq!(machine.unplug(18..22), ACK);
    for (blocks, state) in
        [(10..12, PLUGGED), (12..14, UNPLUGGED), (14..18, PLUGGED), (22..30, PLUGGED)]
    {
        assert_eq!(machine.state(blocks), state);
    }
}

fn u10_unplugging_below_the_requested_size_is_accepted(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.plug(0..4), ACK);
    assert!(machine.config().plugged_size < machine.config().requested_size);
    assert_eq!(machine.unplug(0..4), ACK);
}

fn a1_a2_unplug_all_leaves_nothing_plugged(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.unplug_all(), ACK);
    assert_eq!(machine.plug(0..10), ACK);
    assert_eq!(machine.plug(60..70), ACK);
    machine.memory.take_calls();
    assert_eq!(machine.unplug_all(), ACK);
    assert_eq!(machine.memory.take_calls(), [Call::UnplugAll]);
    assert_eq!(machine.config().plugged_size, 0);
    assert_eq!(machine.state(0..256), UNPLUGGED);
}

fn a3_unplug_all_ignores_everything_but_its_type(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    for (address, blocks) in [(0, 0), (1, 1), (block(3), 2), (u64::MAX, u16::MAX)] {
        assert_eq!(machine.plug(0..10), ACK);
        assert_eq!(machine.request(UNPLUG_ALL, address, blocks), (ACK, 0));
        assert_eq!(machine.config().plugged_size, 0);
    }
}

fn a4_unplug_all_takes_usable_back_to_what_is_requested_and_256_mib(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    machine.resize(BLOCKS);
    machine.resize(100);
    assert_eq!(machine.config().usable_region_size, BLOCKS * BLOCK);
    assert_eq!(machine.unplug_all(), ACK);
    assert_eq!(machine.config().usable_region_size, 228 * BLOCK);
    assert_eq!(machine.config().requested_size, 100 * BLOCK);
}

fn s5_s6_s7_s8_state_is_plugged_unplugged_or_mixed_and_changes_nothing(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.plug(60..130), ACK);
    machine.memory.take_calls();
    machine.assert_unchanged_by(|machine| {
        for (blocks, state) in [
            (60..130, PLUGGED),
            (60..61, PLUGGED),
            (63..65, PLUGGED),
            (129..130, PLUGGED),
            (0..60, UNPLUGGED),
            (59..60, UNPLUGGED),
            (130..256, UNPLUGGED),
            (59..61, MIXED),
            (129..131, MIXED),
            (0..256, MIXED),
        ] {
            assert_eq!(machine.state(blocks.clone()), state, "{blocks:?}");
        }
    });
    assert_eq!(machine.memory.take_calls(), []);
}

fn q2_an_unknown_type_is_an_error(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    machine.assert_unchanged_by(|machine| {
        for kind in [4, 5, 0x100, 0x8000, u16::MAX] {
            assert_eq!(machine.request(kind, block(0), 1), (ERROR, 0));
        }
    });
}

fn requests_and_refusals_are_counted(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    machine.resize(10);
    machine.plug(0..4);
    machine.plug(0..4);
    machine.plug(4..20);
    machine.state(0..4);
    machine.memory.set_busy(true);
    machine.unplug(0..4);
    machine.unplug_all();
    machine.request(77, 0, 0);
    let counters = machine.device.counters();
    assert_eq!((counters.plug, counters.unplug), (3, 1));
    assert_eq!((counters.unplug_all, counters.state), (1, 1));
    assert_eq!((counters.nack, counters.busy, counters.error), (1, 2, 2));
}
