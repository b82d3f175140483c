//! A virtio-mem driver. A bare-metal guest makes all its register accesses and memory writes.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use virtio_driver::{Buffer, Bus, Register, Registers, Rings, Virtqueue, status};
use zerocopy::{FromZeros, IntoBytes};

use super::{Program, Queue, TIMEOUT};

/// The first virtio-mmio device, which is the first virtio-mem device.
const VIRTIO_MMIO: u64 = 0xd000_0000;

/// Where the configuration space of bus 0 is on moat,
pub const MOAT_ECAM: u64 = 0xe000_0000;
/// and on QEMU's machine q35.
pub const Q35_ECAM: u64 = 0xb000_0000;

/// Number of descriptors in the queue.
pub const QUEUE_SIZE: u16 = 128;
const RINGS: Rings = Rings { size: QUEUE_SIZE, ..Rings::at(0x50_0000) };
/// Guest address of a request.
pub const REQUEST: u64 = 0x50_3000;
/// Guest address of the response to it.
pub const RESPONSE: u64 = 0x50_4000;

// Guest addresses of many requests and responses.
const REQUESTS: u64 = 0x54_0000;
const REQUEST_BYTES: u64 = 32;
const RESPONSES: u64 = 0x55_0000;
const RESPONSE_BYTES: u64 = 16;
// Bytes of a request and of a response.
const REQUEST_SIZE: u32 = 24;
const RESPONSE_SIZE: u32 = 10;
/// Written before a request: no response has this type.
pub const NO_ANSWER: u64 = 0xffff;

/// The registers of the first virtio-mmio device.
pub fn mmio_registers() -> Registers {
    Registers::Mmio { base: VIRTIO_MMIO }
}

/// The registers of the first virtio-mem function on bus 0, whose BARs are then enabled.
///
/// `ecam` is where bus 0's configuration space is.
pub fn pci_registers(program: &mut Program, ecam: u64) -> Registers {
    const VIRTIO_MEM: u64 = 0x1058_1af4;
    const COMMAND: u64 = 0x04;
    const BARS: u64 = 0x10;
    const MEMORY_AND_BUS_MASTER: u64 = 0x06;
    let function = (0..32)
        .map(|device| ecam + (device << 15))
        .find(|function| program.read(4, *function) == VIRTIO_MEM)
        .expect("a virtio-mem function is on bus 0");
    let program = RefCell::new(program);
    let registers = Registers::of_pci(
        |offset| program.borrow_mut().read(4, function + offset as u64) as u32,
        |bar| bar_address(&mut program.borrow_mut(), function + BARS + u64::from(bar) * 4),
    );
    program.into_inner().write(2, function + COMMAND, MEMORY_AND_BUS_MASTER);
    registers
}

/// The address of the BAR at `register`, which gets one if it has none.
fn bar_address(program: &mut Program, register: u64) -> u64 {
    /// An address in the windows of every host bridge, free because no firmware has assigned any.
    const UNASSIGNED: u64 = 0xc000_0000;
    let both = [(4, register), (4, register + 4)];
    if program.read_each(both)[0] & !0xf == 0 {
        // A MiB for each, which is enough for all structures of a transport.
        program.post(4, register, UNASSIGNED + ((register & 0x1c) << 18));
    }
    let [low, high] = program.read_each(both);
    let high = if low & 0x6 == 0x4 { high } else { 0 };
    high << 32 | (low & !0xf)
}

/// The type of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// ACK: the request was carried out.
    Ack,
    /// NACK: the request exceeds the requested size.
    Nack,
    /// BUSY: the device cannot do it now.
    Busy,
    /// ERROR: the request is invalid.
    Error,
}

/// The state that a STATE request reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All blocks are plugged.
    Plugged,
    /// No block is plugged.
    Unplugged,
    /// Some blocks are plugged, some are not.
    Mixed,
}

/// What happened to a chain of descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// It was used, with this number of bytes written.
    Used(u64),
    /// The device has set DEVICE_NEEDS_RESET.
    NeedsReset,
    /// It was not used.
    Nothing,
}

/// Request type: plug blocks.
pub const PLUG: u64 = 0;
/// Request type: unplug blocks.
pub const UNPLUG: u64 = 1;
/// Request type: unplug all blocks.
pub const UNPLUG_ALL: u64 = 2;
/// Request type: report the state of blocks.
pub const STATE: u64 = 3;

/// A request.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// [`PLUG`], [`UNPLUG`], [`UNPLUG_ALL`] or [`STATE`].
    pub kind: u64,
    /// Guest address of the first block.
    pub address: u64,
    /// Number of blocks.
    pub blocks: u16,
}

/// The driver, set up.
pub struct Driver {
    /// The device's registers.
    pub registers: Registers,
    queue: Virtqueue,
    /// Guest address of the region.
    pub address: u64,
    /// Bytes in a block.
    pub block_size: u64,
}

impl Driver {
    /// Each takes two descriptors.
    pub const MOST_REQUESTS: usize = QUEUE_SIZE as usize / 2;

    /// Negotiates VERSION_1, and UNPLUGGED_INACCESSIBLE if asked to, and sets the queue up, on
    /// virtio-mmio.
    pub fn start(program: &mut Program, inaccessible: bool) -> Self {
        Self::start_on(program, mmio_registers(), inaccessible)
            .expect("the device accepts the features")
    }

    /// The same on any transport. None if the device does not accept the features.
    pub fn start_on(
        program: &mut Program,
        registers: Registers,
        inaccessible: bool,
    ) -> Option<Self> {
        const VERSION_1: u64 = 1 << 32;
        registers.reset(program);
        if !registers.accept(program, VERSION_1 | u64::from(inaccessible) << 1) {
            return None;
        }
        registers.place_queue(program, 0, RINGS);
        program.post(4, RINGS.available, 0);
        program.post(4, RINGS.used, 0);
        registers.write(program, Register::QueueEnable, 1);
        registers.add_status(program, status::DRIVER_OK);
        let up = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        assert_eq!(registers.read(program, Register::DeviceStatus), u64::from(up));
        let config = registers.config();
        let [block_size, address] = program.read_each([(8, config), (8, config + 16)]);
        Some(Self { registers, queue: Virtqueue::new(RINGS), address, block_size })
    }

    /// Guest address of block `n`.
    pub fn block(&self, n: u64) -> u64 {
        self.address + n * self.block_size
    }

    /// Requests to plug `count` blocks.
    pub fn plug(&mut self, program: &mut Program, first: u64, count: u16) -> Answer {
        let address = self.block(first);
        self.request(program, PLUG, address, count).0
    }

    /// Requests to unplug `count` blocks.
    pub fn unplug(&mut self, program: &mut Program, first: u64, count: u16) -> Answer {
        let address = self.block(first);
        self.request(program, UNPLUG, address, count).0
    }

    /// Requests to unplug all blocks.
    pub fn unplug_all(&mut self, program: &mut Program) -> Answer {
        self.request(program, UNPLUG_ALL, 0, 0).0
    }

    /// Requests the state of `count` blocks.
    pub fn state(&mut self, program: &mut Program, first: u64, count: u16) -> State {
        let address = self.block(first);
        let (answer, state) = self.request(program, STATE, address, count);
        assert_eq!(answer, Answer::Ack);
        state
    }

    /// Writes requests to guest memory, at most [`Self::MOST_REQUESTS`], for [`Self::make_requests`].
    pub fn lay_out_requests(&mut self, program: &Program, requests: &[Request]) {
        assert!(requests.len() <= Self::MOST_REQUESTS);
        for (n, request) in (0_u16..).zip(requests) {
            let at = REQUESTS + u64::from(n) * REQUEST_BYTES;
            let Request { kind, address, blocks } = *request;
            program.write_ram(at, [kind, address, blocks.into()].as_bytes());
            program.write_ram(response(n), (NO_ANSWER as u16).as_bytes());
            let (ram, head) = (&mut Ram(program), 2 * n);
            Virtqueue::write_table(ram, RINGS.descriptors, head, &chain(at, response(n)));
            let entry = self.queue.available_entry(self.queue.available_index().wrapping_add(n));
            program.write_ram(entry, head.as_bytes());
        }
    }

    /// Has the guest make the first `count` of these requests, one after the other, as a single
    /// command.
    pub fn make_requests(&mut self, program: &mut Program, count: u16) {
        let (notify, width) = self.registers.notify_field(program, 0);
        let queue = Queue {
            available: RINGS.available,
            used: RINGS.used,
            notify,
            notify_width: width as u8,
            number: 0,
        };
        assert_eq!(program.drive_queue(&queue, count), u64::from(count));
        self.queue.advance(count);
    }

    /// The device's answers to the first `count` of them.
    pub fn answers(&self, program: &Program, count: u16) -> Vec<Answer> {
        let answer = |n| {
            let mut kind = u16::new_zeroed();
            program.read_ram(response(n), kind.as_mut_bytes());
            Answer::of(kind.into())
        };
        (0..count).map(answer).collect()
    }

    /// Makes any request. The state in the answer is valid for STATE only.
    pub fn request(
        &mut self,
        program: &mut Program,
        kind: u64,
        address: u64,
        count: u16,
    ) -> (Answer, State) {
        write_request(program, REQUEST, kind, address, count);
        self.submit(program, &chain(REQUEST, RESPONSE));
        let [answer, state] = program.read_each([(2, RESPONSE), (2, RESPONSE + 8)]);
        (Answer::of(answer), State::of(state))
    }

    /// Makes a chain of buffers available, and waits until it is used.
    /// Returns the length used.
    pub fn submit(&mut self, program: &mut Program, chain: &[Buffer]) -> u64 {
        match self.offer(program, chain, TIMEOUT) {
            Completion::Used(length) => length,
            other => panic!("the device did not use the chain: {other:?}"),
        }
    }

    /// The same, with any completion, for which it waits at most `patience`.
    pub fn offer(
        &mut self,
        program: &mut Program,
        chain: &[Buffer],
        patience: Duration,
    ) -> Completion {
        Virtqueue::write_table(program, RINGS.descriptors, 0, chain);
        self.make_available(program, 0);
        self.kick(program);
        self.completion(program, patience)
    }

    /// Makes the chain that starts at descriptor `head` available.
    pub fn make_available(&mut self, program: &mut Program, head: u16) {
        self.queue.publish(program, head);
    }

    /// Notifies the device of available chains.
    pub fn kick(&mut self, program: &mut Program) {
        self.registers.notify(program, 0);
    }

    /// Reads the interrupt status, and clears it.
    pub fn take_interrupt_status(&self, program: &mut Program) -> u32 {
        let status = self.registers.take_interrupt_status(program);
        // Sends the posted acknowledgement now: later, it would acknowledge the next interrupt.
        self.registers.read(program, Register::DeviceStatus);
        status
    }

    /// What happens, within `patience`, to the chain that was made available last.
    pub fn completion(&mut self, program: &mut Program, patience: Duration) -> Completion {
        let index = self.queue.available_index();
        let (status, width) = self.registers.locate(Register::DeviceStatus);
        let length = self.queue.used_entry(index.wrapping_sub(1)) + 4;
        let places = [(2, RINGS.used + 2), (4, length), (width as u8, status)];
        let start = Instant::now();
        loop {
            let [used, length, device_status] = program.read_each(places);
            if used == u64::from(index) {
                return Completion::Used(length);
            }
            if device_status as u8 & status::NEEDS_RESET != 0 {
                return Completion::NeedsReset;
            }
            if start.elapsed() > patience {
                return Completion::Nothing;
            }
        }
    }
}

/// Writes a request to guest memory.
pub fn write_request(program: &mut Program, at: u64, kind: u64, address: u64, count: u16) {
    program.post(8, at, kind);
    program.post(8, at + 8, address);
    program.post(8, at + 16, count.into());
}

/// Writes a descriptor of the queue; `next` has an effect if the buffer's flags have NEXT.
pub fn write_descriptor(program: &mut Program, index: u16, buffer: Buffer, next: u16) {
    Virtqueue::write_descriptor(program, RINGS.descriptors, index, buffer, next);
}

/// The chain of a request and the response to it.
pub fn chain(request: u64, response: u64) -> [Buffer; 2] {
    [Buffer::readable(request, REQUEST_SIZE), Buffer::writable(response, RESPONSE_SIZE)]
}

/// Guest address of the response to request `n` of many.
fn response(n: u16) -> u64 {
    RESPONSES + u64::from(n) * RESPONSE_BYTES
}

/// The answer in a response.
pub fn answer(program: &mut Program, response: u64) -> Answer {
    Answer::of(program.read(2, response))
}

impl Answer {
    fn of(kind: u64) -> Self {
        match kind {
            0 => Self::Ack,
            1 => Self::Nack,
            2 => Self::Busy,
            3 => Self::Error,
            other => panic!("response type {other}"),
        }
    }
}

impl State {
    fn of(state: u64) -> Self {
        match state {
            0 => Self::Plugged,
            1 => Self::Unplugged,
            2 => Self::Mixed,
            other => panic!("state {other}"),
        }
    }
}

/// Accesses by the guest's processor, 8 bytes at a time.
impl Bus for Program {
    fn read(&mut self, address: u64, data: &mut [u8]) {
        for (part, address) in data.chunks_mut(8).zip((address..).step_by(8)) {
            let value = self.read(part.len() as u8, address).to_le_bytes();
            part.copy_from_slice(&value[..part.len()]);
        }
    }

    fn write(&mut self, address: u64, data: &[u8]) {
        for (part, address) in data.chunks(8).zip((address..).step_by(8)) {
            let mut value = [0; 8];
            value[..part.len()].copy_from_slice(part);
            self.post(part.len() as u8, address, u64::from_le_bytes(value));
        }
    }
}

/// Accesses to the guest's RAM by the host.
struct Ram<'a>(&'a Program);

impl Bus for Ram<'_> {
    fn read(&mut self, address: u64, data: &mut [u8]) {
        self.0.read_ram(address, data);
    }

    fn write(&mut self, address: u64, data: &[u8]) {
        self.0.write_ram(address, data);
    }
}
