//! The registers of virtio over PCI (virtio 1.3, section 4.1) as a driver finds and uses them: all
//! through the root complex. The function is behind a root port, and interrupts by MSI-X.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::Count;
use super::registers::{CONFIG_CHANGE, Register, Registers, USED_BUFFER};
use crate::Signal;
use crate::dma::Leases;
use crate::pci::test_machine::Line;
use crate::pci::{
    Access, Function, FunctionAddress, Message, MessageSink, Node, RootComplex, RootNode, RootPort,
    Slot, Topology,
};

/// Registers of configuration space, and what is in them.
#[allow(missing_docs)]
pub mod config {
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const BASE_ADDRESS: usize = 0x10;
    pub const MEMORY_WINDOW: usize = 0x20;
    pub const CAPABILITIES_POINTER: usize = 0x34;
    pub const BRIDGE_CONTROL: usize = 0x3e;

    pub const COMMAND_MEMORY: u16 = 1 << 1;
    pub const COMMAND_MASTER: u16 = 1 << 2;
    pub const STATUS_INTERRUPT: u16 = 1 << 3;
    pub const SECONDARY_BUS_RESET: u16 = 1 << 6;

    pub const POWER_MANAGEMENT: u8 = 0x01;
    pub const VENDOR_SPECIFIC: u8 = 0x09;
    pub const EXPRESS: u8 = 0x10;
    pub const MSIX: u8 = 0x11;

    pub const POWER_MANAGEMENT_CONTROL: usize = 4;
    pub const D3HOT: u16 = 0b11;
    pub const EXPRESS_DEVICE_CONTROL: usize = 8;
    pub const FUNCTION_LEVEL_RESET: u16 = 1 << 15;
    pub const MSIX_CONTROL: usize = 2;
    pub const MSIX_TABLE: usize = 4;
    pub const MSIX_PENDING: usize = 8;
    pub const MSIX_ENABLE: u16 = 1 << 15;
}

/// A field of `struct virtio_pci_common_cfg` (section 4.1.4.3): offset and width.
pub type Field = (u64, usize);

/// Fields, written down a second time: a test that took the device's own constants would not find
/// a wrong one.
#[allow(missing_docs)]
pub mod field {
    use super::Field;

    pub const CONFIG_MSIX_VECTOR: Field = (16, 2);
    pub const NUM_QUEUES: Field = (18, 2);
    pub const QUEUE_MSIX_VECTOR: Field = (26, 2);
    pub const QUEUE_NOTIFY_OFF: Field = (30, 2);
    pub const QUEUE_NOTIFY_DATA: Field = (56, 2);
}

/// The field that is a register.
pub fn field_of(register: Register) -> Field {
    match register {
        Register::DeviceFeatureSelect => (0, 4),
        Register::DeviceFeature => (4, 4),
        Register::DriverFeatureSelect => (8, 4),
        Register::DriverFeature => (12, 4),
        Register::DeviceStatus => (20, 1),
        Register::ConfigGeneration => (21, 1),
        Register::QueueSelect => (22, 2),
        Register::QueueSize => (24, 2),
        Register::QueueEnable => (28, 2),
        Register::QueueDesc => (32, 8),
        Register::QueueDriver => (40, 8),
        Register::QueueDevice => (48, 8),
        Register::QueueReset => (58, 2),
    }
}

/// `cfg_type` of `struct virtio_pci_cap` (section 4.1.4).
#[allow(missing_docs)]
pub mod cfg_type {
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const PCI: u8 = 5;
}

/// Messages, of which the one with data 0 says that the configuration changed, and all others
/// that buffers were used.
#[derive(Default)]
pub struct Messages {
    interrupts: Arc<Count>,
    status: AtomicU32,
    received: Mutex<Vec<Message>>,
}

impl Messages {
    /// No messages so far. Each is counted in `interrupts`.
    pub fn new(interrupts: Arc<Count>) -> Arc<Self> {
        Arc::new(Self { interrupts, ..Self::default() })
    }

    /// Those since the last time.
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.received.lock().unwrap())
    }
}

impl MessageSink for Messages {
    fn send(&self, message: Message) {
        let bit = if message.data == 0 { CONFIG_CHANGE } else { USED_BUFFER };
        self.status.fetch_or(bit, Ordering::Relaxed);
        self.interrupts.signal();
        self.received.lock().unwrap().push(message);
    }
}

/// Where a structure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Structure {
    /// Where its capability is in configuration space.
    pub capability: usize,
    /// The BAR's number,
    pub bar: u8,
    /// offset there,
    pub offset: u32,
    /// and length in bytes.
    pub length: u32,
}

/// A device's registers.
pub struct PciRegisters {
    /// The way to them.
    pub root: Arc<RootComplex>,
    /// What the function sends.
    pub messages: Arc<Messages>,
    /// What the function's INTA drives.
    pub line: Arc<Line>,
    common: u64,
    notify: u64,
    notify_off_multiplier: u32,
    device: u64,
}

impl PciRegisters {
    /// The root port.
    pub const PORT: FunctionAddress = FunctionAddress::new(0, Slot::new(1, 0).unwrap());
    /// The function, which is all there is below the port.
    pub const FUNCTION: FunctionAddress = FunctionAddress::new(1, Slot::new(0, 0).unwrap());

    /// The port's window, as its register has it: 1 MiB.
    const WINDOW: u32 = 0xe000_e000;
    /// Where the BARs go, by number.
    const BARS: [u64; 6] = [0xe000_0000, 0, 0xe002_0000, 0, 0, 0];
    /// Where messages go.
    const MESSAGE_ADDRESS: u64 = 0xfee0_0000;

    /// Puts `function` into a machine and finds its structures.
    pub fn new(function: Function, messages: Arc<Messages>, leases: Leases) -> Self {
        let port = RootPort { access_control: false, below: Some(Node::Device(vec![function])) };
        let topology = Topology { root: vec![RootNode::Port(port)] };
        let lines = [(); 4].map(|()| Arc::new(Line::default()));
        // Pin A of device 0 behind device 1 of bus 0.
        let line = Arc::clone(&lines[1]);
        let root = RootComplex::new(topology, lines.map(|line| line as _), leases).unwrap();
        let mut registers = Self {
            root: Arc::new(root),
            messages,
            line,
            common: 0,
            notify: 0,
            notify_off_multiplier: 0,
            device: 0,
        };
        let find = |cfg_type| registers.structure(cfg_type).unwrap();
        let address = |cfg_type| {
            let Structure { bar, offset, .. } = find(cfg_type);
            Self::BARS[usize::from(bar)] + u64::from(offset)
        };
        let (common, device) = (address(cfg_type::COMMON), address(cfg_type::DEVICE));
        let notify = address(cfg_type::NOTIFY);
        let multiplier = registers.config_u32(find(cfg_type::NOTIFY).capability + 16);
        (registers.common, registers.device) = (common, device);
        (registers.notify, registers.notify_off_multiplier) = (notify, multiplier);
        registers.start();
        registers
    }

    /// Where the structure of that kind is; of several, the first.
    pub fn structure(&self, cfg_type: u8) -> Option<Structure> {
        self.capabilities()
            .into_iter()
            .filter(|&(id, _)| id == config::VENDOR_SPECIFIC)
            .map(|(_, capability)| capability)
            .find(|&capability| self.config_u8(capability + 3) == cfg_type)
            .map(|capability| Structure {
                capability,
                bar: self.config_u8(capability + 4),
                offset: self.config_u32(capability + 8),
                length: self.config_u32(capability + 12),
            })
    }

    /// IDs and places of the function's capabilities.
    pub fn capabilities(&self) -> Vec<(u8, usize)> {
        let mut capabilities = vec![];
        let mut at = self.config_u8(config::CAPABILITIES_POINTER);
        while at != 0 {
            capabilities.push((self.config_u8(at.into()), at.into()));
            at = self.config_u8(usize::from(at) + 1);
        }
        capabilities
    }

    /// Where a capability is that there is one of.
    pub fn capability(&self, id: u8) -> usize {
        self.capabilities().into_iter().find(|&(found, _)| found == id).unwrap().1
    }

    /// Where a BAR is.
    pub fn bar(bar: u8) -> u64 {
        Self::BARS[usize::from(bar)]
    }

    /// Reads a byte of the function's configuration space.
    pub fn config_u8(&self, offset: usize) -> u8 {
        let mut data = [0xa5];
        self.root.read_config(Self::FUNCTION, offset, &mut data);
        data[0]
    }

    /// Reads two bytes.
    pub fn config_u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.config_u8(offset), self.config_u8(offset + 1)])
    }

    /// Reads four bytes.
    pub fn config_u32(&self, offset: usize) -> u32 {
        let mut data = [0xa5; 4];
        self.root.read_config(Self::FUNCTION, offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes to the function's configuration space.
    pub fn write_config_space(&self, offset: usize, data: &[u8]) {
        self.root.write_config(Self::FUNCTION, offset, data);
    }

    /// Writes the function's command register.
    pub fn command(&self, command: u16) {
        self.write_config_space(config::COMMAND, &command.to_le_bytes());
    }

    /// Turns MSI-X on or off.
    pub fn enable_msix(&self, enable: bool) {
        let control = self.capability(config::MSIX) + config::MSIX_CONTROL;
        let bits = if enable { config::MSIX_ENABLE } else { 0 };
        self.write_config_space(control, &bits.to_le_bytes());
    }

    /// Writes the message of `vector`, whose data is its number, and whether it is masked.
    pub fn set_message(&self, vector: u16, masked: bool) {
        let table = self.config_u32(self.capability(config::MSIX) + config::MSIX_TABLE);
        let table = Self::bar(table as u8 & 7) + u64::from(table & !7);
        let entry = table + 16 * u64::from(vector);
        for (offset, value) in [
            (0, Self::MESSAGE_ADDRESS as u32),
            (4, (Self::MESSAGE_ADDRESS >> 32) as u32),
            (8, vector.into()),
            (12, masked.into()),
        ] {
            assert_eq!(
                self.root.write_memory(entry + offset, &u32::to_le_bytes(value)),
                Access::Claimed
            );
        }
    }

    /// The number of entries in the MSI-X table.
    pub fn vectors(&self) -> u16 {
        (self.config_u16(self.capability(config::MSIX) + config::MSIX_CONTROL) & 0x7ff) + 1
    }

    /// Reads a field of the common configuration structure.
    pub fn read_field(&self, (offset, width): Field) -> u64 {
        let mut data = [0; 8];
        for half in data[..width].chunks_mut(4).zip(0_u64..) {
            let _ = self.root.read_memory(self.common + offset + 4 * half.1, half.0);
        }
        u64::from_le_bytes(data)
    }

    /// Writes a field of the common configuration structure.
    pub fn write_field(&self, (offset, width): Field, value: u64) {
        for half in value.to_le_bytes()[..width].chunks(4).zip(0_u64..) {
            let _ = self.root.write_memory(self.common + offset + 4 * half.1, half.0);
        }
    }
}

impl Registers for PciRegisters {
    /// As firmware does and the PCI driver of an operating system: the port's window and the BARs
    /// get addresses, MSI-X its messages, and everything is turned on.
    fn start(&mut self) {
        let on = (config::COMMAND_MEMORY | config::COMMAND_MASTER).to_le_bytes();
        self.root.write_config(Self::PORT, config::MEMORY_WINDOW, &Self::WINDOW.to_le_bytes());
        self.root.write_config(Self::PORT, config::COMMAND, &on);
        let power = self.capability(config::POWER_MANAGEMENT) + config::POWER_MANAGEMENT_CONTROL;
        self.write_config_space(power, &[0; 2]);
        for (number, address) in Self::BARS.into_iter().enumerate() {
            self.write_config_space(config::BASE_ADDRESS + 4 * number, &address.to_le_bytes()[..4]);
        }
        self.write_config_space(config::COMMAND, &on);
        self.enable_msix(true);
        for vector in 0..self.vectors() {
            self.set_message(vector, false);
        }
    }

    fn read(&mut self, register: Register) -> u64 {
        self.read_field(field_of(register))
    }

    fn write(&mut self, register: Register, value: u64) {
        self.write_field(field_of(register), value);
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        let _ = self.root.read_memory(self.device + offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = self.root.write_memory(self.device + offset, data);
    }

    fn notify(&mut self, queue: u16) {
        self.write(Register::QueueSelect, queue.into());
        let notify_off = self.read_field(field::QUEUE_NOTIFY_OFF);
        let address = self.notify + notify_off * u64::from(self.notify_off_multiplier);
        let _ = self.root.write_memory(address, &queue.to_le_bytes());
    }

    fn map_config_interrupt(&mut self) {
        self.write_field(field::CONFIG_MSIX_VECTOR, 0);
    }

    fn map_queue_interrupt(&mut self) {
        let vector = self.read(Register::QueueSelect) + 1;
        self.write_field(field::QUEUE_MSIX_VECTOR, vector);
    }

    fn take_interrupt_status(&mut self) -> u32 {
        self.messages.status.swap(0, Ordering::Relaxed)
    }

    fn read_at(&mut self, offset: u64, data: &mut [u8]) {
        let _ = self.root.read_memory(Self::bar(0) + offset, data);
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) {
        let _ = self.root.write_memory(Self::bar(0) + offset, data);
    }
}
