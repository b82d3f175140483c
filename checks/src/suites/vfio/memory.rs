//! F1 to F4, F9 and F12: a process that drives a function through VFIO reaches its BARs as long as they
//! are decoded, and gets an error otherwise.
//!
//! "vfio-pci: Invalidate mmaps and block MMIO access on disabled memory" (Linux 5.8): an access to a
//! BAR that is not decoded is an error on the bus, and some hosts end themselves for it. So VFIO tears
//! mappings down when its user turns decoding off, and asks whether it is on wherever it would make an
//! access, or let one be made.

use testvm::{
    guest::{Denial, Errno, Mapping, OpenFlags, command_register::MEMORY},
    vm::{BarAccesses, Vm, VmError},
};

use crate::{
    framework::{
        Case, CaseResult, Expect as _, Finding, Mitigation, Profile, Recorder, Requirement,
        Scenario,
    },
    suites::vfio::assigned::{Assigned, PowerState, with_assigned, with_equipped},
};

/// What denies a new access to a BAR that is not decoded.
pub const ASKED: &[Mitigation] = &[Mitigation::VfioMemoryCheck];
/// What denies one by a mapping that has been used before.
pub const TORN_DOWN: &[Mitigation] = &[Mitigation::VfioMemoryCheck, Mitigation::VfioZap];

/// What denies accesses to a BAR: by a mapping that has been used before, and by pread(2) and pwrite(2).
#[derive(Clone, Copy)]
pub struct DeniedBy {
    mapping: &'static [Mitigation],
    call: &'static [Mitigation],
}

/// When the BAR is not decoded.
pub const NOT_DECODED: DeniedBy = DeniedBy { mapping: TORN_DOWN, call: ASKED };
/// When its function is in D3hot.
const ASLEEP: DeniedBy = {
    use Mitigation::{VfioMemoryCheck, VfioPowerCheck, VfioZap};
    DeniedBy {
        mapping: &[VfioMemoryCheck, VfioPowerCheck, VfioZap],
        call: &[VfioMemoryCheck, VfioPowerCheck],
    }
};

/// F1: by a mapping SIGBUS, by pread(2) and pwrite(2) EIO, by read(2) into a mapping EFAULT; nothing
/// reaches the device. Control: as long as the BAR is decoded, OK.
pub fn not_decoded(vm: &Vm, t: &mut Recorder) -> CaseResult {
    with_assigned(vm, |assigned| {
        let held = assigned.map_and_use()?;
        let file = assigned.user.open("/init", OpenFlags::RDONLY)?;
        let read_into = || held.read_from(&file, 0, assigned.scratch(), 4);
        t.when("decoded");
        t.control("load", assigned.identity(), assigned.load(&held))?;
        t.control("store", Finding::Done, assigned.store(&held))?;
        t.control("pread(2)", assigned.identity(), assigned.read())?;
        t.control("pwrite(2)", Finding::Done, assigned.write())?;
        t.control("read(2) into the mapping", 4_u64, read_into())?;
        assigned.disable_memory()?;
        let before = assigned.accesses(vm);
        t.when("not decoded");
        check_denied(t, NOT_DECODED, assigned, &held)?;
        let refused = Errno::EFAULT.by(TORN_DOWN).otherwise(4_u64);
        t.check("read(2) into the mapping", refused, read_into())?;
        check_unreached(vm, t, assigned, before);
        Ok(())
    })
}

/// F2: when the BAR is decoded again the same mapping works. Control: it has worked before.
pub fn decoded_again(vm: &Vm, t: &mut Recorder) -> CaseResult {
    with_assigned(vm, |assigned| {
        let held = assigned.map_and_use()?;
        t.when("decoded");
        t.control("load", assigned.identity(), assigned.load(&held))?;
        for again in ["", ", once more"] {
            assigned.disable_memory()?;
            t.when(format_args!("not decoded{again}"));
            t.check("load", Denial::SIGBUS.by(TORN_DOWN), assigned.load(&held))?;
            assigned.enable_memory()?;
            t.when(format_args!("decoded again{again}"));
            t.check("load", assigned.identity(), assigned.load(&held))?;
        }
        Ok(())
    })
}

/// F3: a BAR may be mapped while it is not decoded. Accesses by that mapping are denied, SIGBUS.
/// Control: when the BAR is decoded they work.
pub fn mapped_while_not_decoded(vm: &Vm, t: &mut Recorder) -> CaseResult {
    with_assigned(vm, |assigned| {
        assigned.disable_memory()?;
        let before = assigned.accesses(vm);
        let mapped = assigned.map()?;
        t.when("mapped while not decoded");
        t.check("load", Denial::SIGBUS.by(ASKED), assigned.load(&mapped))?;
        check_unreached(vm, t, assigned, before);
        assigned.enable_memory()?;
        t.when("mapped while not decoded, now decoded");
        t.control("load", assigned.identity(), assigned.load(&mapped))
    })
}

/// F4: it is the same however many bytes of the command register are written at once.
/// Control: the same writes turn decoding on.
pub fn widths(vm: &Vm, t: &mut Recorder) -> CaseResult {
    with_assigned(vm, |assigned| {
        let held = assigned.map_and_use()?;
        let command = assigned.command()?;
        for length in [1, 2, 4] {
            let bytes = if length == 1 { "1 byte" } else { &format!("{length} bytes") };
            assigned.set_command_with(length, command & !MEMORY)?;
            t.when(format_args!("turned off by {bytes}"));
            t.check("load", Denial::SIGBUS.by(TORN_DOWN), assigned.load(&held))?;
            assigned.set_command_with(length, command)?;
            t.when(format_args!("turned on by {bytes}"));
            t.control("load", assigned.identity(), assigned.load(&held))?;
        }
        Ok(())
    })
}

/// F12: a function in D3hot decodes nothing either ("vfio/pci: Invalidate mmaps and block the access
/// in D3hot power state", Linux 5.19). Controls: awake, before and after, OK.
pub fn asleep(vm: &Vm, t: &mut Recorder) -> CaseResult {
    with_equipped(vm, |assigned| {
        let held = assigned.map_and_use()?;
        t.when("D0");
        t.control("load", assigned.identity(), assigned.load(&held))?;
        assigned.set_power_state(PowerState::D3Hot)?;
        let before = assigned.accesses(vm);
        t.when("D3hot");
        check_denied(t, ASLEEP, assigned, &held)?;
        check_unreached(vm, t, assigned, before);
        assigned.set_power_state(PowerState::D0)?;
        t.when("D0 again");
        t.control("load", assigned.identity(), assigned.load(&held))?;
        t.control("pread(2)", assigned.identity(), assigned.read())
    })
}

/// F9: a write that an eventfd stands for is dropped while the BAR is not decoded.
/// Control: decoded, it lands.
pub fn write_on_event(vm: &Vm, t: &mut Recorder) -> CaseResult {
    const MARK: u32 = 0x600d_c0de;
    with_assigned(vm, |assigned| {
        let held = assigned.map_and_use()?;
        let scratch = || held.peek_u32(assigned.scratch());
        let event = assigned.user.create_event_fd()?;
        // The register may read other than what is written.
        held.poke_u32(assigned.scratch(), MARK)?;
        let marked = scratch()?;
        assigned.store(&held)?;
        let unmarked = scratch()?;
        assigned.device.write_on_event(assigned.bar_number(), assigned.scratch(), MARK, &event)?;
        event.signal()?;
        t.when("decoded, event");
        t.control("read", marked, scratch())?;
        assigned.store(&held)?;
        assigned.disable_memory()?;
        let before = assigned.accesses(vm);
        event.signal()?;
        t.when("not decoded, event");
        check_unreached(vm, t, assigned, before);
        assigned.enable_memory()?;
        t.when("not decoded, event, decoded again");
        t.check("read", unmarked, scratch())
    })
}

/// All ways to the BAR are closed.
pub fn check_denied<Access>(
    t: &mut Recorder,
    by: DeniedBy,
    assigned: &Assigned<Access>,
    held: &Mapping,
) -> Result<(), VmError> {
    t.check("load", Denial::SIGBUS.by(by.mapping), assigned.load(held))?;
    t.check("store", Denial::SIGBUS.by(by.mapping), assigned.store(held))?;
    t.check("pread(2)", Errno::EIO.by(by.call), assigned.read())?;
    t.check("pwrite(2)", Errno::EIO.by(by.call), assigned.write())
}

/// The host has seen no access since then: it would see each access that VFIO allows.
pub fn check_unreached<Access>(
    vm: &Vm,
    t: &mut Recorder,
    assigned: &Assigned<Access>,
    before: Option<BarAccesses>,
) {
    let since = || Some(assigned.accesses(vm)?.total() - before?.total());
    let none = Finding::Count(0).by(TORN_DOWN).otherwise_anything();
    t.check_count("accesses that the host sees", none, since());
}

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "F1",
        title: "a BAR that is not decoded cannot be reached by VFIO",
        requires: &[Requirement::Vfio],
        cases: &[Case::InGuest(Profile::Iommu, not_decoded)],
    },
    Scenario {
        id: "F2",
        title: "a mapping by VFIO works again when its BAR is decoded again",
        requires: &[Requirement::Vfio],
        cases: &[Case::InGuest(Profile::Iommu, decoded_again)],
    },
    Scenario {
        id: "F3",
        title: "a BAR may be mapped by VFIO while it is not decoded, and not be used",
        requires: &[Requirement::Vfio],
        cases: &[Case::InGuest(Profile::Iommu, mapped_while_not_decoded)],
    },
    Scenario {
        id: "F4",
        title: "VFIO sees decoding turned off by a write of any width",
        requires: &[Requirement::Vfio],
        cases: &[Case::InGuest(Profile::Iommu, widths)],
    },
    Scenario {
        id: "F9",
        title: "VFIO drops what an event has it write to a BAR that is not decoded",
        requires: &[Requirement::Vfio],
        cases: &[Case::InGuest(Profile::Iommu, write_on_event)],
    },
    Scenario {
        id: "F12",
        title: "a BAR of a function in D3hot cannot be reached by VFIO",
        requires: &[Requirement::Vfio],
        cases: &[Case::InGuest(Profile::Iommu, asleep)],
    },
];
