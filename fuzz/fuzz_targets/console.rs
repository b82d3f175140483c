//! Random accesses of a driver to a console's registers, rings and buffers, and of the host to its ports.
//!
//! A port must get no input before the guest has opened it, no output while the host has no room, and
//! nothing out of order; and after a reset the console must work again.
#![no_main]

use std::sync::{Arc, Mutex, MutexGuard};

use arbitrary::{Arbitrary, Result, Unstructured};
use devices::virtio::console::{Console, HostEnd, Input, Port};
use libfuzzer_sys::fuzz_target;
use moat_fuzz::guest::{Count, Memory, contents};
use moat_fuzz::mmio_driver::{Access, BUFFERS, MEMORY_SIZE, MmioDriver};
use virtio_driver::Buffer;

const PORTS: usize = 2;
const QUEUES: usize = 2 * (PORTS + 1);
const CONTROL_INPUT: u16 = 2;
const CONTROL_OUTPUT: u16 = 3;
const MULTIPORT: u64 = 1 << 1;

/// Events of control messages (virtio 1.3, section 5.3.6.2).
mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const PORT_READY: u16 = 3;
    pub const PORT_OPEN: u16 = 6;
}

/// Bytes that the host has room for before it has to be read.
const ROOM: usize = 0x100;

#[derive(Debug, Arbitrary)]
enum Action {
    Access(Access),
    Describe {
        queue: u8,
        index: u8,
        address: Address,
        length: Length,
        flags: u8,
        next: u8,
    },
    /// Sets the console up as Linux does.
    BringUp {
        multiport: bool,
    },
    Control {
        port: Number,
        event: Number,
        value: bool,
    },
    /// The guest writes to a port, or makes room for what it reads.
    Chain {
        queue: u8,
        length: u16,
    },
    Host {
        port: bool,
        does: HostAction,
    },
}

#[derive(Debug, Arbitrary)]
enum HostAction {
    Write(u16),
    EndInput,
    ReadAll,
}

/// A port or an event, mostly one that exists.
#[derive(Debug)]
struct Number(u32);

#[derive(Debug)]
struct Address(u64);

#[derive(Debug)]
struct Length(u32);

impl<'a> Arbitrary<'a> for Number {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(if u.ratio(1, 20)? { u.arbitrary()? } else { u.int_in_range(0..=8)? }))
    }
}

impl<'a> Arbitrary<'a> for Address {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(if u.ratio(1, 8)? { u.arbitrary()? } else { u.arbitrary::<u16>()?.into() }))
    }
}

impl<'a> Arbitrary<'a> for Length {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(if u.ratio(1, 8)? { u.arbitrary()? } else { u.arbitrary::<u16>()?.into() }))
    }
}

/// The host's end of a port. What there is for the guest counts up from byte to byte.
#[derive(Default)]
struct End {
    waiting: usize,
    taken: usize,
    ended: bool,
    unread: usize,
    /// What the console was last answered about room.
    had_room: bool,
    guest_open: bool,
    last_output: Vec<u8>,
}

#[derive(Default)]
struct TestEnd(Mutex<End>);

impl TestEnd {
    fn lock(&self) -> MutexGuard<'_, End> {
        self.0.lock().expect("nothing has panicked")
    }

    fn act(&self, action: &HostAction) {
        let mut end = self.lock();
        match action {
            HostAction::Write(length) if !end.ended => end.waiting += usize::from(*length),
            HostAction::Write(_) => {}
            HostAction::EndInput => end.ended = true,
            HostAction::ReadAll => end.unread = 0,
        }
    }
}

impl HostEnd for TestEnd {
    fn input(&self) -> Input {
        let end = self.lock();
        match (end.waiting, end.ended) {
            (1.., _) => Input::Bytes,
            (0, true) => Input::End,
            (0, false) => Input::Nothing,
        }
    }

    fn take_input(&self, data: &mut [u8]) -> usize {
        let mut end = self.lock();
        assert!(end.guest_open);
        let length = data.len().min(end.waiting);
        for (index, byte) in data[..length].iter_mut().enumerate() {
            *byte = (end.taken + index) as u8;
        }
        end.taken += length;
        end.waiting -= length;
        length
    }

    fn has_room(&self) -> bool {
        let mut end = self.lock();
        end.had_room = end.unread < ROOM;
        end.had_room
    }

    fn put_output(&self, data: &[u8]) {
        let mut end = self.lock();
        assert!(end.had_room && !data.is_empty());
        end.unread += data.len();
        end.last_output = data.to_vec();
    }

    fn set_guest_open(&self, open: bool) {
        self.lock().guest_open = open;
    }
}

struct Machine {
    driver: MmioDriver<QUEUES>,
    ends: [Arc<TestEnd>; PORTS],
}

impl Machine {
    fn new() -> Self {
        let ends = [(); PORTS].map(|()| Arc::new(TestEnd::default()));
        let port = |end: &Arc<TestEnd>| Port { name: "port".to_owned(), host: end.clone() };
        let console = Console::new(ends.iter().map(port).collect(), Arc::new(Count::default()));
        let memory = Memory::new(0, MEMORY_SIZE);
        let console = Arc::new(console.expect("there may be as many ports"));
        Self { driver: MmioDriver::new(console, memory.guest.clone(), memory.view()), ends }
    }

    fn control(&mut self, port: u32, event: u16, value: bool) {
        let message = u64::from(port) | u64::from(event) << 32 | u64::from(value) << 48;
        self.driver.store(BUFFERS, &message.to_le_bytes());
        self.driver.publish_chain(CONTROL_OUTPUT, &[Buffer::readable(BUFFERS, 8)]);
        self.driver.process();
    }

    fn bring_up(&mut self, multiport: bool) {
        self.driver.bring_up(if multiport { MULTIPORT } else { 0 });
        self.control(0, event::DEVICE_READY, true);
        for port in 0..PORTS as u32 {
            self.control(port, event::PORT_READY, true);
            self.control(port, event::PORT_OPEN, true);
        }
    }

    fn chain(&mut self, queue: u16, length: u32) -> Option<u32> {
        let buffer = match queue % 2 {
            0 => Buffer::writable(BUFFERS, length),
            _ => Buffer::readable(BUFFERS, length),
        };
        self.driver.publish_chain(queue, &[buffer]);
        self.driver.take_used(queue)
    }

    fn run(&mut self, action: Action) {
        match action {
            Action::Access(access) => self.driver.perform(access),
            Action::Describe { queue, index, address, length, flags, next } => {
                let buffer = Buffer { address: address.0, len: length.0, flags: flags.into() };
                self.driver.describe(queue_of(queue), index.into(), buffer, next.into());
            }
            Action::BringUp { multiport } => self.bring_up(multiport),
            Action::Control { port, event, value } => self.control(port.0, event.0 as u16, value),
            Action::Chain { queue, length } => {
                self.chain(queue_of(queue), (length & 0x7fff).into());
            }
            Action::Host { port, does } => {
                self.ends[usize::from(port)].act(&does);
                self.driver.process();
            }
        }
    }

    /// Brings the console up, and checks its messages and both streams of each port.
    fn assert_works(&mut self) {
        self.bring_up(true);
        // DEVICE_ADD, PORT_OPEN unless the host has closed it, and PORT_NAME with the name.
        let messages = std::iter::from_fn(|| self.chain(CONTROL_INPUT, 0x100));
        let lengths: Vec<_> = messages.take(1 + 3 * PORTS).collect();
        let names = lengths.iter().filter(|length| **length == 8 + 4).count();
        assert_eq!(names, PORTS);
        for (port, input) in [0, 4].into_iter().enumerate() {
            let end = self.ends[port].clone();
            let guest_open = end.lock().guest_open;
            *end.lock() = End { waiting: 10, guest_open, ..End::default() };
            assert_eq!(self.chain(input, 20), Some(10));
            let received = contents(&self.driver.memory, BUFFERS, 10);
            assert_eq!(received, Vec::from_iter(0..10));
            assert_eq!(self.chain(input + 1, 10), Some(0));
            assert_eq!(end.lock().last_output, received);
        }
    }
}

fn queue_of(number: u8) -> u16 {
    u16::from(number) % QUEUES as u16
}

fuzz_target!(|actions: Vec<Action>| {
    let mut machine = Machine::new();
    for action in actions {
        machine.run(action);
    }
    machine.assert_works();
});
