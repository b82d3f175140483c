//! The registers of virtio-mmio (virtio 1.3, section 4.2.2): what differs from other transports.

use super::transport_test::{BUFFER, FEATURE_A, VERSION_1, stub};
use crate::virtio::DeviceStatus;
use crate::virtio::test_driver::memory::TABLES;
use crate::virtio::test_driver::{
    CONFIG_CHANGE, Register, Rings, TestDriver, TransportKind, USED_BUFFER,
};
use virtio_driver::mmio as register;

fn read(driver: &mut TestDriver, offset: u64) -> u32 {
    let mut data = [0xa5; 4];
    driver.read_at(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(driver: &mut TestDriver, offset: u64, value: u32) {
    driver.write_at(offset, &value.to_le_bytes());
}

#[test]
fn the_registers_identify_the_device() {
    let (_, mut driver) = stub(TransportKind::Mmio);
    assert_eq!(read(&mut driver, register::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(read(&mut driver, register::VERSION), 2);
    assert_eq!(read(&mut driver, register::DEVICE_ID), 24);
    assert_ne!(read(&mut driver, register::VENDOR_ID), 0);
    for offset in (register::SHM_LEN_LOW..=register::SHM_BASE_HIGH).step_by(4) {
        assert_eq!(read(&mut driver, offset), u32::MAX, "there is no shared memory");
    }
    assert_eq!(read(&mut driver, register::CONFIG), u32::from_le_bytes(*b"stub"));
    assert_eq!(read(&mut driver, register::CONFIG + 4), 0);
}

#[test]
fn high_bits_of_narrow_registers_are_checked() {
    let (_, mut driver) = stub(TransportKind::Mmio);
    driver.bring_up(FEATURE_A, Rings::default());
    let up = driver.status();
    for value in [0x100, 0xffff_ff00] {
        write(&mut driver, register::STATUS, value);
        assert_eq!(driver.status(), up, "{value:#x}");
    }
    for select in [0x1_0000, u32::MAX] {
        write(&mut driver, register::QUEUE_SEL, select);
        assert_eq!(read(&mut driver, register::QUEUE_SIZE_MAX), 0, "queue {select}");
    }
    assert!(driver.negotiate(VERSION_1 | FEATURE_A));
    write(&mut driver, register::QUEUE_SIZE, 0x1_0010);
    write(&mut driver, register::QUEUE_READY, 1);
    assert_eq!(read(&mut driver, register::QUEUE_READY), 0);
    assert!(driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
}

#[test]
fn an_interrupt_stays_pending_until_it_is_acknowledged() {
    let (_, mut driver) = stub(TransportKind::Mmio);
    driver.bring_up(FEATURE_A, Rings::default());
    driver.send(&[BUFFER]);
    driver.config_changed();
    assert_eq!(driver.interrupts.take(), 2);
    let mut acknowledge = |bits| {
        write(&mut driver, register::INTERRUPT_ACK, bits);
        read(&mut driver, register::INTERRUPT_STATUS)
    };
    assert_eq!(acknowledge(0), USED_BUFFER | CONFIG_CHANGE);
    assert_eq!(acknowledge(USED_BUFFER), CONFIG_CHANGE);
    assert_eq!(acknowledge(!CONFIG_CHANGE), CONFIG_CHANGE);
    assert_eq!(acknowledge(u32::MAX), 0);
    driver.config_changed();
    driver.reset();
    assert_eq!(read(&mut driver, register::INTERRUPT_STATUS), 0);
}

#[test]
fn a_queue_that_is_no_longer_ready_is_left_alone_until_it_is_set_up_anew() {
    let (device, mut driver) = stub(TransportKind::Mmio);
    driver.bring_up(FEATURE_A, Rings::default());
    driver.send(&[BUFFER]);
    driver.write(Register::QueueEnable, 0);
    assert_eq!(driver.read(Register::QueueEnable), 0);
    let head = driver.write_chain(&[BUFFER]);
    driver.publish(head);
    driver.kick();
    assert_eq!(driver.take_used(), []);
    assert!(driver.set_up_queue(0, Rings::at(TABLES)));
    driver.send(&[BUFFER]);
    assert_eq!(device.seen().chains, [0, 0]);
}

#[test]
fn registers_are_32_bits_wide_and_aligned() {
    let (_, mut driver) = stub(TransportKind::Mmio);
    for offset in 0..0x100_u64 {
        for width in [0, 1, 2, 3, 4, 5, 8] {
            if width == 4 && offset.is_multiple_of(4) {
                continue;
            }
            driver.write_at(offset, &vec![0xff; width]);
            let mut data = vec![0xa5; width];
            driver.read_at(offset, &mut data);
            assert_eq!(data, vec![0; width], "{width} bytes at {offset:#x}");
        }
    }
    assert_eq!(driver.status(), DeviceStatus::empty());
    assert_eq!(driver.doorbells.take(), 0);
}
