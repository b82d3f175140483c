//! P13: a gap in the kernel's revocation.
//!
//! `revoke_iomem()` tears down the range that is claimed as it is, `unmap_mapping_range()` takes
//! whole pages from where that starts. A claim that neither starts nor ends on a page boundary, and
//! crosses one, keeps its last page mapped.

use testvm::{
    PAGE,
    guest::{
        Denial, Errno, Guest, GuestError, Mapping, Observe as _, OpenFlags, Outcome, Protection,
        Sharing,
    },
    vm::{Vm, VmError},
};

use crate::framework::{
    Case, CaseResult, Expected, Finding, Profile, Recorder, Requirement, Scenario,
    misaligned_device::{PAGES, START_IN_PAGE},
};

/// P13: the first page of the claim is torn down, SIGBUS, and the second is not, though it is
/// claimed. Controls: before the driver comes, OK; the page behind the claim, OK.
pub fn tail_page(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let process = vm.guest.spawn()?;
    // Uncached, as the driver will map it.
    let mem = process.open("/dev/mem", OpenFlags::RDWR | OpenFlags::SYNC)?;
    let map = |pages| mem.mmap(PAGES, pages * PAGE, Protection::ReadWrite, Sharing::Shared);
    let held = map(3)?;
    write_registers(&held)?;
    t.when("before bind");
    for page in 0..3 {
        t.control(format_args!("read, page {page}"), Finding::Done, held.peek_u32(page * PAGE))?;
    }
    bind(&vm.guest)?;
    let claims = vm.guest.iomem()?;
    let is_claim = |address| claims.at(address).iter().any(|claim| claim.name.starts_with("LNRO"));
    let claimed = if is_claim(PAGES + PAGE) { "claimed" } else { "not claimed" };
    t.when("bound");
    t.control("page 1, in /proc/iomem", "claimed", claimed)?;
    t.when("held across bind");
    t.check("read, page 0", Denial::SIGBUS, held.peek_u32(START_IN_PAGE))?;
    let torn_down = Expected::from(Denial::SIGBUS).except_for_known_gap(Finding::Done);
    t.check("read, page 1", torn_down, held.peek_u32(PAGE))?;
    let beyond = held.peek_u32(2 * PAGE);
    t.control("read, page 2, which is not claimed", Finding::Done, beyond)?;
    t.when("bound");
    t.check("mmap of pages 0 and 1", Errno::EPERM, map(2))?;
    Ok(None)
}

/// Virtio 1.3, 4.2.2: magic value, version and a device id without a driver.
fn write_registers(held: &Mapping) -> Result<(), GuestError> {
    const RESERVED_ID: u32 = 63;
    for (offset, value) in [(0, 0x7472_6976), (4, 2), (8, RESERVED_ID)] {
        held.poke_u32(START_IN_PAGE + offset, value)?;
    }
    Ok(())
}

/// Has virtio-mmio probe it: as it is loaded, or once more if it is built in.
fn bind(guest: &Guest) -> Result<(), VmError> {
    const DEVICES: &str = "/sys/bus/platform/devices";
    guest.load_module("virtio_mmio", "").outcome()?;
    for device in guest.list_directory(DEVICES)? {
        let path = guest.read_text(&format!("{DEVICES}/{device}/firmware_node/path")).outcome()?;
        if matches!(path, Outcome::Value(path) if path.trim() == "\\_SB_.MISA") {
            // It may have been bound when the driver was loaded: ENODEV or EBUSY then.
            guest.write_file("/sys/bus/platform/drivers/virtio-mmio/bind", device).outcome()?;
            return Ok(());
        }
    }
    Err(VmError::Absent("device that the initramfs's ACPI table declares"))
}

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[Scenario {
    id: "P13",
    title: "a claim across a page boundary has both its pages torn down (known gap: only one)",
    requires: &[
        Requirement::DevMem,
        Requirement::AcpiTables,
        Requirement::VirtioMmio,
        Requirement::IoStrictDevmem,
    ],
    cases: &[Case::InGuest(Profile::Misaligned, tail_page)],
}];
