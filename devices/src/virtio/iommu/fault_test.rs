//! Refused accesses, and the event queue that reports them (virtio 1.3, section 5.13.6.9).

use vm_memory::Permissions;

use super::fault::FaultLog;
use super::test_machine::*;
use super::{EndpointStatus, Fault, FaultReason, ReportCounters};
use crate::virtio::test_driver::memory::{BUFFERS, TABLES};
use crate::virtio::test_driver::{Buffer, Rings, TransportKind, on_each_transport};

on_each_transport! {
    refused_accesses_are_counted_by_endpoint
    faults_are_reported_in_the_drivers_buffers
    buffers_wait_until_there_is_a_fault
    a_limited_number_of_faults_wait_for_buffers
    notifications_are_enabled_while_there_are_too_few_buffers
    a_report_is_lost_in_a_buffer_that_is_too_small
    without_an_event_queue_faults_are_counted_all_the_same
    a_reset_drops_pending_reports_and_keeps_the_counts
}

const EVENTS: Rings =
    Rings { size: 64, descriptors: TABLES, available: TABLES + 0x1000, used: TABLES + 0x2000 };

const MAX_PENDING: u64 = FaultLog::MAX_PENDING as u64;

/// A machine with endpoint 5 in domain 1, which may read its first page, and none that bypasses.
/// The driver works on the event queue.
fn machine(on: TransportKind) -> TestMachine {
    let mut machine = TestMachine::up(on);
    assert_eq!(machine.attach(1, 5), OK);
    assert_eq!(machine.map(1, 0, 0xfff, 0, READ), OK);
    machine.driver.write_config(36, &[0]);
    assert!(machine.driver.set_up_queue(1, EVENTS));
    machine
}

fn refuse(machine: &TestMachine, endpoint: u32, address: u64, access: Permissions) {
    assert_eq!(machine.translate(endpoint, address, access), None);
}

/// Adds a buffer for a report, and returns where it is.
fn add_buffer(machine: &mut TestMachine, index: u64) -> u64 {
    let address = BUFFERS + 0x100 * index;
    machine.driver.store(address, [0xee_u8; 32]);
    let head = machine.driver.write_chain(&[Buffer::writable(address, 24)]);
    machine.driver.publish(head);
    address
}

/// The bytes of a report.
fn report(reason: u8, flags: u32, endpoint: u32, address: u64) -> Vec<u8> {
    let words = [flags, endpoint, 0].map(u32::to_le_bytes);
    [&[reason, 0, 0, 0], words.as_flattened(), &address.to_le_bytes(), &[0xee; 8]].concat()
}

fn reports(machine: &TestMachine) -> (u64, u64) {
    let ReportCounters { delivered, dropped } = machine.translations.status().reports;
    (delivered, dropped)
}

fn refused_accesses_are_counted_by_endpoint(on: TransportKind) {
    let machine = machine(on);
    assert_eq!(machine.translate(5, 0, Permissions::Read), Some(0));
    refuse(&machine, 5, 0, Permissions::Write);
    refuse(&machine, 5, 0x1000, Permissions::Read);
    refuse(&machine, 9, 0, Permissions::Read);
    let last_fault = |address, reason| Some(Fault { address, is_write: false, reason });
    let of_5 = last_fault(0x1000, FaultReason::Mapping);
    let of_9 = last_fault(0, FaultReason::Domain);
    assert_eq!(
        machine.translations.status().endpoints,
        [
            EndpointStatus { id: 5, domain: Some(1), faults: 2, last_fault: of_5 },
            EndpointStatus { id: 9, domain: None, faults: 1, last_fault: of_9 },
        ]
    );
    assert_eq!(machine.fault_signals.take(), 3);
    // The report has the first address that is not mapped.
    assert!(
        crate::dma::Iommu::translate(&*machine.translations, 5, 0xff0, 0x20, Permissions::Read)
            .is_err()
    );
    assert_eq!(machine.translations.status().endpoints[0].last_fault, of_5);
}

fn faults_are_reported_in_the_drivers_buffers(on: TransportKind) {
    let mut machine = machine(on);
    let buffers = [0, 1, 2].map(|index| add_buffer(&mut machine, index));
    refuse(&machine, 5, 0x123, Permissions::Write);
    refuse(&machine, 5, u64::MAX, Permissions::Read);
    refuse(&machine, 9, 0x456, Permissions::Read);
    assert!(!machine.driver.process_queues());
    assert!(machine.driver.interrupts.take() > 0);
    let used = machine.driver.take_used();
    assert_eq!(used.iter().map(|used| used.len).collect::<Vec<_>>(), [24; 3]);
    let found = buffers.map(|at| machine.driver.load::<[u8; 32]>(at).to_vec());
    let expected =
        [report(2, 0x102, 5, 0x123), report(2, 0x101, 5, u64::MAX), report(1, 0x101, 9, 0x456)];
    assert_eq!(found, expected);
    assert_eq!(reports(&machine), (3, 0));
}

fn buffers_wait_until_there_is_a_fault(on: TransportKind) {
    let mut machine = machine(on);
    for index in 0..4 {
        add_buffer(&mut machine, index);
    }
    machine.driver.kick();
    assert_eq!(machine.driver.take_used(), []);
    refuse(&machine, 5, 0x1000, Permissions::Read);
    machine.driver.kick();
    assert_eq!(machine.driver.take_used().len(), 1);
    machine.driver.kick();
    assert_eq!(machine.driver.take_used(), []);
}

fn a_limited_number_of_faults_wait_for_buffers(on: TransportKind) {
    let mut machine = machine(on);
    for address in 0..MAX_PENDING + 10 {
        refuse(&machine, 9, address, Permissions::Read);
        assert!(!machine.driver.process_queues());
    }
    assert_eq!(reports(&machine), (0, 10));
    let buffers: Vec<u64> = (0..MAX_PENDING).map(|index| add_buffer(&mut machine, index)).collect();
    machine.driver.kick();
    assert_eq!(machine.driver.take_used().len(), buffers.len());
    for (address, buffer) in (0..).zip(buffers) {
        let found = machine.driver.load::<[u8; 32]>(buffer);
        assert_eq!(found.to_vec(), report(1, 0x101, 9, address));
    }
    assert_eq!(reports(&machine), (MAX_PENDING, 10));
    assert_eq!(machine.translations.status().endpoints[1].faults, MAX_PENDING + 10);
}

fn notifications_are_enabled_while_there_are_too_few_buffers(on: TransportKind) {
    let mut machine = machine(on);
    add_buffer(&mut machine, 0);
    machine.driver.kick();
    assert_eq!(machine.driver.used_flags(), 1, "one waiting buffer is enough");
    for _ in 0..2 {
        refuse(&machine, 5, 0x1000, Permissions::Read);
    }
    machine.driver.process_queues();
    assert_eq!(machine.driver.take_used().len(), 1);
    assert_eq!(machine.driver.used_flags(), 0);
}

fn a_report_is_lost_in_a_buffer_that_is_too_small(on: TransportKind) {
    let mut machine = machine(on);
    machine.driver.store(BUFFERS, [0xee_u8; 32]);
    let chains = [Buffer::writable(BUFFERS, 23), Buffer::readable(BUFFERS, 24)];
    for chain in chains {
        refuse(&machine, 9, 0, Permissions::Read);
        assert_eq!(machine.driver.send(&[chain]), 0);
        assert_eq!(machine.driver.load::<[u8; 32]>(BUFFERS), [0xee; 32]);
    }
    assert_eq!(reports(&machine), (0, 2));
    refuse(&machine, 9, 7, Permissions::Read);
    let whole = [Buffer::writable(BUFFERS, 10), Buffer::writable(BUFFERS + 10, 14)];
    assert_eq!(machine.driver.send(&whole), 24);
    let found = machine.driver.load::<[u8; 32]>(BUFFERS);
    assert_eq!(found.to_vec(), report(1, 0x101, 9, 7));
}

fn without_an_event_queue_faults_are_counted_all_the_same(on: TransportKind) {
    let mut machine = TestMachine::up(on);
    machine.driver.write_config(36, &[0]);
    for _ in 0..2 * MAX_PENDING {
        refuse(&machine, 9, 0, Permissions::Read);
        assert!(!machine.driver.process_queues());
    }
    assert_eq!(machine.attach(1, 5), OK, "requests are still answered");
    assert_eq!(reports(&machine), (0, MAX_PENDING));
    assert_eq!(machine.translations.status().endpoints[1].faults, 2 * MAX_PENDING);
}

fn a_reset_drops_pending_reports_and_keeps_the_counts(on: TransportKind) {
    let mut machine = machine(on);
    refuse(&machine, 9, 0, Permissions::Read);
    machine.driver.bring_up(FEATURES, Rings::default());
    assert!(machine.driver.set_up_queue(1, EVENTS));
    add_buffer(&mut machine, 0);
    machine.driver.kick();
    assert_eq!(machine.driver.take_used(), []);
    assert_eq!(reports(&machine), (0, 1));
    assert_eq!(machine.translations.status().endpoints[0].faults, 1);
}
