//! The driver of a virtio device on MMIO: what it has in memory, and how it sets the device up.

use std::sync::{Arc, Mutex};

use devices::Signal;
use devices::bus::BusDevice;
use devices::dma::DmaView;
use devices::virtio::VirtioDevice;
use devices::virtio::transport::{MmioTransport, Transport};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::guest::Count;

/// Registers (virtio 1.3, section 4.2.2).
pub mod register {
    #![allow(missing_docs)]
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC_LOW: u64 = 0x80;
    pub const QUEUE_DRIVER_LOW: u64 = 0x90;
    pub const QUEUE_DEVICE_LOW: u64 = 0xa0;
    pub const QUEUE_RESET: u64 = 0xc0;
    pub const CONFIG: u64 = 0x100;
}

/// Bytes of the driver's memory, which starts at 0.
pub const MEMORY_SIZE: usize = 0x1_0000;
/// Descriptors in each queue.
pub const QUEUE_SIZE: u16 = 16;
/// Where buffers are to go: behind the rings.
pub const BUFFERS: u64 = 0x8000;

const VERSION_1: u64 = 1 << 32;
const RINGS_STRIDE: u64 = 0x3000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;

/// What the device does with a descriptor's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Use {
    /// It reads.
    Read = 0,
    /// It writes.
    Write = 2,
}

/// A device and its driver.
pub struct MmioDriver {
    /// The driver's memory, and the device's rings and buffers.
    pub memory: GuestMemoryMmap,
    transport: Mutex<MmioTransport>,
    /// Chains made available, and chains taken back, by queue.
    indices: [(u16, u16); 2],
}

impl MmioDriver {
    /// `view` is the device's of the driver's `memory`, and may show more.
    pub fn new(device: Arc<dyn VirtioDevice>, memory: GuestMemoryMmap, view: DmaView) -> Self {
        let signal = || Arc::new(Count::default()) as Arc<dyn Signal>;
        let transport = Mutex::new(MmioTransport::new(device, view, signal(), signal()));
        Self { memory, transport, indices: [(0, 0); 2] }
    }

    /// Reads at `offset`, as long as `data` is.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        let transport = self.transport.get_mut().expect("nothing has panicked");
        transport.read(offset % MmioTransport::SIZE, data);
    }

    /// Writes at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let transport = self.transport.get_mut().expect("nothing has panicked");
        transport.write(offset % MmioTransport::SIZE, data);
    }

    /// Writes a register.
    pub fn set(&mut self, register: u64, value: u32) {
        self.write(register, &value.to_le_bytes());
    }

    /// Stores bytes in the driver's memory.
    pub fn store(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).expect("the driver's memory");
    }

    /// Resets the device, and sets up its queues, with `features` beside those there must be.
    pub fn bring_up(&mut self, features: u64) {
        self.set(register::STATUS, 0);
        self.set(register::STATUS, 3);
        let features = features | VERSION_1;
        for (half, bits) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.set(register::DRIVER_FEATURES_SEL, half);
            self.set(register::DRIVER_FEATURES, bits);
        }
        self.set(register::STATUS, 3 | 8);
        self.store(0, &vec![0; BUFFERS as usize]);
        self.indices = [(0, 0); 2];
        // A queue that does not exist takes no harm.
        for queue in 0..2 {
            let rings = rings(queue);
            self.set(register::QUEUE_SEL, queue.into());
            self.set(register::QUEUE_SIZE, QUEUE_SIZE.into());
            for (register, address) in [
                (register::QUEUE_DESC_LOW, rings),
                (register::QUEUE_DRIVER_LOW, rings + AVAILABLE),
                (register::QUEUE_DEVICE_LOW, rings + USED),
            ] {
                self.set(register, address as u32);
                self.set(register + 4, 0);
            }
            self.set(register::QUEUE_READY, 1);
        }
        self.set(register::STATUS, 3 | 8 | 4);
    }

    /// Writes a descriptor: address, length, flags, next.
    pub fn describe(&self, queue: u16, index: u16, buffer: (u64, u32), flags: u16, next: u16) {
        let bytes = [
            &buffer.0.to_le_bytes()[..],
            &buffer.1.to_le_bytes(),
            &flags.to_le_bytes(),
            &next.to_le_bytes(),
        ];
        self.store(rings(queue) + 16 * u64::from(index % QUEUE_SIZE), &bytes.concat());
    }

    /// Makes the chain that starts at descriptor `head` available.
    pub fn publish(&mut self, queue: u16, head: u16) {
        let available = rings(queue) + AVAILABLE;
        let (published, _) = &mut self.indices[usize::from(queue)];
        let entry = available + 4 + 2 * u64::from(*published % QUEUE_SIZE);
        *published = published.wrapping_add(1);
        let index = published.to_le_bytes();
        self.store(entry, &head.to_le_bytes());
        self.store(available + 2, &index);
    }

    /// Publishes a chain of `buffers`, which is the only one.
    pub fn publish_chain(&mut self, queue: u16, buffers: &[(u64, u32, Use)]) {
        for (index, &(address, length, what)) in (0..).zip(buffers) {
            let followed = u16::from(usize::from(index) + 1 < buffers.len());
            self.describe(queue, index, (address, length), what as u16 | followed, index + 1);
        }
        self.publish(queue, 0);
    }

    /// Whether the device has yet to use a chain.
    pub fn is_waiting(&self, queue: u16) -> bool {
        let (published, taken) = self.indices[usize::from(queue)];
        published != taken
    }

    /// Lets the device work, and gives how much it has written to the next chain that it used, if
    /// it has used another.
    pub fn take_used(&mut self, queue: u16) -> Option<u32> {
        self.process();
        let used = rings(queue) + USED;
        let index: u16 = self.memory.read_obj(GuestAddress(used + 2)).expect("a ring");
        let (_, taken) = &mut self.indices[usize::from(queue)];
        if index == *taken {
            return None;
        }
        let entry = used + 4 + 8 * u64::from(*taken % QUEUE_SIZE);
        *taken = taken.wrapping_add(1);
        Some(self.memory.read_obj(GuestAddress(entry + 4)).expect("a ring"))
    }

    /// Lets the device work.
    pub fn process(&mut self) {
        self.transport.process_queues();
    }

    /// Has the machine change the device's configuration, and tell the driver if `change` says so.
    pub fn change_config(&mut self, mut change: impl FnMut() -> bool) {
        self.transport.change_config(&mut change);
    }
}

/// Where the rings of a queue start.
fn rings(queue: u16) -> u64 {
    RINGS_STRIDE * u64::from(queue)
}
