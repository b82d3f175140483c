//! The registers of virtio over PCI (virtio 1.3, section 4.1) as a driver finds and uses them, through
//! the root complex only. The function is behind a root port, and interrupts by MSI-X.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use virtio_driver::{Registers, Structure};

use super::{CONFIG_CHANGE, Count, USED_BUFFER};
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
    pub const BRIDGE_CONTROL: usize = 0x3e;

    pub const COMMAND_MEMORY: u16 = 1 << 1;
    pub const COMMAND_MASTER: u16 = 1 << 2;
    pub const STATUS_INTERRUPT: u16 = 1 << 3;
    pub const SECONDARY_BUS_RESET: u16 = 1 << 6;

    pub const POWER_MANAGEMENT: u8 = 0x01;
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

/// Messages. The one with data 0 is for a change of the configuration, all others are for used buffers.
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

    /// The messages since the last call.
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

/// A PCI function that is a virtio device.
pub struct PciRegisters {
    /// The way to it.
    pub root: Arc<RootComplex>,
    /// What the function sends.
    pub messages: Arc<Messages>,
    /// What the function's INTA drives.
    pub line: Arc<Line>,
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
        let registers = Self { root: Arc::new(root), messages, line };
        registers.start();
        registers
    }

    /// Where its registers as a virtio device are.
    pub fn registers(&self) -> Registers {
        Registers::of_pci(|at| self.config_u32(at), Self::bar)
    }

    /// Where the structure of that kind is; of several, the first.
    pub fn structure(&self, cfg_type: u8) -> Option<Structure> {
        let structures = virtio_driver::structures(|at| self.config_u32(at));
        structures.into_iter().find(|structure| structure.cfg_type == cfg_type)
    }

    /// IDs and places of the function's capabilities.
    pub fn capabilities(&self) -> Vec<(u8, usize)> {
        virtio_driver::capabilities(|at| self.config_u32(at))
    }

    /// The offset of a capability that the function has exactly once.
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

    /// Sets the function up as firmware and an operating system's PCI driver do: the port's window and
    /// the BARs get addresses, MSI-X its messages, and everything is enabled.
    pub fn start(&self) {
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

    /// The messages since the last call, as bits of an interrupt status.
    pub fn take_interrupt_status(&self) -> u32 {
        self.messages.status.swap(0, Ordering::Relaxed)
    }
}
