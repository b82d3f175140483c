//! The two ways in which a guest reaches configuration space: memory and I/O ports.

use std::sync::Arc;

use super::{FunctionAddress, RootComplex, Topology};
use crate::bus::BusDevice;
use crate::platform::ResetControl;

/// The Enhanced Configuration Access Mechanism (PCI Express Base 6.0, section 7.2.2): the
/// registers of all functions in memory, at the address in ACPI's MCFG table (PCI Firmware 3.3, section
/// 4.1.2).
pub struct Ecam(Arc<RootComplex>);

impl Ecam {
    /// Bytes of memory for each bus, from bus 0 on.
    pub const BYTES_PER_BUS: u64 = 1 << 20;
    /// Bytes of memory for the largest number of buses.
    pub const SIZE: u64 = Self::BYTES_PER_BUS * Topology::BUSES as u64;

    const FUNCTION_SHIFT: u32 = 12;
    const REGISTER: u64 = (1 << Self::FUNCTION_SHIFT) - 1;

    /// Configuration space of everything below `root`.
    pub fn new(root: Arc<RootComplex>) -> Self {
        Self(root)
    }

    fn decode(offset: u64) -> (FunctionAddress, usize) {
        let function = (offset >> Self::FUNCTION_SHIFT) as u16;
        (FunctionAddress::from(function), (offset & Self::REGISTER) as usize)
    }
}

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let (function, register) = Self::decode(offset);
        self.0.read_config(function, register, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (function, register) = Self::decode(offset);
        self.0.write_config(function, register, data);
    }
}

/// CONFIG_ADDRESS and CONFIG_DATA (PCI Local Bus 3.0, section 3.2.2.3.2): the first 256 bytes of
/// each function's registers, through two I/O ports. The second byte of the first port is, for accesses
/// of one byte, the register that resets a PC (0xcf9).
pub struct ConfigPorts {
    root: Arc<RootComplex>,
    address: u32,
    reset: ResetControl,
}

impl ConfigPorts {
    /// The first port.
    pub const FIRST: u64 = 0xcf8;
    /// Number of ports.
    pub const PORTS: u64 = 8;

    /// The data register's offset.
    const DATA: u64 = 4;
    const ENABLE: u32 = 1 << 31;
    const FUNCTION_SHIFT: u32 = 8;
    const REGISTER: u32 = 0xfc;
    /// The other bits are reserved and read as zeros.
    const WRITABLE: u32 = Self::ENABLE | 0xff_ff00 | Self::REGISTER;

    /// Configuration space of everything below `root`, and `reset`.
    pub fn new(root: Arc<RootComplex>, reset: ResetControl) -> Self {
        Self { root, address: 0, reset }
    }

    /// Whether an access is to the reset register.
    fn is_reset(offset: u64, size: usize) -> bool {
        (offset, size) == (ResetControl::PORT - Self::FIRST, 1)
    }

    /// The registers that an access of `size` bytes at `offset` concerns, if it is a valid one to the
    /// data register.
    fn decode(&self, offset: u64, size: usize) -> Option<(FunctionAddress, usize)> {
        let byte = offset.checked_sub(Self::DATA)?;
        let fits = matches!(size, 1 | 2 | 4) && byte <= Self::PORTS - Self::DATA - size as u64;
        let function = FunctionAddress::from((self.address >> Self::FUNCTION_SHIFT) as u16);
        let register = (self.address & Self::REGISTER) as usize;
        let enabled = self.address & Self::ENABLE != 0;
        (fits && enabled).then(|| (function, register + byte as usize))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(u8::MAX);
        if Self::is_reset(offset, data.len()) {
            self.reset.read(0, data);
        } else if let Some((function, register)) = self.decode(offset, data.len()) {
            self.root.read_config(function, register, data);
        } else if let (0, Ok(data)) = (offset, <&mut [u8; 4]>::try_from(data)) {
            *data = self.address.to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if Self::is_reset(offset, data.len()) {
            self.reset.write(0, data);
        } else if let Some((function, register)) = self.decode(offset, data.len()) {
            self.root.write_config(function, register, data);
        } else if let (0, Ok(data)) = (offset, <[u8; 4]>::try_from(data)) {
            self.address = u32::from_le_bytes(data) & Self::WRITABLE;
        }
    }
}
