//! A guest's driver, for tests: it does to a device what a guest can do, through registers and
//! memory, right or wrong, whatever the transport.
//!
//! Its memory is RAM from address 0 on, and a [`Stage`]. A test may add regions of its own.

pub mod memory;
pub mod mmio;
pub mod pci;
pub mod registers;

use std::any::Any;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use memory::{RAM_SIZE, STAGE, STAGE_SIZE, Stage, map};
use mmio::MmioRegisters;
use pci::{Messages, PciRegisters};
use registers::Registers;
pub(crate) use registers::on_each_transport;
pub use registers::{CONFIG_CHANGE, Register, TransportKind, USED_BUFFER};

use super::transport::{MmioTransport, PciTransport, Transport};
use super::{DeviceStatus, Features, VirtioDevice};
use crate::Signal;
use crate::dma::{DmaMemory, DmaPath, DmaRegion, FixedRequester, Iommu, Leases, Reachability};
use crate::pci::Doorbell;

/// Counts signals.
#[derive(Default)]
pub struct Count(AtomicUsize);

impl Signal for Count {
    fn signal(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Doorbell for Count {
    fn moved(&self, _address: Option<u64>) {}
}

impl Count {
    /// How many since the last call.
    pub fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

/// One descriptor's worth of a request.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Descriptor flags.
    pub flags: u32,
}

impl Buffer {
    /// The device reads it.
    pub fn readable(address: u64, len: u32) -> Self {
        Self { address, len, flags: 0 }
    }

    /// The device writes to it.
    pub fn writable(address: u64, len: u32) -> Self {
        Self { address, len, flags: VRING_DESC_F_WRITE }
    }

    /// A table of `count` descriptors.
    pub fn table(address: u64, count: u32) -> Self {
        Self { address, len: count * 16, flags: VRING_DESC_F_INDIRECT }
    }

    /// The same, but another one follows it.
    pub fn followed(self) -> Self {
        Self { flags: self.flags | VRING_DESC_F_NEXT, ..self }
    }

    /// The same bytes in descriptors of one byte each.
    pub fn split(self) -> impl Iterator<Item = Self> {
        (0..self.len).map(move |i| Self { address: self.address + u64::from(i), len: 1, ..self })
    }
}

/// Where the driver puts a queue.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Rings {
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

impl Rings {
    /// A queue of 128 descriptors with all its parts at `base`.
    pub fn at(base: u64) -> Self {
        let (available, used) = (base + 0x1000, base + 0x2000);
        Self { size: 128, descriptors: base, available, used }
    }
}

impl Default for Rings {
    fn default() -> Self {
        Self::at(0x1_0000)
    }
}

/// An entry of the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// First descriptor of the chain.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// The driver of a device, at work on one of its queues.
pub struct TestDriver {
    /// The device's registers.
    pub registers: Box<dyn Registers>,
    /// Memory as the guest's processors see it: all of it, whatever devices are refused.
    pub memory: GuestMemoryMmap,
    /// The part of it that a test directs.
    pub stage: Arc<Stage>,
    /// Interrupts that the device raised.
    pub interrupts: Arc<Count>,
    /// Queue notifications that got through to the machine.
    pub doorbells: Arc<Count>,
    transport: Arc<dyn Transport>,
    queue: u16,
    rings: Rings,
    next_descriptor: u16,
    available_index: u16,
    used_index: u16,
}

impl TestDriver {
    /// What an IOMMU knows the device by: on PCI, it is function 0 of device 0 on bus 1.
    pub const ENDPOINT: u32 = 0x100;

    /// A driver that has not touched `device` yet, with RAM and a stage.
    pub fn new(kind: TransportKind, device: Arc<dyn VirtioDevice>) -> Self {
        Self::with_memory(kind, device, vec![])
    }

    /// The same, with further memory above the stage.
    pub fn with_memory(
        kind: TransportKind,
        device: Arc<dyn VirtioDevice>,
        more: Vec<(Arc<GuestRegionMmap>, Arc<dyn Reachability>)>,
    ) -> Self {
        Self::build(kind, device, more, DmaPath::direct)
    }

    /// The driver of a device that is behind `iommu`, as endpoint [`ENDPOINT`](Self::ENDPOINT).
    pub fn behind(
        iommu: Arc<dyn Iommu>,
        kind: TransportKind,
        device: Arc<dyn VirtioDevice>,
        more: Vec<(Arc<GuestRegionMmap>, Arc<dyn Reachability>)>,
    ) -> Self {
        Self::build(kind, device, more, |memory| DmaPath::through(iommu, memory))
    }

    fn build(
        kind: TransportKind,
        device: Arc<dyn VirtioDevice>,
        more: Vec<(Arc<GuestRegionMmap>, Arc<dyn Reachability>)>,
        path: impl FnOnce(DmaMemory) -> DmaPath,
    ) -> Self {
        let stage = Stage::new();
        let ram = map(0, RAM_SIZE);
        let mut partial: Vec<(_, Arc<dyn Reachability>)> =
            vec![(map(STAGE, STAGE_SIZE), stage.clone())];
        partial.extend(more);

        let mut for_processors = vec![Arc::clone(&ram)];
        let mut for_devices = vec![DmaRegion::fixed(ram)];
        for (mapping, reachability) in partial {
            for_processors.push(Arc::clone(&mapping));
            for_devices.push(DmaRegion::partial(mapping, reachability));
        }
        let interrupts = Arc::new(Count::default());
        let doorbells = Arc::new(Count::default());
        let leases = Leases::default();
        let path = path(DmaMemory::new(for_devices, leases.clone()).unwrap());
        let (transport, registers): (Arc<dyn Transport>, Box<dyn Registers>) = match kind {
            TransportKind::Mmio => {
                let view = path.view(Arc::new(FixedRequester(Self::ENDPOINT)));
                let transport =
                    MmioTransport::new(device, view, interrupts.clone(), doorbells.clone());
                let transport = Arc::new(Mutex::new(transport));
                (transport.clone(), Box::new(MmioRegisters(transport)))
            }
            TransportKind::Pci => {
                let messages = Messages::new(interrupts.clone());
                let (transport, function) =
                    PciTransport::new(device, &path, messages.clone(), doorbells.clone()).unwrap();
                (transport, Box::new(PciRegisters::new(function, messages, leases)))
            }
        };
        Self {
            registers,
            memory: GuestMemoryMmap::from_arc_regions(for_processors).unwrap(),
            stage,
            interrupts,
            doorbells,
            transport,
            queue: 0,
            rings: Rings::default(),
            next_descriptor: 0,
            available_index: 0,
            used_index: 0,
        }
    }

    /// The registers of a device on PCI.
    pub fn pci(&mut self) -> &mut PciRegisters {
        self.pci_if_any().expect("the device is on PCI")
    }

    /// Likewise, if it is on PCI.
    pub fn pci_if_any(&mut self) -> Option<&mut PciRegisters> {
        let registers: &mut dyn Any = &mut *self.registers;
        registers.downcast_mut()
    }

    /// Reads a register.
    pub fn read(&mut self, register: Register) -> u64 {
        self.registers.read(register)
    }

    /// Writes a register.
    pub fn write(&mut self, register: Register, value: u64) {
        self.registers.write(register, value);
    }

    /// Writes to the device's configuration.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.registers.write_config(offset, data);
    }

    /// Reads the device's configuration.
    pub fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        self.registers.read_config(offset, data);
    }

    /// Reads the status register.
    pub fn status(&mut self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.read(Register::DeviceStatus) as u8)
    }

    /// Adds `bits` to the status register.
    pub fn add_status(&mut self, bits: DeviceStatus) {
        let status = self.status() | bits;
        self.write(Register::DeviceStatus, status.bits().into());
    }

    /// Resets the device by its status register.
    pub fn reset(&mut self) {
        self.write(Register::DeviceStatus, 0);
    }

    /// What the device interrupted for since the last time.
    pub fn take_interrupt_status(&mut self) -> u32 {
        self.registers.take_interrupt_status()
    }

    /// What the machine's worker has of the device.
    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::clone(&self.transport)
    }

    /// Lets the machine process the queues once. Whether there may be more to do.
    pub fn process_queues(&mut self) -> bool {
        self.transport.process_queues()
    }

    /// Lets the machine tell that it changed the device's configuration.
    pub fn config_changed(&mut self) {
        self.transport.change_config(&mut || true);
    }

    /// The features on offer.
    pub fn offered_features(&mut self) -> u64 {
        let mut half = |select| {
            self.write(Register::DeviceFeatureSelect, select);
            self.read(Register::DeviceFeature)
        };
        half(0) | half(1) << 32
    }

    /// Resets the device and accepts `features`, and what a device behind an IOMMU insists on.
    /// Whether the device agrees.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.reset();
        let platform = self.offered_features() & Features::ACCESS_PLATFORM.bits();
        self.accept(features | platform)
    }

    /// Resets the device and accepts `features`. Whether the device agrees.
    pub fn accept(&mut self, features: u64) -> bool {
        self.reset();
        self.registers.map_config_interrupt();
        self.add_status(DeviceStatus::ACKNOWLEDGE);
        self.add_status(DeviceStatus::DRIVER);
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(Register::DriverFeatureSelect, select);
            self.write(Register::DriverFeature, half);
        }
        self.add_status(DeviceStatus::FEATURES_OK);
        self.status().contains(DeviceStatus::FEATURES_OK)
    }

    /// Sets up queue `index` in empty `rings`, and works on that one from now on. Whether the
    /// device takes it.
    pub fn set_up_queue(&mut self, index: u16, rings: Rings) -> bool {
        (self.queue, self.rings) = (index, rings);
        (self.next_descriptor, self.available_index, self.used_index) = (0, 0, 0);
        let bytes = 6 + 8 * usize::from(rings.size);
        for area in [rings.available, rings.used] {
            // A hostile driver's rings may be nowhere.
            let _ = self.memory.write_slice(&vec![0; bytes], GuestAddress(area));
        }
        self.write(Register::QueueSelect, index.into());
        self.write(Register::QueueSize, rings.size.into());
        self.write(Register::QueueDesc, rings.descriptors);
        self.write(Register::QueueDriver, rings.available);
        self.write(Register::QueueDevice, rings.used);
        self.registers.map_queue_interrupt();
        self.write(Register::QueueEnable, 1);
        self.read(Register::QueueEnable) == 1
    }

    /// Resets the device and brings it up with `features` beside VERSION_1, its queue in `rings`.
    pub fn bring_up(&mut self, features: u64, rings: Rings) {
        assert!(self.negotiate(features | Features::VERSION_1.bits()));
        assert!(self.set_up_queue(0, rings));
        self.add_status(DeviceStatus::DRIVER_OK);
        self.interrupts.take();
        self.take_interrupt_status();
        self.doorbells.take();
    }

    /// Writes a chain of `buffers` into the descriptor table and returns its head. Never more
    /// than a table's worth may be under way.
    pub fn write_chain(&mut self, buffers: &[Buffer]) -> u16 {
        let count = buffers.len() as u16;
        if self.next_descriptor + count > self.rings.size {
            self.next_descriptor = 0;
        }
        let head = self.next_descriptor;
        self.write_table(self.rings.descriptors, head, buffers);
        self.next_descriptor += count;
        head
    }

    /// Chains `buffers` in the descriptors `first..` of the table at `table`.
    pub fn write_table(&mut self, table: u64, first: u16, buffers: &[Buffer]) {
        for (i, buffer) in buffers.iter().enumerate() {
            let index = first + i as u16;
            let last = i + 1 == buffers.len();
            let buffer = if last { *buffer } else { buffer.followed() };
            self.write_descriptor(table, index, buffer, index.wrapping_add(1));
        }
    }

    /// Writes one descriptor; `next` counts if its flags say so.
    pub fn write_descriptor(&mut self, table: u64, index: u16, buffer: Buffer, next: u16) {
        let Buffer { address, len, flags } = buffer;
        let descriptor = Descriptor::new(address, len, flags as u16, next);
        self.store(table + 16 * u64::from(index), descriptor);
    }

    /// Makes the chain at `head` available.
    pub fn publish(&mut self, head: u16) {
        let entry = u64::from(self.available_index % self.rings.size);
        self.store(self.rings.available + 4 + 2 * entry, head);
        self.set_available_index(self.available_index.wrapping_add(1));
    }

    /// Writes the available ring's index.
    pub fn set_available_index(&mut self, index: u16) {
        self.available_index = index;
        self.store(self.rings.available + 2, index);
    }

    /// How many chains the driver has made available, modulo 2^16.
    pub fn available_index(&self) -> u16 {
        self.available_index
    }

    /// Writes `used_event`: with EVENT_IDX, the used entry that is worth an interrupt.
    pub fn set_used_event(&mut self, index: u16) {
        self.store(self.rings.available + 4 + 2 * u64::from(self.rings.size), index);
    }

    /// Reads `avail_event`: with EVENT_IDX, the available entry that is worth a notification.
    pub fn available_event(&self) -> u16 {
        self.load(self.rings.used + 4 + 8 * u64::from(self.rings.size))
    }

    /// Reads the used ring's flags.
    pub fn used_flags(&self) -> u16 {
        self.load(self.rings.used)
    }

    /// Notifies the device and lets the machine process the queue until nothing is left of it.
    pub fn kick(&mut self) {
        self.registers.notify(self.queue);
        assert!(self.doorbells.take() > 0, "a notification got lost");
        let passes = (0..1000).take_while(|_| self.process_queues()).count();
        assert!(passes < 1000, "the device does not come to an end");
    }

    /// The used entries since the last call.
    pub fn take_used(&mut self) -> Vec<Used> {
        let end: u16 = self.load(self.rings.used + 2);
        let mut entries = Vec::new();
        while self.used_index != end {
            let entry = self.rings.used + 4 + 8 * u64::from(self.used_index % self.rings.size);
            let (head, len): (u32, u32) = (self.load(entry), self.load(entry + 4));
            entries.push(Used { head: head.try_into().unwrap(), len });
            self.used_index = self.used_index.wrapping_add(1);
        }
        entries
    }

    /// Makes a chain available, kicks, and returns the length with which it was used.
    pub fn send(&mut self, buffers: &[Buffer]) -> u32 {
        let head = self.write_chain(buffers);
        self.send_head(head)
    }

    /// The same for a chain that is in the table already.
    pub fn send_head(&mut self, head: u16) -> u32 {
        self.publish(head);
        self.kick();
        let used = self.take_used();
        assert_eq!(used.len(), 1, "one chain is used once");
        assert_eq!(used[0].head, head);
        used[0].len
    }

    /// Writes to guest memory as a processor does.
    pub fn store<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    /// Reads guest memory as a processor does.
    pub fn load<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }
}
