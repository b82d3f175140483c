//! VM9 and VM10: another device's BAR over the region, which shows on x86 which check closes it.
//!
//! `/dev/mem` asks `devmem_is_allowed()`, which refuses all that is SYSTEM_RAM. The files of PCI BARs
//! in sysfs and procfs ask `iomem_is_exclusive()` at once: what they refuse of the region they
//! refuse because it is EXCLUSIVE ("kernel/resource: disallow access to exclusive system RAM
//! regions", "virtio-mem: disallow mapping virtio-mem memory via /dev/mem", Linux 5.16).
//!
//! The guest moves a BAR there that is as large as the region: the driver's claim must fit into the
//! BAR's. `pci=nocrs` has the kernel accept it outside the windows of the host bridge.

use testvm::{
    guest::Errno,
    vm::{Vm, VmError},
};

use crate::{
    framework::{
        Case, CaseResult, Expect as _, Finding, Mitigation, Profile, Recorder, Requirement,
        Scenario, after_load,
    },
    suites::pci_bar::bar::{Bar, Way},
};

/// The ways that do not ask `devmem_is_allowed()`.
const WAYS: [Way; 2] = [Way::Sysfs, Way::Procfs];

/// VM9: EINVAL, relaxed too, for the policy of other devices does not concern RAM that is exclusive.
/// Control: before the driver comes, OK.
pub fn new_mappings(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let bar = over_region(vm)?;
    t.when("before load");
    for way in WAYS {
        let tried = format_args!("mmap of a BAR over the region by {way}");
        t.control(tried, Finding::Done, bar.map(way))?;
    }
    after_load(move |_, t| {
        for way in WAYS {
            let tried = format_args!("mmap of a BAR over the region by {way}");
            t.check(tried, Errno::EINVAL.by(&[Mitigation::ExclusiveRegion]), bar.map(way))?;
        }
        Ok(())
    })
}

/// VM10: SIGBUS. Control: before the driver comes, OK.
pub fn held_mappings(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let bar = over_region(vm)?;
    let mut held = Vec::new();
    t.when("before load");
    for way in WAYS {
        let mapping = bar.map(way)?;
        let tried = format_args!("read of a BAR over the region by {way}");
        t.control(tried, Finding::Done, mapping.peek_u32(0))?;
        held.push((way, mapping));
    }
    after_load(move |_, t| {
        t.when("held across load");
        for (way, mapping) in held {
            let tried = format_args!("read of a BAR over the region by {way}");
            t.check(tried, way.torn_down(), mapping.peek_u32(0))?;
            let tried = format_args!("write of a BAR over the region by {way}");
            t.check(tried, way.torn_down(), mapping.poke_u32(0, 0))?;
        }
        Ok(())
    })
}

/// The BAR, once it is where the region is.
fn over_region(vm: &Vm) -> Result<Bar, VmError> {
    let endpoint = vm.vmm().endpoints().large_bar;
    let bar = Bar::of(vm, endpoint)?;
    let region = vm.region();
    if bar.range.start == region.start {
        return Ok(bar);
    }
    // Behind the kernel's back, which then finds it there.
    let register = 0x10 + 4 * endpoint.bar as u64;
    bar.function.write_config(register, &region.start.to_le_bytes())?;
    bar.function.remove()?;
    vm.guest.rescan_pci()?;
    let bar = Bar::of(vm, endpoint)?;
    bar.function.decode_memory()?;
    match bar.range.start == region.start && bar.range.end >= region.end {
        true => Ok(bar),
        false => {
            Err(VmError::Absent("BAR that stays over the region when the bus is scanned again"))
        }
    }
}

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "VM9",
        title: "a PCI device's BAR over the region does not open it, for the region is EXCLUSIVE",
        requires: &[Requirement::Driver, Requirement::VirtioPci],
        cases: &[
            Case::InGuest(Profile::BarOverRegion, new_mappings),
            Case::InGuest(Profile::BarOverRegionRelaxed, new_mappings),
        ],
    },
    Scenario {
        id: "VM10",
        title: "a held mapping of a PCI device's BAR over the region is torn down",
        requires: &[Requirement::Driver],
        cases: &[
            Case::InGuest(Profile::BarOverRegion, held_mappings),
            Case::InGuest(Profile::BarOverRegionRelaxed, held_mappings),
        ],
    },
];
