//! Tests for every transport, with a device that does almost nothing.

use std::sync::{Arc, Mutex};

use crate::virtio::iommu::test_machine::page_by_page;
use crate::virtio::test_driver::memory::{BUFFERS, TABLES};
use crate::virtio::test_driver::{
    Buffer, Register, Rings, TestDriver, TransportKind, on_each_transport,
};
use crate::virtio::{Chain, DeviceStatus, DeviceType, Features, VirtioDevice, read_config_bytes};

on_each_transport! {
    features_are_offered_32_at_a_time
    features_ok_requires_version_1_and_nothing_that_was_not_offered
    access_platform_is_for_devices_behind_an_iommu
    features_are_frozen_once_they_are_agreed_on
    a_refused_driver_may_try_again_with_other_features
    status_bits_are_added_and_only_0_clears_them
    a_reset_clears_everything_the_driver_set
    the_generation_changes_with_the_configuration_alone
    the_generation_does_not_wrap_around_between_reads
    queues_that_do_not_exist_have_no_size_and_are_never_ready
    a_queue_is_not_ready_before_features_are_agreed_on
    a_queue_does_not_move_while_it_is_ready
    a_queue_that_was_reset_is_left_alone_until_it_is_set_up_anew
    a_queue_is_only_reset_if_ring_reset_was_negotiated
    each_queue_is_processed_under_its_own_number
    a_queue_that_never_ends_leaves_room_for_other_work
}

pub const VERSION_1: u64 = Features::VERSION_1.bits();
pub const RING_RESET: u64 = Features::RING_RESET.bits();
pub const FEATURE_A: u64 = 1 << 0;
pub const FEATURE_B: u64 = 1 << 50;

/// A device with two queues that requires one of its two features.
#[derive(Default)]
pub struct Stub(Mutex<Seen>);

/// The calls to a stub so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub accepted: Option<u64>,
    pub resets: usize,
    pub chains: Vec<u16>,
}

impl Stub {
    pub fn seen(&self) -> Seen {
        self.0.lock().unwrap().clone()
    }
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
    fn accept_features(&self, features: u64) -> bool {
        self.0.lock().unwrap().accepted = Some(features);
        features & FEATURE_A != 0
    }
    fn process_chain(&self, queue: u16, _chain: &Chain<'_>) -> u32 {
        self.0.lock().unwrap().chains.push(queue);
        0
    }
    fn reset(&self) {
        self.0.lock().unwrap().resets += 1;
    }
}

/// The device and its driver.
pub fn stub(on: TransportKind) -> (Arc<Stub>, TestDriver) {
    let device = Arc::new(Stub::default());
    (device.clone(), TestDriver::new(on, device))
}

/// A buffer of a request, whose contents the device ignores.
pub const BUFFER: Buffer = Buffer { address: BUFFERS, len: 1, flags: 0 };

/// Where the second of two queues may be.
pub fn second_rings() -> Rings {
    Rings { size: 8, ..Rings::at(TABLES) }
}

fn features_are_offered_32_at_a_time(on: TransportKind) {
    let (_, mut driver) = stub(on);
    let common =
        Features::INDIRECT_DESC | Features::EVENT_IDX | Features::VERSION_1 | Features::RING_RESET;
    assert_eq!(driver.offered_features(), common.bits() | FEATURE_A | FEATURE_B);
    for select in [2, 3, u32::MAX] {
        driver.write(Register::DeviceFeatureSelect, select.into());
        assert_eq!(driver.read(Register::DeviceFeature), 0);
    }
}

fn features_ok_requires_version_1_and_nothing_that_was_not_offered(on: TransportKind) {
    let (device, mut driver) = stub(on);
    assert!(!driver.negotiate(FEATURE_A));
    assert!(!driver.negotiate(VERSION_1 | FEATURE_A | 1 << 1));
    assert!(!driver.negotiate(VERSION_1 | FEATURE_A | 1 << 63));
    assert_eq!(
        device.seen().accepted,
        None,
        "the transport refuses them before it calls the device"
    );
    // The device may refuse features too.
    assert!(!driver.negotiate(VERSION_1 | FEATURE_B));
    assert!(driver.negotiate(VERSION_1 | FEATURE_A));
    assert!(driver.negotiate(VERSION_1 | FEATURE_A | FEATURE_B | Features::EVENT_IDX.bits()));
    // Features written with a selector that does not exist are ignored.
    driver.reset();
    driver.write(Register::DriverFeatureSelect, 2);
    driver.write(Register::DriverFeature, u32::MAX.into());
    assert!(driver.negotiate(VERSION_1 | FEATURE_A));
}

fn access_platform_is_for_devices_behind_an_iommu(on: TransportKind) {
    let platform = Features::ACCESS_PLATFORM.bits();
    let (_, mut driver) = stub(on);
    assert_eq!(driver.offered_features() & platform, 0);
    assert!(!driver.accept(VERSION_1 | FEATURE_A | platform));
    assert!(driver.accept(VERSION_1 | FEATURE_A));

    let device = Arc::new(Stub::default());
    let mut driver = TestDriver::behind(page_by_page(), on, device.clone(), vec![]);
    assert_eq!(driver.offered_features() & platform, platform);
    assert!(!driver.accept(VERSION_1 | FEATURE_A));
    assert_eq!(device.seen().accepted, None, "the transport refuses it before it calls the device");
    assert!(driver.accept(VERSION_1 | FEATURE_A | platform));
}

fn features_are_frozen_once_they_are_agreed_on(on: TransportKind) {
    let (device, mut driver) = stub(on);
    assert!(driver.negotiate(VERSION_1 | FEATURE_A));
    driver.write(Register::DriverFeatureSelect, 0);
    driver.write(Register::DriverFeature, Features::EVENT_IDX.bits());
    driver.add_status(DeviceStatus::FEATURES_OK);
    assert_eq!(device.seen().accepted, Some(VERSION_1 | FEATURE_A));
    // EVENT_IDX is not in effect: every answer interrupts, whatever `used_event` is.
    assert!(driver.set_up_queue(0, Rings::default()));
    driver.add_status(DeviceStatus::DRIVER_OK);
    driver.set_used_event(100);
    driver.send(&[BUFFER]);
    assert_eq!(driver.interrupts.take(), 1);
}

fn a_refused_driver_may_try_again_with_other_features(on: TransportKind) {
    let (_, mut driver) = stub(on);
    assert!(!driver.negotiate(VERSION_1));
    driver.write(Register::DriverFeatureSelect, 0);
    driver.write(Register::DriverFeature, FEATURE_A);
    driver.add_status(DeviceStatus::FEATURES_OK);
    assert!(driver.status().contains(DeviceStatus::FEATURES_OK));
}

fn status_bits_are_added_and_only_0_clears_them(on: TransportKind) {
    let (device, mut driver) = stub(on);
    driver.bring_up(FEATURE_A, Rings::default());
    let up = driver.status();
    // Bits that only the device sets, and bits without a meaning: neither is a reset.
    for value in [1, 0x10, 0x20, 0x40] {
        driver.write(Register::DeviceStatus, value);
        assert_eq!(driver.status(), up, "{value:#x}");
    }
    driver.add_status(DeviceStatus::FAILED);
    assert_eq!(driver.status(), up | DeviceStatus::FAILED);
    let resets = device.seen().resets;
    driver.reset();
    assert_eq!(driver.status(), DeviceStatus::empty());
    assert_eq!(device.seen().resets, resets + 1);
}

fn a_reset_clears_everything_the_driver_set(on: TransportKind) {
    let (device, mut driver) = stub(on);
    driver.bring_up(FEATURE_A, Rings::default());
    driver.send(&[BUFFER]);
    driver.write(Register::DeviceFeatureSelect, 1);
    driver.write(Register::QueueSelect, 1);
    driver.reset();
    assert_eq!(driver.status(), DeviceStatus::empty());
    assert_eq!(driver.read(Register::QueueSize), 128, "queue 0 is selected");
    assert_eq!(driver.read(Register::QueueEnable), 0);
    let low_features = driver.read(Register::DeviceFeature);
    assert!(low_features & Features::EVENT_IDX.bits() != 0, "{low_features:#x}");
    // The low half is selected, and the features accepted before are not accepted now.
    let event_idx = Features::EVENT_IDX.bits();
    driver.write(Register::DriverFeature, event_idx);
    driver.write(Register::DriverFeatureSelect, 1);
    driver.write(Register::DriverFeature, 1);
    driver.add_status(DeviceStatus::FEATURES_OK);
    assert_eq!(device.seen().accepted, Some(VERSION_1 | event_idx));
}

fn the_generation_changes_with_the_configuration_alone(on: TransportKind) {
    let (_, mut driver) = stub(on);
    driver.bring_up(FEATURE_A, Rings::default());
    let generation = driver.read(Register::ConfigGeneration);
    driver.read_config(0, &mut [0; 4]);
    driver.send(&[BUFFER]);
    assert_eq!(driver.read(Register::ConfigGeneration), generation);
    driver.config_changed();
    assert_ne!(driver.read(Register::ConfigGeneration), generation);
}

/// The field has 8 bits on PCI.
fn the_generation_does_not_wrap_around_between_reads(on: TransportKind) {
    let (_, mut driver) = stub(on);
    let generation = driver.read(Register::ConfigGeneration);
    driver.read_config(0, &mut [0; 2]);
    for changes in 1..600 {
        driver.config_changed();
        assert_ne!(driver.read(Register::ConfigGeneration), generation, "after {changes}");
    }
}

fn queues_that_do_not_exist_have_no_size_and_are_never_ready(on: TransportKind) {
    let (_, mut driver) = stub(on);
    assert!(driver.negotiate(VERSION_1 | FEATURE_A));
    for (select, size) in [(0, 128), (1, 8), (2, 0), (0xffff, 0)] {
        driver.write(Register::QueueSelect, select);
        assert_eq!(driver.read(Register::QueueSize), size, "queue {select}");
    }
    driver.write(Register::QueueSelect, 2);
    driver.write(Register::QueueEnable, 1);
    assert_eq!(driver.read(Register::QueueEnable), 0);
    assert!(!driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
}

fn a_queue_is_not_ready_before_features_are_agreed_on(on: TransportKind) {
    let (_, mut driver) = stub(on);
    assert!(!driver.set_up_queue(0, Rings::default()));
    assert_eq!(driver.status(), DeviceStatus::empty());
}

fn a_queue_does_not_move_while_it_is_ready(on: TransportKind) {
    let (_, mut driver) = stub(on);
    driver.bring_up(FEATURE_A, Rings::default());
    driver.send(&[BUFFER]);
    for register in
        [Register::QueueSize, Register::QueueDesc, Register::QueueDriver, Register::QueueDevice]
    {
        driver.write(register, 0x20);
        driver.write(Register::QueueEnable, 1);
        driver.send(&[BUFFER]);
    }
    assert!(!driver.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
}

fn a_queue_that_was_reset_is_left_alone_until_it_is_set_up_anew(on: TransportKind) {
    let (device, mut driver) = stub(on);
    assert!(driver.negotiate(VERSION_1 | FEATURE_A | RING_RESET));
    assert!(driver.set_up_queue(1, second_rings()));
    assert!(driver.set_up_queue(0, Rings { size: 64, ..Rings::default() }));
    driver.add_status(DeviceStatus::DRIVER_OK);
    driver.send(&[BUFFER]);
    for value in [0, 2, 0xfffe] {
        driver.write(Register::QueueReset, value);
        assert_eq!(driver.read(Register::QueueEnable), 1, "{value} is no reset");
    }
    let head = driver.write_chain(&[BUFFER]);
    driver.publish(head);
    driver.write(Register::QueueReset, 1);
    assert_eq!(driver.read(Register::QueueReset), 0, "it is over");
    assert_eq!(driver.read(Register::QueueEnable), 0);
    assert_eq!(driver.read(Register::QueueSize), 128);
    driver.kick();
    assert_eq!(driver.take_used(), []);
    // The other queue is not affected.
    driver.write(Register::QueueSelect, 1);
    assert_eq!(driver.read(Register::QueueEnable), 1);
    // The rings start anew, and may be others.
    assert!(driver.set_up_queue(0, Rings::at(TABLES + 0x4000)));
    assert_eq!(driver.read(Register::QueueReset), 0);
    driver.interrupts.take();
    driver.send(&[BUFFER]);
    assert_eq!(driver.interrupts.take(), 1);
    assert_eq!(device.seen().chains, [0, 0]);
}

fn a_queue_is_only_reset_if_ring_reset_was_negotiated(on: TransportKind) {
    let (_, mut driver) = stub(on);
    driver.bring_up(FEATURE_A, Rings::default());
    driver.write(Register::QueueReset, 1);
    assert_eq!(driver.read(Register::QueueEnable), 1);
    driver.send(&[BUFFER]);
    // Nor one that does not exist.
    driver.bring_up(FEATURE_A | RING_RESET, Rings::default());
    driver.write(Register::QueueSelect, 2);
    driver.write(Register::QueueReset, 1);
    driver.send(&[BUFFER]);
}

fn each_queue_is_processed_under_its_own_number(on: TransportKind) {
    let (device, mut driver) = stub(on);
    assert!(driver.negotiate(VERSION_1 | FEATURE_A));
    assert!(driver.set_up_queue(0, Rings::default()));
    assert!(driver.set_up_queue(1, second_rings()));
    driver.add_status(DeviceStatus::DRIVER_OK);
    driver.send(&[BUFFER]);
    assert_eq!(device.seen().chains, [1]);
}

fn a_queue_that_never_ends_leaves_room_for_other_work(on: TransportKind) {
    let (device, mut driver) = stub(on);
    assert!(driver.negotiate(VERSION_1 | FEATURE_A));
    assert!(driver.set_up_queue(1, second_rings()));
    assert!(driver.set_up_queue(0, Rings::default()));
    driver.add_status(DeviceStatus::DRIVER_OK);
    for _ in 0..Rings::default().size {
        let head = driver.write_chain(&[BUFFER]);
        driver.publish(head);
    }
    assert!(driver.process_queues(), "there may be more in queue 0");
    assert_eq!(device.seen().chains, [0; 128]);
    assert!(!driver.process_queues());
}
