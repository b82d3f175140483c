//! The driver of a virtio device on MMIO: its memory, and how it sets the device up.

use std::sync::{Arc, Mutex};

use arbitrary::{Arbitrary, Result, Unstructured};
use devices::Signal;
use devices::bus::BusDevice;
use devices::dma::DmaView;
use devices::virtio::VirtioDevice;
use devices::virtio::transport::{MmioTransport, Transport};
use virtio_driver::{Buffer, Bus, Register, Registers, Rings, Virtqueue, mmio as register, status};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::guest::{AccessBytes, Count};

/// Bytes of the driver's memory, which starts at 0.
pub const MEMORY_SIZE: usize = 0x1_0000;
/// Descriptors in each queue.
pub const QUEUE_SIZE: u16 = 16;
/// Where buffers are to go: behind the rings.
pub const BUFFERS: u64 = 0x8000;

const VERSION_1: u64 = 1 << 32;
const REGISTERS: Registers = Registers::Mmio { base: 0 };

/// What a driver does to any device.
#[derive(Debug, Arbitrary)]
#[allow(missing_docs)]
pub enum Access {
    /// Reads registers.
    Read { offset: u16, bytes: AccessBytes },
    /// Writes registers.
    Write { offset: u16, bytes: AccessBytes },
    /// Writes a register that does something.
    SetRegister { register: MmioOffset, value: Value },
    /// Writes its memory.
    Store { address: u16, bytes: AccessBytes },
    /// Makes a chain available.
    Publish { queue: u8, head: u8 },
    /// Resets the device and sets it up.
    BringUp { features: u64 },
    /// Waits for the device.
    Process,
}

/// A register that does something when written.
#[derive(Debug)]
pub struct MmioOffset(u64);

/// A value of a register: mostly one that may be valid.
#[derive(Debug)]
pub struct Value(u32);

impl<'a> Arbitrary<'a> for MmioOffset {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(*u.choose(&[
            register::DRIVER_FEATURES,
            register::DRIVER_FEATURES_SEL,
            register::QUEUE_SEL,
            register::QUEUE_SIZE,
            register::QUEUE_READY,
            register::QUEUE_NOTIFY,
            register::STATUS,
            register::QUEUE_DESC_LOW,
            register::QUEUE_DESC_LOW + 4,
            register::QUEUE_DRIVER_LOW,
            register::QUEUE_DEVICE_LOW,
            register::QUEUE_RESET,
        ])?))
    }
}

impl<'a> Arbitrary<'a> for Value {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(match u.int_in_range(0..=3)? {
            0 => u.arbitrary()?,
            1 => u32::from(u.arbitrary::<u16>()?) & !15,
            _ => u.int_in_range(0..=16)?,
        }))
    }
}

/// A device and its driver, which uses this many queues.
pub struct MmioDriver<const QUEUES: usize = 2> {
    /// The driver's memory, and the device's rings and buffers.
    pub memory: GuestMemoryMmap,
    transport: Mutex<MmioTransport>,
    queues: [Virtqueue; QUEUES],
}

impl<const QUEUES: usize> MmioDriver<QUEUES> {
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
        for queue in 0..QUEUES {
            let rings = self.queues[queue].rings();
            REGISTERS.place_queue(self, queue as u16, rings);
            REGISTERS.write(self, Register::QueueEnable, 1);
        }
        REGISTERS.add_status(self, status::DRIVER_OK);
    }

    /// Does something to the device.
    pub fn perform(&mut self, access: Access) {
        match access {
            Access::Read { offset, mut bytes } => self.read(offset.into(), bytes.room()),
            Access::Write { offset, bytes } => self.write(offset.into(), bytes.written()),
            Access::SetRegister { register, value } => self.set(register.0, value.0),
            Access::Store { address, bytes } => {
                let last = MEMORY_SIZE - bytes.written().len();
                self.store(u64::from(address).min(last as u64), bytes.written());
            }
            Access::Publish { queue, head } => {
                self.publish((usize::from(queue) % QUEUES) as u16, head.into());
            }
            Access::BringUp { features } => self.bring_up(features),
            Access::Process => self.process(),
        }
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
impl<const QUEUES: usize> Bus for MmioDriver<QUEUES> {
    fn read(&mut self, address: u64, data: &mut [u8]) {
        let transport = self.transport.get_mut().expect("nothing has panicked");
        transport.read(address % MmioTransport::SIZE, data);
    }

    fn write(&mut self, address: u64, data: &[u8]) {
        let transport = self.transport.get_mut().expect("nothing has panicked");
        transport.write(address % MmioTransport::SIZE, data);
    }
}

/// New queues, in front of [`BUFFERS`].
fn queues<const QUEUES: usize>() -> [Virtqueue; QUEUES] {
    std::array::from_fn(|index| {
        let base = 0x1000 * index as u64;
        let (available, used) = (base + 0x400, base + 0x800);
        Virtqueue::new(Rings { size: QUEUE_SIZE, descriptors: base, available, used })
    })
}
