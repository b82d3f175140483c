//! A virtio-mem driver whose every register access and memory write a bare-metal guest makes.

use std::time::{Duration, Instant};

use zerocopy::{FromZeros, IntoBytes};

use super::{PATIENCE, Program, Queue};

/// The first virtio-mmio device, which is the first virtio-mem device.
const VIRTIO_MMIO: u64 = 0xd000_0000;

/// Where moat has the configuration space of bus 0,
pub const MOAT_ECAM: u64 = 0xe000_0000;
/// and QEMU's machine q35.
pub const Q35_ECAM: u64 = 0xb000_0000;

/// Number of descriptors in the queue.
pub const QUEUE_SIZE: u16 = 128;
const DESCRIPTORS: u64 = 0x50_0000;
const AVAILABLE: u64 = 0x50_1000;
const USED: u64 = 0x50_2000;
/// Guest address of a request.
pub const REQUEST: u64 = 0x50_3000;
/// Guest address of the response to it.
pub const RESPONSE: u64 = 0x50_4000;

// Where many of them are.
const REQUESTS: u64 = 0x54_0000;
const REQUEST_BYTES: u64 = 32;
const RESPONSES: u64 = 0x55_0000;
const RESPONSE_BYTES: u64 = 16;
/// No response has this type.
pub const NO_ANSWER: u64 = 0xffff;

// Flags of a descriptor.
const NEXT: u64 = 1;
const WRITE: u64 = 2;

/// Where a register is, and how many bytes it has.
#[derive(Debug, Clone, Copy)]
pub struct Register {
    /// Its guest address.
    pub address: u64,
    width: u8,
}

impl Register {
    /// Reads it.
    pub fn read(self, program: &mut Program) -> u64 {
        program.read(self.width, self.address)
    }

    /// Posts a write.
    fn write(self, program: &mut Program, value: u64) {
        program.post(self.width, self.address, value);
    }
}

/// The registers of a transport, as far as a driver with one queue needs them.
#[derive(Debug, Clone, Copy)]
pub struct Registers {
    driver_features_select: Register,
    driver_features: Register,
    /// The device's status.
    pub status: Register,
    queue_select: Register,
    queue_size: Register,
    queue_ready: Register,
    queue_descriptors: Register,
    queue_driver: Register,
    queue_device: Register,
    queue_notify: Register,
    interrupt_status: Register,
    /// None where reading the status acknowledges it.
    interrupt_acknowledge: Option<Register>,
    /// The generation of the configuration.
    pub generation: Register,
    /// The first byte of the device's configuration.
    pub config: Register,
}

impl Registers {
    /// virtio 1.3, section 4.2.2.
    pub fn mmio() -> Self {
        let at = |offset| Register { address: VIRTIO_MMIO + offset, width: 4 };
        Self {
            driver_features: at(0x020),
            driver_features_select: at(0x024),
            queue_select: at(0x030),
            queue_size: at(0x038),
            queue_ready: at(0x044),
            queue_notify: at(0x050),
            interrupt_status: at(0x060),
            interrupt_acknowledge: Some(at(0x064)),
            status: at(0x070),
            queue_descriptors: at(0x080),
            queue_driver: at(0x090),
            queue_device: at(0x0a0),
            generation: at(0x0fc),
            config: at(0x100),
        }
    }

    /// virtio 1.3, section 4.1.4, of the first virtio-mem function on bus 0.
    ///
    /// `ecam` is where bus 0's configuration space is.
    pub fn pci(program: &mut Program, ecam: u64) -> Self {
        const VIRTIO_MEM: u64 = 0x1058_1af4;
        const COMMAND: u64 = 0x04;
        const BARS: u64 = 0x10;
        const CAPABILITIES: u64 = 0x34;
        const VENDOR_SPECIFIC: u64 = 0x09;
        const MEMORY_AND_BUS_MASTER: u64 = 0x06;
        let function = (0..32)
            .map(|device| ecam + (device << 15))
            .find(|function| program.read(4, *function) == VIRTIO_MEM)
            .expect("a virtio-mem function is on bus 0");
        let mut structures = [0; 5];
        let mut capability = program.read(1, function + CAPABILITIES);
        while capability != 0 {
            let at = function + capability;
            let fields = [(1, at), (1, at + 1), (1, at + 3), (1, at + 4), (4, at + 8)];
            let [id, next, kind, bar, offset] = program.read_each(fields);
            let kind = kind as usize;
            if id == VENDOR_SPECIFIC && (1..structures.len()).contains(&kind) {
                let bar = function + BARS + bar * 4;
                structures[kind] = bar_address(program, bar) + offset;
            }
            capability = next;
        }
        program.write(2, function + COMMAND, MEMORY_AND_BUS_MASTER);
        let [_, common, notify, isr, device] = structures;
        let at = |offset, width| Register { address: common + offset, width };
        Self {
            driver_features_select: at(0x08, 4),
            driver_features: at(0x0c, 4),
            status: at(0x14, 1),
            generation: at(0x15, 1),
            queue_select: at(0x16, 2),
            queue_size: at(0x18, 2),
            queue_ready: at(0x1c, 2),
            // The lower halves, for 64-bit fields are written by halves (section 4.1.3.1).
            queue_descriptors: at(0x20, 4),
            queue_driver: at(0x28, 4),
            queue_device: at(0x30, 4),
            // Queue 0's, which is the first whatever the multiplier is.
            queue_notify: Register { address: notify, width: 2 },
            interrupt_status: Register { address: isr, width: 1 },
            interrupt_acknowledge: None,
            config: Register { address: device, width: 4 },
        }
    }

    /// Reads the interrupt status, and clears it.
    pub fn take_interrupt_status(self, program: &mut Program) -> u64 {
        let status = self.interrupt_status.read(program);
        if let Some(acknowledge) = self.interrupt_acknowledge {
            // At once, or it would be for what comes next.
            program.write(acknowledge.width, acknowledge.address, status);
        }
        status
    }
}

/// The address of the BAR at `register`, which gets one if it has none.
fn bar_address(program: &mut Program, register: u64) -> u64 {
    /// In the windows of every host bridge, and without a firmware nothing is there yet.
    const UNASSIGNED: u64 = 0xc000_0000;
    let both = [(4, register), (4, register + 4)];
    if program.read_each(both)[0] & !0xf == 0 {
        // A MiB for each, which is enough for all that a transport has.
        program.post(4, register, UNASSIGNED + ((register & 0x1c) << 18));
    }
    let [low, high] = program.read_each(both);
    let high = if low & 0x6 == 0x4 { high } else { 0 };
    high << 32 | (low & !0xf)
}

/// How the device answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Ack,
    /// Not so much.
    Nack,
    /// Not now.
    Busy,
    /// It was no request that the driver may make.
    Error,
}

/// What STATE says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All blocks are plugged.
    Plugged,
    /// None is.
    Unplugged,
    /// Some are.
    Mixed,
}

/// What becomes of a chain of descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// It was used, with so many bytes written.
    Used(u64),
    /// The device is broken, and says so (DEVICE_NEEDS_RESET).
    NeedsReset,
    /// Nothing.
    Nothing,
}

/// A kind of request: to plug blocks.
pub const PLUG: u64 = 0;
/// To unplug them.
pub const UNPLUG: u64 = 1;
/// To unplug all there are.
pub const UNPLUG_ALL: u64 = 2;
/// To say which state they are in.
pub const STATE: u64 = 3;

/// A request that blocks be plugged, or another one about blocks.
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
    next: u16,
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
        Self::start_on(program, Registers::mmio(), inaccessible)
            .expect("the device takes the features")
    }

    /// The same on any transport. None if the device does not take the features.
    pub fn start_on(
        program: &mut Program,
        registers: Registers,
        inaccessible: bool,
    ) -> Option<Self> {
        const ACKNOWLEDGE_DRIVER: u64 = 1 | 2;
        const FEATURES_OK: u64 = ACKNOWLEDGE_DRIVER | 8;
        const DRIVER_OK: u64 = FEATURES_OK | 4;
        let r = registers;
        r.status.write(program, 0);
        r.status.write(program, ACKNOWLEDGE_DRIVER);
        r.driver_features_select.write(program, 0);
        r.driver_features.write(program, u64::from(inaccessible) << 1);
        r.driver_features_select.write(program, 1);
        r.driver_features.write(program, 1);
        r.status.write(program, FEATURES_OK);
        if r.status.read(program) != FEATURES_OK {
            return None;
        }
        r.queue_select.write(program, 0);
        r.queue_size.write(program, QUEUE_SIZE.into());
        r.queue_descriptors.write(program, DESCRIPTORS);
        r.queue_driver.write(program, AVAILABLE);
        r.queue_device.write(program, USED);
        program.post(4, AVAILABLE, 0);
        program.post(4, USED, 0);
        r.queue_ready.write(program, 1);
        r.status.write(program, DRIVER_OK);
        let config = r.config.address;
        let [status, block_size, address] =
            program.read_each([(r.status.width, r.status.address), (8, config), (8, config + 16)]);
        assert_eq!(status, DRIVER_OK);
        Some(Self { registers, next: 0, address, block_size })
    }

    /// Guest address of block `n`.
    pub fn block(&self, n: u64) -> u64 {
        self.address + n * self.block_size
    }

    /// Asks for `count` blocks to be plugged.
    pub fn plug(&mut self, program: &mut Program, first: u64, count: u16) -> Answer {
        let address = self.block(first);
        self.request(program, PLUG, address, count).0
    }

    /// Asks for them to be unplugged.
    pub fn unplug(&mut self, program: &mut Program, first: u64, count: u16) -> Answer {
        let address = self.block(first);
        self.request(program, UNPLUG, address, count).0
    }

    /// Asks for all to be unplugged.
    pub fn unplug_all(&mut self, program: &mut Program) -> Answer {
        self.request(program, UNPLUG_ALL, 0, 0).0
    }

    /// Asks which state they are in.
    pub fn state(&mut self, program: &mut Program, first: u64, count: u16) -> State {
        let address = self.block(first);
        let (answer, state) = self.request(program, STATE, address, count);
        assert_eq!(answer, Answer::Ack);
        state
    }

    /// Lays many requests out, no more than [`Self::MOST_REQUESTS`], for [`Self::make_requests`].
    pub fn lay_out_requests(&mut self, program: &Program, requests: &[Request]) {
        assert!(requests.len() <= Self::MOST_REQUESTS);
        for (n, request) in (0_u16..).zip(requests) {
            let (head, at) = (2 * n, REQUESTS + u64::from(n) * REQUEST_BYTES);
            let Request { kind, address, blocks } = *request;
            program.write_ram(at, [kind, address, blocks.into()].as_bytes());
            program.write_ram(response(n), (NO_ANSWER as u16).as_bytes());
            let read = [at, descriptor_rest(24, NEXT, u64::from(head) + 1)];
            let written = [response(n), descriptor_rest(10, WRITE, 0)];
            program.write_ram(DESCRIPTORS + u64::from(head) * 16, [read, written].as_bytes());
            let slot = u64::from(self.next.wrapping_add(n) % QUEUE_SIZE);
            program.write_ram(AVAILABLE + 4 + slot * 2, head.as_bytes());
        }
    }

    /// Has the guest make the first `count` requests that are laid out, one after the other, without
    /// the host's help.
    pub fn make_requests(&mut self, program: &mut Program, count: u16) {
        let notify = self.registers.queue_notify;
        let queue = Queue {
            available: AVAILABLE,
            used: USED,
            notify: notify.address,
            notify_width: notify.width,
            number: 0,
        };
        assert_eq!(program.drive_queue(&queue, count), u64::from(count));
        self.next = self.next.wrapping_add(count);
    }

    /// What the device has answered to the first `count` of them.
    pub fn answers(&self, program: &Program, count: u16) -> Vec<Answer> {
        let answer = |n| {
            let mut kind = u16::new_zeroed();
            program.read_ram(response(n), kind.as_mut_bytes());
            Answer::of(kind.into())
        };
        (0..count).map(answer).collect()
    }

    /// The answer to any request. The state in it means something for STATE only.
    pub fn request(
        &mut self,
        program: &mut Program,
        kind: u64,
        address: u64,
        count: u16,
    ) -> (Answer, State) {
        write_request(program, REQUEST, kind, address, count);
        self.submit(program, &[(REQUEST, 24, false), (RESPONSE, 10, true)]);
        let [answer, state] = program.read_each([(2, RESPONSE), (2, RESPONSE + 8)]);
        (Answer::of(answer), State::of(state))
    }

    /// Makes a chain of (address, length, writable) available, and waits until it is used.
    /// Returns the length used.
    pub fn submit(&mut self, program: &mut Program, chain: &[(u64, u32, bool)]) -> u64 {
        match self.offer(program, chain, PATIENCE) {
            Completion::Used(length) => length,
            other => panic!("the device does not answer: {other:?}"),
        }
    }

    /// The same, with any outcome within this time.
    pub fn offer(
        &mut self,
        program: &mut Program,
        chain: &[(u64, u32, bool)],
        patience: Duration,
    ) -> Completion {
        for (index, (address, length, writable)) in (0..).zip(chain) {
            let last = index + 1 == chain.len() as u64;
            let flags = (u64::from(!last) * NEXT) | (u64::from(*writable) * WRITE);
            write_descriptor(program, index, *address, *length, flags, index + 1);
        }
        self.make_available(program, 0);
        self.kick(program);
        self.completion(program, patience)
    }

    /// Makes the chain that starts at descriptor `head` available.
    pub fn make_available(&mut self, program: &mut Program, head: u64) {
        let slot = u64::from(self.next % QUEUE_SIZE);
        program.post(2, AVAILABLE + 4 + slot * 2, head);
        self.next = self.next.wrapping_add(1);
        program.post(2, AVAILABLE + 2, self.next.into());
    }

    /// Notifies the device of what is available.
    pub fn kick(&mut self, program: &mut Program) {
        self.registers.queue_notify.write(program, 0);
    }

    /// What becomes, within this time, of the chain that was made available last.
    pub fn completion(&mut self, program: &mut Program, patience: Duration) -> Completion {
        const NEEDS_RESET: u64 = 0x40;
        let slot = u64::from(self.next.wrapping_sub(1) % QUEUE_SIZE);
        let status = self.registers.status;
        let places = [(2, USED + 2), (4, USED + 4 + slot * 8 + 4), (status.width, status.address)];
        let start = Instant::now();
        loop {
            let [used, length, status] = program.read_each(places);
            if used == u64::from(self.next) {
                return Completion::Used(length);
            }
            if status & NEEDS_RESET != 0 {
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

/// Writes a descriptor of the queue.
pub fn write_descriptor(
    program: &mut Program,
    index: u64,
    address: u64,
    length: u32,
    flags: u64,
    next: u64,
) {
    program.post(8, DESCRIPTORS + index * 16, address);
    program.post(8, DESCRIPTORS + index * 16 + 8, descriptor_rest(length, flags, next));
}

/// What is in a descriptor after the address.
fn descriptor_rest(length: u32, flags: u64, next: u64) -> u64 {
    u64::from(length) | flags << 32 | next << 48
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
