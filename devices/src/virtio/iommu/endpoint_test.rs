//! A virtio device behind the IOMMU: its rings and its buffers are translated alike.

use std::io;
use std::sync::{Arc, Mutex};

use super::test_machine::*;
use crate::virtio::DeviceStatus;
use crate::virtio::rng::Rng;
use crate::virtio::test_driver::memory::BUFFERS;
use crate::virtio::test_driver::{Buffer, Rings, TestDriver, TransportKind, on_each_transport};

on_each_transport! {
    buffers_are_filled_where_they_are_mapped
    nothing_is_filled_if_any_buffer_is_refused
    rings_that_are_not_mapped_cannot_be_set_up
    rings_that_are_unmapped_need_a_reset
}

const RINGS: u64 = 0x1_0000;
const RINGS_END: u64 = RINGS + 0x2fff;
/// Where the device sees the buffers.
const IOVA: u64 = 0x8000_0000;
const RW: u32 = READ | WRITE;

/// An entropy device in a domain in which its rings are mapped to where they are, and its IOMMU.
fn machines(on: TransportKind) -> (TestDriver, TestMachine) {
    let mut iommu = TestMachine::up(TransportKind::Mmio);
    iommu.driver.write_config(36, &[0]);
    assert_eq!(iommu.attach(1, TestDriver::ENDPOINT), OK);
    assert_eq!(iommu.map(1, RINGS, RINGS_END, RINGS, RW), OK);
    let device = Arc::new(Mutex::new(Rng::new(Box::new(io::repeat(0x5a)))));
    let mut driver = TestDriver::behind(iommu.translations.clone(), on, device, vec![]);
    driver.bring_up(0, Rings::at(RINGS));
    (driver, iommu)
}

fn faults(iommu: &TestMachine) -> u64 {
    iommu.translations.status().endpoints[0].faults
}

fn buffers_are_filled_where_they_are_mapped(on: TransportKind) {
    let (mut driver, mut iommu) = machines(on);
    assert_eq!(iommu.map(1, IOVA, IOVA + 0xfff, BUFFERS + 0x5000, WRITE), OK);
    assert_eq!(iommu.map(1, IOVA + 0x1000, IOVA + 0x1fff, BUFFERS, WRITE), OK);
    assert_eq!(driver.send(&[Buffer::writable(IOVA + 0xff8, 0x10)]), 0x10);
    assert_eq!(driver.load::<[u64; 2]>(BUFFERS + 0x5ff8), [0x5a5a_5a5a_5a5a_5a5a, 0]);
    assert_eq!(driver.load::<[u64; 2]>(BUFFERS), [0x5a5a_5a5a_5a5a_5a5a, 0]);
    assert_eq!(faults(&iommu), 0);
}

fn nothing_is_filled_if_any_buffer_is_refused(on: TransportKind) {
    let (mut driver, mut iommu) = machines(on);
    assert_eq!(iommu.map(1, IOVA, IOVA + 0xfff, BUFFERS, WRITE), OK);
    assert_eq!(iommu.map(1, IOVA + 0x1000, IOVA + 0x1fff, BUFFERS + 0x1000, READ), OK);
    let good = Buffer::writable(IOVA, 8);
    for (count, address) in (1..).zip([IOVA + 0x1000, IOVA + 0xfff, BUFFERS, u64::MAX]) {
        assert_eq!(driver.send(&[good, Buffer::writable(address, 8)]), 0, "{address:#x}");
        assert_eq!(faults(&iommu), count);
    }
    assert_eq!(driver.load::<[u64; 2]>(BUFFERS), [0; 2]);
    assert_eq!(driver.load::<[u64; 2]>(BUFFERS + 0x1000), [0; 2]);
    assert_eq!(driver.send(&[good]), 8);
}

fn rings_that_are_not_mapped_cannot_be_set_up(on: TransportKind) {
    let (mut driver, iommu) = machines(on);
    let good = Rings::at(RINGS);
    for rings in [
        Rings { descriptors: BUFFERS, ..good },
        Rings { available: BUFFERS, ..good },
        Rings { used: BUFFERS, ..good },
    ] {
        assert!(driver.negotiate(1 << 32));
        assert!(!driver.set_up_queue(0, rings));
        assert!(driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    }
    assert_eq!(faults(&iommu), 3);
    driver.bring_up(0, good);
}

fn rings_that_are_unmapped_need_a_reset(on: TransportKind) {
    let (mut driver, mut iommu) = machines(on);
    assert_eq!(iommu.map(1, IOVA, IOVA + 0xfff, BUFFERS, WRITE), OK);
    let head = driver.write_chain(&[Buffer::writable(IOVA, 8)]);
    driver.publish(head);
    assert_eq!(iommu.unmap(1, RINGS, RINGS_END), OK);
    driver.kick();
    assert_eq!(driver.take_used(), []);
    assert!(driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    assert_eq!(driver.load::<u64>(BUFFERS), 0);
    assert_eq!(iommu.map(1, RINGS, RINGS_END, RINGS, RW), OK);
    driver.bring_up(0, Rings::at(RINGS));
    assert_eq!(driver.send(&[Buffer::writable(IOVA, 8)]), 8);
}
