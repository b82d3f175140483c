//! A guest's driver, for tests: it accesses a device's registers and memory as a guest can, correctly
//! or not, on any transport.
//!
//! Its memory is RAM from address 0 on, and a [`Stage`]. A test may add regions of its own.

pub mod memory;
pub mod pci;
mod transport;

use std::iter;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub use virtio_driver::{Buffer, Register, Rings, Used};
use virtio_driver::{Bus, Field, Registers, Virtqueue, field};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use memory::{RAM_SIZE, STAGE, STAGE_SIZE, Stage, map};
use pci::{Messages, PciRegisters};
use transport::RegisterBus;
pub(crate) use transport::on_each_transport;
pub use transport::{CONFIG_CHANGE, TransportKind, USED_BUFFER};

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

/// The driver of a device, at work on one of its queues.
pub struct TestDriver {
    /// The way to the device's registers,
    pub bus: RegisterBus,
    /// and where they are on it.
    registers: Registers,
    /// Memory as the guest's processors see it: all of it, even where devices are refused access.
    pub memory: GuestMemoryMmap,
    /// The part of it that a test controls.
    pub stage: Arc<Stage>,
    /// Interrupts that the device raised.
    pub interrupts: Arc<Count>,
    /// Queue notifications that got through to the machine.
    pub doorbells: Arc<Count>,
    transport: Arc<dyn Transport>,
    index: u16,
    queue: Virtqueue,
}

impl TestDriver {
    /// The device's endpoint ID at an IOMMU: on PCI, it is function 0 of device 0 on bus 1.
    pub const ENDPOINT: u32 = 0x100;

    /// A driver that has not accessed `device` yet, with RAM and a stage.
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
        let (transport, bus): (Arc<dyn Transport>, _) = match kind {
            TransportKind::Mmio => {
                let view = path.view(Arc::new(FixedRequester(Self::ENDPOINT)));
                let transport =
                    MmioTransport::new(device, view, interrupts.clone(), doorbells.clone());
                let transport = Arc::new(Mutex::new(transport));
                (transport.clone(), RegisterBus::Mmio(transport))
            }
            TransportKind::Pci => {
                let messages = Messages::new(interrupts.clone());
                let (transport, function) =
                    PciTransport::new(device, &path, messages.clone(), doorbells.clone()).unwrap();
                let function = PciRegisters::new(function, messages, leases);
                (transport, RegisterBus::Pci(Box::new(function)))
            }
        };
        Self {
            registers: bus.registers(),
            bus,
            memory: GuestMemoryMmap::from_arc_regions(for_processors).unwrap(),
            stage,
            interrupts,
            doorbells,
            transport,
            index: 0,
            queue: Virtqueue::new(Rings::default()),
        }
    }

    /// The registers of a device on PCI.
    pub fn pci(&mut self) -> &mut PciRegisters {
        self.pci_if_any().expect("the device is on PCI")
    }

    /// Likewise, if it is on PCI.
    pub fn pci_if_any(&mut self) -> Option<&mut PciRegisters> {
        match &mut self.bus {
            RegisterBus::Mmio(_) => None,
            RegisterBus::Pci(function) => Some(function),
        }
    }

    /// Makes the registers accessible, whatever was done to them before.
    pub fn start(&mut self) {
        if let Some(function) = self.pci_if_any() {
            function.start();
        }
    }

    /// Reads a register.
    pub fn read(&mut self, register: Register) -> u64 {
        self.registers.read(&mut self.bus, register)
    }

    /// Writes a register.
    pub fn write(&mut self, register: Register, value: u64) {
        self.registers.write(&mut self.bus, register, value);
    }

    /// Reads a field that only virtio-pci has.
    pub fn read_field(&mut self, field: Field) -> u64 {
        self.registers.read_field(&mut self.bus, field)
    }

    /// Writes a field that only virtio-pci has.
    pub fn write_field(&mut self, field: Field, value: u64) {
        self.registers.write_field(&mut self.bus, field, value);
    }

    /// Reads at `offset` of the range that all registers are in.
    pub fn read_at(&mut self, offset: u64, data: &mut [u8]) {
        self.bus.read(self.bus.base() + offset, data);
    }

    /// Writes at `offset` of the range that all registers are in.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) {
        self.bus.write(self.bus.base() + offset, data);
    }

    /// Writes to the device's configuration.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.bus.write(self.registers.config() + offset, data);
    }

    /// Reads the device's configuration.
    pub fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        self.bus.read(self.registers.config() + offset, data);
    }

    /// Reads the status register.
    pub fn status(&mut self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.read(Register::DeviceStatus) as u8)
    }

    /// Adds `bits` to the status register.
    pub fn add_status(&mut self, bits: DeviceStatus) {
        self.registers.add_status(&mut self.bus, bits.bits());
    }

    /// Resets the device by its status register.
    pub fn reset(&mut self) {
        self.registers.reset(&mut self.bus);
    }

    /// What the device interrupted for since the last time.
    pub fn take_interrupt_status(&mut self) -> u32 {
        match &mut self.bus {
            RegisterBus::Pci(function) => function.take_interrupt_status(),
            bus => self.registers.take_interrupt_status(bus),
        }
    }

    /// Works on another queue of the device from now on, and returns the one before.
    pub fn switch_queue(&mut self, index: u16, queue: Virtqueue) -> Virtqueue {
        self.index = index;
        std::mem::replace(&mut self.queue, queue)
    }

    /// The device's transport, which the machine's worker uses.
    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::clone(&self.transport)
    }

    /// Has the machine process the queues once. True if there may be more to do.
    pub fn process_queues(&mut self) -> bool {
        self.transport.process_queues()
    }

    /// Has the machine notify the driver of a change of the device's configuration.
    pub fn config_changed(&mut self) {
        self.transport.change_config(&mut || true);
    }

    /// The features that the device offers.
    pub fn offered_features(&mut self) -> u64 {
        self.registers.offered_features(&mut self.bus)
    }

    /// Resets the device and accepts `features`, and the one that a device behind an IOMMU requires.
    /// True if the device accepts them.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.reset();
        let platform = self.offered_features() & Features::ACCESS_PLATFORM.bits();
        self.accept(features | platform)
    }

    /// Resets the device and accepts `features`. True if the device accepts them.
    pub fn accept(&mut self, features: u64) -> bool {
        self.reset();
        if self.pci_if_any().is_some() {
            self.write_field(field::CONFIG_MSIX_VECTOR, 0);
        }
        self.registers.accept(&mut self.bus, features)
    }

    /// Sets up queue `index` in empty `rings`, and works on that one from now on. True if the device
    /// accepts it.
    pub fn set_up_queue(&mut self, index: u16, rings: Rings) -> bool {
        (self.index, self.queue) = (index, Virtqueue::new(rings));
        let bytes = 6 + 8 * usize::from(rings.size);
        for area in [rings.available, rings.used] {
            // A hostile driver's rings may be outside of memory.
            let _ = self.memory.write_slice(&vec![0; bytes], GuestAddress(area));
        }
        self.registers.place_queue(&mut self.bus, index, rings);
        if self.pci_if_any().is_some() {
            let vector = self.read(Register::QueueSelect) + 1;
            self.write_field(field::QUEUE_MSIX_VECTOR, vector);
        }
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

    /// Writes a chain of `buffers` into the descriptor table and returns its head. At most as many
    /// descriptors as the table has may be under way.
    pub fn write_chain(&mut self, buffers: &[Buffer]) -> u16 {
        self.queue.write_chain(&mut self.memory, buffers)
    }

    /// Chains `buffers` in the descriptors `first..` of the table at `table`.
    pub fn write_table(&mut self, table: u64, first: u16, buffers: &[Buffer]) {
        Virtqueue::write_table(&mut self.memory, table, first, buffers);
    }

    /// Writes one descriptor; `next` has an effect if its flags have NEXT.
    pub fn write_descriptor(&mut self, table: u64, index: u16, buffer: Buffer, next: u16) {
        Virtqueue::write_descriptor(&mut self.memory, table, index, buffer, next);
    }

    /// Makes the chain at `head` available.
    pub fn publish(&mut self, head: u16) {
        self.queue.publish(&mut self.memory, head);
    }

    /// Writes the available ring's index.
    pub fn set_available_index(&mut self, index: u16) {
        self.queue.set_available_index(&mut self.memory, index);
    }

    /// How many chains the driver has made available, modulo 2^16.
    pub fn available_index(&self) -> u16 {
        self.queue.available_index()
    }

    /// Writes `used_event`: with EVENT_IDX, the used entry that is worth an interrupt.
    pub fn set_used_event(&mut self, index: u16) {
        let Rings { size, available, .. } = self.queue.rings();
        self.store(available + 4 + 2 * u64::from(size), index);
    }

    /// Reads `avail_event`: with EVENT_IDX, the available entry that is worth a notification.
    pub fn available_event(&self) -> u16 {
        let Rings { size, used, .. } = self.queue.rings();
        self.load(used + 4 + 8 * u64::from(size))
    }

    /// Reads the used ring's flags.
    pub fn used_flags(&self) -> u16 {
        self.load(self.queue.rings().used)
    }

    /// Notifies the device of buffers in `queue`.
    pub fn notify(&mut self, queue: u16) {
        self.registers.notify(&mut self.bus, queue);
    }

    /// Notifies the device and has the machine process the queue until it is empty.
    pub fn kick(&mut self) {
        self.notify(self.index);
        assert!(self.doorbells.take() > 0, "a notification got lost");
        let passes = (0..1000).take_while(|_| self.process_queues()).count();
        assert!(passes < 1000, "the queue is not empty after 1000 passes");
    }

    /// The used entries since the last call.
    pub fn take_used(&mut self) -> Vec<Used> {
        iter::from_fn(|| self.queue.next_used(&mut self.memory)).collect()
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
