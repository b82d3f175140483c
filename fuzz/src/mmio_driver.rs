//! The driver of a virtio device on MMIO: its memory, and how it sets the device up.

use std::sync::{Arc, Mutex};

use devices::Signal;
use devices::bus::BusDevice;
use devices::dma::DmaView;
use devices::virtio::VirtioDevice;
use devices::virtio::transport::{MmioTransport, Transport};
use virtio_driver::{Buffer, Bus, Register, Registers, Rings, Virtqueue, status};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::guest::Count;

/// Bytes of the driver's memory, which starts at 0.
pub const MEMORY_SIZE: usize = 0x1_0000;
/// Descriptors in each queue.
pub const QUEUE_SIZE: u16 = 16;
/// Where buffers are to go: behind the rings.
pub const BUFFERS: u64 = 0x8000;

const VERSION_1: u64 = 1 << 32;
const REGISTERS: Registers = Registers::Mmio { base: 0 };

/// A device and its driver.
pub struct MmioDriver {
    /// The driver's memory, and the device's rings and buffers.
    pub memory: GuestMemoryMmap,
    transport: Mutex<MmioTransport>,
    queues: [Virtqueue; 2],
}

impl MmioDriver {
    /// `view` is the device's view of the driver's `memory`, and may contain more.
    pub fn new(device: Arc<dyn VirtioDevice>, memory: GuestMemoryMmap, view: DmaView) -> Self {
        let signal = || Arc::new(Count::default()) as Arc<dyn Signal>;
        let transport = Mutex::new(MmioTransport::new(device, view, signal(), signal()));
        Self { memory, transport, queues: queues() }
    }

    /// Writes a register.
    pub fn set(&mut self, register: u64, value: u32) {
        self.write(register, &value.to_le_bytes());
    }

    /// Stores bytes in the driver's memory.
    pub fn store(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).expect("the driver's memory");
    }

    /// Resets the device, and sets up its queues, with `features` in addition to the required ones.
    pub fn bring_up(&mut self, features: u64) {
        REGISTERS.reset(self);
        REGISTERS.accept(self, features | VERSION_1);
        self.store(0, &vec![0; BUFFERS as usize]);
        self.queues = queues();
        // To set up a queue that does not exist is harmless.
        for queue in 0..2 {
            let rings = self.queues[usize::from(queue)].rings();
            REGISTERS.place_queue(self, queue, rings);
            REGISTERS.write(self, Register::QueueEnable, 1);
        }
        REGISTERS.add_status(self, status::DRIVER_OK);
    }

    /// Writes a descriptor.
    pub fn describe(&mut self, queue: u16, index: u16, buffer: Buffer, next: u16) {
        let Rings { size, descriptors, .. } = self.queues[usize::from(queue)].rings();
        Virtqueue::write_descriptor(&mut self.memory, descriptors, index % size, buffer, next);
    }

    /// Makes the chain that starts at descriptor `head` available.
    pub fn publish(&mut self, queue: u16, head: u16) {
        self.queues[usize::from(queue)].publish(&mut self.memory, head);
    }

    /// Publishes a chain of `buffers`, which is the only one.
    pub fn publish_chain(&mut self, queue: u16, buffers: &[Buffer]) {
        let table = self.queues[usize::from(queue)].rings().descriptors;
        Virtqueue::write_table(&mut self.memory, table, 0, buffers);
        self.publish(queue, 0);
    }

    /// Whether the device has yet to use a chain.
    pub fn is_waiting(&self, queue: u16) -> bool {
        !self.queues[usize::from(queue)].is_idle()
    }

    /// Lets the device work, and returns how many bytes it has written to the next chain that it used,
    /// if it has used another.
    pub fn take_used(&mut self, queue: u16) -> Option<u32> {
        self.process();
        let used = self.queues[usize::from(queue)].next_used(&mut self.memory)?;
        Some(used.len)
    }

    /// Lets the device work.
    pub fn process(&mut self) {
        self.transport.process_queues();
    }

    /// Has the machine change the device's configuration, and notify the driver if `change` returns
    /// true.
    pub fn change_config(&mut self, mut change: impl FnMut() -> bool) {
        self.transport.change_config(&mut change);
    }
}

/// Its registers, from address 0 on.
impl Bus for MmioDriver {
    fn read(&mut self, address: u64, data: &mut [u8]) {
        let transport = self.transport.get_mut().expect("nothing has panicked");
        transport.read(address % MmioTransport::SIZE, data);
    }

    fn write(&mut self, address: u64, data: &[u8]) {
        let transport = self.transport.get_mut().expect("nothing has panicked");
        transport.write(address % MmioTransport::SIZE, data);
    }
}

/// Two new queues.
fn queues() -> [Virtqueue; 2] {
    [0, 0x3000].map(|base| Virtqueue::new(Rings { size: QUEUE_SIZE, ..Rings::at(base) }))
}
