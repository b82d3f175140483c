//! P11 and P12: drivers that do not claim a BAR when they bind.

use testvm::{
    PAGE,
    guest::{Denial, Observe as _, VfioDevice},
    vm::Vm,
};

use crate::{
    framework::{Case, CaseResult, Finding, Profile, Recorder, Requirement, Scenario},
    suites::{
        iommu_group::members::load_vfio,
        pci_bar::bar::{Bar, Way},
    },
};

/// P11: uio_pci_generic leaves BARs to user space, and claims none: OK.
/// Control: virtio-pci does: SIGBUS.
pub fn driver_without_claim(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let bar = Bar::driven(vm)?;
    vm.guest.load_module("uio_pci_generic", "").outcome()?;
    let held = bar.map_every_way()?;

    bar.function.bind("uio_pci_generic")?;
    for (way, mapping) in &held {
        t.when("held across bind to uio_pci_generic");
        t.check(format_args!("read by {way}"), bar.identity(), bar.read(mapping))?;
        t.when("bound to uio_pci_generic");
        t.check(format_args!("mmap by {way}"), Finding::Done, bar.map(*way))?;
    }
    bar.release()?;

    bar.claim()?;
    t.when("held across bind to virtio-pci");
    // Kernels that tear down anything tear down this one.
    for (way, mapping) in held.iter().filter(|(way, _)| *way == Way::DevMem) {
        t.control(format_args!("read by {way}"), Denial::SIGBUS, bar.read(mapping))?;
    }
    bar.release()?;
    Ok(None)
}

/// P12: vfio-pci claims a BAR when its user first maps it, and no sooner.
/// Control: before that, OK.
pub fn claim_on_use(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let bar = Bar::driven(vm)?;
    load_vfio(vm)?;
    let held = bar.map_every_way()?;
    bar.function.bind("vfio-pci")?;
    let process = vm.guest.spawn()?;

    let device = VfioDevice::open(&process, &bar.function)?;
    t.when("open by VFIO, BAR unused");
    for (way, mapping) in &held {
        t.control(format_args!("held by {way}, read"), bar.identity(), bar.read(mapping))?;
        t.control(format_args!("mmap by {way}"), Finding::Done, bar.map(*way))?;
    }

    let used = device.map(bar.index(), PAGE)?;
    t.when("mapped by VFIO");
    t.check("read", bar.identity(), bar.read(&used))?;
    for (way, mapping) in &held {
        let torn_down = way.torn_down().otherwise(bar.identity());
        t.check(format_args!("held by {way}, read"), torn_down, bar.read(mapping))?;
        t.check(format_args!("mmap by {way}"), way.refused(), bar.map(*way))?;
    }

    used.munmap()?;
    device.close()?;
    bar.release()?;
    Ok(None)
}

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "P11",
        title: "a driver that claims no BAR leaves mappings alone",
        requires: &[
            Requirement::DevMem,
            Requirement::VirtioPci,
            Requirement::UioPciGeneric,
            Requirement::IoStrictDevmem,
        ],
        cases: &[Case::InGuest(Profile::Plain, driver_without_claim)],
    },
    Scenario {
        id: "P12",
        title: "vfio-pci claims a BAR when its user maps it, and no sooner",
        requires: &[Requirement::DevMem, Requirement::VirtioPci, Requirement::Vfio],
        cases: &[Case::InGuest(Profile::Iommu, claim_on_use)],
    },
];
