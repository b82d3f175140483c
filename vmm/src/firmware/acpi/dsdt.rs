//! The DSDT: the devices that a kernel cannot discover on a bus.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use devices::platform::{PowerRegisters, Pvpanic};
use devices::serial::SerialPort;
use devices::virtio::transport::MmioTransport;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, Platform, pci};
use crate::arch::x86_64::layout::{gsi, port};

/// A virtio-mmio device as ACPI describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMmioDevice {
    /// First guest address of its registers.
    pub address: u32,
    /// Its interrupt.
    pub gsi: u32,
    /// Its endpoint ID at the IOMMU, if it is behind one.
    pub endpoint: Option<u32>,
}

/// The whole table.
pub fn table(platform: &Platform) -> Sdt {
    let mut aml = Vec::new();
    serial(&mut aml, "COM1", 0, port::SERIAL_1, gsi::SERIAL_1);
    serial(&mut aml, "COM2", 1, port::SERIAL_2, gsi::SERIAL_2);
    pvpanic(&mut aml);
    for (uid, device) in (0..).zip(&platform.virtio_mmio) {
        virtio(&mut aml, uid, device);
    }
    if let Some(bridge) = &platform.pci {
        pci::devices(&mut aml, bridge);
    }
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&Scope::raw("\\_SB_".into(), aml));
    let mut sleep = Vec::new();
    let s5 = Package::new(vec![&PowerRegisters::S5_SLEEP_TYPE]);
    Name::new("\\_S5_".into(), &s5).to_aml_bytes(&mut sleep as &mut dyn AmlSink);
    dsdt.append_slice(&sleep);
    dsdt
}

/// An edge-triggered, active-high interrupt that is not shared.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn serial(aml: &mut Vec<u8>, name: &str, uid: u8, port: u16, gsi: u32) {
    Device::new(
        name.into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &uid),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(port, port, 1, SerialPort::PORTS as u8),
                    &interrupt(gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn pvpanic(aml: &mut Vec<u8>) {
    let ports = IO::new(port::PVPANIC, port::PVPANIC, 1, Pvpanic::PORTS as u8);
    Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
        ],
    )
    .to_aml_bytes(aml);
}

fn virtio(aml: &mut Vec<u8>, uid: u32, device: &VirtioMmioDevice) {
    let name = format!("VR{uid:02X}");
    Device::new(
        name.as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &uid),
            &Name::new("_CCA".into(), &acpi_tables::aml::ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, device.address, MmioTransport::SIZE as u32),
                    &interrupt(device.gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}
