//! F6, F7 and F16: a function's interrupts, as VFIO passes them on.

use testvm::{
    PAGE,
    guest::{
        Errno, GuestError,
        VfioInterrupt::{Intx, MsiX},
        VfioRegion,
        command_register::{BUS_MASTER, INTX_DISABLE},
        status_register::INTERRUPT,
    },
    vm::{Feature, Vm},
};

use crate::{
    framework::{Case, CaseResult, Finding, Profile, Recorder, Requirement, Scenario},
    suites::vfio::assigned::{Assigned, MsixTable, with_assigned, with_equipped},
};

/// F6: MSI-X can be turned on and off while memory is not decoded: VFIO has it decoded as long as it
/// programs the table, and no longer. Control: before, no entry is programmed.
pub fn set_up_while_not_decoded(vm: &Vm, t: &mut Recorder) -> CaseResult {
    with_equipped(vm, |assigned| {
        let table = assigned.msix_table()?;
        let held = assigned.device.map(table.bar, PAGE)?;
        let vector_control = || held.peek_u32(table.offset + MsixTable::VECTOR_CONTROL);
        let event = assigned.user.create_event_fd()?;
        let enable = || assigned.device.enable_interrupts(MsiX, &[&event]);
        t.when("before");
        t.control("vector control", MsixTable::MASKED, vector_control())?;
        assigned.disable_memory()?;
        let before = assigned.accesses(vm);
        t.when("not decoded");
        for (action, done) in [
            ("enable", enable()),
            ("disable", assigned.device.disable_interrupts(MsiX)),
            ("enable again", enable()),
        ] {
            t.check(format_args!("{action} MSI-X"), Finding::Done, done)?;
        }
        t.when("not decoded, MSI-X enabled");
        t.check("memory", "not decoded", assigned.decoding()?)?;
        let refused = || Some(assigned.accesses(vm)?.refused - before?.refused);
        t.when("not decoded");
        t.check_count("accesses that reach nothing", Finding::Count(0), refused());
        assigned.enable_memory()?;
        t.when("decoded again");
        t.check("vector control", 0_u32, vector_control())?;
        let address = held.peek_u32(table.offset)?;
        let target = if address >> 20 == 0xfee { "a local APIC" } else { "somewhere else" };
        t.check("message address", "a local APIC", target)
    })
}

/// F7: VFIO can raise an interrupt itself. The function can as long as it is bus master, decoded or not.
/// Controls: VFIO cannot as long as MSI-X is off, EINVAL; the function cannot if it is not bus master, and
/// then has the vector pending. So it has not sent the message, and no event is on its way.
pub fn raised(vm: &Vm, t: &mut Recorder) -> CaseResult {
    with_assigned(vm, |assigned| {
        let event = assigned.user.create_event_fd()?;
        let trigger = || assigned.device.trigger_interrupt(MsiX);
        t.when("MSI-X off");
        t.control("triggered by VFIO", Errno::EINVAL, trigger())?;
        assigned.device.enable_interrupts(MsiX, &[&event])?;
        trigger()?;
        t.when("triggered by VFIO");
        t.check("events", 1_u64, event.wait())?;
        assigned.disable_memory()?;
        let command = assigned.command()?;
        assigned.set_command(command & !BUS_MASTER)?;
        raise(assigned)?;
        // The Pending Bit Array is in memory.
        assigned.enable_memory()?;
        let sent = if assigned.is_first_vector_pending()? { "pending" } else { "sent" };
        t.when("raised when not decoded, not bus master");
        t.control("message", "pending", sent)?;
        t.control("events", 0_u64, event.count())?;
        assigned.set_command(command)?;
        t.when("not decoded, now bus master");
        t.check("events", 1_u64, event.wait())?;
        raise(assigned)?;
        t.when("not decoded, bus master, raised");
        t.check("events", 1_u64, event.wait())
    })
}

/// docs/probe.md: BAR 5, for when memory is not decoded.
fn raise(assigned: &Assigned) -> Result<(), GuestError> {
    const INTERRUPT: u64 = 0xc;
    const FIRST_VECTOR: u32 = 0;
    assigned.device.write(VfioRegion::Bar(5), INTERRUPT, &FIRST_VECTOR.to_le_bytes())
}

/// F16: VFIO signals INTx once, and masks it until its user unmasks it. If it is still asserted then,
/// VFIO signals it again. The user can disable it by the command register too.
/// Control: deasserted and unmasked, no event.
///
/// Where no event comes, the function's registers show that none is on its way: it has INTx disabled
/// while an interrupt is pending, or still enabled, and VFIO disables it before it signals the eventfd.
pub fn level_triggered(vm: &Vm, t: &mut Recorder) -> CaseResult {
    with_assigned(vm, |assigned| {
        let event = assigned.user.create_event_fd()?;
        let command = assigned.command()?;
        let intx = || intx(assigned);
        assigned.device.enable_interrupts(Intx, &[&event])?;
        t.when("before");
        t.control("INTx", "enabled", intx()?)?;
        t.control("events", 0_u64, event.count())?;
        assigned.assert_intx(true)?;
        t.when("asserted");
        t.check("events", 1_u64, event.wait())?;
        t.when("asserted, masked by VFIO");
        t.check("INTx", "pending, disabled", intx()?)?;
        t.check("further events", 0_u64, event.count())?;
        assigned.device.unmask_intx()?;
        t.when("asserted, unmasked");
        t.check("events", 1_u64, event.wait())?;
        assigned.assert_intx(false)?;
        assigned.device.unmask_intx()?;
        t.when("deasserted, unmasked");
        t.control("INTx", "enabled", intx()?)?;
        t.control("events", 0_u64, event.count())?;
        assigned.set_command(command | INTX_DISABLE)?;
        t.when("disabled by its user");
        t.check("INTx", "disabled", intx()?)?;
        assigned.assert_intx(true)?;
        t.when("asserted, disabled by its user");
        t.check("INTx", "pending, disabled", intx()?)?;
        t.check("events", 0_u64, event.count())?;
        assigned.set_command(command)?;
        t.when("asserted, enabled by its user");
        t.check("events", 1_u64, event.wait())?;
        assigned.assert_intx(false)
    })
}

/// INTx as the function itself has it: PCI 3.0, 6.2.2 and 6.2.3.
fn intx(assigned: &Assigned) -> Result<&'static str, GuestError> {
    let is_pending = assigned.function.status()? & INTERRUPT != 0;
    let is_disabled = assigned.physical_command()? & INTX_DISABLE != 0;
    Ok(match (is_pending, is_disabled) {
        (false, false) => "enabled",
        (false, true) => "disabled",
        (true, false) => "asserted",
        (true, true) => "pending, disabled",
    })
}

const PROBE: &[Requirement] = &[Requirement::Vfio, Requirement::Monitor(Feature::Probe)];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "F6",
        title: "VFIO programs the MSI-X table while its BAR is not decoded",
        requires: &[Requirement::Vfio],
        cases: &[Case::InGuest(Profile::Iommu, set_up_while_not_decoded)],
    },
    Scenario {
        id: "F7",
        title: "MSI-X arrives by VFIO whether or not memory is decoded",
        requires: PROBE,
        cases: &[Case::InGuest(Profile::Iommu, raised)],
    },
    Scenario {
        id: "F16",
        title: "VFIO masks INTx when it is raised, until its user unmasks it",
        requires: &[Requirement::Vfio],
        cases: &[Case::InGuest(Profile::Iommu, level_triggered)],
    },
];
