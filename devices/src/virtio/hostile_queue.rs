//! What a hostile driver may do to the queue of any device (rows Q1 and Q3 of
//! `docs/virtio-mem.md`, which are no different for other devices). `hostile_queue_tests!` runs
//! all of it on one device, on each transport.
//!
//! Every chain gets an answer, if only one of no bytes, and the device goes on. Where the ring
//! itself is corrupt the device needs a reset, and after the reset works as before.

use std::sync::{Arc, Mutex};

use virtio_driver::flags;
use vm_memory::{Bytes, GuestAddress};

use super::test_driver::memory::{BUFFERS, RAM_SIZE, STAGE, STAGE_SIZE, TABLES};
use super::test_driver::{Buffer, CONFIG_CHANGE, Rings, TestDriver, USED_BUFFER, Used};
use super::{DeviceStatus, Features};

/// A device that is up, and how to talk to it.
pub struct Subject {
    pub driver: TestDriver,
    /// The buffers of a request that the device answers, the last of them writable,
    pub request: Vec<Buffer>,
    /// with so many bytes.
    pub answer: u32,
}

impl Subject {
    pub fn assert_works(&mut self) {
        assert_eq!(self.driver.send(&self.request), self.answer);
        assert!(!self.driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    }

    fn reset(&mut self) {
        self.driver.bring_up(0, Rings::default());
    }

    /// The device stands still until it is reset, and works again after that.
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
    ($subject:expr) => {
        $crate::virtio::hostile_queue::hostile_queue_tests! { $subject;
            q1_without_a_writable_part_nothing_is_written
            q1_without_any_bytes_nothing_is_written
            q1_buffers_that_are_no_memory_are_not_written
            q1_lengths_beyond_32_bits_are_cut_off
            q1_loops_end
            q1_a_link_out_of_the_table_ends_the_chain
            q1_a_request_may_come_in_any_number_of_pieces
            q1_a_request_may_come_in_an_indirect_table
            q1_indirect_tables_that_are_none_hold_nothing
            q1_chains_longer_than_the_queue_are_not_looked_at
            q1_an_unreachable_descriptor_table_holds_nothing
            q1_a_head_out_of_the_table_needs_a_reset
            q1_an_index_beyond_the_ring_needs_a_reset
            q1_rings_that_cannot_be_need_a_reset
            q1_rings_that_vanish_need_a_reset
            q1_a_driver_that_adds_at_any_moment_is_answered
            q3_many_requests_a_kick_for_longer_than_indices_are_wide
            q3_a_kick_with_nothing_in_it_is_harmless
            q3_nothing_is_consumed_before_driver_ok
            q3_without_event_idx_every_answer_interrupts
            q3_with_event_idx_answers_interrupt_when_asked_to
        }
    };
    ($subject:expr; $($test:ident)*) => {
        mod hostile_queue {
            use super::*;

            $(
                fn $test(on: TransportKind) {
                    $crate::virtio::hostile_queue::$test($subject(on));
                }
            )*

            $crate::virtio::test_driver::on_each_transport! { $($test)* }
        }
    };
}
pub(crate) use hostile_queue_tests;

/// Places where no device finds memory, while the stage is gone.
const NOWHERE: [u64; 6] =
    [RAM_SIZE - 1, RAM_SIZE, STAGE - 1, STAGE, STAGE + STAGE_SIZE - 1, u64::MAX];

pub fn q1_without_a_writable_part_nothing_is_written(mut subject: Subject) {
    assert_eq!(subject.driver.send(&[Buffer::readable(BUFFERS, 64)]), 0);
    subject.assert_works();
}

pub fn q1_without_any_bytes_nothing_is_written(mut subject: Subject) {
    let chain = [Buffer::readable(BUFFERS, 0), Buffer::writable(BUFFERS, 0)];
    assert_eq!(subject.driver.send(&chain), 0);
    subject.assert_works();
}

pub fn q1_buffers_that_are_no_memory_are_not_written(mut subject: Subject) {
    subject.driver.stage.set_present(false);
    for address in NOWHERE {
        let mut chain = subject.request.clone();
        let writable = chain.last_mut().unwrap();
        (writable.address, writable.len) = (address, 64);
        assert_eq!(subject.driver.send(&chain), 0, "{address:#x}");
        subject.assert_works();
    }
}

pub fn q1_lengths_beyond_32_bits_are_cut_off(mut subject: Subject) {
    let driver = &mut subject.driver;
    let huge = Buffer::writable(BUFFERS, u32::MAX);
    assert_eq!(driver.send(&[huge, huge]), 0);
    let memory = Buffer::writable(BUFFERS, (RAM_SIZE - BUFFERS) as u32);
    let pieces = (1_u64 << 32) / u64::from(memory.len) + 2;
    let head = driver.write_chain(&vec![memory; pieces as usize]);
    driver.send_head(head);
    subject.assert_works();
}

pub fn q1_loops_end(mut subject: Subject) {
    let rings = Rings::default();
    let (readable, writable) = (Buffer::readable(BUFFERS, 1), Buffer::writable(BUFFERS, 1));
    let driver = &mut subject.driver;
    for table in [rings.descriptors, TABLES] {
        // Descriptor 0 leads to itself, 1 and 2 to each other.
        driver.write_descriptor(table, 0, writable.followed(), 0);
        driver.write_descriptor(table, 1, readable.followed(), 2);
        driver.write_descriptor(table, 2, writable.followed(), 1);
    }
    driver.send_head(0);
    driver.send_head(1);
    driver.send(&[Buffer::table(TABLES, u16::MAX.into())]);
    driver.write_descriptor(TABLES, 0, readable.followed(), 1);
    driver.send(&[Buffer::table(TABLES, 3)]);
    subject.assert_works();
}

pub fn q1_a_link_out_of_the_table_ends_the_chain(mut subject: Subject) {
    let Rings { descriptors, size, .. } = Rings::default();
    for next in [size, u16::MAX] {
        let buffer = Buffer::readable(BUFFERS, 1).followed();
        subject.driver.write_descriptor(descriptors, 0, buffer, next);
        assert_eq!(subject.driver.send_head(0), 0);
        subject.assert_works();
    }
}

pub fn q1_a_request_may_come_in_any_number_of_pieces(mut subject: Subject) {
    let pieces: Vec<Buffer> = subject.request.iter().flat_map(|buffer| buffer.split()).collect();
    assert_eq!(subject.driver.send(&pieces), subject.answer);
    subject.assert_works();
}

pub fn q1_a_request_may_come_in_an_indirect_table(mut subject: Subject) {
    let Subject { driver, request, answer } = &mut subject;
    let pieces: Vec<Buffer> = request.iter().flat_map(|buffer| buffer.split()).collect();
    driver.write_table(TABLES, 0, &pieces);
    let table = Buffer::table(TABLES, pieces.len() as u32);
    assert_eq!(driver.send(&[table]), *answer);
    // A table is neither writable nor followed by anything, whatever its descriptor says.
    let odd = Buffer { flags: table.flags | flags::WRITE, ..table }.followed();
    driver.write_descriptor(Rings::default().descriptors, 0, odd, 0);
    assert_eq!(driver.send_head(0), *answer);
    // Part of the chain may come before the table.
    let (direct, indirect) = pieces.split_at(pieces.len() / 2);
    driver.write_table(TABLES, 0, indirect);
    let table = Buffer::table(TABLES, indirect.len() as u32);
    assert_eq!(driver.send(&[direct, &[table]].concat()), *answer);
    subject.assert_works();
}

pub fn q1_indirect_tables_that_are_none_hold_nothing(mut subject: Subject) {
    let driver = &mut subject.driver;
    driver.stage.set_present(false);
    driver.write_table(TABLES, 0, &subject.request);
    let good = Buffer::table(TABLES, subject.request.len() as u32);
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
    subject.assert_works();
}

pub fn q1_chains_longer_than_the_queue_are_not_looked_at(mut subject: Subject) {
    let Subject { driver, request, answer } = &mut subject;
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
    subject.assert_works();
}

pub fn q1_an_unreachable_descriptor_table_holds_nothing(mut subject: Subject) {
    subject.driver.bring_up(0, Rings { descriptors: STAGE, ..Rings::default() });
    subject.assert_works();
    subject.driver.stage.set_present(false);
    assert_eq!(subject.driver.send(&subject.request), 0);
    subject.driver.stage.set_present(true);
    subject.assert_works();
}

pub fn q1_a_head_out_of_the_table_needs_a_reset(mut subject: Subject) {
    for head in [Rings::default().size, u16::MAX] {
        subject.driver.publish(head);
        subject.driver.kick();
        assert_eq!(subject.driver.take_used(), []);
        subject.assert_needs_reset();
    }
}

pub fn q1_an_index_beyond_the_ring_needs_a_reset(mut subject: Subject) {
    for jump in [Rings::default().size + 1, u16::MAX / 2, u16::MAX] {
        subject.assert_works();
        let index = subject.driver.available_index().wrapping_add(jump);
        subject.driver.set_available_index(index);
        subject.driver.kick();
        assert_eq!(subject.driver.take_used(), []);
        subject.assert_needs_reset();
    }
}

pub fn q1_rings_that_cannot_be_need_a_reset(mut subject: Subject) {
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
        let driver = &mut subject.driver;
        driver.stage.set_present(false);
        assert!(driver.negotiate(Features::VERSION_1.bits()));
        driver.add_status(DeviceStatus::DRIVER_OK);
        assert!(!driver.set_up_queue(0, rings), "{rings:#x?}");
        driver.kick();
        subject.assert_needs_reset();
    }
}

pub fn q1_rings_that_vanish_need_a_reset(mut subject: Subject) {
    let good = Rings::default();
    for rings in [Rings { available: STAGE, ..good }, Rings { used: STAGE, ..good }] {
        subject.driver.bring_up(0, rings);
        subject.assert_works();
        subject.driver.stage.set_present(false);
        let head = subject.driver.write_chain(&subject.request);
        subject.driver.publish(head);
        subject.driver.kick();
        assert_eq!(subject.driver.take_used(), []);
        subject.driver.stage.set_present(true);
        subject.assert_needs_reset();
    }
}

/// Two requests, of which the second is announced just before the first, second, third, ... time
/// that the device looks at the rings. It must never take that for a corrupt ring, and never
/// forget the request unless it had asked for a notification.
pub fn q1_a_driver_that_adds_at_any_moment_is_answered(mut subject: Subject) {
    for features in [0, Features::EVENT_IDX.bits()] {
        let moments = (0..).take_while(|&moment| adds_at(&mut subject, features, moment)).count();
        assert!(moments >= 10, "{moments}: the device cannot have looked at all there is");
    }
}

/// False if the device does not look so often.
fn adds_at(subject: &mut Subject, features: u64, moment: usize) -> bool {
    let Subject { driver, request, answer } = subject;
    let rings = Rings::at(STAGE);
    driver.bring_up(features, rings);
    let heads = [driver.write_chain(request), driver.write_chain(request)];
    heads.iter().for_each(|&head| driver.publish(head));
    driver.set_available_index(1);

    let (memory, mut looks) = (driver.memory.clone(), 0);
    let added = Arc::new(Mutex::new(None));
    let notification_wanted = Arc::clone(&added);
    driver.stage.before_access(move || {
        if looks == moment {
            memory.write_obj(2_u16, GuestAddress(rings.available + 2)).unwrap();
            let used_flags: u16 = memory.read_obj(GuestAddress(rings.used)).unwrap();
            let event = GuestAddress(rings.used + 4 + 8 * u64::from(rings.size));
            let event: u16 = memory.read_obj(event).unwrap();
            let by_flags = used_flags & flags::NO_NOTIFY == 0;
            let wanted = if features == 0 { by_flags } else { event == 1 };
            *notification_wanted.lock().unwrap() = Some(wanted);
        }
        looks += 1;
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

pub fn q3_many_requests_a_kick_for_longer_than_indices_are_wide(mut subject: Subject) {
    let Subject { driver, request, answer } = &mut subject;
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
    subject.assert_works();
}

pub fn q3_a_kick_with_nothing_in_it_is_harmless(mut subject: Subject) {
    for _ in 0..3 {
        subject.driver.kick();
        assert_eq!(subject.driver.take_used(), []);
        assert_eq!(subject.driver.interrupts.take(), 0);
        subject.assert_works();
        subject.driver.interrupts.take();
    }
}

pub fn q3_nothing_is_consumed_before_driver_ok(mut subject: Subject) {
    let Subject { driver, request, answer } = &mut subject;
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

pub fn q3_without_event_idx_every_answer_interrupts(mut subject: Subject) {
    subject.driver.set_used_event(10);
    for _ in 0..5 {
        subject.assert_works();
        assert_eq!(subject.driver.interrupts.take(), 1);
        assert_eq!(subject.driver.take_interrupt_status(), USED_BUFFER);
        assert_eq!(subject.driver.used_flags(), 0);
    }
}

pub fn q3_with_event_idx_answers_interrupt_when_asked_to(mut subject: Subject) {
    subject.driver.bring_up(Features::EVENT_IDX.bits(), Rings::default());
    subject.driver.set_used_event(2);
    for (sent, interrupts) in (1..).zip([0, 0, 1, 0, 0]) {
        subject.assert_works();
        assert_eq!(subject.driver.interrupts.take(), interrupts);
        assert_eq!(subject.driver.available_event(), sent);
    }
    // The entry asked for may be in the midst of many.
    subject.driver.set_used_event(6);
    for _ in 0..4 {
        let head = subject.driver.write_chain(&subject.request);
        subject.driver.publish(head);
    }
    subject.driver.kick();
    assert_eq!(subject.driver.take_used().len(), 4);
    assert_eq!(subject.driver.interrupts.take(), 1);
}
