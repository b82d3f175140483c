//! F6, F7 and F16: a function's interrupts, as VFIO passes them on.

use super::{
    PAGE, Told,
    assigned::{Assigned, MsixTable, with_assigned, with_equipped},
};
use crate::{
    guest::{
        Errno, GuestError,
        VfioInterrupt::{Intx, MsiX},
        VfioRegion,
        command_register::{BUS_MASTER, INTX_DISABLE},
    },
    report::{Finding, Observations},
    vm::Vm,
};

/// F6: MSI-X can be turned on and off while memory is not decoded: VFIO has it decoded as long as it
/// programs the table, and no longer. Control: before, no entry is programmed.
pub fn set_up_while_not_decoded(vm: &Vm, seen: &mut Observations) -> Told {
    with_equipped(vm, |assigned| {
        let table = assigned.msix_table()?;
        let held = assigned.device.map(table.bar, PAGE)?;
        let vector_control = || held.peek_u32(table.offset + MsixTable::VECTOR_CONTROL);
        let event = assigned.user.create_event_fd()?;
        let enable = || assigned.device.enable_interrupts(MsiX, &[&event]);
        seen.control("before: vector control", MsixTable::MASKED, vector_control())?;
        assigned.disable_memory()?;
        let before = assigned.accesses(vm);
        for (action, done) in [
            ("enable", enable()),
            ("disable", assigned.device.disable_interrupts(MsiX)),
            ("enable again", enable()),
        ] {
            seen.check(format!("not decoded: {action} MSI-X"), Finding::Done, done)?;
        }
        seen.check("not decoded, MSI-X enabled: memory", "not decoded", assigned.decoding()?)?;
        let refused = || Some(assigned.accesses(vm)?.refused - before?.refused);
        seen.check_count("not decoded: accesses that reach nothing", 0, refused())?;
        assigned.enable_memory()?;
        seen.check("decoded again: vector control", 0_u32, vector_control())?;
        let address = held.peek_u32(table.offset)?;
        let target = if address >> 20 == 0xfee { "a local APIC" } else { "somewhere else" };
        Ok(seen.check("decoded again: message address", "a local APIC", target)?)
    })
}

/// F7: VFIO can raise an interrupt itself. The function can as long as it is bus master, decoded or not.
/// Controls: VFIO cannot as long as MSI-X is off, EINVAL; the function cannot if it is no bus master.
pub fn raised(vm: &Vm, seen: &mut Observations) -> Told {
    with_assigned(vm, |assigned| {
        let event = assigned.user.create_event_fd()?;
        let trigger = || assigned.device.trigger_interrupt(MsiX);
        seen.control("MSI-X off: triggered by VFIO", Errno::EINVAL, trigger())?;
        assigned.device.enable_interrupts(MsiX, &[&event])?;
        trigger()?;
        seen.check("triggered by VFIO: events", 1_u64, event.wait())?;
        assigned.disable_memory()?;
        let command = assigned.command()?;
        assigned.set_command(command & !BUS_MASTER)?;
        raise(assigned)?;
        seen.control("not decoded, no bus master, raised: events", 0_u64, event.count())?;
        assigned.set_command(command)?;
        seen.check("not decoded, now bus master: events", 1_u64, event.wait())?;
        raise(assigned)?;
        Ok(seen.check("not decoded, bus master, raised: events", 1_u64, event.wait())?)
    })
}

/// docs/probe.md: BAR 5, for when memory is not decoded.
fn raise(assigned: &Assigned) -> Result<(), GuestError> {
    const INTERRUPT: u64 = 0xc;
    const FIRST_VECTOR: u32 = 0;
    assigned.device.write(VfioRegion::Bar(5), INTERRUPT, &FIRST_VECTOR.to_le_bytes())
}

/// F16: VFIO tells of INTx once, and masks it until its user unmasks it. If it is still asserted then,
/// VFIO tells of it again. The user can disable it by the command register too.
/// Control: deasserted and unmasked, no event.
pub fn level_triggered(vm: &Vm, seen: &mut Observations) -> Told {
    with_assigned(vm, |assigned| {
        let event = assigned.user.create_event_fd()?;
        let command = assigned.command()?;
        let disabled = || {
            let is_disabled = assigned.physical_command()? & INTX_DISABLE != 0;
            Ok::<_, GuestError>(if is_disabled { "disabled" } else { "enabled" })
        };
        assigned.device.enable_interrupts(Intx, &[&event])?;
        seen.control("before: INTx", "enabled", disabled()?)?;
        seen.control("before: events", 0_u64, event.count())?;
        assigned.assert_intx(true)?;
        seen.check("asserted: events", 1_u64, event.wait())?;
        seen.check("asserted, masked by VFIO: INTx", "disabled", disabled()?)?;
        seen.check("asserted, masked by VFIO: further events", 0_u64, event.count())?;
        assigned.device.unmask_intx()?;
        seen.check("asserted, unmasked: events", 1_u64, event.wait())?;
        assigned.assert_intx(false)?;
        assigned.device.unmask_intx()?;
        seen.control("deasserted, unmasked: events", 0_u64, event.count())?;
        assigned.set_command(command | INTX_DISABLE)?;
        assigned.assert_intx(true)?;
        seen.check("asserted, disabled by its user: events", 0_u64, event.count())?;
        assigned.set_command(command)?;
        seen.check("asserted, enabled by its user: events", 1_u64, event.wait())?;
        assigned.assert_intx(false)
    })
}
