//! The layout of guest physical memory.
//!
//! ```text
//!  0          zero page, command line, page tables, GDT         (boot only)
//!  0xe_0000   ACPI tables, reset vector                          (reserved in e820)
//!  1 MiB      RAM up to 3 GiB, with the kernel
//!  3 GiB      the MMIO gap: PCI memory, virtio-mmio, PCI configuration space, IOAPIC, LAPIC, KVM's
//!             own pages
//!  4 GiB      the rest of RAM
//!  above      virtio-mem regions, each aligned to 1 GiB
//!  above      PCI memory, if there is PCI
//! ```

use std::ops::RangeInclusive;

use vm_memory::GuestAddress;

/// GDT of the boot vCPU.
pub const BOOT_GDT: GuestAddress = GuestAddress(0x500);
/// `struct hvm_start_info` of the PVH protocol.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// Memory map of the PVH protocol.
pub const PVH_MEMORY_MAP: GuestAddress = GuestAddress(0x6800);
/// Module list of the PVH protocol.
pub const PVH_MODULES: GuestAddress = GuestAddress(0x6040);
/// `struct boot_params` of the Linux boot protocol.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Stack of the boot vCPU; grows down.
pub const BOOT_STACK: GuestAddress = GuestAddress(0x8ff0);
/// Root of the boot page tables, followed by one table of each lower level.
pub const BOOT_PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The kernel's command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// End of conventional memory: what a BIOS would keep for itself starts here.
pub const LOW_MEMORY_END: GuestAddress = GuestAddress(0x9_fc00);
/// ACPI tables, the RSDP first: in the area where a kernel searches for it.
pub const ACPI_TABLES: GuestAddress = GuestAddress(0xe_0000);
/// Where a processor starts after a reset, in real mode: end of the room for ACPI tables.
pub const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);
/// Where memory above the BIOS area starts. Kernels are loaded above.
pub const HIGH_MEMORY_START: GuestAddress = GuestAddress(0x10_0000);
/// Start of the MMIO gap.
pub const MMIO_GAP_START: GuestAddress = GuestAddress(0xc000_0000);
/// End of the MMIO gap.
pub const MMIO_GAP_END: GuestAddress = GuestAddress(0x1_0000_0000);
/// Where BARs of PCI functions may be placed below 4 GiB, and its size.
pub const PCI_MEMORY_32: (GuestAddress, u64) = (MMIO_GAP_START, 256 << 20);
/// Bytes of guest addresses for BARs of PCI functions above everything else. A power of two.
pub const PCI_MEMORY_64_BYTES: u64 = 16 << 30;
/// Configuration space of all PCI buses (the ECAM).
pub const PCI_ECAM: GuestAddress = GuestAddress(0xe000_0000);
/// First virtio-mmio device; the others follow.
pub const VIRTIO_MMIO: GuestAddress = GuestAddress(0xd000_0000);
/// I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Where a write is an interrupt message (Intel SDM, volume 3, section 12.11.1).
pub const MSI_WINDOW: RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;
/// A page that KVM uses for real mode on Intel (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM uses for the same (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: usize = 0xfffb_d000;

/// Alignment of virtio-mem regions. At least Linux's largest memory block for machines of this
/// kind, and the largest page that KVM maps.
pub const REGION_ALIGNMENT: u64 = 1 << 30;

/// I/O ports.
pub mod port {
    /// ttyS0, the console.
    pub const SERIAL_1: u16 = 0x3f8;
    /// ttyS1, the agent's channel.
    pub const SERIAL_2: u16 = 0x2f8;
    /// pvpanic.
    pub const PVPANIC: u16 = 0x505;
    /// ACPI sleep and reset registers.
    pub const POWER: u16 = 0x600;
    /// First of the ports for BARs of PCI functions; the last is 0xffff.
    pub const PCI: u16 = 0x1000;
}

/// Interrupts, as global system interrupts.
pub mod gsi {
    /// ttyS0.
    pub const SERIAL_1: u32 = 4;
    /// ttyS1.
    pub const SERIAL_2: u32 = 3;
    /// Inputs of the I/O APIC for virtio-mmio devices, one each: first those that no device of a PC uses.
    pub const VIRTIO_MMIO: [u32; 12] = [16, 17, 18, 19, 5, 6, 7, 9, 10, 11, 12, 15];
    /// Inputs that all PCI functions share, for INTA to INTD of the first device.
    pub const PCI: [u32; 4] = [20, 21, 22, 23];
}

/// The endpoint IDs by which an IOMMU distinguishes devices.
pub mod endpoint {
    use std::ops::RangeInclusive;

    /// PCI functions: their requester IDs.
    pub const PCI: RangeInclusive<u32> = 0..=0xffff;
    /// virtio-mmio devices, in the order of their addresses.
    pub const VIRTIO_MMIO: RangeInclusive<u32> = 0x1_0000..=0x1_00ff;
}

/// The ranges of `bytes` of RAM: below the MMIO gap, and above.
pub fn ram_ranges(bytes: u64) -> Vec<(GuestAddress, u64)> {
    let below = bytes.min(MMIO_GAP_START.0);
    let above = bytes - below;
    let mut ranges = vec![(GuestAddress(0), below)];
    if above > 0 {
        ranges.push((MMIO_GAP_END, above));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_below_and_above_the_gap() {
        const GIB: u64 = 1 << 30;
        assert_eq!(ram_ranges(GIB), [(GuestAddress(0), GIB)]);
        assert_eq!(ram_ranges(3 * GIB), [(GuestAddress(0), 3 * GIB)]);
        assert_eq!(
            ram_ranges(5 * GIB),
            [(GuestAddress(0), 3 * GIB), (GuestAddress(4 * GIB), 2 * GIB)]
        );
    }
}
