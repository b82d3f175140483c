//! The expansion ROM (PCI Firmware Specification 3.3, section 5.1): one image that does nothing.

use std::mem::size_of;

use zerocopy::little_endian::U16;
use zerocopy::{Immutable, IntoBytes};

use crate::pci::Identity;

/// Lengths are in units of this many bytes.
const UNIT: usize = 512;
const IMAGE_SIZE: usize = 4 * UNIT;

/// ROM Header (section 5.1.1) of an image for PCs.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    signature: [u8; 2],
    length: u8,
    /// Where firmware calls.
    entry: u8,
    reserved: [u8; 0x14],
    data_structure: U16,
    padding: [u8; 6],
}

/// The instruction `retf`.
const RETURN: u8 = 0xcb;

/// PCI Data Structure (section 5.1.2), as of PCI 2.2.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct DataStructure {
    signature: [u8; 4],
    vendor: U16,
    device: U16,
    vital_product_data: U16,
    length: U16,
    revision: u8,
    class: [u8; 3],
    image_length: U16,
    code_revision: U16,
    code_type: u8,
    indicator: u8,
    reserved: U16,
}

/// Indicator: there are no more images.
const LAST_IMAGE: u8 = 1 << 7;

/// The contents of a ROM for the function with this `identity`.
pub(super) fn image(identity: &Identity) -> Vec<u8> {
    let header = Header {
        signature: [0x55, 0xaa],
        length: (IMAGE_SIZE / UNIT) as u8,
        entry: RETURN,
        reserved: [0; 0x14],
        data_structure: U16::new(size_of::<Header>() as u16),
        padding: [0; 6],
    };
    let data_structure = DataStructure {
        signature: *b"PCIR",
        vendor: identity.vendor.into(),
        device: identity.device.into(),
        vital_product_data: U16::ZERO,
        length: U16::new(size_of::<DataStructure>() as u16),
        revision: 0,
        class: [identity.class.interface, identity.class.sub, identity.class.base],
        image_length: U16::new((IMAGE_SIZE / UNIT) as u16),
        code_revision: U16::ZERO,
        code_type: 0,
        indicator: LAST_IMAGE,
        reserved: U16::ZERO,
    };
    let mut image = [header.as_bytes(), data_structure.as_bytes()].concat();
    image.resize(IMAGE_SIZE, 0);
    let sum = image.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    // All bytes together make zero (section 5.1.1).
    image[IMAGE_SIZE - 1] = sum.wrapping_neg();
    image
}
