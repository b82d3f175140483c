//! A virtio device behind the IOMMU: its rings and its buffers are translated alike.

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use super::Translations;
use super::test_machine::*;
use super::wire;
use crate::virtio::DeviceStatus;
use crate::virtio::rng::Rng;
use crate::virtio::test_driver::memory::BUFFERS;
use crate::virtio::test_driver::{Buffer, Rings, TestDriver, TransportKind, on_each_transport};

on_each_transport! {
    buffers_are_filled_where_they_are_mapped
    nothing_is_filled_if_any_buffer_is_refused
    rings_that_are_not_mapped_cannot_be_set_up
    rings_that_are_unmapped_need_a_reset
    no_buffer_is_filled_after_a_permission_ends
}

const RINGS: u64 = 0x1_0000;
const RINGS_END: u64 = RINGS + 0x2fff;
/// The address of the buffers as the device sees it.
const IOVA: u64 = 0x8000_0000;
const RW: u32 = READ | WRITE;

/// An entropy device in a domain in which its rings are mapped to where they are, and its IOMMU.
fn machines(on: TransportKind) -> (TestDriver, TestMachine) {
    let mut iommu = TestMachine::up(TransportKind::Mmio);
    iommu.driver.write_config(36, &[0]);
    assert_eq!(iommu.attach(1, TestDriver::ENDPOINT), OK);
    assert_eq!(iommu.map(1, RINGS, RINGS_END, RINGS, RW), OK);
    let device = Arc::new(Rng::new(Box::new(io::repeat(0x5a))));
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

type Revoke = fn(&Translations);

/// A source of randomness that takes a permission away while it is read for the first time.
struct Source(Arc<OnceLock<(Arc<Translations>, Revoke)>>);

impl Read for Source {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        if let Some((translations, revoke)) = self.0.get() {
            revoke(translations);
        }
        data.fill(0x5a);
        Ok(data.len())
    }
}

fn no_buffer_is_filled_after_a_permission_ends(on: TransportKind) {
    let detach: Revoke = |translations| {
        let (domain, endpoint) = (1.into(), TestDriver::ENDPOINT.into());
        translations.detach(&wire::Detach { domain, endpoint, reserved: [0; 8] });
    };
    let unmap: Revoke = |translations| {
        let (virt_start, virt_end) = (0.into(), u64::MAX.into());
        let domain = 1.into();
        translations.unmap(&wire::Unmap { domain, virt_start, virt_end, reserved: [0; 4] });
    };
    // Whether the endpoint is in a domain, and what ends its permission to access memory.
    let cases: [(bool, Revoke); 4] = [
        (false, |translations| translations.set_bypass(false)),
        (true, detach),
        (true, unmap),
        (true, |translations| translations.reset()),
    ];
    for (case, (attached, revoke)) in (0..).zip(cases) {
        let mut iommu = TestMachine::up(TransportKind::Mmio);
        if attached {
            iommu.driver.write_config(36, &[0]);
            assert_eq!(iommu.attach(1, TestDriver::ENDPOINT), OK);
            assert_eq!(iommu.map(1, RINGS, RINGS_END, RINGS, RW), OK);
            assert_eq!(iommu.map(1, BUFFERS, BUFFERS + 0xfffff, BUFFERS, RW), OK);
        }
        let what = Arc::new(OnceLock::new());
        let device = Arc::new(Rng::new(Box::new(Source(Arc::clone(&what)))));
        let mut driver = TestDriver::behind(iommu.translations.clone(), on, device, vec![]);
        driver.bring_up(0, Rings::at(RINGS));
        assert_eq!(driver.send(&[Buffer::writable(BUFFERS, 8)]), 8);
        let set = what.set((iommu.translations.clone(), revoke));
        set.unwrap_or_else(|_| panic!("it is set once"));
        let head = driver.write_chain(&[Buffer::writable(BUFFERS + 0x1000, 64 << 10)]);
        driver.publish(head);
        driver.notify(0);
        driver.process_queues();
        let filled = driver.load::<[u8; 32]>(BUFFERS + 0x1000);
        assert_eq!(filled, [0; 32], "case {case}");
        assert_eq!(driver.take_used(), [], "case {case}");
    }
}
