//! The registers of virtio over MMIO (virtio 1.3, section 4.2.2) as a driver uses them.

use std::sync::{Arc, Mutex};

use super::registers::{Register, Registers};
use crate::bus::BusDevice;
use crate::virtio::transport::MmioTransport;

/// Offsets, written down a second time: a test that took the device's own constants would not
/// find a wrong one.
#[allow(missing_docs)]
pub mod register {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const QUEUE_RESET: u64 = 0x0c0;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// A device's registers.
pub struct MmioRegisters(pub Arc<Mutex<MmioTransport>>);

impl MmioRegisters {
    fn load(&mut self, offset: u64) -> u32 {
        let mut data = [0xa5; 4];
        self.read_at(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn store(&mut self, offset: u64, value: u32) {
        self.write_at(offset, &value.to_le_bytes());
    }
}

impl Registers for MmioRegisters {
    fn read(&mut self, register: Register) -> u64 {
        let offset = match register {
            Register::QueueSize => register::QUEUE_SIZE_MAX,
            register => offset_of(register),
        };
        self.load(offset).into()
    }

    fn write(&mut self, register: Register, value: u64) {
        let offset = offset_of(register);
        self.store(offset, value as u32);
        if matches!(register, Register::QueueDesc | Register::QueueDriver | Register::QueueDevice) {
            self.store(offset + 4, (value >> 32) as u32);
        }
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        self.read_at(register::CONFIG + offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.write_at(register::CONFIG + offset, data);
    }

    fn notify(&mut self, queue: u16) {
        self.store(register::QUEUE_NOTIFY, queue.into());
    }

    fn take_interrupt_status(&mut self) -> u32 {
        let status = self.load(register::INTERRUPT_STATUS);
        self.store(register::INTERRUPT_ACK, status);
        status
    }

    fn read_at(&mut self, offset: u64, data: &mut [u8]) {
        self.0.lock().unwrap().read(offset % MmioTransport::SIZE, data);
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().write(offset % MmioTransport::SIZE, data);
    }
}

fn offset_of(register: Register) -> u64 {
    match register {
        Register::DeviceFeatureSelect => register::DEVICE_FEATURES_SEL,
        Register::DeviceFeature => register::DEVICE_FEATURES,
        Register::DriverFeatureSelect => register::DRIVER_FEATURES_SEL,
        Register::DriverFeature => register::DRIVER_FEATURES,
        Register::DeviceStatus => register::STATUS,
        Register::ConfigGeneration => register::CONFIG_GENERATION,
        Register::QueueSelect => register::QUEUE_SEL,
        Register::QueueSize => register::QUEUE_SIZE,
        Register::QueueEnable => register::QUEUE_READY,
        Register::QueueDesc => register::QUEUE_DESC_LOW,
        Register::QueueDriver => register::QUEUE_DRIVER_LOW,
        Register::QueueDevice => register::QUEUE_DEVICE_LOW,
        Register::QueueReset => register::QUEUE_RESET,
    }
}
