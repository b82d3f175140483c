//! The VIOT: which devices are behind the IOMMU (ACPI 6.5, section 5.2.31).

use acpi_tables::viot::{MmioEndpoint, PciDevice, PciRange, VIOT, VirtIoMmioIommu, VirtIoPciIommu};
use devices::pci::FunctionAddress;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, Platform};

/// Where the virtio-iommu is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IommuPlace {
    /// This function, on bus 0.
    Pci(FunctionAddress),
    /// Registers at this guest address.
    Mmio(u64),
}

/// The table. All PCI functions are behind the IOMMU, each with its address as endpoint ID, and so are the
/// virtio-mmio devices that have an endpoint ID.
pub fn table(iommu: IommuPlace, platform: &Platform) -> VIOT {
    let mut viot = VIOT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let node = match iommu {
        IommuPlace::Pci(FunctionAddress { bus, slot }) => viot.add_virtio_pci_iommu(
            VirtIoPciIommu::new(PciDevice::new(0, bus, slot.device(), slot.function())),
        ),
        IommuPlace::Mmio(address) => viot.add_virtio_mmio_iommu(VirtIoMmioIommu::new(address)),
    };
    if platform.pci.is_some() {
        let (first, last) = (PciDevice::new(0, 0, 0, 0), PciDevice::new(0, u8::MAX, 31, 7));
        viot.add_pci_range(PciRange::new(first, last, &node));
    }
    for device in &platform.virtio_mmio {
        if let Some(endpoint) = device.endpoint {
            viot.add_mmio_endpoint(MmioEndpoint::new(endpoint, device.address.into(), &node));
        }
    }
    viot
}
