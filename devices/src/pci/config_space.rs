//! A function's configuration space as a file of registers: bytes, and which of their bits the
//! guest may write (PCI Express Base 6.0, section 7.2).

use std::ops::Range;

/// The bytes of one function. All start as zeros that the guest cannot write.
pub(super) struct ConfigSpace {
    bytes: Vec<u8>,
    writable: Vec<u8>,
    reset_values: Vec<u8>,
}

impl ConfigSpace {
    /// Bytes of a function's configuration space on PCI Express.
    pub const SIZE: usize = 4096;
    /// Bytes of it on conventional PCI (PCI Local Bus 3.0, section 6.1).
    pub const CONVENTIONAL_SIZE: usize = 256;

    pub fn new() -> Self {
        let zeros = || vec![0; Self::SIZE];
        Self { bytes: zeros(), writable: zeros(), reset_values: zeros() }
    }

    /// Cuts the space to the size that it has on conventional PCI.
    pub fn make_conventional(&mut self) {
        self.bytes.truncate(Self::CONVENTIONAL_SIZE);
    }

    /// Sets the bytes from `offset` on, whatever the guest may do to them.
    pub fn set(&mut self, offset: usize, value: &[u8]) {
        self.bytes[offset..offset + value.len()].copy_from_slice(value);
    }

    /// Makes the bits that are set in `mask` writable by the guest, in addition to those that already
    /// are.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        for (writable, mask) in self.writable[offset..].iter_mut().zip(mask) {
            *writable |= mask;
        }
    }

    /// The bytes in `range`.
    pub fn get(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    /// The byte at `offset`.
    pub fn u8(&self, offset: usize) -> u8 {
        self.bytes[offset]
    }

    /// The 16 bits at `offset`.
    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// The 32 bits at `offset`.
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }

    /// The guest reads. Bytes beyond the end read as ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(u8::MAX);
        for (data, byte) in data.iter_mut().zip(self.bytes.iter().skip(offset)) {
            *data = *byte;
        }
    }

    /// The guest writes. True if that changed anything.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        let mut changed = false;
        let bytes = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, writable), data) in bytes.zip(data) {
            let new = *byte & !writable | data & writable;
            changed |= new != *byte;
            *byte = new;
        }
        changed
    }

    /// Saves the present values as those that [`Self::reset`] restores.
    pub fn seal(&mut self) {
        self.reset_values.clone_from(&self.bytes);
    }

    /// Restores the values at the time of [`Self::seal`].
    pub fn reset(&mut self) {
        self.bytes.clone_from(&self.reset_values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_obeys_its_own_mask_at_any_width_and_alignment() {
        let mut config = ConfigSpace::new();
        config.set(0x40, &[0x12, 0x34, 0x56, 0xff]);
        config.allow(0x41, &[0x0c, 0xf0]);
        config.allow(0x41, &[0x03]);
        config.seal();
        assert!(config.write(0x41, &[0xff, 0xff, 0x3c]));
        assert_eq!(config.u32(0x40), 0xfff6_3f12);
        assert!(!config.write(0x40, &[0xff, 0xff]));
        config.reset();
        assert_eq!(config.u32(0x40), 0xff56_3412);
    }

    #[test]
    fn nothing_is_beyond_the_end() {
        let mut config = ConfigSpace::new();
        let mut data = [0xa5; 3];
        config.read(ConfigSpace::SIZE - 1, &mut data);
        assert_eq!(data, [0, 0xff, 0xff]);
        config.make_conventional();
        config.read(ConfigSpace::CONVENTIONAL_SIZE - 2, &mut data);
        assert_eq!(data, [0, 0, 0xff]);
        for offset in [ConfigSpace::CONVENTIONAL_SIZE - 1, ConfigSpace::SIZE, usize::MAX] {
            assert!(!config.write(offset, &[0xff; 8]));
        }
    }
}
