//! The registers of virtio-mmio (virtio 1.3, section 4.2.2), with a device that does next to
//! nothing behind them.

use std::sync::{Arc, Mutex};

use super::Transport;
use crate::bus::BusDevice;
use crate::dma::DmaView;
use crate::virtio::test_driver::memory::{BUFFERS, TABLES};
use crate::virtio::test_driver::{Buffer, Rings, TestDriver, register};
use crate::virtio::{Chain, DeviceStatus, DeviceType, Features, VirtioDevice, read_config_bytes};

const VERSION_1: u64 = Features::VERSION_1.bits();
const FEATURE_A: u64 = 1 << 0;
const FEATURE_B: u64 = 1 << 50;

/// A device with two queues that insists on one of its two features.
#[derive(Default)]
struct Stub {
    accepted: Option<u64>,
    resets: usize,
    chains: Vec<u16>,
}

impl VirtioDevice for Stub {
    fn device_type(&self) -> DeviceType {
        DeviceType::Memory
    }
    fn features(&self) -> u64 {
        FEATURE_A | FEATURE_B
    }
    fn queue_max_sizes(&self) -> &'static [u16] {
        &[128, 8]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(b"stub", offset, data);
    }
    fn accept_features(&mut self, features: u64) -> bool {
        self.accepted = Some(features);
        features & FEATURE_A != 0
    }
    fn process_chain(&mut self, queue: u16, _memory: &DmaView, _chain: Chain<'_>) -> u32 {
        self.chains.push(queue);
        0
    }
    fn reset(&mut self) {
        self.resets += 1;
    }
}

fn stub() -> (Arc<Mutex<Stub>>, TestDriver) {
    let device = Arc::new(Mutex::new(Stub::default()));
    (device.clone(), TestDriver::new(device))
}

#[test]
fn the_device_introduces_itself() {
    let (_, mut driver) = stub();
    assert_eq!(driver.read(register::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read(register::VERSION), 2);
    assert_eq!(driver.read(register::DEVICE_ID), 24);
    assert_ne!(driver.read(register::VENDOR_ID), 0);
    for offset in (register::SHM_LEN_LOW..=register::SHM_BASE_HIGH).step_by(4) {
        assert_eq!(driver.read(offset), u32::MAX, "there is no shared memory");
    }
    assert_eq!(driver.read(register::CONFIG), u32::from_le_bytes(*b"stub"));
    assert_eq!(driver.read(register::CONFIG + 4), 0);
}

#[test]
fn features_are_offered_32_at_a_time() {
    let (_, mut driver) = stub();
    let common =
        Features::INDIRECT_DESC | Features::EVENT_IDX | Features::VERSION_1 | Features::RING_RESET;
    assert_eq!(driver.offered_features(), common.bits() | FEATURE_A | FEATURE_B);
    for select in [2, 3, u32::MAX] {
        driver.write(register::DEVICE_FEATURES_SEL, select);
        assert_eq!(driver.read(register::DEVICE_FEATURES), 0);
    }
}

#[test]
fn features_ok_wants_version_1_and_nothing_that_was_not_offered() {
    let (device, mut driver) = stub();
    assert!(!driver.negotiate(FEATURE_A));
    assert!(!driver.negotiate(VERSION_1 | FEATURE_A | 1 << 1));
    assert!(!driver.negotiate(VERSION_1 | FEATURE_A | 1 << 63));
    assert_eq!(device.lock().unwrap().accepted, None, "such features are no device's business");
    // The device has a say too.
    assert!(!driver.negotiate(VERSION_1 | FEATURE_B));
    assert!(driver.negotiate(VERSION_1 | FEATURE_A));
    assert!(driver.negotiate(VERSION_1 | FEATURE_A | FEATURE_B | Features::EVENT_IDX.bits()));
    // Features of selectors that do not exist are nowhere.
    driver.write(register::STATUS, 0);
    driver.write(register::DRIVER_FEATURES_SEL, 2);
    driver.write(register::DRIVER_FEATURES, u32::MAX);
    assert!(driver.negotiate(VERSION_1 | FEATURE_A));
}

#[test]
fn features_are_frozen_once_they_are_agreed_on() {
    let (device, mut driver) = stub();
    assert!(driver.negotiate(VERSION_1 | FEATURE_A));
    driver.write(register::DRIVER_FEATURES_SEL, 0);
    driver.write(register::DRIVER_FEATURES, Features::EVENT_IDX.bits() as u32);
    driver.add_status(DeviceStatus::FEATURES_OK);
    assert_eq!(device.lock().unwrap().accepted, Some(VERSION_1 | FEATURE_A));
    // EVENT_IDX is not in effect: every answer interrupts, whatever `used_event` says.
    assert!(driver.set_up_queue(0, Rings::default()));
    driver.add_status(DeviceStatus::DRIVER_OK);
    driver.set_used_event(100);
    driver.send(&[Buffer::readable(BUFFERS, 1)]);
    assert_eq!(driver.interrupts.take(), 1);
}

#[test]
fn a_refused_driver_may_try_again_with_other_features() {
    let (_, mut driver) = stub();
    assert!(!driver.negotiate(VERSION_1));
    driver.write(register::DRIVER_FEATURES_SEL, 0);
    driver.write(register::DRIVER_FEATURES, FEATURE_A as u32);
    driver.add_status(DeviceStatus::FEATURES_OK);
    assert!(driver.status().contains(DeviceStatus::FEATURES_OK));
}

#[test]
fn status_bits_are_added_and_only_0_takes_them_away() {
    let (device, mut driver) = stub();
    driver.bring_up(FEATURE_A, Rings::default());
    let up = driver.status();
    // Bits that are the device's or nobody's: neither is a reset.
    for value in [1, 0x10, 0x20, 0x40, 0x100, 0xffff_ff00] {
        driver.write(register::STATUS, value);
        assert_eq!(driver.status(), up, "{value:#x}");
    }
    driver.add_status(DeviceStatus::FAILED);
    assert_eq!(driver.status(), up | DeviceStatus::FAILED);
    let resets = device.lock().unwrap().resets;
    driver.write(register::STATUS, 0);
    assert_eq!(driver.status(), DeviceStatus::empty());
    assert_eq!(device.lock().unwrap().resets, resets + 1);
}

#[test]
fn a_reset_forgets_everything_the_driver_set() {
    let (device, mut driver) = stub();
    driver.bring_up(FEATURE_A, Rings::default());
    driver.send(&[Buffer::readable(BUFFERS, 1)]);
    driver.transport.config_changed();
    driver.write(register::DEVICE_FEATURES_SEL, 1);
    driver.write(register::QUEUE_SEL, 1);
    driver.write(register::STATUS, 0);
    assert_eq!(driver.status(), DeviceStatus::empty());
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
    assert_eq!(driver.read(register::QUEUE_SIZE_MAX), 128, "queue 0 is selected");
    assert_eq!(driver.read(register::QUEUE_READY), 0);
    let low_features = driver.read(register::DEVICE_FEATURES);
    assert!(u64::from(low_features) & Features::EVENT_IDX.bits() != 0, "{low_features:#x}");
    // The low half is selected, and the features accepted before are not accepted now.
    let event_idx = Features::EVENT_IDX.bits();
    driver.write(register::DRIVER_FEATURES, event_idx as u32);
    driver.write(register::DRIVER_FEATURES_SEL, 1);
    driver.write(register::DRIVER_FEATURES, 1);
    driver.add_status(DeviceStatus::FEATURES_OK);
    assert_eq!(device.lock().unwrap().accepted, Some(VERSION_1 | event_idx));
}

#[test]
fn an_interrupt_stays_pending_until_it_is_acknowledged() {
    let (_, mut driver) = stub();
    driver.bring_up(FEATURE_A, Rings::default());
    driver.send(&[Buffer::readable(BUFFERS, 1)]);
    driver.transport.config_changed();
    assert_eq!(driver.interrupts.take(), 2);
    let both = register::USED_BUFFER | register::CONFIG_CHANGE;
    assert_eq!(driver.read(register::INTERRUPT_STATUS), both);
    driver.write(register::INTERRUPT_ACK, register::USED_BUFFER);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), register::CONFIG_CHANGE);
    driver.write(register::INTERRUPT_ACK, !register::CONFIG_CHANGE);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), register::CONFIG_CHANGE);
    driver.write(register::INTERRUPT_ACK, u32::MAX);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
}

#[test]
fn the_generation_changes_with_the_configuration_alone() {
    let (_, mut driver) = stub();
    driver.bring_up(FEATURE_A, Rings::default());
    let generation = driver.read(register::CONFIG_GENERATION);
    driver.read(register::CONFIG);
    driver.send(&[Buffer::readable(BUFFERS, 1)]);
    assert_eq!(driver.read(register::CONFIG_GENERATION), generation);
    driver.transport.config_changed();
    assert_ne!(driver.read(register::CONFIG_GENERATION), generation);
}

#[test]
fn queues_that_do_not_exist_have_no_size_and_are_never_ready() {
    let (_, mut driver) = stub();
    assert!(driver.negotiate(VERSION_1 | FEATURE_A));
    for (select, size) in [(0, 128), (1, 8), (2, 0), (0xffff, 0), (0x1_0000, 0), (u32::MAX, 0)] {
        driver.write(register::QUEUE_SEL, select);
        assert_eq!(driver.read(register::QUEUE_SIZE_MAX), size, "queue {select}");
    }
    driver.write(register::QUEUE_SEL, 2);
    driver.write(register::QUEUE_READY, 1);
    assert_eq!(driver.read(register::QUEUE_READY), 0);
    assert!(!driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
}

#[test]
fn a_queue_is_not_ready_before_features_are_agreed_on() {
    let (_, mut driver) = stub();
    assert!(!driver.set_up_queue(0, Rings::default()));
    assert_eq!(driver.status(), DeviceStatus::empty());
}

#[test]
fn a_queue_does_not_move_while_it_is_ready() {
    let (_, mut driver) = stub();
    driver.bring_up(FEATURE_A, Rings::default());
    driver.send(&[Buffer::readable(BUFFERS, 1)]);
    for offset in [
        register::QUEUE_SIZE,
        register::QUEUE_DESC_LOW,
        register::QUEUE_DRIVER_LOW,
        register::QUEUE_DEVICE_LOW,
    ] {
        driver.write(offset, 0x20);
        driver.write(register::QUEUE_READY, 1);
        driver.send(&[Buffer::readable(BUFFERS, 1)]);
    }
    assert!(!driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
}

#[test]
fn a_queue_size_beyond_16_bits_is_refused() {
    let (_, mut driver) = stub();
    driver.bring_up(FEATURE_A, Rings::default());
    assert!(driver.negotiate(VERSION_1 | FEATURE_A));
    driver.write(register::QUEUE_SIZE, 0x1_0010);
    driver.write(register::QUEUE_READY, 1);
    assert_eq!(driver.read(register::QUEUE_READY), 0);
    assert!(driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
}

#[test]
fn a_queue_that_is_no_longer_ready_is_left_alone_until_it_is_set_up_anew() {
    let (device, mut driver) = stub();
    driver.bring_up(FEATURE_A, Rings::default());
    driver.send(&[Buffer::readable(BUFFERS, 1)]);
    driver.write(register::QUEUE_READY, 0);
    assert_eq!(driver.read(register::QUEUE_READY), 0);
    let head = driver.write_chain(&[Buffer::readable(BUFFERS, 1)]);
    driver.publish(head);
    driver.kick();
    assert_eq!(driver.take_used(), []);
    assert!(driver.set_up_queue(0, Rings::at(TABLES)));
    driver.send(&[Buffer::readable(BUFFERS, 1)]);
    assert_eq!(device.lock().unwrap().chains, [0, 0]);
}

#[test]
fn each_queue_is_served_as_itself() {
    let (device, mut driver) = stub();
    assert!(driver.negotiate(VERSION_1 | FEATURE_A));
    let rings = Rings { size: 8, ..Rings::at(TABLES) };
    assert!(driver.set_up_queue(0, Rings::default()));
    assert!(driver.set_up_queue(1, rings));
    driver.add_status(DeviceStatus::DRIVER_OK);
    driver.send(&[Buffer::readable(BUFFERS, 1)]);
    assert_eq!(device.lock().unwrap().chains, [1]);
}

#[test]
fn a_queue_that_never_ends_leaves_room_for_other_work() {
    let (device, mut driver) = stub();
    assert!(driver.negotiate(VERSION_1 | FEATURE_A));
    assert!(driver.set_up_queue(1, Rings { size: 8, ..Rings::at(TABLES) }));
    assert!(driver.set_up_queue(0, Rings::default()));
    driver.add_status(DeviceStatus::DRIVER_OK);
    for _ in 0..Rings::default().size {
        let head = driver.write_chain(&[Buffer::readable(BUFFERS, 1)]);
        driver.publish(head);
    }
    assert!(driver.transport.process_queues(), "there may be more in queue 0");
    assert_eq!(device.lock().unwrap().chains, [0; 128]);
    assert!(!driver.transport.process_queues());
}

#[test]
fn registers_are_32_bits_wide_and_aligned() {
    let (_, mut driver) = stub();
    for offset in 0..0x100_u64 {
        for width in [0, 1, 2, 3, 4, 5, 8] {
            if width == 4 && offset.is_multiple_of(4) {
                continue;
            }
            driver.transport.write(offset, &vec![0xff; width]);
            let mut data = vec![0xa5; width];
            driver.transport.read(offset, &mut data);
            assert_eq!(data, vec![0; width], "{width} bytes at {offset:#x}");
        }
    }
    assert_eq!(driver.status(), DeviceStatus::empty());
    assert_eq!(driver.doorbells.take(), 0);
}
