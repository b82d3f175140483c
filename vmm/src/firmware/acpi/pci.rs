//! PCI as ACPI describes it: the host bridge with its windows and interrupts, and MCFG.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, IO,
    Memory32Fixed, Method, Name, Package, PackageBuilder, Path, ResourceTemplate, Return, ZERO,
};
use acpi_tables::mcfg::MCFG;
use devices::pci::{ConfigPorts, Ecam, Slot, Topology};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::arch::x86_64::layout::{self, gsi, port};

/// The last bus that may be below the host bridge.
const LAST_BUS: u8 = Topology::BUSES - 1;

/// The host bridge as ACPI describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciHostBridge {
    /// The window for BARs of functions above 4 GiB, as address and size.
    pub memory_64: (u64, u64),
}

impl PciHostBridge {
    /// Whether `address` is in a window for BARs of functions.
    pub fn passes(&self, address: u64) -> bool {
        let (start, size) = layout::PCI_MEMORY_32;
        let mut windows = [(start.0, size), self.memory_64].into_iter();
        windows.any(|(start, size)| (start..start + size).contains(&address))
    }
}

/// The table with the guest address of configuration space.
pub fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::PCI_ECAM.0, 0, 0, LAST_BUS);
    mcfg
}

/// The host bridge's device, and one that owns configuration space. Without the latter Linux
/// distrusts MCFG (PCI Firmware 3.3, section 4.1.2).
pub fn devices(aml: &mut Vec<u8>, bridge: &PciHostBridge) {
    Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &Windows(bridge)),
            &Name::new("_PRT".into(), &routing()),
            &capabilities(),
        ],
    )
    .to_aml_bytes(aml);
    let ecam = Memory32Fixed::new(true, layout::PCI_ECAM.0 as u32, Ecam::SIZE as u32);
    Device::new(
        "ECAM".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam])),
        ],
    )
    .to_aml_bytes(aml);
}

/// The address windows and buses of the host bridge, and the ports of its configuration mechanism.
struct Windows<'a>(&'a PciHostBridge);

impl Aml for Windows<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let uncached = AddressSpaceCacheable::NotCacheable;
        let (start, size) = (layout::PCI_MEMORY_32.0.0 as u32, layout::PCI_MEMORY_32.1 as u32);
        let low = AddressSpace::new_memory(uncached, true, start, start + (size - 1), None);
        let (start, size) = self.0.memory_64;
        let high = AddressSpace::new_memory(uncached, true, start, start + (size - 1), None);
        let first = ConfigPorts::FIRST as u16;
        let config = IO::new(first, first, 1, ConfigPorts::PORTS as u8);
        let buses = AddressSpace::<u16>::new_bus_number(0, LAST_BUS.into());
        let ports = AddressSpace::<u16>::new_io(port::PCI, u16::MAX, None);
        ResourceTemplate::new(vec![&buses, &config, &ports, &low, &high]).to_aml_bytes(sink);
    }
}

/// Which input of the I/O APIC each pin on bus 0 is wired to (ACPI 6.5, section 6.2.13).
fn routing() -> PackageBuilder {
    const ANY_FUNCTION: u32 = 0xffff;
    let mut routes = PackageBuilder::new();
    for device in 0..u32::from(Slot::DEVICES) {
        for pin in 0..gsi::PCI.len() {
            let gsi = gsi::PCI[(device as usize + pin) % gsi::PCI.len()];
            let address = device << 16 | ANY_FUNCTION;
            routes.add_element(&Package::new(vec![&address, &(pin as u8), &ZERO, &gsi]));
        }
    }
    routes
}

/// `_OSC` (PCI Firmware 3.3, section 4.5.1): of all the features that Linux asks for, it is granted control
/// of the PCI Express capability. No function here has any other.
fn capabilities() -> impl Aml {
    const PCI_EXPRESS_CAPABILITY: u8 = 1 << 4;
    const CONTROL_OFFSET: u8 = 8;
    struct Osc;
    impl Aml for Osc {
        fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
            let control = Path::new("CTRL");
            Method::new(
                "_OSC".into(),
                4,
                false,
                vec![
                    &CreateDWordField::new(&control, &Arg(3), &CONTROL_OFFSET),
                    &And::new(&control, &control, &PCI_EXPRESS_CAPABILITY),
                    &Return::new(&Arg(3)),
                ],
            )
            .to_aml_bytes(sink);
        }
    }
    Osc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_bridge_passes_addresses_in_its_windows_only() {
        let bridge = PciHostBridge { memory_64: (0x10_0000_0000, 0x1000) };
        for (address, passes) in [
            (0xbfff_ffff, false),
            (0xc000_0000, true),
            (0xcfff_ffff, true),
            (layout::VIRTIO_MMIO.0, false),
            (layout::PCI_ECAM.0, false),
            (0xf_ffff_ffff, false),
            (0x10_0000_0000, true),
            (0x10_0000_0fff, true),
            (0x10_0000_1000, false),
        ] {
            assert_eq!(bridge.passes(address), passes, "{address:#x}");
        }
    }
}
