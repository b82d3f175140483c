//! A virtio-mem driver whose every register access and memory write a bare-metal guest makes.

use super::payload::Payload;

/// Registers of the first virtio-mem device, which is the first virtio-mmio one.
pub const REGISTERS: u64 = 0xd000_0000;

const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SELECT: u64 = 0x024;
const QUEUE_SELECT: u64 = 0x030;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const STATUS: u64 = 0x070;
const QUEUE_DESCRIPTORS: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
const CONFIG: u64 = 0x100;

const SIZE: u16 = 8;
const DESCRIPTORS: u64 = 0x50_0000;
const AVAILABLE: u64 = 0x50_1000;
const USED: u64 = 0x50_2000;
const REQUEST: u64 = 0x50_3000;
const RESPONSE: u64 = 0x50_4000;

/// How the device answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Ack,
    Nack,
    Busy,
    Error,
}

/// What STATE says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Plugged,
    Unplugged,
    Mixed,
}

/// The driver, set up.
pub struct Driver {
    next: u16,
    pub address: u64,
    pub block_size: u64,
}

impl Driver {
    /// Negotiates VERSION_1, and UNPLUGGED_INACCESSIBLE if asked to, and sets the queue up.
    pub fn start(payload: &mut Payload, inaccessible: bool) -> Self {
        let mut register = |offset, value| payload.write(4, REGISTERS + offset, value);
        register(STATUS, 0);
        register(STATUS, 1 | 2);
        register(DRIVER_FEATURES_SELECT, 0);
        register(DRIVER_FEATURES, u64::from(inaccessible) << 1);
        register(DRIVER_FEATURES_SELECT, 1);
        register(DRIVER_FEATURES, 1);
        register(STATUS, 1 | 2 | 8);
        register(QUEUE_SELECT, 0);
        register(QUEUE_SIZE, SIZE.into());
        register(QUEUE_DESCRIPTORS, DESCRIPTORS);
        register(QUEUE_DRIVER, AVAILABLE);
        register(QUEUE_DEVICE, USED);
        payload.write(4, AVAILABLE, 0);
        payload.write(4, USED, 0);
        let mut register = |offset, value| payload.write(4, REGISTERS + offset, value);
        register(QUEUE_READY, 1);
        register(STATUS, 1 | 2 | 8 | 4);
        assert_eq!(payload.read(4, REGISTERS + STATUS), 1 | 2 | 8 | 4);
        let block_size = payload.read(8, REGISTERS + CONFIG);
        let address = payload.read(8, REGISTERS + CONFIG + 16);
        Self { next: 0, address, block_size }
    }

    /// Guest address of block `n`.
    pub fn block(&self, n: u64) -> u64 {
        self.address + n * self.block_size
    }

    pub fn plug(&mut self, payload: &mut Payload, first: u64, count: u16) -> Answer {
        self.request(payload, 0, first, count).0
    }

    pub fn unplug(&mut self, payload: &mut Payload, first: u64, count: u16) -> Answer {
        self.request(payload, 1, first, count).0
    }

    pub fn unplug_all(&mut self, payload: &mut Payload) -> Answer {
        self.request(payload, 2, 0, 0).0
    }

    pub fn state(&mut self, payload: &mut Payload, first: u64, count: u16) -> State {
        let (answer, state) = self.request(payload, 3, first, count);
        assert_eq!(answer, Answer::Ack);
        state
    }

    fn request(
        &mut self,
        payload: &mut Payload,
        kind: u64,
        first: u64,
        count: u16,
    ) -> (Answer, State) {
        payload.write(8, REQUEST, kind);
        payload.write(8, REQUEST + 8, self.block(first));
        payload.write(8, REQUEST + 16, count.into());
        self.submit(payload, &[(REQUEST, 24, false), (RESPONSE, 10, true)]);
        let answer = match payload.read(2, RESPONSE) {
            0 => Answer::Ack,
            1 => Answer::Nack,
            2 => Answer::Busy,
            3 => Answer::Error,
            other => panic!("response type {other}"),
        };
        let state = match payload.read(2, RESPONSE + 8) {
            0 => State::Plugged,
            1 => State::Unplugged,
            2 => State::Mixed,
            other => panic!("state {other}"),
        };
        (answer, state)
    }

    /// Makes a chain of (address, length, writable) available, and waits until it is used.
    /// Returns the length used.
    pub fn submit(&mut self, payload: &mut Payload, chain: &[(u64, u32, bool)]) -> u64 {
        const NEXT: u64 = 1;
        const WRITE: u64 = 2;
        for (index, (address, length, writable)) in (0..).zip(chain) {
            let last = index + 1 == chain.len() as u64;
            let flags = (u64::from(!last) * NEXT) | (u64::from(*writable) * WRITE);
            payload.write(8, DESCRIPTORS + index * 16, *address);
            let rest = u64::from(*length) | flags << 32 | (index + 1) << 48;
            payload.write(8, DESCRIPTORS + index * 16 + 8, rest);
        }
        let slot = u64::from(self.next % SIZE);
        payload.write(2, AVAILABLE + 4 + slot * 2, 0);
        self.next = self.next.wrapping_add(1);
        payload.write(2, AVAILABLE + 2, self.next.into());
        payload.write(4, REGISTERS + QUEUE_NOTIFY, 0);
        // Each look goes through the guest: as many as a minute holds.
        let used = (0..100_000).any(|_| payload.read(2, USED + 2) == u64::from(self.next));
        assert!(used, "the device does not answer");
        payload.read(4, USED + 4 + slot * 8 + 4)
    }
}
