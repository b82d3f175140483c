//! F1 to F4, F9 and F12: who drives a function through VFIO reaches its BARs as long as it decodes
//! them, and gets an error otherwise.
//!
//! "vfio-pci: Invalidate mmaps and block MMIO access on disabled memory" (Linux 5.8): an access to a
//! BAR that is not decoded is an error on the bus, and some hosts end themselves for it. So VFIO tears
//! mappings down when its user turns decoding off, and asks whether it is on wherever it would make an
//! access, or let one be made.

use super::{
    Told,
    assigned::{Assigned, PowerState, with_assigned, with_equipped},
};
use crate::{
    guest::{Denial, Errno, GuestError, Mapping, OpenFlags, command_register::MEMORY},
    report::{Finding, Observations, Protection},
    vm::{BarAccesses, Vm, VmError},
};

/// What denies a new access to a BAR that is not decoded.
pub const ASKED: &[Protection] = &[Protection::VfioMemoryCheck];
/// What denies one by a mapping that has been used before.
pub const TORN_DOWN: &[Protection] = &[Protection::VfioMemoryCheck, Protection::VfioZap];

/// What denies accesses to a BAR: by a mapping that has been used before, and by pread(2) and pwrite(2).
#[derive(Clone, Copy)]
pub struct DeniedBy {
    mapping: &'static [Protection],
    call: &'static [Protection],
}

/// When the BAR is not decoded.
pub const NOT_DECODED: DeniedBy = DeniedBy { mapping: TORN_DOWN, call: ASKED };
/// When its function sleeps.
const ASLEEP: DeniedBy = {
    use Protection::{VfioMemoryCheck, VfioPowerCheck, VfioZap};
    DeniedBy {
        mapping: &[VfioMemoryCheck, VfioPowerCheck, VfioZap],
        call: &[VfioMemoryCheck, VfioPowerCheck],
    }
};

/// F1: by a mapping SIGBUS, by pread(2) and pwrite(2) EIO, by read(2) into a mapping EFAULT; nothing
/// reaches the device. Control: as long as the BAR is decoded, OK.
pub fn not_decoded(vm: &Vm, seen: &mut Observations) -> Told {
    with_assigned(vm, |assigned| {
        let held = assigned.map_and_use()?;
        let file = assigned.user.open("/init", OpenFlags::RDONLY)?;
        let read_into = || held.read_from(&file, 0, assigned.scratch(), 4);
        seen.control("decoded: load", assigned.identity(), assigned.load(&held))?;
        seen.control("decoded: store", Finding::Done, assigned.store(&held))?;
        seen.control("decoded: pread(2)", assigned.identity(), assigned.read())?;
        seen.control("decoded: pwrite(2)", Finding::Done, assigned.write())?;
        seen.control("decoded: read(2) into the mapping", 4_u64, read_into())?;
        assigned.disable_memory()?;
        let before = assigned.accesses(vm);
        check_denied(seen, "not decoded", NOT_DECODED, assigned, &held)?;
        let (tried, read) = ("not decoded: read(2) into the mapping", read_into());
        seen.check_with(TORN_DOWN, tried, Errno::EFAULT, 4_u64, read)?;
        check_unreached(vm, seen, "not decoded", assigned, before)
    })
}

/// F2: when the BAR is decoded again the same mapping works. Control: it has worked before.
pub fn decoded_again(vm: &Vm, seen: &mut Observations) -> Told {
    with_assigned(vm, |assigned| {
        let held = assigned.map_and_use()?;
        seen.control("decoded: load", assigned.identity(), assigned.load(&held))?;
        for again in ["", ", once more"] {
            assigned.disable_memory()?;
            let (tried, load) = (format!("not decoded{again}: load"), assigned.load(&held));
            seen.check_with(TORN_DOWN, tried, Denial::SIGBUS, Finding::Done, load)?;
            assigned.enable_memory()?;
            let (tried, load) = (format!("decoded again{again}: load"), assigned.load(&held));
            seen.check(tried, assigned.identity(), load)?;
        }
        Ok(())
    })
}

/// F3: a BAR may be mapped while it is not decoded. Accesses by that mapping are denied, SIGBUS.
/// Control: when the BAR is decoded they work.
pub fn mapped_while_not_decoded(vm: &Vm, seen: &mut Observations) -> Told {
    with_assigned(vm, |assigned| {
        assigned.disable_memory()?;
        let before = assigned.accesses(vm);
        let mapped = assigned.map()?;
        let load = assigned.load(&mapped);
        let tried = "mapped while not decoded: load";
        seen.check_with(ASKED, tried, Denial::SIGBUS, Finding::Done, load)?;
        check_unreached(vm, seen, "mapped while not decoded", assigned, before)?;
        assigned.enable_memory()?;
        let (tried, load) = ("mapped while not decoded, now decoded: load", assigned.load(&mapped));
        Ok(seen.control(tried, assigned.identity(), load)?)
    })
}

/// F4: it is the same however many bytes of the command register are written at once.
/// Control: the same writes turn decoding on.
pub fn widths(vm: &Vm, seen: &mut Observations) -> Told {
    with_assigned(vm, |assigned| {
        let held = assigned.map_and_use()?;
        let command = assigned.command()?;
        for length in [1, 2, 4] {
            let bytes = if length == 1 { "1 byte" } else { &format!("{length} bytes") };
            assigned.set_command_with(length, command & !MEMORY)?;
            let (tried, load) = (format!("turned off by {bytes}: load"), assigned.load(&held));
            seen.check_with(TORN_DOWN, tried, Denial::SIGBUS, Finding::Done, load)?;
            assigned.set_command_with(length, command)?;
            let (tried, load) = (format!("turned on by {bytes}: load"), assigned.load(&held));
            seen.control(tried, assigned.identity(), load)?;
        }
        Ok(())
    })
}

/// F12: a function that sleeps decodes nothing either ("vfio/pci: Invalidate mmaps and block the access
/// in D3hot power state", Linux 5.19). Controls: awake, before and after, OK.
pub fn asleep(vm: &Vm, seen: &mut Observations) -> Told {
    with_equipped(vm, |assigned| {
        let held = assigned.map_and_use()?;
        seen.control("D0: load", assigned.identity(), assigned.load(&held))?;
        assigned.set_power_state(PowerState::D3Hot)?;
        let before = assigned.accesses(vm);
        check_denied(seen, "D3hot", ASLEEP, assigned, &held)?;
        check_unreached(vm, seen, "D3hot", assigned, before)?;
        assigned.set_power_state(PowerState::D0)?;
        seen.control("D0 again: load", assigned.identity(), assigned.load(&held))?;
        Ok(seen.control("D0 again: pread(2)", assigned.identity(), assigned.read())?)
    })
}

/// F9: a write that an eventfd stands for is dropped while the BAR is not decoded.
/// Control: decoded, it lands.
pub fn write_on_event(vm: &Vm, seen: &mut Observations) -> Told {
    const MARK: u32 = 0x600d_c0de;
    with_assigned(vm, |assigned| {
        let held = assigned.map_and_use()?;
        let scratch = || held.peek_u32(assigned.scratch());
        let event = assigned.user.create_event_fd()?;
        // What is written need not be what is read.
        held.poke_u32(assigned.scratch(), MARK)?;
        let marked = scratch()?;
        assigned.store(&held)?;
        let unmarked = scratch()?;
        assigned.device.write_on_event(assigned.bar_number(), assigned.scratch(), MARK, &event)?;
        event.signal()?;
        seen.control("decoded, event: read", marked, scratch())?;
        assigned.store(&held)?;
        assigned.disable_memory()?;
        let before = assigned.accesses(vm);
        event.signal()?;
        check_unreached(vm, seen, "not decoded, event", assigned, before)?;
        assigned.enable_memory()?;
        Ok(seen.check("not decoded, event, decoded again: read", unmarked, scratch())?)
    })
}

/// All ways to the BAR are closed.
pub fn check_denied<Access>(
    seen: &mut Observations,
    when: &str,
    by: DeniedBy,
    assigned: &Assigned<Access>,
    held: &Mapping,
) -> Result<(), GuestError> {
    let load = assigned.load(held);
    seen.check_with(by.mapping, format!("{when}: load"), Denial::SIGBUS, Finding::Done, load)?;
    let store = assigned.store(held);
    seen.check_with(by.mapping, format!("{when}: store"), Denial::SIGBUS, Finding::Done, store)?;
    let read = assigned.read();
    seen.check_with(by.call, format!("{when}: pread(2)"), Errno::EIO, Finding::Done, read)?;
    let write = assigned.write();
    seen.check_with(by.call, format!("{when}: pwrite(2)"), Errno::EIO, Finding::Done, write)
}

/// The host has seen no access since. One that VFIO lets pass it does see.
pub fn check_unreached<Access>(
    vm: &Vm,
    seen: &mut Observations,
    when: &str,
    assigned: &Assigned<Access>,
    before: Option<BarAccesses>,
) -> Result<(), VmError> {
    if TORN_DOWN.iter().any(|&protection| seen.lacks(protection)) {
        return Ok(());
    }
    let since = || Some(assigned.accesses(vm)?.total() - before?.total());
    Ok(seen.check_count(format!("{when}: accesses that the host sees"), 0, since())?)
}
