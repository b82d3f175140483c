//! DMA transfers behind an IOMMU.

use super::dma_test::{BYTE, FILL, READ, WRITE, memory, start, transfer};
use super::test_machine::*;
use super::{DmaFault, DmaStatus};
use crate::virtio::iommu::test_machine::{self as iommu, OK, TestMachine};
use crate::virtio::test_driver::TransportKind;

/// The requester ID of the probe.
const ENDPOINT: u32 = 0x100;
const REFUSED: DmaStatus = DmaStatus::Fault(DmaFault::Address);
const RW: u32 = iommu::READ | iommu::WRITE;

/// A probe in a domain without mappings, and the IOMMU that it is behind.
fn machines() -> (Machine, TestMachine) {
    let mut iommu = TestMachine::up(TransportKind::Mmio);
    assert_eq!(iommu.attach(1, ENDPOINT), OK);
    let machine = Machine::behind(iommu.translations.clone());
    machine.write(BAR0 + BYTE, 0x55);
    (machine, iommu)
}

fn faults(iommu: &TestMachine, id: u32) -> u64 {
    let endpoints = iommu.translations.status().endpoints;
    endpoints.iter().find(|endpoint| endpoint.id == id).map_or(0, |endpoint| endpoint.faults)
}

#[test]
fn transfers_go_where_the_address_is_mapped() {
    let (machine, mut iommu) = machines();
    assert_eq!(iommu.map(1, 0, 0xfff, MEMORY + 0x1000, RW), OK);
    assert_eq!(transfer(&machine, FILL, 0x10, 2), DmaStatus::Done);
    assert_eq!(memory(&machine, MEMORY + 0x100f, 4), [0, 0x55, 0x55, 0]);
    assert_eq!(transfer(&machine, READ, 0xf, 3), DmaStatus::Done);
    assert_eq!(machine.read_bytes(BAR0 + BUFFER, 4), [0, 0x55, 0x55, 0]);
    assert_eq!(faults(&iommu, ENDPOINT), 0);
}

#[test]
fn memory_that_is_not_mapped_is_not_accessed() {
    let (machine, mut iommu) = machines();
    assert_eq!(transfer(&machine, FILL, MEMORY, 1), REFUSED);
    assert_eq!(memory(&machine, MEMORY, 1), [0]);
    assert_eq!(faults(&iommu, ENDPOINT), 1);
    assert_eq!(iommu.map(1, MEMORY, MEMORY + 0xfff, MEMORY, RW), OK);
    assert_eq!(transfer(&machine, FILL, MEMORY, 1), DmaStatus::Done);
    assert_eq!(iommu.unmap(1, MEMORY, MEMORY + 0xfff), OK);
    assert_eq!(transfer(&machine, FILL, MEMORY + 1, 1), REFUSED);
    assert_eq!(memory(&machine, MEMORY, 2), [0x55, 0]);
    assert_eq!(faults(&iommu, ENDPOINT), 2);
}

#[test]
fn a_mapping_permits_reads_and_writes_separately() {
    let (machine, mut iommu) = machines();
    assert_eq!(iommu.map(1, 0, 0xfff, MEMORY, iommu::READ), OK);
    assert_eq!(iommu.map(1, 0x1000, 0x1fff, MEMORY + 0x1000, iommu::WRITE), OK);
    assert_eq!(transfer(&machine, READ, 0, 1), DmaStatus::Done);
    assert_eq!(transfer(&machine, FILL, 0, 1), REFUSED);
    assert_eq!(transfer(&machine, FILL, 0x1000, 1), DmaStatus::Done);
    assert_eq!(transfer(&machine, READ, 0x1000, 1), REFUSED);
    assert_eq!(memory(&machine, MEMORY, 1), [0]);
    assert_eq!(memory(&machine, MEMORY + 0x1000, 1), [0x55]);
}

#[test]
fn a_transfer_may_span_mappings_and_happens_in_whole_or_not_at_all() {
    let (machine, mut iommu) = machines();
    assert_eq!(iommu.map(1, 0, 0xfff, MEMORY + 0x1000, RW), OK);
    machine.write_bytes(BAR0 + BUFFER, b"in two");
    assert_eq!(transfer(&machine, WRITE, 0xffd, 6), REFUSED);
    assert_eq!(memory(&machine, MEMORY + 0x1ffd, 3), [0; 3]);
    assert_eq!(iommu.map(1, 0x1000, 0x1fff, MEMORY, RW), OK);
    assert_eq!(transfer(&machine, WRITE, 0xffd, 6), DmaStatus::Done);
    assert_eq!(memory(&machine, MEMORY + 0x1ffd, 3), b"in ");
    assert_eq!(memory(&machine, MEMORY, 4), b"two\0");
}

#[test]
fn a_transfer_is_translated_when_it_is_carried_out() {
    let (machine, mut iommu) = machines();
    assert_eq!(iommu.map(1, 0, 0xfff, MEMORY, RW), OK);
    start(&machine, FILL, 0, 1);
    iommu.driver.write_config(36, &[0]);
    assert_eq!(iommu.detach(1, ENDPOINT), OK);
    machine.process();
    assert_eq!(machine.status().dma_status, REFUSED);
    assert_eq!(memory(&machine, MEMORY, 1), [0]);
    assert_eq!(transfer(&machine, FILL, MEMORY, 1), REFUSED, "nothing bypasses the IOMMU");
    iommu.driver.write_config(36, &[1]);
    assert_eq!(transfer(&machine, FILL, MEMORY, 1), DmaStatus::Done);
}

#[test]
fn a_probe_on_a_bus_with_another_number_is_another_endpoint() {
    let (machine, mut iommu) = machines();
    iommu.driver.write_config(36, &[0]);
    assert_eq!(iommu.map(1, 0, 0xfff, MEMORY, RW), OK);
    // Primary, secondary and subordinate bus. BAR 0 stays where it is.
    machine.write_config(PORT, 0x18, 0x0005_0500);
    assert_eq!(transfer(&machine, FILL, 0, 1), REFUSED);
    assert_eq!((faults(&iommu, ENDPOINT), faults(&iommu, 0x500)), (0, 1));
    assert_eq!(iommu.attach(1, 0x500), OK);
    assert_eq!(transfer(&machine, FILL, 0, 1), DmaStatus::Done);
}

#[test]
fn the_msi_window_is_not_memory() {
    let (machine, iommu) = machines();
    assert_eq!(transfer(&machine, WRITE, 0xfee0_0000, 4), REFUSED);
    assert_eq!(faults(&iommu, ENDPOINT), 1);
}
