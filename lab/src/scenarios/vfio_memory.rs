//! F1 to F4, F12 and F13: who drives a function through VFIO reaches its BARs as long as it decodes
//! them, and gets an error otherwise.
//!
//! "vfio-pci: Invalidate mmaps and block MMIO access on disabled memory" (Linux 5.8): an access to a
//! BAR that is not decoded is an error on the bus, and some hosts end themselves for it. So VFIO tears
//! mappings down when its user turns decoding off, and asks whether it is on wherever it would make an
//! access, or let one be made.

use super::{
    Told,
    assigned::{Assigned, with_assigned},
};
use crate::{
    guest::{Denial, Errno, GuestError, Mapping, OpenFlags},
    report::{Finding, Observations, Protection},
    vm::{Vm, VmError},
};

/// What denies a new access to a BAR that is not decoded.
pub const ASKED: &[Protection] = &[Protection::VfioMemoryCheck];
/// What denies one by a mapping that has been used before.
pub const TORN_DOWN: &[Protection] = &[Protection::VfioMemoryCheck, Protection::VfioZap];

/// F1: by a mapping SIGBUS, by pread(2) and pwrite(2) EIO, by read(2) into a mapping EFAULT; nothing
/// reaches the device. Control: as long as the BAR is decoded, OK.
pub fn not_decoded(vm: &Vm, seen: &mut Observations) -> Told {
    with_assigned(vm, |assigned| {
        let held = assigned.map()?;
        let file = assigned.user.open("/init", OpenFlags::RDONLY)?;
        let read_into = || held.read_from(&file, 0, assigned.scratch(), 4);
        seen.control("decoded: load", assigned.identity(), assigned.load(&held))?;
        seen.control("decoded: store", Finding::Done, assigned.store(&held))?;
        seen.control("decoded: pread(2)", assigned.identity(), assigned.read())?;
        seen.control("decoded: pwrite(2)", Finding::Done, assigned.write())?;
        seen.control("decoded: read(2) into the mapping", 4_u64, read_into())?;
        assigned.disable_memory()?;
        let before = assigned.accesses(vm);
        check_denied(seen, "not decoded", assigned, &held)?;
        let (tried, read) = ("not decoded: read(2) into the mapping", read_into());
        seen.check_with(TORN_DOWN, tried, Errno::EFAULT, 4_u64, read)?;
        check_unreached(vm, seen, "not decoded", assigned, before)
    })
}

/// All ways to the BAR are closed.
pub fn check_denied(
    seen: &mut Observations,
    when: &str,
    assigned: &Assigned,
    held: &Mapping,
) -> Result<(), GuestError> {
    let load = assigned.load(held);
    seen.check_with(TORN_DOWN, format!("{when}: load"), Denial::SIGBUS, Finding::Done, load)?;
    let store = assigned.store(held);
    seen.check_with(TORN_DOWN, format!("{when}: store"), Denial::SIGBUS, Finding::Done, store)?;
    let read = assigned.read();
    seen.check_with(ASKED, format!("{when}: pread(2)"), Errno::EIO, Finding::Done, read)?;
    let write = assigned.write();
    seen.check_with(ASKED, format!("{when}: pwrite(2)"), Errno::EIO, Finding::Done, write)
}

/// The host has seen no access since. One that VFIO lets pass it does see.
pub fn check_unreached(
    vm: &Vm,
    seen: &mut Observations,
    when: &str,
    assigned: &Assigned,
    before: Option<u64>,
) -> Result<(), VmError> {
    let since = || Some(assigned.accesses(vm)? - before?);
    if TORN_DOWN.iter().any(|&protection| seen.lacks(protection)) {
        return Ok(());
    }
    Ok(seen.check_count(format!("{when}: accesses that the host sees"), 0, since())?)
}
