//! A function's configuration space: 4096 bytes, and what a write may do to each of their bits
//! (PCI Express Base 6.0, section 7.2; register attributes: section 7.4).

use std::ops::Range;

/// Registers of a function, by their standard offsets.
pub(super) mod register {
    pub const VENDOR_ID: usize = 0x00;
    pub const DEVICE_ID: usize = 0x02;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION_ID: usize = 0x08;
    pub const CLASS_CODE: usize = 0x09;
    pub const CACHE_LINE_SIZE: usize = 0x0c;
    pub const HEADER_TYPE: usize = 0x0e;
    pub const BARS: usize = 0x10;
    pub const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
    pub const SUBSYSTEM_ID: usize = 0x2e;
    pub const EXPANSION_ROM: usize = 0x30;
    pub const CAPABILITIES_POINTER: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    pub const INTERRUPT_PIN: usize = 0x3d;
    /// Where a function may put what it likes.
    pub const DEVICE_SPECIFIC: usize = 0x40;
    /// Where extended capabilities start.
    pub const EXTENDED: usize = 0x100;
}

/// Bytes of a function's configuration space.
pub(super) const SIZE: usize = 4096;

type Bytes = Box<[u8; SIZE]>;

/// Each bit is read-only unless a mask says otherwise.
pub(super) struct ConfigSpace {
    bytes: Bytes,
    writable: Bytes,
    write_1_to_clear: Bytes,
    reset_values: Bytes,
}

impl ConfigSpace {
    /// All zeros, all read-only.
    pub fn new() -> Self {
        let zeros = || Box::new([0; SIZE]);
        Self { bytes: zeros(), writable: zeros(), write_1_to_clear: zeros(), reset_values: zeros() }
    }

    /// Sets registers from `offset` on, whatever the guest may do to them.
    pub fn set<const N: usize>(&mut self, offset: usize, value: [u8; N]) {
        self.bytes[offset..offset + N].copy_from_slice(&value);
    }

    /// Lets the guest write the bits that are set in `mask`.
    pub fn allow<const N: usize>(&mut self, offset: usize, mask: [u8; N]) {
        self.writable[offset..offset + N].copy_from_slice(&mask);
    }

    /// Lets the guest clear the bits that are set in `mask` by writing ones to them.
    pub fn allow_clearing<const N: usize>(&mut self, offset: usize, mask: [u8; N]) {
        self.write_1_to_clear[offset..offset + N].copy_from_slice(&mask);
    }

    /// `N` bytes at `offset`.
    pub fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut value = [0; N];
        value.copy_from_slice(&self.bytes[offset..offset + N]);
        value
    }

    /// The byte at `offset`.
    pub fn u8(&self, offset: usize) -> u8 {
        self.bytes[offset]
    }

    /// The 16 bits at `offset`.
    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.get(offset))
    }

    /// The 32 bits at `offset`.
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.get(offset))
    }

    /// What is in `range`.
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    /// Sets registers whose number is known only when the function is described.
    pub fn set_bytes(&mut self, offset: usize, values: &[u8], writable: &[u8]) {
        self.bytes[offset..offset + values.len()].copy_from_slice(values);
        self.writable[offset..offset + writable.len()].copy_from_slice(writable);
    }

    /// What the guest reads. There are no registers beyond the end.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            *byte = self.bytes.get(offset).copied().unwrap_or(u8::MAX);
        }
    }

    /// What the guest writes. True if a bit changed.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        let mut changed = false;
        for (offset, &value) in (offset..SIZE).zip(data) {
            let old = self.bytes[offset];
            let writable = self.writable[offset];
            let new =
                (old & !writable | value & writable) & !(value & self.write_1_to_clear[offset]);
            self.bytes[offset] = new;
            changed |= new != old;
        }
        changed
    }

    /// From now on a reset leads back to here.
    pub fn seal(&mut self) {
        self.reset_values.clone_from(&self.bytes);
    }

    /// Back to where [`Self::seal`] was called.
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
        config.set(0x40, [0x12, 0x34, 0x56, 0xff]);
        config.allow(0x40, [0x00, 0x0f, 0xf0, 0x00]);
        config.allow_clearing(0x43, [0xf0]);
        config.seal();
        assert!(config.write(0x41, &[0xff, 0xff, 0x3c]));
        assert_eq!(config.get(0x40), [0x12, 0x3f, 0xf6, 0xcf]);
        assert!(!config.write(0x40, &[0xff]));
        config.reset();
        assert_eq!(config.u32(0x40), 0xff56_3412);
    }

    #[test]
    fn nothing_is_beyond_the_end() {
        let mut config = ConfigSpace::new();
        assert!(!config.write(SIZE - 1, &[0xff; 8]));
        assert!(!config.write(usize::MAX, &[0xff]));
        let mut data = [0xa5; 3];
        config.read(SIZE - 1, &mut data);
        assert_eq!(data, [0, 0xff, 0xff]);
    }
}
