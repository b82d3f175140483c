//! A driver that makes random accesses: to any register, with any bytes in its rings, in any order.
//! Every call must return without a panic, and after a reset the device must work.

use std::io;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;

use super::Features;
use super::iommu::test_machine::{TestMachine as IommuMachine, page_by_page};
use super::mem::test_machine::{self, TestMachine};
use super::rng::Rng;
use super::test_driver::memory::{BUFFERS, RAM_SIZE, STAGE};
use super::test_driver::{Buffer, Register, Rings, TestDriver, TransportKind};

/// One random action of the guest.
#[derive(Debug, Clone)]
enum Garbage {
    Read { offset: u64, width: usize },
    Write { offset: u64, bytes: Vec<u8> },
    WriteRegister { register: Register, value: u64 },
    WriteConfigSpace { offset: usize, bytes: Vec<u8> },
    ReadConfigSpace { offset: usize },
    Poke { address: u64, value: u16 },
    PokeDescriptor { index: u16, buffer: Buffer, next: u16 },
    Publish { head: u16 },
    BringUp { event_idx: bool },
    Stage { present: bool },
    Process,
}

fn address() -> impl Strategy<Value = u64> {
    let near = |base: u64| (0..0x3000_u64).prop_map(move |offset| base + offset);
    prop_oneof![
        near(Rings::default().descriptors),
        near(BUFFERS),
        near(STAGE),
        near(RAM_SIZE - 0x3000),
        any::<u64>(),
    ]
}

fn value() -> impl Strategy<Value = u32> {
    prop_oneof![0..16_u32, any::<u32>(), address().prop_map(|address| address as u32 & !15)]
}

fn buffer() -> impl Strategy<Value = Buffer> {
    (address(), value(), 0..8_u16).prop_map(|(address, len, flags)| Buffer { address, len, flags })
}

fn garbage() -> impl Strategy<Value = Garbage> {
    // Most registers are at the start of whatever range they are in.
    let window = prop_oneof![0..0x100_u64, 0..0x5000_u64];
    let bytes = || prop::collection::vec(any::<u8>(), 1..17);
    // The header and, behind it, the capabilities.
    let config_space = || prop_oneof![0..0x40_usize, 0x40..0x100_usize, 0..0x1000_usize];
    let in_rings = (0..0x2500_u64).prop_map(|offset| Rings::default().descriptors + offset);
    prop_oneof![
        1 => (window.clone(), 1..17_usize)
            .prop_map(|(offset, width)| Garbage::Read { offset, width }),
        2 => (window, bytes()).prop_map(|(offset, bytes)| Garbage::Write { offset, bytes }),
        4 => (select(Register::ALL.to_vec()), value()).prop_map(|(register, value)| {
            Garbage::WriteRegister { register, value: value.into() }
        }),
        1 => (config_space(), bytes())
            .prop_map(|(offset, bytes)| Garbage::WriteConfigSpace { offset, bytes }),
        1 => config_space().prop_map(|offset| Garbage::ReadConfigSpace { offset }),
        8 => (in_rings, prop_oneof![0..200_u16, any::<u16>()])
            .prop_map(|(address, value)| Garbage::Poke { address, value }),
        8 => (0..128_u16, buffer(), 0..140_u16)
            .prop_map(|(index, buffer, next)| Garbage::PokeDescriptor { index, buffer, next }),
        8 => (0..130_u16).prop_map(|head| Garbage::Publish { head }),
        2 => any::<bool>().prop_map(|event_idx| Garbage::BringUp { event_idx }),
        1 => any::<bool>().prop_map(|present| Garbage::Stage { present }),
        4 => Just(Garbage::Process),
    ]
}

fn run(driver: &mut TestDriver, step: Garbage) {
    match step {
        Garbage::Read { offset, width } => driver.read_at(offset, &mut vec![0; width]),
        Garbage::Write { offset, bytes } => driver.write_at(offset, &bytes),
        Garbage::WriteRegister { register, value } => driver.write(register, value),
        Garbage::WriteConfigSpace { offset, bytes } => {
            if let Some(pci) = driver.pci_if_any() {
                pci.write_config_space(offset, &bytes);
            }
        }
        Garbage::ReadConfigSpace { offset } => {
            if let Some(pci) = driver.pci_if_any() {
                pci.config_u32(offset);
            }
        }
        Garbage::Poke { address, value } => driver.store(address, value),
        Garbage::PokeDescriptor { index, buffer, next } => {
            driver.write_descriptor(Rings::default().descriptors, index, buffer, next);
        }
        Garbage::Publish { head } => driver.publish(head),
        Garbage::BringUp { event_idx } => {
            driver.start();
            let features = if event_idx { Features::EVENT_IDX.bits() } else { 0 };
            driver.bring_up(features, Rings::default());
        }
        Garbage::Stage { present } => driver.stage.set_present(present),
        // A limited number of times: with rings that overlap, the queue may never become empty.
        Garbage::Process => {
            (0..3).for_each(|_| {
                driver.process_queues();
            });
        }
    }
}

/// `request` is one that the device answers, once its bytes are stored in the driver's memory.
fn assert_survives(
    mut driver: TestDriver,
    steps: &[Garbage],
    request: impl FnOnce(&TestDriver) -> Vec<Buffer>,
) {
    steps.iter().for_each(|step| run(&mut driver, step.clone()));
    driver.stage.set_present(true);
    driver.start();
    driver.bring_up(0, Rings::default());
    let request = request(&driver);
    assert!(driver.send(&request) > 0);
}

fn buffer_to_fill(_: &TestDriver) -> Vec<Buffer> {
    vec![Buffer::writable(BUFFERS, 10)]
}

proptest! {
    #[test]
    fn an_entropy_device_survives_random_accesses(steps in prop::collection::vec(garbage(), 1..200)) {
        for on in TransportKind::ALL {
            let device = Rng::new(Box::new(io::repeat(0x5a)));
            let driver = TestDriver::new(on, Arc::new(device));
            assert_survives(driver, &steps, buffer_to_fill);
        }
    }

    #[test]
    fn a_memory_device_survives_random_accesses(steps in prop::collection::vec(garbage(), 1..200)) {
        for on in TransportKind::ALL {
            let driver = TestMachine::new(on, test_machine::config()).driver;
            assert_survives(driver, &steps, buffer_to_fill);
        }
    }

    #[test]
    fn an_iommu_device_survives_random_accesses(steps in prop::collection::vec(garbage(), 1..200)) {
        for on in TransportKind::ALL {
            let driver = IommuMachine::new(on).driver;
            assert_survives(driver, &steps, IommuMachine::store_attach);
        }
    }

    #[test]
    fn a_device_behind_an_iommu_survives_random_accesses(
        steps in prop::collection::vec(garbage(), 1..200),
    ) {
        for on in TransportKind::ALL {
            let device = Arc::new(Rng::new(Box::new(io::repeat(0x5a))));
            let driver = TestDriver::behind(page_by_page(), on, device, vec![]);
            assert_survives(driver, &steps, buffer_to_fill);
        }
    }
}
