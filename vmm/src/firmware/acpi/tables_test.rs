//! The tables of whole machines as `iasl` of Debian 12 disassembles them, compared with the files in
//! `expected`. With MOAT_TEST_BLESS=1 in the environment those files are written instead.

use std::fs;
use std::path::Path;
use std::process::Command;

use devices::virtio::transport::MmioTransport;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::arch::x86_64::layout::{endpoint, gsi};
use crate::board::pci::PciDevices;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Memory of a machine, with its tables.
struct Tables(GuestMemoryMmap);

impl Tables {
    fn of(platform: &Platform) -> Self {
        let area = (layout::ACPI_TABLES, (MIB - layout::ACPI_TABLES.0) as usize);
        let memory = GuestMemoryMmap::from_ranges(&[area]).unwrap();
        write_tables(&memory, platform).unwrap();
        Self(memory)
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn quad(&self, address: u64) -> u64 {
        self.0.read_obj(GuestAddress(address)).unwrap()
    }

    /// A table with a header (ACPI 6.5, section 5.2.6).
    fn table(&self, address: u64) -> Vec<u8> {
        let length: u32 = self.0.read_obj(GuestAddress(address + 4)).unwrap();
        self.bytes(address, length as usize)
    }

    /// All tables, found as a kernel finds them: the XSDT that the RSDP points to, the tables that the XSDT points to, and the
    /// DSDT that the FADT points to. `iasl` does not take the RSDP itself.
    fn all(&self) -> Vec<Vec<u8>> {
        const XSDT_OF_RSDP: u64 = 24;
        const HEADER: u64 = 36;
        const DSDT_OF_FADT: u64 = 140;
        let rsdp = layout::ACPI_TABLES.0;
        assert_eq!(self.bytes(rsdp, 8), b"RSD PTR ");
        for length in [20, 36] {
            assert_eq!(
                self.bytes(rsdp, length).iter().fold(0_u8, |sum, it| sum.wrapping_add(*it)),
                0
            );
        }
        let xsdt = self.quad(rsdp + XSDT_OF_RSDP);
        let end = xsdt + self.table(xsdt).len() as u64;
        let listed: Vec<_> = (xsdt + HEADER..end).step_by(8).map(|at| self.quad(at)).collect();
        let fadt = listed.iter().find(|&&table| self.bytes(table, 4) == b"FACP");
        let dsdt = self.quad(fadt.unwrap() + DSDT_OF_FADT);
        [xsdt].into_iter().chain(listed).chain([dsdt]).map(|at| self.table(at)).collect()
    }
}

/// A table as text, without the comment at its beginning, which is about the run of `iasl`.
fn disassemble(table: &[u8]) -> String {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("table"), table).unwrap();
    let output = Command::new("iasl").args(["-d", "table"]).current_dir(&directory).output();
    let output = output.unwrap_or_else(|error| {
        panic!("cannot run iasl: {error}; install it: apt-get install acpica-tools")
    });
    let text = fs::read_to_string(directory.path().join("table.dsl"));
    let text = text.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let (_, text) = text.split_once(" */\n").expect("iasl starts with a comment");
    text.trim().lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[track_caller]
fn assert_expected(name: &str, platform: &Platform) {
    let tables = Tables::of(platform).all();
    let actual = tables.iter().map(|it| disassemble(it)).collect::<Vec<_>>().join("\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/firmware/acpi/expected");
    let path = path.join(name).with_extension("dsl");
    if std::env::var_os("MOAT_TEST_BLESS").is_some() {
        fs::write(&path, &actual).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    let differs = actual.lines().zip(expected.lines()).position(|(actual, line)| actual != line);
    let place = differs.map_or("its end".to_owned(), |line| format!("line {}", line + 1));
    assert!(
        actual == expected,
        "from {place} on, {} differs from what iasl prints for these tables. If the change is intended, write \
         the file with MOAT_TEST_BLESS=1 and review it with git diff.",
        path.display()
    );
}

#[test]
fn one_vcpu_and_an_iommu_among_virtio_mmio_devices() {
    let device = |index: u32, endpoint| VirtioMmioDevice {
        address: layout::VIRTIO_MMIO.0 as u32 + index * MmioTransport::SIZE as u32,
        gsi: gsi::VIRTIO_MMIO[index as usize],
        endpoint,
    };
    let platform = Platform {
        vcpus: 1,
        ram_bytes: 512 * MIB,
        hotpluggable: vec![HotpluggableMemory { address: 4 * GIB, size: GIB, node: 0 }],
        virtio_mmio: vec![device(0, None), device(1, Some(endpoint::VIRTIO_MMIO.start() + 1))],
        pci: None,
        iommu: Some(IommuPlace::Mmio(layout::VIRTIO_MMIO.0)),
    };
    assert_expected("mmio", &platform);
}

#[test]
fn four_vcpus_memory_on_two_nodes_and_pci_behind_an_iommu() {
    let hotpluggable = |address, node| HotpluggableMemory { address, size: GIB, node };
    let platform = Platform {
        vcpus: 4,
        ram_bytes: 4 * GIB,
        hotpluggable: vec![hotpluggable(5 * GIB, 0), hotpluggable(6 * GIB, 1)],
        virtio_mmio: Vec::new(),
        pci: Some(PciHostBridge { memory_64: (16 * GIB, layout::PCI_MEMORY_64_BYTES) }),
        iommu: Some(IommuPlace::Pci(PciDevices::FIRST)),
    };
    assert_expected("pci", &platform);
}
