//! F5, F8 and F13: what VFIO shows of a function besides its registers.

use testvm::{
    PAGE,
    guest::{Denial, Errno, Sharing, VfioRegion},
    vm::Vm,
};

use crate::{
    framework::{Case, CaseResult, Expect as _, Finding, Profile, Recorder, Requirement, Scenario},
    suites::vfio::{
        assigned::{MsixTable, with_assigned, with_equipped},
        memory::{ASKED, TORN_DOWN},
    },
};

/// F5: pread(2) shows all ones for the MSI-X table, which is VFIO's own to program, decoded or not. What
/// is beside it in its BAR is like any other BAR, and so is the table by a mapping.
/// Control: decoded, the rest of that BAR reads.
pub fn msix_table(vm: &Vm, t: &mut Recorder) -> CaseResult {
    with_equipped(vm, |assigned| {
        let table = assigned.msix_table()?;
        let bar = VfioRegion::Bar(table.bar);
        let read = |offset| assigned.device.read_u32(bar, offset);
        let held = assigned.map_and_use_of(table.bar)?;
        let load = || held.peek_u32(table.offset + MsixTable::VECTOR_CONTROL);
        t.when("decoded");
        t.check("pread(2) of the table", u32::MAX, read(table.offset))?;
        t.control("pread(2) beside the table", Finding::Done, read(table.end()))?;
        t.control("load from the table", MsixTable::MASKED, load())?;
        assigned.disable_memory()?;
        t.when("not decoded");
        t.check("pread(2) of the table", u32::MAX, read(table.offset))?;
        t.check("pread(2) beside the table", Errno::EIO.by(ASKED), read(table.end()))?;
        t.check("load from the table", Denial::SIGBUS.by(TORN_DOWN), load())
    })
}

/// F8: the ROM cannot be read while memory is not decoded, ENOMEM; its size is reported all the same, and
/// decoding stays as it is; it cannot be mapped, EINVAL. Control: decoded, its signature reads.
pub fn rom(vm: &Vm, t: &mut Recorder) -> CaseResult {
    const SIGNATURE: u16 = 0xaa55;
    with_equipped(vm, |assigned| {
        let signature = || {
            let bytes = assigned.device.read(VfioRegion::Rom, 0, 2)?;
            Ok(bytes.iter().rev().fold(0_u16, |value, &byte| value << 8 | u16::from(byte)))
        };
        let size = || assigned.device.region_size(VfioRegion::Rom);
        let size_when_decoded = size()?;
        t.when("decoded");
        t.control("read the ROM's signature", SIGNATURE, signature())?;
        assigned.disable_memory()?;
        t.when("not decoded");
        t.check("read the ROM's signature", Errno::ENOMEM, signature())?;
        t.check("size of the ROM", size_when_decoded, size())?;
        t.when("not decoded, asked for the size");
        t.check("memory", "not decoded", assigned.decoding()?)?;
        assigned.enable_memory()?;
        let mapped = assigned.device.map_as(VfioRegion::Rom, PAGE, Sharing::Shared);
        t.when("decoded");
        t.check("mmap of the ROM", Errno::EINVAL, mapped)
    })
}

/// F13: the user may ask a base address register how large its BAR is, and move it, as far as it sees;
/// the BAR itself stays where it is. It cannot be mapped privately, EINVAL: a copy would not be the
/// device's. Control: shared, OK.
pub fn base_address(vm: &Vm, t: &mut Recorder) -> CaseResult {
    const BASE_ADDRESS: u64 = 0x10;
    const FLAGS: u32 = 0xf;
    with_assigned(vm, |assigned| {
        let held = assigned.map_and_use()?;
        let register = BASE_ADDRESS + 4 * assigned.bar_number() as u64;
        let read = || assigned.device.read_u32(VfioRegion::Config, register);
        let write =
            |value: u32| assigned.device.write(VfioRegion::Config, register, &value.to_le_bytes());
        let size = assigned.device.region_size(assigned.bar())?;
        let original = read()?;
        let mask = !(size as u32 - 1) | original & FLAGS;
        write(u32::MAX)?;
        t.when("all ones written");
        t.check("base address register", mask, read())?;
        t.check("load", assigned.identity(), assigned.load(&held))?;
        write(original)?;
        t.when("address written");
        t.control("base address register", original, read())?;
        let private = assigned.device.map_as(assigned.bar(), PAGE, Sharing::Private);
        t.clear_state();
        t.check("mmap, private", Errno::EINVAL, private)?;
        t.control("mmap, shared", Finding::Done, assigned.map())
    })
}

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "F5",
        title: "VFIO does not show the MSI-X table, and what is beside it as any BAR",
        requires: &[Requirement::Vfio],
        cases: &[Case::InGuest(Profile::Iommu, msix_table)],
    },
    Scenario {
        id: "F8",
        title: "VFIO does not read a ROM while memory is not decoded, but reports its size",
        requires: &[Requirement::Vfio],
        cases: &[Case::InGuest(Profile::Iommu, rom)],
    },
    Scenario {
        id: "F13",
        title: "VFIO leaves a BAR where it is, and maps it shared",
        requires: &[Requirement::Vfio],
        cases: &[Case::InGuest(Profile::Iommu, base_address)],
    },
];
