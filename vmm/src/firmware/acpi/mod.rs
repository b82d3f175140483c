//! The ACPI tables of a hardware-reduced machine (ACPI 6.5, section 4.1): what an unmodified
//! kernel needs to find its processors, its hotpluggable memory, and its devices.

mod dsdt;
mod pci;
#[cfg(test)]
mod tables_test;
mod viot;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::srat::{MemoryAffinity, SRAT};
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use devices::platform::PowerRegisters;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{Immutable, IntoBytes};

use crate::arch::x86_64::layout::{self, port};

pub use dsdt::VirtioMmioDevice;
pub use pci::PciHostBridge;
pub use viot::IommuPlace;

const OEM_ID: [u8; 6] = *b"MOAT  ";
const OEM_TABLE_ID: [u8; 8] = *b"MOATVM  ";
const OEM_REVISION: u32 = 1;

/// Why the tables cannot be written.
#[derive(Debug, Error)]
pub enum AcpiError {
    /// The BIOS area is too small for them.
    #[error(
        "{size} bytes of ACPI tables do not fit in the {room} bytes that are reserved for them"
    )]
    TooLarge {
        /// Bytes of tables.
        size: u64,
        /// Bytes in the area.
        room: u64,
    },
    /// They do not fit guest memory.
    #[error("cannot write ACPI tables to guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// A range in which memory may be plugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotpluggableMemory {
    /// First guest address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// NUMA node, as a proximity domain.
    pub node: u16,
}

/// What the tables describe.
pub struct Platform {
    /// Number of vCPUs. vCPU `n` has APIC id `n`.
    pub vcpus: u32,
    /// Bytes of RAM.
    pub ram_bytes: u64,
    /// Where memory may be plugged.
    pub hotpluggable: Vec<HotpluggableMemory>,
    /// The virtio-mmio devices.
    pub virtio_mmio: Vec<VirtioMmioDevice>,
    /// PCI, if there is any.
    pub pci: Option<PciHostBridge>,
    /// The IOMMU, if there is one.
    pub iommu: Option<IommuPlace>,
}

/// Writes all tables to where a kernel looks for them.
pub fn write_tables(memory: &GuestMemoryMmap, platform: &Platform) -> Result<(), AcpiError> {
    // The RSDP comes first but points to the XSDT, which points to the others.
    let mut writer = TableWriter { memory, next: layout::ACPI_TABLES.0 + 64 };
    let dsdt = writer.write(&dsdt::table(platform))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(writer.write(&fadt(dsdt))?);
    xsdt.add_entry(writer.write(&madt(platform.vcpus))?);
    xsdt.add_entry(writer.write(&srat(platform))?);
    if platform.pci.is_some() {
        xsdt.add_entry(writer.write(&pci::mcfg())?);
    }
    if let Some(iommu) = platform.iommu {
        xsdt.add_entry(writer.write(&viot::table(iommu, platform))?);
    }
    let xsdt = writer.write(&xsdt)?;
    memory.write_slice(&bytes(&Rsdp::new(OEM_ID, xsdt)), layout::ACPI_TABLES)?;
    Ok(())
}

struct TableWriter<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
}

impl TableWriter<'_> {
    /// Writes a table and returns its guest address.
    fn write(&mut self, table: &dyn Aml) -> Result<u64, AcpiError> {
        let bytes = bytes(table);
        let address = self.next;
        self.next = (address + bytes.len() as u64).next_multiple_of(16);
        if self.next > layout::RESET_VECTOR.0 {
            let start = layout::ACPI_TABLES.0;
            let room = layout::RESET_VECTOR.0 - start;
            return Err(AcpiError::TooLarge { size: self.next - start, room });
        }
        self.memory.write_slice(&bytes, GuestAddress(address))?;
        Ok(address)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes as &mut dyn AmlSink);
    bytes
}

fn fadt(dsdt: u64) -> impl Aml {
    const VGA_NOT_PRESENT: u16 = 1 << 2;
    const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;
    let io_port = |offset: u16| {
        let address = u64::from(port::POWER + offset);
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address)
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    // No 8042 either: its bit stays clear.
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT).into();
    fadt.sleep_control_reg = io_port(PowerRegisters::SLEEP_CONTROL);
    fadt.sleep_status_reg = io_port(PowerRegisters::SLEEP_STATUS);
    fadt.reset_reg = io_port(PowerRegisters::RESET);
    fadt.reset_value = PowerRegisters::RESET_VALUE;
    fadt.finalize()
}

fn madt(vcpus: u32) -> MADT {
    let local_apic = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local_apic);
    for vcpu in 0..vcpus as u8 {
        madt.add_structure(ProcessorLocalApic::new(vcpu, vcpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

/// Processor Local APIC/SAPIC Affinity Structure (ACPI 6.5, section 5.2.16.1).
#[derive(IntoBytes, Immutable)]
#[repr(C, packed)]
struct LocalApicAffinity {
    kind: u8,
    length: u8,
    proximity_domain_low: u8,
    apic_id: u8,
    flags: u32,
    local_sapic_eid: u8,
    proximity_domain_high: [u8; 3],
    clock_domain: u32,
}

/// All processors and all RAM are in one node, and each hotpluggable range is in the configured one. Because
/// of these ranges Linux prepares its page tables and DMA masks for the highest address that may be used.
fn srat(platform: &Platform) -> Sdt {
    const NODE: u32 = 0;
    const ENABLED: u32 = 1;
    let mut header = SRAT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for (start, size) in layout::ram_ranges(platform.ram_bytes) {
        header.add_memory_affinity(MemoryAffinity::new(NODE, start.0, size).enabled());
    }
    for &HotpluggableMemory { address, size, node } in &platform.hotpluggable {
        let affinity = MemoryAffinity::new(node.into(), address, size).enabled().hotpluggable();
        header.add_memory_affinity(affinity);
    }
    let header = bytes(&header);
    let mut srat = Sdt::new(*b"SRAT", 36, 3, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    // `SRAT` has no local APICs; what follows the header of any table is the same.
    srat.append_slice(&header[36..]);
    for vcpu in 0..platform.vcpus as u8 {
        let affinity = LocalApicAffinity {
            kind: 0,
            length: 16,
            proximity_domain_low: NODE as u8,
            apic_id: vcpu,
            flags: ENABLED,
            local_sapic_eid: 0,
            proximity_domain_high: [0; 3],
            clock_domain: 0,
        };
        srat.append_slice(affinity.as_bytes());
    }
    srat
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// The memory in a SRAT: address, size, proximity domain, and whether it is hotpluggable.
    fn memory(srat: &Sdt) -> Vec<(u64, u64, u32, bool)> {
        const MEMORY_AFFINITY: u8 = 1;
        let mut structures = &bytes(srat)[48..];
        let mut memory = Vec::new();
        while let [kind, length, ..] = *structures {
            let (structure, rest) = structures.split_at(length.into());
            let word = |at: usize| u32::from_le_bytes(structure[at..at + 4].try_into().unwrap());
            let quad = |at| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
            if kind == MEMORY_AFFINITY {
                let (enabled, hotpluggable) = (word(28) & 1 != 0, word(28) & 2 != 0);
                assert!(enabled);
                memory.push((quad(8), quad(16), word(2), hotpluggable));
            }
            structures = rest;
        }
        memory
    }

    #[test]
    fn c10_hotpluggable_memory_is_in_its_own_proximity_domain_and_ram_in_the_first() {
        let hotpluggable = |address, node| HotpluggableMemory { address, size: GIB, node };
        let platform = Platform {
            vcpus: 2,
            ram_bytes: 4 * GIB,
            hotpluggable: vec![hotpluggable(5 * GIB, 0x1234), hotpluggable(6 * GIB, 0)],
            virtio_mmio: Vec::new(),
            pci: None,
            iommu: None,
        };
        assert_eq!(
            memory(&srat(&platform)),
            [
                (0, 3 * GIB, 0, false),
                (4 * GIB, GIB, 0, false),
                (5 * GIB, GIB, 0x1234, true),
                (6 * GIB, GIB, 0, true),
            ]
        );
    }
}
