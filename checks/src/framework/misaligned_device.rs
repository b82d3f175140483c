//! A device whose registers neither start nor end on a page boundary.
//!
//! No monitor has it: it is RAM that the kernel does not use, which an ACPI table in the initramfs
//! declares to be the registers of a virtio-mmio device. To the driver it looks like a device once a
//! program in the guest has written the registers' values there.

use acpi_tables::{Aml, aml, sdt::Sdt};

/// The kernel's parameter that reserves 16 KiB of RAM.
pub const PARAMETERS: &str = "memmap=16K$0x10000000";

/// The first of its pages.
pub const PAGES: u64 = 0x1000_0000;
/// Where its registers start in it: they are its last 0x100 bytes, and the first of the next page.
pub const START_IN_PAGE: u64 = 0xf00;
const SIZE: u32 = 0x200;
const REGISTERS: u64 = PAGES + START_IN_PAGE;

/// The ACPI table that declares a virtio-mmio device there.
pub fn acpi_table() -> Vec<u8> {
    let mut ssdt = Sdt::new(*b"SSDT", 36, 2, *b"MOAT  ", *b"MISALIGN", 1);
    let mut device = Vec::new();
    aml::Device::new(
        "_SB_.MISA".into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &0x600d_u32),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::Memory32Fixed::new(
                    true,
                    REGISTERS as u32,
                    SIZE,
                )]),
            ),
        ],
    )
    .to_aml_bytes(&mut device);
    ssdt.append_slice(&device);
    let mut table = Vec::new();
    ssdt.to_aml_bytes(&mut table);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_acpi_table_has_a_right_length_and_checksum() {
        let table = acpi_table();
        assert_eq!(table[4..8], (table.len() as u32).to_le_bytes());
        assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    }
}
