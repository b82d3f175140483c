//! The transports that a device can be on, so that a test can be run on each.

use std::sync::{Arc, Mutex};

use virtio_driver::{Bus, Registers};

use super::pci::PciRegisters;
use crate::bus::BusDevice;
use crate::virtio::transport::MmioTransport;

/// The transport that a device is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportKind {
    /// virtio-mmio.
    Mmio,
    /// virtio-pci.
    Pci,
}

impl TransportKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Mmio, Self::Pci];
}

/// Runs tests, which are functions of a [`TransportKind`], on each transport.
macro_rules! on_each_transport {
    ($($test:ident)*) => {
        mod mmio {
            $(
                #[test]
                fn $test() {
                    super::$test($crate::virtio::test_driver::TransportKind::Mmio);
                }
            )*
        }
        mod pci {
            $(
                #[test]
                fn $test() {
                    super::$test($crate::virtio::test_driver::TransportKind::Pci);
                }
            )*
        }
    };
}
pub(crate) use on_each_transport;

/// Buffers were used: a bit of [`TestDriver::take_interrupt_status`](super::TestDriver).
pub const USED_BUFFER: u32 = 1 << 0;
/// The configuration changed: another.
pub const CONFIG_CHANGE: u32 = 1 << 1;

/// The way to a device's registers.
pub enum RegisterBus {
    /// virtio-mmio, from address 0 on.
    Mmio(Arc<Mutex<MmioTransport>>),
    /// Through a root complex.
    Pci(Box<PciRegisters>),
}

impl RegisterBus {
    /// Where the registers are.
    pub fn registers(&self) -> Registers {
        match self {
            Self::Mmio(_) => Registers::Mmio { base: 0 },
            Self::Pci(function) => function.registers(),
        }
    }

    /// First address of the range that all registers are in.
    pub fn base(&self) -> u64 {
        match self {
            Self::Mmio(_) => 0,
            Self::Pci(_) => PciRegisters::bar(0),
        }
    }
}

impl Bus for RegisterBus {
    fn read(&mut self, address: u64, data: &mut [u8]) {
        match self {
            Self::Mmio(device) => device.lock().unwrap().read(address % MmioTransport::SIZE, data),
            Self::Pci(function) => drop(function.root.read_memory(address, data)),
        }
    }

    fn write(&mut self, address: u64, data: &[u8]) {
        match self {
            Self::Mmio(device) => device.lock().unwrap().write(address % MmioTransport::SIZE, data),
            Self::Pci(function) => drop(function.root.write_memory(address, data)),
        }
    }
}
