//! What a hostile driver may do to the queue of any device (rows Q1 and Q3 of `docs/virtio-mem.md`,
//! which apply to all devices). `hostile_queue_tests!` runs all of these tests on one device, on each
//! transport.
//!
//! Every chain is used, if only with a length of 0, and the device goes on. Where the ring
//! itself is corrupt the device needs a reset, and after the reset works as before.

use std::sync::{Arc, Mutex};

use virtio_driver::flags;
use vm_memory::{Bytes, GuestAddress};

use super::test_driver::memory::{BUFFERS, RAM_SIZE, STAGE, STAGE_SIZE, TABLES};
use super::test_driver::{Buffer, CONFIG_CHANGE, Rings, TestDriver, USED_BUFFER, Used};
use super::{DeviceStatus, Features};

/// A device that is up, and a valid request to it.
pub struct Fixture {
    pub driver: TestDriver,
    /// The buffers of a request that the device answers, the last of them writable,
    pub request: Vec<Buffer>,
    /// and the number of bytes of its answer.
    pub answer: u32,
}

impl Fixture {
    pub fn assert_works(&mut self) {
        assert_eq!(self.driver.send(&self.request), self.answer);
        assert!(!self.driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    }

    fn reset(&mut self) {
        self.driver.bring_up(0, Rings::default());
    }

    /// Asserts that the device processes nothing until it is reset, and works again after that.
    pub fn assert_needs_reset(&mut self) {
        let driver = &mut self.driver;
        assert!(driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
        assert!(driver.take_interrupt_status() & CONFIG_CHANGE != 0);
        assert!(driver.interrupts.take() > 0);
        assert!(!driver.process_queues());
        assert_eq!(driver.interrupts.take(), 0);
        self.reset();
        self.assert_works();
    }
}

macro_rules! hostile_queue_tests {
    ($fixture:expr) => {
        $crate::virtio::hostile_queue::hostile_queue_tests! { $fixture;
            q1_without_a_writable_part_nothing_is_written
            q1_without_any_bytes_nothing_is_written
            q1_buffers_outside_of_memory_are_not_written
            q1_lengths_beyond_32_bits_are_cut_off
            q1_loops_end
            q1_a_link_out_of_the_table_ends_the_chain
            q1_a_request_may_come_in_any_number_of_pieces
            q1_a_request_may_come_in_an_indirect_table
            q1_invalid_indirect_tables_hold_nothing
            q1_chains_longer_than_the_queue_are_ignored
            q1_an_unreachable_descriptor_table_holds_nothing
            q1_a_head_out_of_the_table_needs_a_reset
            q1_an_index_beyond_the_ring_needs_a_reset
            q1_invalid_rings_need_a_reset
            q1_rings_in_memory_that_is_removed_need_a_reset
            q1_a_request_that_is_added_at_any_moment_is_answered
            q3_many_requests_a_kick_until_indices_wrap
            q3_a_kick_without_a_request_has_no_effect
            q3_nothing_is_consumed_before_driver_ok
            q3_without_event_idx_every_answer_interrupts
            q3_with_event_idx_answers_interrupt_when_asked_to
        }
    };
    ($fixture:expr; $($test:ident)*) => {
        mod hostile_queue {
            use super::*;

            $(
                fn $test(on: TransportKind) {
                    $crate::virtio::hostile_queue::$test($fixture(on));
                }
            )*

            $crate::virtio::test_driver::on_each_transport! { $($test)* }
        }
    };
}
pub(crate) use hostile_queue_tests;

/// Addresses where a device finds no memory, while the stage is not present.
const NOWHERE: [u64; 6] =
    [RAM_SIZE - 1, RAM_SIZE, STAGE - 1, STAGE, STAGE + STAGE_SIZE - 1, u64::MAX];

pub fn q1_without_a_writable_part_nothing_is_written(mut fixture: Fixture) {
    assert_eq!(fixture.driver.send(&[Buffer::readable(BUFFERS, 64)]), 0);
    fixture.assert_works();
}

pub fn q1_without_any_bytes_nothing_is_written(mut fixture: Fixture) {
    let chain = [Buffer::readable(BUFFERS, 0), Buffer::writable(BUFFERS, 0)];
    assert_eq!(fixture.driver.send(&chain), 0);
    fixture.assert_works();
}

pub fn q1_buffers_outside_of_memory_are_not_written(mut fixture: Fixture) {
    fixture.driver.stage.set_present(false);
    for address in NOWHERE {
        let mut chain = fixture.request.clone();
        let writable = chain.last_mut().unwrap();
        (writable.address, writable.len) = (address, 64);
        assert_eq!(fixture.driver.send(&chain), 0, "{address:#x}");
        fixture.assert_works();
    }
}

pub fn q1_lengths_beyond_32_bits_are_cut_off(mut fixture: Fixture) {
    let driver = &mut fixture.driver;
    let huge = Buffer::writable(BUFFERS, u32::MAX);
    assert_eq!(driver.send(&[huge, huge]), 0);
    let memory = Buffer::writable(BUFFERS, (RAM_SIZE - BUFFERS) as u32);
    let pieces = (1_u64 << 32) / u64::from(memory.len) + 2;
    let head = driver.write_chain(&vec![memory; pieces as usize]);
    driver.send_head(head);
    fixture.assert_works();
}

pub fn q1_loops_end(mut fixture: Fixture) {
    let rings = Rings::default();
    let (readable, writable) = (Buffer::readable(BUFFERS, 1), Buffer::writable(BUFFERS, 1));
    let driver = &mut fixture.driver;
    for table in [rings.descriptors, TABLES] {
        // Descriptor 0 links to itself, 1 and 2 to each other.
        driver.write_descriptor(table, 0, writable.followed(), 0);
        driver.write_descriptor(table, 1, readable.followed(), 2);
        driver.write_descriptor(table, 2, writable.followed(), 1);
    }
    driver.send_head(0);
    driver.send_head(1);
    driver.send(&[Buffer::table(TABLES, u16::MAX.into())]);
    driver.write_descriptor(TABLES, 0, readable.followed(), 1);
    driver.send(&[Buffer::table(TABLES, 3)]);
    fixture.assert_works();
}

pub fn q1_a_link_out_of_the_table_ends_the_chain(mut fixture: Fixture) {
    let Rings { descriptors, size, .. } = Rings::default();
    for next in [size, u16::MAX] {
        let buffer = Buffer::readable(BUFFERS, 1).followed();
        fixture.driver.write_descriptor(descriptors, 0, buffer, next);
        assert_eq!(fixture.driver.send_head(0), 0);
        fixture.assert_works();
    }
}

pub fn q1_a_request_may_come_in_any_number_of_pieces(mut fixture: Fixture) {
    let pieces: Vec<Buffer> = fixture.request.iter().flat_map(|buffer| buffer.split()).collect();
    assert_eq!(fixture.driver.send(&pieces), fixture.answer);
    fixture.assert_works();
}

pub fn q1_a_request_may_come_in_an_indirect_table(mut fixture: Fixture) {
    let Fixture { driver, request, answer } = &mut fixture;
    let pieces: Vec<Buffer> = request.iter().flat_map(|buffer| buffer.split()).collect();
    driver.write_table(TABLES, 0, &pieces);
    let table = Buffer::table(TABLES, pieces.len() as u32);
    assert_eq!(driver.send(&[table]), *answer);
    // WRITE and NEXT in the descriptor of a table are ignored.
    let odd = Buffer { flags: table.flags | flags::WRITE, ..table }.followed();
    driver.write_descriptor(Rings::default().descriptors, 0, odd, 0);
    assert_eq!(driver.send_head(0), *answer);
    // Part of the chain may come before the table.
    let (direct, indirect) = pieces.split_at(pieces.len() / 2);
    driver.write_table(TABLES, 0, indirect);
    let table = Buffer::table(TABLES, indirect.len() as u32);
    assert_eq!(driver.send(&[direct, &[table]].concat()), *answer);
    fixture.assert_works();
}

pub fn q1_invalid_indirect_tables_hold_nothing(mut fixture: Fixture) {
    let driver = &mut fixture.driver;
    driver.stage.set_present(false);
    driver.write_table(TABLES, 0, &fixture.request);
    let good = Buffer::table(TABLES, fixture.request.len() as u32);
    for len in [0, 8, good.len + 1, !15, u32::MAX] {
        assert_eq!(driver.send(&[Buffer { len, ..good }]), 0, "{len:#x}");
    }
    for address in NOWHERE {
        assert_eq!(driver.send(&[Buffer { address, ..good }]), 0, "{address:#x}");
    }
    let table_of_tables = TABLES + 0x1000;
    driver.write_table(table_of_tables, 0, &[good]);
    assert_eq!(driver.send(&[Buffer::table(table_of_tables, 1)]), 0);
    driver.write_table(TABLES, 0, &[Buffer::table(TABLES, 1)]);
    assert_eq!(driver.send(&[Buffer::table(TABLES, 1)]), 0);
    fixture.assert_works();
}

pub fn q1_chains_longer_than_the_queue_are_ignored(mut fixture: Fixture) {
    let Fixture { driver, request, answer } = &mut fixture;
    let size = usize::from(Rings::default().size);
    // Descriptors of no bytes in front of the request make up the length.
    let mut chain = vec![Buffer::readable(BUFFERS, 0); size - request.len()];
    chain.extend_from_slice(request);
    driver.write_table(TABLES, 0, &chain);
    assert_eq!(driver.send(&[Buffer::table(TABLES, size as u32)]), *answer);
    driver.write_table(TABLES, 0, &[&chain[..1], &chain].concat());
    assert_eq!(driver.send(&[Buffer::table(TABLES, size as u32 + 1)]), 0);
    driver.write_table(TABLES, 0, &[Buffer::writable(BUFFERS, 1); u16::MAX as usize]);
    assert_eq!(driver.send(&[Buffer::table(TABLES, u16::MAX.into())]), 0);
    fixture.assert_works();
}

pub fn q1_an_unreachable_descriptor_table_holds_nothing(mut fixture: Fixture) {
    fixture.driver.bring_up(0, Rings { descriptors: STAGE, ..Rings::default() });
    fixture.assert_works();
    fixture.driver.stage.set_present(false);
    assert_eq!(fixture.driver.send(&fixture.request), 0);
    fixture.driver.stage.set_present(true);
    fixture.assert_works();
}

pub fn q1_a_head_out_of_the_table_needs_a_reset(mut fixture: Fixture) {
    for head in [Rings::default().size, u16::MAX] {
        fixture.driver.publish(head);
        fixture.driver.kick();
        assert_eq!(fixture.driver.take_used(), []);
        fixture.assert_needs_reset();
    }
}

pub fn q1_an_index_beyond_the_ring_needs_a_reset(mut fixture: Fixture) {
    for jump in [Rings::default().size + 1, u16::MAX / 2, u16::MAX] {
        fixture.assert_works();
        let index = fixture.driver.available_index().wrapping_add(jump);
        fixture.driver.set_available_index(index);
        fixture.driver.kick();
        assert_eq!(fixture.driver.take_used(), []);
        fixture.assert_needs_reset();
    }
}

pub fn q1_invalid_rings_need_a_reset(mut fixture: Fixture) {
    let good = Rings::default();
    let unaligned = [
        Rings { descriptors: good.descriptors + 8, ..good },
        Rings { available: good.available + 1, ..good },
        Rings { used: good.used + 2, ..good },
    ];
    let out_of_memory =
        [RAM_SIZE - 16, RAM_SIZE, STAGE, u64::MAX - 15].into_iter().flat_map(|address| {
            [
                Rings { descriptors: address, ..good },
                Rings { available: address, ..good },
                Rings { used: address, ..good },
            ]
        });
    let sizes = [0, 3, 512, u16::MAX].map(|size| Rings { size, ..good });
    for rings in unaligned.into_iter().chain(out_of_memory).chain(sizes) {
        let driver = &mut fixture.driver;
        driver.stage.set_present(false);
        assert!(driver.negotiate(Features::VERSION_1.bits()));
        driver.add_status(DeviceStatus::DRIVER_OK);
        assert!(!driver.set_up_queue(0, rings), "{rings:#x?}");
        driver.kick();
        fixture.assert_needs_reset();
    }
}

pub fn q1_rings_in_memory_that_is_removed_need_a_reset(mut fixture: Fixture) {
    let good = Rings::default();
    for rings in [Rings { available: STAGE, ..good }, Rings { used: STAGE, ..good }] {
        fixture.driver.bring_up(0, rings);
        fixture.assert_works();
        fixture.driver.stage.set_present(false);
        let head = fixture.driver.write_chain(&fixture.request);
        fixture.driver.publish(head);
        fixture.driver.kick();
        assert_eq!(fixture.driver.take_used(), []);
        fixture.driver.stage.set_present(true);
        fixture.assert_needs_reset();
    }
}

/// Two requests, of which the second is made available just before the first, second, third, ... access
/// of the device to the rings. It must never take that for a corrupt ring, and never miss the request
/// unless it had enabled notifications.
pub fn q1_a_request_that_is_added_at_any_moment_is_answered(mut fixture: Fixture) {
    for features in [0, Features::EVENT_IDX.bits()] {
        let moments = (0..).take_while(|&moment| adds_at(&mut fixture, features, moment)).count();
        assert!(moments >= 10, "{moments} accesses to the rings: expected at least 10");
    }
}

/// Adds the second request at access number `moment`. False if the device makes fewer accesses.
fn adds_at(fixture: &mut Fixture, features: u64, moment: usize) -> bool {
    let Fixture { driver, request, answer } = fixture;
    let rings = Rings::at(STAGE);
    driver.bring_up(features, rings);
    let heads = [driver.write_chain(request), driver.write_chain(request)];
    heads.iter().for_each(|&head| driver.publish(head));
    driver.set_available_index(1);

    let (memory, mut accesses) = (driver.memory.clone(), 0);
    let added = Arc::new(Mutex::new(None));
    let notification_wanted = Arc::clone(&added);
    driver.stage.before_access(move || {
        if accesses == moment {
            memory.write_obj(2_u16, GuestAddress(rings.available + 2)).unwrap();
            let used_flags: u16 = memory.read_obj(GuestAddress(rings.used)).unwrap();
            let event = GuestAddress(rings.used + 4 + 8 * u64::from(rings.size));
            let event: u16 = memory.read_obj(event).unwrap();
            let by_flags = used_flags & flags::NO_NOTIFY == 0;
            let wanted = if features == 0 { by_flags } else { event == 1 };
            *notification_wanted.lock().unwrap() = Some(wanted);
        }
        accesses += 1;
    });
    driver.kick();
    driver.stage.before_access(|| {});
    let Some(notification_wanted) = *added.lock().unwrap() else {
        return false;
    };
    if notification_wanted {
        driver.kick();
    }
    let expected = heads.map(|head| Used { head, len: *answer });
    assert_eq!(driver.take_used(), expected, "moment {moment}");
    true
}

pub fn q3_many_requests_a_kick_until_indices_wrap(mut fixture: Fixture) {
    let Fixture { driver, request, answer } = &mut fixture;
    let a_kick = usize::from(Rings::default().size) / request.len();
    let kicks = (usize::from(u16::MAX) + 1000) / a_kick;
    for _ in 0..kicks {
        let heads: Vec<u16> = (0..a_kick).map(|_| driver.write_chain(request)).collect();
        heads.iter().for_each(|&head| driver.publish(head));
        driver.kick();
        let expected: Vec<Used> =
            heads.into_iter().map(|head| Used { head, len: *answer }).collect();
        assert_eq!(driver.take_used(), expected);
        assert_eq!(driver.used_flags(), 0, "the device wants the next notification");
    }
    fixture.assert_works();
}

pub fn q3_a_kick_without_a_request_has_no_effect(mut fixture: Fixture) {
    for _ in 0..3 {
        fixture.driver.kick();
        assert_eq!(fixture.driver.take_used(), []);
        assert_eq!(fixture.driver.interrupts.take(), 0);
        fixture.assert_works();
        fixture.driver.interrupts.take();
    }
}

pub fn q3_nothing_is_consumed_before_driver_ok(mut fixture: Fixture) {
    let Fixture { driver, request, answer } = &mut fixture;
    assert!(driver.negotiate(Features::VERSION_1.bits()));
    assert!(driver.set_up_queue(0, Rings::default()));
    let head = driver.write_chain(request);
    driver.publish(head);
    driver.kick();
    assert_eq!(driver.take_used(), []);
    driver.add_status(DeviceStatus::DRIVER_OK);
    driver.kick();
    assert_eq!(driver.take_used(), [Used { head, len: *answer }]);
}

pub fn q3_without_event_idx_every_answer_interrupts(mut fixture: Fixture) {
    fixture.driver.set_used_event(10);
    for _ in 0..5 {
        fixture.assert_works();
        assert_eq!(fixture.driver.interrupts.take(), 1);
        assert_eq!(fixture.driver.take_interrupt_status(), USED_BUFFER);
        assert_eq!(fixture.driver.used_flags(), 0);
    }
}

pub fn q3_with_event_idx_answers_interrupt_when_asked_to(mut fixture: Fixture) {
    fixture.driver.bring_up(Features::EVENT_IDX.bits(), Rings::default());
    fixture.driver.set_used_event(2);
    for (sent, interrupts) in (1..).zip([0, 0, 1, 0, 0]) {
        fixture.assert_works();
        assert_eq!(fixture.driver.interrupts.take(), interrupts);
        assert_eq!(fixture.driver.available_event(), sent);
    }
    // The entry that is to interrupt may be one of many.
    fixture.driver.set_used_event(6);
    for _ in 0..4 {
        let head = fixture.driver.write_chain(&fixture.request);
        fixture.driver.publish(head);
    }
    fixture.driver.kick();
    assert_eq!(fixture.driver.take_used().len(), 4);
    assert_eq!(fixture.driver.interrupts.take(), 1);
}
