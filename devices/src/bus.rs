//! An address space (port I/O or memory-mapped I/O) and the devices that answer in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use thiserror::Error;

use crate::lock;

/// A device that answers register reads and writes.
///
/// `data` is as long as the guest's access; string I/O arrives as one access of many bytes.
/// Both calls run on a vCPU's thread, so they must only access registers and return at once.
pub trait BusDevice: Send {
    /// Fills `data` with what the guest reads at `offset` from the device's first address.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes what the guest writes at `offset` from the device's first address.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Why a range cannot be given to a device.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or runs past the end of the address space.
    #[error("device range {base:#x}+{size:#x} is empty or wraps around the address space")]
    InvalidRange {
        /// First address.
        base: u64,
        /// Length in bytes.
        size: u64,
    },
    /// Another device already answers somewhere in the range.
    #[error("device range {base:#x}+{size:#x} overlaps the device at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes.
        size: u64,
        /// First address of the device that is there already.
        other: u64,
    },
}

struct Entry {
    size: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Devices by address. Built once, then shared between vCPUs.
#[derive(Default)]
pub struct Bus {
    entries: BTreeMap<u64, Entry>,
}

impl Bus {
    /// Gives `[base, base + size)` to `device`.
    pub fn insert(
        &mut self,
        base: u64,
        size: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), BusError> {
        let last = size
            .checked_sub(1)
            .and_then(|offset| base.checked_add(offset))
            .ok_or(BusError::InvalidRange { base, size })?;
        if let Some((&other, entry)) = self.entries.range(..=last).next_back()
            && other + (entry.size - 1) >= base
        {
            return Err(BusError::Overlap { base, size, other });
        }
        self.entries.insert(base, Entry { size, device });
        Ok(())
    }

    /// Reads from the device at `address`; false where there is none, and `data` is untouched.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        self.with_device(address, |device, offset| device.read(offset, data))
    }

    /// Writes to the device at `address`; false where there is none.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        self.with_device(address, |device, offset| device.write(offset, data))
    }

    fn with_device(&self, address: u64, access: impl FnOnce(&mut dyn BusDevice, u64)) -> bool {
        let Some((base, entry)) = self.entries.range(..=address).next_back() else {
            return false;
        };
        let offset = address - base;
        if offset >= entry.size {
            return false;
        }
        let mut device = lock(&entry.device);
        access(&mut *device, offset);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct ByteRegister(u8);

    impl BusDevice for ByteRegister {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    fn register() -> Arc<Mutex<dyn BusDevice>> {
        Arc::new(Mutex::new(ByteRegister::default()))
    }

    #[test]
    fn accesses_reach_the_device_at_its_offset_and_nothing_beside_it() {
        let mut bus = Bus::default();
        bus.insert(0x100, 0x10, register()).unwrap();
        assert!(bus.write(0x100, &[7]));
        let mut data = [0; 2];
        assert!(bus.read(0x103, &mut data));
        assert_eq!(data, [10, 10]);
        assert!(!bus.read(0xff, &mut data));
        assert!(!bus.read(0x110, &mut data));
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::default();
        bus.insert(0x100, 0x10, register()).unwrap();
        for (base, size) in [(0x10f, 1), (0xff, 2), (0x80, 0x1000), (0x104, 4)] {
            assert_eq!(
                bus.insert(base, size, register()),
                Err(BusError::Overlap { base, size, other: 0x100 })
            );
        }
        for (base, size) in [(0x200, 0), (u64::MAX, 2)] {
            assert_eq!(
                bus.insert(base, size, register()),
                Err(BusError::InvalidRange { base, size })
            );
        }
        bus.insert(u64::MAX, 1, register()).unwrap();
        bus.insert(0x110, 1, register()).unwrap();
    }
}
