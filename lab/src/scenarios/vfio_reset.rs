//! F10 and F11: resets that the user of a function asks VFIO for.

use super::{
    PAGE, Told,
    assigned::{
        Assigned, PowerState, with_assigned, with_assigned_below_a_root_port, with_equipped,
    },
    vfio_memory::TORN_DOWN,
};
use crate::{
    guest::{
        Denial, GuestError, Polled, Polling,
        VfioInterrupt::MsiX,
        Width,
        command_register::{INTX_DISABLE, MEMORY},
    },
    report::{Finding, Observations, Protection},
    vm::{Vm, VmError},
};

/// F10: after a reset of its own or of its bus the user has the function as before, but for what a reset
/// clears.
pub fn resets(vm: &Vm, seen: &mut Observations) -> Told {
    with_assigned(vm, |assigned| {
        check_restored(seen, "reset", assigned, || assigned.device.reset())
    })?;
    with_assigned_below_a_root_port(vm, |assigned| {
        check_restored(seen, "hot reset", assigned, || assigned.device.hot_reset())
    })
}

/// The same mapping works, and the same interrupts. Where memory was not decoded it is not.
/// Controls: what was written before the reset reads before, and not after.
fn check_restored(
    seen: &mut Observations,
    name: &str,
    assigned: &Assigned,
    reset: impl Fn() -> Result<(), GuestError>,
) -> Result<(), VmError> {
    const MARK: u32 = 0x600d_c0de;
    let held = assigned.map_and_use()?;
    let scratch = || held.peek_u32(assigned.scratch());
    let table = assigned.msix_table()?;
    let held_table = assigned.device.map(table.bar, PAGE)?;
    let message_address = || held_table.peek_u32(table.offset);
    // Turning MSI-X on, the kernel disables INTx, and VFIO puts the register back as it was. After a
    // reset only the kernel has its say.
    let command = || Ok(assigned.physical_command()? & !INTX_DISABLE);
    let event = assigned.user.create_event_fd()?;
    assigned.device.enable_interrupts(MsiX, &[&event])?;
    let (address_before, command_before) = (message_address()?, command()?);
    held.poke_u32(assigned.scratch(), MARK)?;
    seen.control(format!("before {name}: what was written"), MARK, scratch())?;
    seen.check(name, Finding::Done, reset())?;
    seen.control(format!("after {name}: what was written"), 0_u32, scratch())?;
    seen.check(format!("after {name}: load"), assigned.identity(), assigned.load(&held))?;
    seen.check(format!("after {name}: command register"), command_before, command())?;
    seen.check(format!("after {name}: message address"), address_before, message_address())?;
    held.poke_u32(INTERRUPT, 0)?;
    seen.check(format!("after {name}, raised: events"), 1_u64, event.wait())?;
    assigned.disable_memory()?;
    seen.check(format!("not decoded: {name}"), Finding::Done, reset())?;
    let tried = format!("not decoded, {name}: memory");
    seen.check(tried, "not decoded", assigned.decoding()?)?;
    let (tried, load) = (format!("not decoded, {name}: load"), assigned.load(&held));
    Ok(seen.check_with(TORN_DOWN, tried, Denial::SIGBUS, Finding::Done, load)?)
}

/// docs/probe.md: raises a vector.
const INTERRUPT: u64 = 0x100;

const STRAY: &str = "accesses that reach nothing";
/// What keeps a user from a function in a reset: VFIO puts no page back before it is over.
const ZAPPED: &[Protection] = &[Protection::VfioZap];

/// F11: who uses a mapping all the while a reset lasts, of the function or of its bus, makes no access
/// until it is over. Who uses it as the function falls asleep gets SIGBUS, and makes none either.
/// Control: decoding is turned off behind VFIO's back, and accesses do go astray.
pub fn used_in_a_reset(vm: &Vm, seen: &mut Observations) -> Told {
    with_assigned(vm, |assigned| {
        check_unreached(vm, seen, "reset", ZAPPED, assigned, Finding::Done, |polling| {
            assigned.device.reset()?;
            Ok(polling.stop()?)
        })
    })?;
    with_assigned_below_a_root_port(vm, |assigned| {
        check_unreached(vm, seen, "hot reset", ZAPPED, assigned, Finding::Done, |polling| {
            assigned.device.hot_reset()?;
            Ok(polling.stop()?)
        })
    })?;
    with_equipped(vm, |assigned| {
        check_unreached(vm, seen, "D3hot", TORN_DOWN, assigned, Denial::SIGBUS.into(), |polling| {
            assigned.set_power_state(PowerState::D3Hot)?;
            let polled = polling.stop()?;
            assigned.set_power_state(PowerState::D0)?;
            Ok(polled)
        })
    })?;
    with_assigned(vm, |assigned| {
        let held = assigned.map_and_use()?;
        let refused = || assigned.accesses(vm).map(|accesses| accesses.refused);
        let before = refused();
        let command = assigned.physical_command()?;
        let polling = held.start_polling(0, Width::Long)?;
        assigned.function.set_command(command & !MEMORY)?;
        polling.stop()?;
        assigned.function.set_command(command)?;
        let some = if refused() > before { "some" } else { "none" };
        Ok(seen.control(format!("turned off behind VFIO's back: {STRAY}"), "some", some)?)
    })
}

/// Somebody uses the function all the while that something is done to it, and that comes to `expected`
/// for what protects it.
fn check_unreached(
    vm: &Vm,
    seen: &mut Observations,
    name: &str,
    by: &[Protection],
    assigned: &Assigned,
    expected: Finding,
    done: impl FnOnce(Polling) -> Result<Polled, VmError>,
) -> Result<(), VmError> {
    let held = assigned.map_and_use()?;
    let refused = || assigned.accesses(vm).map(|accesses| accesses.refused);
    let before = refused();
    let polled = done(held.start_polling(0, Width::Long)?)?;
    let tried = format!("used in {name}: the user");
    seen.check_with(by, tried, expected, Finding::Done, Ok(polled))?;
    let since = || Some(refused()? - before?);
    if !by.iter().any(|&protection| seen.lacks(protection)) {
        seen.check_count(format!("used in {name}: {STRAY}"), 0, since())?;
    }
    Ok(())
}
