//! What a driver finds on every transport, so that a test can be run on each.

use std::any::Any;

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

/// A register by the name of its field in `struct virtio_pci_common_cfg` (virtio 1.3, section
/// 4.1.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Register {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    DeviceStatus,
    ConfigGeneration,
    QueueSelect,
    /// Read, the largest size; written, the size.
    QueueSize,
    QueueEnable,
    QueueDesc,
    QueueDriver,
    QueueDevice,
    QueueReset,
}

impl Register {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::DeviceFeatureSelect,
        Self::DeviceFeature,
        Self::DriverFeatureSelect,
        Self::DriverFeature,
        Self::DeviceStatus,
        Self::ConfigGeneration,
        Self::QueueSelect,
        Self::QueueSize,
        Self::QueueEnable,
        Self::QueueDesc,
        Self::QueueDriver,
        Self::QueueDevice,
        Self::QueueReset,
    ];
}

/// Buffers were used: a bit of [`Registers::take_interrupt_status`].
pub const USED_BUFFER: u32 = 1 << 0;
/// The configuration changed: another.
pub const CONFIG_CHANGE: u32 = 1 << 1;

/// The registers of a device on some transport.
pub trait Registers: Any {
    /// Makes the registers accessible, whatever was done to them before.
    fn start(&mut self) {}

    /// Reads a register at its width, one of 64 bits in halves.
    fn read(&mut self, register: Register) -> u64;

    /// Writes a register at its width, one of 64 bits in halves.
    fn write(&mut self, register: Register, value: u64);

    /// Reads the device's configuration.
    fn read_config(&mut self, offset: u64, data: &mut [u8]);

    /// Writes to the device's configuration.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Notifies the device of buffers in `queue`.
    fn notify(&mut self, queue: u16);

    /// Asks for interrupts when the configuration changes, after a reset of the device.
    fn map_config_interrupt(&mut self) {}

    /// Asks for interrupts when buffers of the selected queue were used, before it is enabled.
    fn map_queue_interrupt(&mut self) {}

    /// What the device interrupted for since the last time.
    fn take_interrupt_status(&mut self) -> u32;

    /// Reads at `offset` of the range that all registers are in.
    fn read_at(&mut self, offset: u64, data: &mut [u8]);

    /// Writes at `offset` of the range that all registers are in.
    fn write_at(&mut self, offset: u64, data: &[u8]);
}
