//! VM18: what the host, which sees every access to unplugged memory, has counted.

use testvm::{
    MIB, PAGE,
    guest::{GuestError, Mapping, Observe as _, Outcome},
    vm::{DeviceCounters, Feature, Vm, VmError},
};

use crate::{
    framework::{Case, CaseResult, Finding, Profile, Recorder, Requirement, Scenario, after_load},
    suites::virtio_mem::dev_mem::{DevMem, first_page, last_page, middle_page},
};

/// VM18: no way through /dev/mem that is opened after load ends at unplugged memory. (Mappings that
/// were held before are VM11's.) Control: before load, one write is one access seen.
pub fn nothing_reaches_unplugged_memory(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let mem = DevMem::open(&vm.guest)?;
    let region = vm.region();
    let before = accesses(vm)?;
    mem.map(last_page(&region))?.poke_u32(0, 1)?;
    let accessed = Finding::Count(accesses(vm)? - before);
    t.when("before load");
    t.control("one write by mmap: accesses that the host sees", Finding::Count(1), accessed)?;
    after_load(move |vm, t| {
        let before = accesses(vm)?;
        let unplugged = region.start + 256 * MIB;
        let pages = [unplugged, middle_page(&region), last_page(&region)];
        for page in pages.into_iter().chain([first_page(&region)]) {
            // Whether they are denied is checked by VM7.
            mem.read(page).outcome()?;
            mem.write(page).outcome()?;
        }
        for page in pages {
            read_and_write_page(mem.map(page), 0)?;
            read_and_write_page(mem.map_private(page), 0)?;
        }
        read_and_write_page(mem.map_pages(unplugged - PAGE, 2), PAGE)?;
        let accessed = Finding::Count(accesses(vm)? - before);
        t.when("all of /dev/mem's ways");
        t.check("accesses that the host sees", Finding::Count(0), accessed)
    })
}

/// Reads and writes what has been mapped, if it has been.
fn read_and_write_page(
    mapping: Result<Mapping, GuestError>,
    offset: u64,
) -> Result<(), GuestError> {
    if let Outcome::Value(mapping) = mapping.outcome()? {
        mapping.peek_u32(offset).outcome()?;
        mapping.poke_u32(offset, 1).outcome()?;
    }
    Ok(())
}

/// How many accesses of vCPUs to unplugged memory the host has seen.
fn accesses(vm: &Vm) -> Result<u64, VmError> {
    let violations = counters(vm)?.violations;
    Ok(violations.reads + violations.writes)
}

/// What the monitor counts. Scenarios that need it are skipped where it does not.
pub fn counters(vm: &Vm) -> Result<DeviceCounters, VmError> {
    vm.counters()
        .ok_or(VmError::Absent("counters: its monitor does not count accesses and requests"))
}

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[Scenario {
    id: "VM18",
    title: "the host sees no access to unplugged memory, whatever /dev/mem is asked for",
    requires: &[Requirement::Driver, Requirement::DevMem, Requirement::Monitor(Feature::Counters)],
    cases: &[Case::InGuest(Profile::Plain, nothing_reaches_unplugged_memory)],
}];
