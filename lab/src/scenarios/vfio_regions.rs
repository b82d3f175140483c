//! F5, F8 and F13: what VFIO shows of a function besides its registers.

use super::{
    PAGE, Told,
    assigned::{MsixTable, with_assigned, with_equipped},
    vfio_memory::{ASKED, TORN_DOWN},
};
use crate::{
    guest::{Denial, Errno, Sharing, VfioRegion},
    report::{Finding, Observations},
    vm::Vm,
};

/// F5: pread(2) shows all ones for the MSI-X table, which is VFIO's own to program, decoded or not. What
/// is beside it in its BAR is like any other BAR, and so is the table by a mapping.
/// Control: decoded, the rest of that BAR reads.
pub fn msix_table(vm: &Vm, seen: &mut Observations) -> Told {
    with_equipped(vm, |assigned| {
        let table = assigned.msix_table()?;
        let bar = VfioRegion::Bar(table.bar);
        let read = |offset| assigned.device.read_u32(bar, offset);
        let held = assigned.map_and_use_of(table.bar)?;
        let load = || held.peek_u32(table.offset + MsixTable::VECTOR_CONTROL);
        seen.check("decoded: pread(2) of the table", u32::MAX, read(table.offset))?;
        seen.control("decoded: pread(2) beside the table", Finding::Done, read(table.end()))?;
        seen.control("decoded: load from the table", MsixTable::MASKED, load())?;
        assigned.disable_memory()?;
        seen.check("not decoded: pread(2) of the table", u32::MAX, read(table.offset))?;
        let (tried, beside) = ("not decoded: pread(2) beside the table", read(table.end()));
        seen.check_with(ASKED, tried, Errno::EIO, Finding::Done, beside)?;
        let tried = "not decoded: load from the table";
        Ok(seen.check_with(TORN_DOWN, tried, Denial::SIGBUS, Finding::Done, load())?)
    })
}

/// F8: the ROM cannot be read while memory is not decoded, ENOMEM; its size is told all the same, and
/// decoding stays as it is; it cannot be mapped, EINVAL. Control: decoded, its signature reads.
pub fn rom(vm: &Vm, seen: &mut Observations) -> Told {
    const SIGNATURE: u16 = 0xaa55;
    with_equipped(vm, |assigned| {
        let signature = || {
            let bytes = assigned.device.read(VfioRegion::Rom, 0, 2)?;
            Ok(bytes.iter().rev().fold(0_u16, |value, &byte| value << 8 | u16::from(byte)))
        };
        let size = || assigned.device.region_size(VfioRegion::Rom);
        let size_when_decoded = size()?;
        seen.control("decoded: read the ROM's signature", SIGNATURE, signature())?;
        assigned.disable_memory()?;
        seen.check("not decoded: read the ROM's signature", Errno::ENOMEM, signature())?;
        seen.check("not decoded: size of the ROM", size_when_decoded, size())?;
        seen.check("not decoded, asked for the size: memory", "not decoded", assigned.decoding()?)?;
        assigned.enable_memory()?;
        let mapped = assigned.device.map_as(VfioRegion::Rom, PAGE, Sharing::Shared);
        Ok(seen.check("decoded: mmap of the ROM", Errno::EINVAL, mapped)?)
    })
}

/// F13: the user may ask a base address register how large its BAR is, and move it, as far as it sees;
/// the BAR itself stays where it is. It cannot be mapped privately, EINVAL: a copy would not be the
/// device's. Control: shared, OK.
pub fn base_address(vm: &Vm, seen: &mut Observations) -> Told {
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
        seen.check("all ones written: base address register", mask, read())?;
        seen.check("all ones written: load", assigned.identity(), assigned.load(&held))?;
        write(original)?;
        seen.control("address written: base address register", original, read())?;
        let private = assigned.device.map_as(assigned.bar(), PAGE, Sharing::Private);
        seen.check("mmap, private", Errno::EINVAL, private)?;
        Ok(seen.control("mmap, shared", Finding::Done, assigned.map())?)
    })
}
