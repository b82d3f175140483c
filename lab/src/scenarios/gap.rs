//! P13: a gap in the kernel's revocation.
//!
//! `revoke_iomem()` tears down the range that is claimed as it is, `unmap_mapping_range()` takes
//! whole pages from where that starts. A claim that neither starts nor ends on a page boundary, and
//! crosses one, keeps its last page mapped.
//!
//! No device is needed for it: RAM that the kernel is told to leave alone, with the registers of a
//! virtio-mmio device written into it, is one as far as the driver can tell. An ACPI table in the
//! initramfs declares it.

use acpi_tables::{Aml, aml, sdt::Sdt};

use super::{PAGE, Told};
use crate::{
    guest::{
        Denial, Errno, Guest, GuestError, Mapping, Observe as _, OpenFlags, Outcome,
        Protection as Access, Sharing,
    },
    report::{Finding, Observations},
    vm::{Vm, VmError},
};

/// The kernel's parameter by which it leaves 16 KiB of RAM alone.
pub const PARAMETERS: &str = "memmap=16K$0x10000000";

const RESERVED: u64 = 0x1000_0000;
/// The registers: the last 0x100 bytes of one page, and the first of the next.
const START_IN_PAGE: u64 = 0xf00;
const SIZE: u32 = 0x200;
const REGISTERS: u64 = RESERVED + START_IN_PAGE;

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

/// P13: the first page of the claim is torn down, SIGBUS, and the second is not, though it is
/// claimed. Controls: before the driver comes, OK; the page behind the claim, OK.
pub fn tail_page(vm: &Vm, seen: &mut Observations) -> Told {
    let process = vm.guest.spawn()?;
    // Uncached, as the driver will map it.
    let mem = process.open("/dev/mem", OpenFlags::RDWR | OpenFlags::SYNC)?;
    let map = |pages| mem.mmap(RESERVED, pages * PAGE, Access::ReadWrite, Sharing::Shared);
    let held = map(3)?;
    write_registers(&held)?;
    for page in 0..3 {
        let tried = format!("before bind: read, page {page}");
        seen.control(tried, Finding::Done, held.peek_u32(page * PAGE))?;
    }
    bind(&vm.guest)?;
    let claims = vm.guest.iomem()?;
    let is_claim = |address| claims.at(address).iter().any(|claim| claim.name.starts_with("LNRO"));
    let claimed = if is_claim(RESERVED + PAGE) { "claimed" } else { "not claimed" };
    seen.control("bound: page 1, in /proc/iomem", "claimed", claimed)?;
    seen.check("held across bind: read, page 0", Denial::SIGBUS, held.peek_u32(START_IN_PAGE))?;
    let tail = held.peek_u32(PAGE);
    seen.check_gap("held across bind: read, page 1", Denial::SIGBUS, Finding::Done, tail)?;
    let tried = "held across bind: read, page 2, which is not claimed";
    seen.control(tried, Finding::Done, held.peek_u32(2 * PAGE))?;
    Ok(seen.check("bound: mmap of pages 0 and 1", Errno::EPERM, map(2))?).map(|()| None)
}

/// Virtio 1.3, 4.2.2: magic value, version and the id of a device that no driver is for.
fn write_registers(held: &Mapping) -> Result<(), GuestError> {
    const RESERVED_ID: u32 = 63;
    for (offset, value) in [(0, 0x7472_6976), (4, 2), (8, RESERVED_ID)] {
        held.poke_u32(START_IN_PAGE + offset, value)?;
    }
    Ok(())
}

/// Has virtio-mmio probe it: now that it comes, or once more if it is built in.
fn bind(guest: &Guest) -> Result<(), VmError> {
    const DEVICES: &str = "/sys/bus/platform/devices";
    guest.load_module("virtio_mmio", "").outcome()?;
    for device in guest.list_directory(DEVICES)? {
        let path = guest.read_text(&format!("{DEVICES}/{device}/firmware_node/path")).outcome()?;
        if matches!(path, Outcome::Value(path) if path.trim() == "\\_SB_.MISA") {
            // It may have been bound as the driver came: ENODEV or EBUSY then.
            guest.write_file("/sys/bus/platform/drivers/virtio-mmio/bind", device).outcome()?;
            return Ok(());
        }
    }
    Err(VmError::Absent("device that the initramfs's ACPI table declares"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_one() {
        let table = acpi_table();
        assert_eq!(table[4..8], (table.len() as u32).to_le_bytes());
        assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    }
}
