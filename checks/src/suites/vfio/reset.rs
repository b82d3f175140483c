//! F10 and F11: resets that the user of a function asks VFIO for.

use std::fmt;

use testvm::{
    PAGE,
    guest::{
        Denial, GuestError,
        VfioInterrupt::MsiX,
        Width,
        command_register::{INTX_DISABLE, MEMORY},
    },
    vm::{Feature, Vm, VmError},
};

use crate::{
    framework::{
        Case, CaseResult, Expect as _, Expected, Finding, Mitigation, Profile, Recorder,
        Requirement, Scenario,
    },
    suites::vfio::{
        assigned::{
            Assigned, PowerState, with_assigned, with_assigned_below_a_root_port, with_equipped,
        },
        memory::TORN_DOWN,
    },
};

/// F10: after a reset of its own or of its bus the user has the function as before, but for what a reset
/// clears.
pub fn resets(vm: &Vm, t: &mut Recorder) -> CaseResult {
    with_assigned(vm, |assigned| check_restored(t, assigned, Reset::Function))?;
    with_assigned_below_a_root_port(vm, |assigned| check_restored(t, assigned, Reset::Bus))
}

/// A reset that the user of a function asks VFIO for.
#[derive(Clone, Copy)]
enum Reset {
    Function,
    Bus,
}

impl Reset {
    fn of(self, assigned: &Assigned) -> Result<(), GuestError> {
        match self {
            Self::Function => assigned.device.reset(),
            Self::Bus => assigned.device.hot_reset(),
        }
    }
}

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Function => "reset",
            Self::Bus => "hot reset",
        })
    }
}

/// The same mapping works, and the same interrupts. Where memory was not decoded it is not.
/// Controls: what was written before the reset reads before, and not after.
fn check_restored(t: &mut Recorder, assigned: &Assigned, reset: Reset) -> Result<(), VmError> {
    const MARK: u32 = 0x600d_c0de;
    let held = assigned.map_and_use()?;
    let scratch = || held.peek_u32(assigned.scratch());
    let table = assigned.msix_table()?;
    let held_table = assigned.device.map(table.bar, PAGE)?;
    let message_address = || held_table.peek_u32(table.offset);
    // Turning MSI-X on, the kernel disables INTx, and VFIO restores the register. After a
    // reset only the kernel writes it.
    let command = || Ok(assigned.physical_command()? & !INTX_DISABLE);
    let event = assigned.user.create_event_fd()?;
    assigned.device.enable_interrupts(MsiX, &[&event])?;
    let (address_before, command_before) = (message_address()?, command()?);
    held.poke_u32(assigned.scratch(), MARK)?;
    t.when(format_args!("before {reset}"));
    t.control("what was written", MARK, scratch())?;

    t.clear_state();
    t.check(reset, Finding::Done, reset.of(assigned))?;
    t.when(format_args!("after {reset}"));
    t.control("what was written", 0_u32, scratch())?;
    t.check("load", assigned.identity(), assigned.load(&held))?;
    t.check("command register", command_before, command())?;
    t.check("message address", address_before, message_address())?;
    held.poke_u32(INTERRUPT, 0)?;
    t.check("events when one is raised", 1_u64, event.wait())?;

    assigned.disable_memory()?;
    t.when("not decoded");
    t.check(reset, Finding::Done, reset.of(assigned))?;
    t.when(format_args!("not decoded, after {reset}"));
    t.check("memory", "not decoded", assigned.decoding()?)?;
    t.check("load", Denial::SIGBUS.by(TORN_DOWN), assigned.load(&held))
}

/// docs/probe.md: raises a vector.
const INTERRUPT: u64 = 0x100;

const STRAY: &str = "accesses that reach nothing";
/// What keeps a user from a function in a reset: VFIO puts no page back before it is over.
const ZAPPED: &[Mitigation] = &[Mitigation::VfioZap];

/// F11: a process that uses a mapping during a reset, of the function or of its bus, makes no access
/// until that is over. One that uses it as the function enters D3hot gets SIGBUS, and makes none either.
/// Control: decoding is turned off behind VFIO's back, and accesses do go astray.
pub fn used_in_a_reset(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let goes_on = || Finding::Done.by(ZAPPED);
    with_assigned(vm, |assigned| {
        t.when("used in reset");
        check_unreached(vm, t, assigned, goes_on(), || Ok(Reset::Function.of(assigned)?))
    })?;
    with_assigned_below_a_root_port(vm, |assigned| {
        t.when("used in hot reset");
        check_unreached(vm, t, assigned, goes_on(), || Ok(Reset::Bus.of(assigned)?))
    })?;
    with_equipped(vm, |assigned| {
        t.when("used in D3hot");
        let dies = Denial::SIGBUS.by(TORN_DOWN);
        check_unreached(vm, t, assigned, dies, || assigned.set_power_state(PowerState::D3Hot))?;
        assigned.set_power_state(PowerState::D0)
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
        t.when("turned off behind VFIO's back");
        t.control(STRAY, "some", if refused() > before { "some" } else { "none" })
    })
}

/// A child uses the function while something is done to it: the child ends as expected, and the
/// host sees no access that reaches nothing.
fn check_unreached(
    vm: &Vm,
    t: &mut Recorder,
    assigned: &Assigned,
    expected: Expected,
    action: impl FnOnce() -> Result<(), VmError>,
) -> Result<(), VmError> {
    let held = assigned.map_and_use()?;
    let refused = || assigned.accesses(vm).map(|accesses| accesses.refused);
    let before = refused();
    let polling = held.start_polling(0, Width::Long)?;
    action()?;
    let polled = polling.stop()?;

    let none = Expected { finding: Finding::Count(0), ..expected.clone() }.otherwise_anything();
    t.check("the user", expected, Ok(polled))?;
    let since = || Some(refused()? - before?);
    t.check_count(STRAY, none, since());
    Ok(())
}

const PROBE: &[Requirement] = &[Requirement::Vfio, Requirement::Monitor(Feature::Probe)];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "F10",
        title: "VFIO restores what its user has set up when it resets a function",
        requires: PROBE,
        cases: &[Case::InGuest(Profile::Iommu, resets)],
    },
    Scenario {
        id: "F11",
        title: "nothing reaches a function that VFIO is resetting",
        requires: PROBE,
        cases: &[Case::InGuest(Profile::Iommu, used_in_a_reset)],
    },
];
