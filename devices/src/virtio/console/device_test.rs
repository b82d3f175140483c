//! Tests of the console, through each transport.

use std::sync::{Arc, Mutex};

use virtio_driver::Virtqueue;
use zerocopy::{FromBytes, IntoBytes};

use super::wire::{ControlEvent, ControlMessage, Features};
use super::*;
use crate::lock;
use crate::virtio::VirtioDevice;
use crate::virtio::hostile_queue::{Fixture, hostile_queue_tests};
use crate::virtio::iommu::test_machine::page_by_page;
use crate::virtio::test_driver::memory::BUFFERS;
use crate::virtio::test_driver::{
    Buffer, Count, Register, Rings, TestDriver, TransportKind, on_each_transport,
};
use crate::virtio::{DeviceStatus, Features as VirtioFeatures};

/// The host's end of a port, as a test controls it.
#[derive(Default)]
struct End {
    input: Vec<u8>,
    input_ended: bool,
    is_full: bool,
    output: Vec<u8>,
    guest_open: bool,
}

struct TestEnd(Arc<Mutex<End>>);

impl HostEnd for TestEnd {
    fn input(&self) -> Input {
        let end = lock(&self.0);
        match (end.input.is_empty(), end.input_ended) {
            (false, _) => Input::Bytes,
            (true, true) => Input::End,
            (true, false) => Input::Nothing,
        }
    }

    fn take_input(&self, data: &mut [u8]) -> usize {
        let mut end = lock(&self.0);
        let length = data.len().min(end.input.len());
        data[..length].copy_from_slice(&end.input[..length]);
        end.input.drain(..length);
        length
    }

    fn has_room(&self) -> bool {
        !lock(&self.0).is_full
    }

    fn put_output(&self, data: &[u8]) {
        lock(&self.0).output.extend_from_slice(data);
    }

    fn set_guest_open(&self, open: bool) {
        lock(&self.0).guest_open = open;
    }
}

/// Input without end.
struct Endless;

impl HostEnd for Endless {
    fn input(&self) -> Input {
        Input::Bytes
    }

    fn take_input(&self, data: &mut [u8]) -> usize {
        data.fill(0x5a);
        data.len()
    }

    fn has_room(&self) -> bool {
        true
    }

    fn put_output(&self, _data: &[u8]) {}

    fn set_guest_open(&self, _open: bool) {}
}

fn endless() -> Arc<dyn VirtioDevice> {
    let port = Port { name: "endless".to_owned(), host: Arc::new(Endless) };
    Arc::new(Console::new(vec![port], Arc::new(Count::default())).unwrap())
}

fn fixture(on: TransportKind) -> Fixture {
    let mut driver = TestDriver::new(on, endless());
    driver.bring_up(0, Rings::default());
    Fixture { driver, request: vec![Buffer::writable(BUFFERS, 40)], answer: 40 }
}

hostile_queue_tests!(fixture);

mod behind_an_iommu {
    use super::*;

    fn fixture(on: TransportKind) -> Fixture {
        let mut driver = TestDriver::behind(page_by_page(), on, endless(), vec![]);
        driver.bring_up(0, Rings::default());
        Fixture { driver, ..super::fixture(on) }
    }

    hostile_queue_tests!(fixture);
}

const CONTROL_INPUT: usize = 2;
const CONTROL_OUTPUT: usize = 3;

/// A guest that uses a console with two ports.
struct Guest {
    driver: TestDriver,
    queues: Vec<Virtqueue>,
    ends: [Arc<Mutex<End>>; 2],
    console: Arc<Console>,
    doorbell: Arc<Count>,
}

impl Guest {
    fn new(on: TransportKind, features: Features) -> Self {
        let ends = [(); 2].map(|()| Arc::new(Mutex::new(End::default())));
        let port = |(end, name): (&Arc<Mutex<End>>, &str)| Port {
            name: name.to_owned(),
            host: Arc::new(TestEnd(Arc::clone(end))),
        };
        let ports = ends.iter().zip(["first", "second"]).map(port).collect();
        let doorbell = Arc::new(Count::default());
        let console = Arc::new(Console::new(ports, doorbell.clone()).unwrap());
        let driver = TestDriver::new(on, console.clone());
        let mut guest = Self { driver, queues: Vec::new(), ends, console, doorbell };
        guest.bring_up(features);
        guest
    }

    fn bring_up(&mut self, features: Features) {
        let driver = &mut self.driver;
        assert!(driver.negotiate(features.bits() | VirtioFeatures::VERSION_1.bits()));
        let rings = |index: usize| Rings::at(0x1_0000 * (index as u64 + 1));
        for index in 0..6 {
            assert!(driver.set_up_queue(index as u16, rings(index)));
        }
        driver.add_status(DeviceStatus::DRIVER_OK);
        self.queues = (0..6).map(|index| Virtqueue::new(rings(index))).collect();
    }

    /// Makes a chain available. Gives how many bytes it was used with, if it was.
    fn send(&mut self, queue: usize, buffer: Buffer) -> Option<u32> {
        self.work_on(queue, |driver| {
            let head = driver.write_chain(&[buffer]);
            driver.publish(head);
            driver.kick();
        });
        self.used(queue)
    }

    /// The chain that was used since, if one was.
    fn used(&mut self, queue: usize) -> Option<u32> {
        while self.doorbell.take() > 0 {
            self.driver.process_queues();
        }
        let mut used = self.work_on(queue, TestDriver::take_used);
        assert!(used.len() < 2);
        used.pop().map(|used| used.len)
    }

    fn work_on<T>(&mut self, queue: usize, work: impl FnOnce(&mut TestDriver) -> T) -> T {
        let before = self.driver.switch_queue(queue as u16, self.queues[queue].clone());
        let result = work(&mut self.driver);
        self.queues[queue] = self.driver.switch_queue(queue as u16, before);
        result
    }

    fn send_event(&mut self, port: usize, event: ControlEvent, value: bool) {
        self.send_message(ControlMessage::new(port, event, value));
    }

    fn send_message(&mut self, message: ControlMessage) {
        let bytes: [u8; 8] = message.as_bytes().try_into().unwrap();
        self.driver.store(BUFFERS, bytes);
        assert_eq!(self.send(CONTROL_OUTPUT, Buffer::readable(BUFFERS, 8)), Some(0));
    }

    /// The next control message and what follows it, in a buffer that is made available for it.
    fn receive_message(&mut self) -> Option<(ControlMessage, Vec<u8>)> {
        let length = self.send(CONTROL_INPUT, Buffer::writable(BUFFERS, 32))?;
        let bytes = self.driver.load::<[u8; 32]>(BUFFERS)[..length as usize].to_vec();
        let (message, rest) = ControlMessage::read_from_prefix(&bytes).unwrap();
        Some((message, rest.to_vec()))
    }

    fn expect_event(&mut self, port: usize, event: ControlEvent, value: bool) {
        let expected = (ControlMessage::new(port, event, value), Vec::new());
        assert_eq!(self.receive_message(), Some(expected));
    }

    /// Opens port 1 as Linux does.
    fn open(&mut self) {
        self.send_event(0, ControlEvent::DeviceReady, true);
        self.expect_event(0, ControlEvent::DeviceAdd, true);
        self.expect_event(1, ControlEvent::DeviceAdd, true);
        self.send_event(1, ControlEvent::PortReady, true);
        self.expect_event(1, ControlEvent::PortOpen, true);
        let name = (ControlMessage::new(1, ControlEvent::PortName, true), b"second".to_vec());
        assert_eq!(self.receive_message(), Some(name));
        self.send_event(1, ControlEvent::PortOpen, true);
    }

    fn end(&self) -> std::sync::MutexGuard<'_, End> {
        lock(&self.ends[1])
    }
}

/// The queues of port 1.
const INPUT: usize = 4;
const OUTPUT: usize = 5;

on_each_transport! {
    ports_are_announced_opened_and_named
    input_waits_until_the_guest_has_opened_the_port
    the_end_of_input_is_reported_after_the_last_byte
    output_waits_for_room_and_the_port_closes_after_it
    the_output_of_one_chain_is_limited
    invalid_messages_are_ignored
    a_reset_closes_all_ports
    without_multiport_there_is_one_port_and_it_is_open
}

fn ports_are_announced_opened_and_named(on: TransportKind) {
    let mut guest = Guest::new(on, Features::MULTIPORT);
    guest.open();
    assert!(guest.end().guest_open);
    assert!(!lock(&guest.ends[0]).guest_open);
    // The driver never accepted port 0, and there is no other message.
    assert_eq!(guest.receive_message(), None);
}

fn input_waits_until_the_guest_has_opened_the_port(on: TransportKind) {
    let mut guest = Guest::new(on, Features::MULTIPORT);
    guest.end().input = b"hello".to_vec();
    assert_eq!(guest.send(INPUT, Buffer::writable(BUFFERS + 0x100, 3)), None);
    guest.open();
    assert_eq!(guest.used(INPUT), Some(3));
    assert_eq!(&guest.driver.load::<[u8; 3]>(BUFFERS + 0x100), b"hel");
    assert_eq!(guest.send(INPUT, Buffer::writable(BUFFERS, 3)), Some(2));
    assert_eq!(&guest.driver.load::<[u8; 2]>(BUFFERS), b"lo");
    assert_eq!(guest.send(INPUT, Buffer::writable(BUFFERS, 3)), None);
}

fn the_end_of_input_is_reported_after_the_last_byte(on: TransportKind) {
    let mut guest = Guest::new(on, Features::MULTIPORT);
    guest.open();
    *guest.end() = End { input: b"!".to_vec(), input_ended: true, ..End::default() };
    assert_eq!(guest.receive_message(), None);
    assert_eq!(guest.send(INPUT, Buffer::writable(BUFFERS + 0x100, 3)), Some(1));
    guest.driver.process_queues();
    // In the buffer that has waited for it.
    assert_eq!(guest.used(CONTROL_INPUT), Some(8));
    let closed = ControlMessage::new(1, ControlEvent::PortOpen, false);
    assert_eq!(guest.driver.load::<[u8; 8]>(BUFFERS), closed.as_bytes());
}

fn output_waits_for_room_and_the_port_closes_after_it(on: TransportKind) {
    let mut guest = Guest::new(on, Features::MULTIPORT);
    guest.open();
    guest.end().is_full = true;
    guest.driver.store(BUFFERS + 0x100, *b"bye");
    assert_eq!(guest.send(OUTPUT, Buffer::readable(BUFFERS + 0x100, 3)), None);
    guest.send_event(1, ControlEvent::PortOpen, false);
    assert!(guest.end().guest_open);
    assert!(guest.end().output.is_empty());
    guest.end().is_full = false;
    guest.driver.process_queues();
    assert_eq!(guest.used(OUTPUT), Some(0));
    assert_eq!(guest.end().output, b"bye");
    assert!(!guest.end().guest_open);
}

fn the_output_of_one_chain_is_limited(on: TransportKind) {
    let mut guest = Guest::new(on, Features::MULTIPORT);
    guest.open();
    assert_eq!(guest.send(OUTPUT, Buffer::readable(BUFFERS, 20 << 20)), Some(0));
    assert_eq!(guest.end().output.len(), 16 << 20);
}

fn invalid_messages_are_ignored(on: TransportKind) {
    let mut guest = Guest::new(on, Features::MULTIPORT);
    guest.open();
    let before = guest.console.state();
    for event in [ControlEvent::PortReady, ControlEvent::PortOpen] {
        guest.send_event(2, event, true);
        guest.send_event(usize::MAX, event, false);
    }
    for event in [2, 4, 5, 8, u16::MAX] {
        guest.send_message(ControlMessage {
            event: event.into(),
            ..ControlMessage::new(1, ControlEvent::DeviceReady, true)
        });
    }
    assert_eq!(guest.send(CONTROL_OUTPUT, Buffer::readable(BUFFERS, 7)), Some(0));
    assert_eq!(guest.console.state(), before);
    // Nor does one for which there is too little room hold up the others.
    guest.send_event(1, ControlEvent::PortReady, true);
    assert_eq!(guest.send(CONTROL_INPUT, Buffer::writable(BUFFERS, 7)), Some(0));
    assert!(guest.receive_message().is_some());
}

fn a_reset_closes_all_ports(on: TransportKind) {
    let mut guest = Guest::new(on, Features::MULTIPORT);
    guest.open();
    guest.driver.reset();
    assert!(!guest.end().guest_open);
    guest.bring_up(Features::MULTIPORT);
    assert_eq!(guest.receive_message(), None);
    guest.doorbell.take();
    guest.bring_up(Features::MULTIPORT);
    guest.open();
}

fn without_multiport_there_is_one_port_and_it_is_open(on: TransportKind) {
    let mut guest = Guest::new(on, Features::empty());
    assert!(lock(&guest.ends[0]).guest_open);
    lock(&guest.ends[0]).input = b"hi".to_vec();
    assert_eq!(guest.send(0, Buffer::writable(BUFFERS, 8)), Some(2));
    // There are no control messages, though there are queues for them.
    for event in [ControlEvent::DeviceReady, ControlEvent::PortReady, ControlEvent::PortOpen] {
        guest.send_event(0, event, event != ControlEvent::PortOpen);
    }
    assert_eq!(guest.receive_message(), None);
    assert!(lock(&guest.ends[0]).guest_open);
    let mut config = [0; 8];
    guest.driver.read_config(4, &mut config[..4]);
    assert_eq!(config, [2, 0, 0, 0, 0, 0, 0, 0]);
    guest.driver.write(Register::QueueSelect, 6);
    assert_eq!(guest.driver.read(Register::QueueSize), 0);
}

#[test]
fn a_console_has_1_to_8_ports() {
    for count in [0, 9] {
        let port = |_| Port { name: String::new(), host: Arc::new(Endless) };
        let ports = (0..count).map(port).collect();
        let error = Console::new(ports, Arc::new(Count::default())).err();
        assert_eq!(error, Some(ConsoleError::PortCount { count }));
    }
}
