//! A driver gone mad: any access to any register, any bytes in its rings, in any order. Whatever it
//! does, every call returns, nothing panics, and after a reset the device works.

use std::io;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::Features;
use super::mem::test_machine::{self, TestMachine};
use super::rng::Rng;
use super::test_driver::memory::{BUFFERS, RAM_SIZE, STAGE};
use super::test_driver::{Buffer, Rings, TestDriver};
use super::transport::Transport;
use crate::bus::BusDevice;

/// What a guest gone mad does next.
#[derive(Debug, Clone)]
enum Garbage {
    Read { offset: u64, width: usize },
    Write { offset: u64, bytes: Vec<u8> },
    WriteRegister { offset: u64, value: u32 },
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
    (address(), value(), 0..8_u32).prop_map(|(address, len, flags)| Buffer { address, len, flags })
}

fn garbage() -> impl Strategy<Value = Garbage> {
    let window = 0..0x1000_u64;
    let in_rings = (0..0x2500_u64).prop_map(|offset| Rings::default().descriptors + offset);
    prop_oneof![
        1 => (window.clone(), 0..17_usize)
            .prop_map(|(offset, width)| Garbage::Read { offset, width }),
        1 => (window, prop::collection::vec(any::<u8>(), 0..17))
            .prop_map(|(offset, bytes)| Garbage::Write { offset, bytes }),
        4 => (0..0x40_u64, value())
            .prop_map(|(index, value)| Garbage::WriteRegister { offset: index * 4, value }),
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
        Garbage::Read { offset, width } => driver.transport.read(offset, &mut vec![0; width]),
        Garbage::Write { offset, bytes } => driver.transport.write(offset, &bytes),
        Garbage::WriteRegister { offset, value } => driver.write(offset, value),
        Garbage::Poke { address, value } => driver.store(address, value),
        Garbage::PokeDescriptor { index, buffer, next } => {
            driver.write_descriptor(Rings::default().descriptors, index, buffer, next);
        }
        Garbage::Publish { head } => driver.publish(head),
        Garbage::BringUp { event_idx } => {
            let features = if event_idx { Features::EVENT_IDX.bits() } else { 0 };
            driver.bring_up(features, Rings::default());
        }
        Garbage::Stage { present } => driver.stage.set_present(present),
        // Not until nothing is left: rings that overlap may never come to that.
        Garbage::Process => {
            (0..3).for_each(|_| {
                driver.transport.process_queues();
            });
        }
    }
}

fn assert_survives(mut driver: TestDriver, steps: Vec<Garbage>) {
    steps.into_iter().for_each(|step| run(&mut driver, step));
    driver.stage.set_present(true);
    driver.bring_up(0, Rings::default());
    assert!(driver.send(&[Buffer::writable(BUFFERS, 10)]) > 0);
}

proptest! {
    #[test]
    fn garbage_harms_no_entropy_device(steps in prop::collection::vec(garbage(), 1..200)) {
        let source = Box::new(io::repeat(0x5a));
        assert_survives(TestDriver::new(Arc::new(Mutex::new(Rng::new(source)))), steps);
    }

    #[test]
    fn garbage_harms_no_memory_device(steps in prop::collection::vec(garbage(), 1..200)) {
        assert_survives(TestMachine::new(test_machine::config()).driver, steps);
    }
}
