//! G3 to G8: an IOMMU group belongs to the kernel's drivers or to user space, and never to both.
//!
//! "Fix BUG_ON in vfio_iommu_group_notifier()" (Linux 5.19): `iommu_group_claim_dma_owner()` refuses
//! user space a group in which a driver has bound, and `iommu_device_use_default_domain()` refuses
//! drivers a group that user space owns. Before that VFIO looked on as a driver bound, and ended the
//! kernel. Drivers that do no DMA of their own (`driver_managed_dma`) may bind at any time.

use testvm::{
    PAGE,
    guest::{Denial, Errno, Observe as _, Outcome, VfioDevice, VfioGroup},
    vm::Vm,
};

use crate::{
    framework::{
        Case, CaseResult, Expect as _, Finding, Mitigation, Profile, Recorder, Requirement,
        Scenario,
    },
    suites::iommu_group::members::{
        OWNERSHIP, Pair, UIO_PCI_GENERIC, VFIO_PCI, alone, bound_or_not, check_alive,
        check_refused, complaint_since, viable_or_not, with_user,
    },
};

/// G3: user space is refused a group in which a driver has bound: EPERM.
/// Control: without the driver, OK.
pub fn claim_beside_a_driver(vm: &Vm, t: &mut Recorder) -> CaseResult {
    const CLAIM: &[Mitigation] = &[Mitigation::GroupClaim];
    let pair = Pair::of_one_device(vm)?;
    pair.sibling.bind(UIO_PCI_GENERIC)?;
    with_user(vm, |user| {
        let (group, container) = pair.open(user)?;
        t.when("sibling bound to uio_pci_generic");
        t.check("group", "not viable", viable_or_not(&group)?)?;
        t.check("SET_CONTAINER", Errno::EPERM.by(CLAIM), group.set_container(&container))
    })?;
    pair.release()?;
    with_user(vm, |user| {
        let (group, container) = pair.open(user)?;
        t.when("sibling not bound");
        t.control("group", "viable", viable_or_not(&group)?)?;
        t.control("SET_CONTAINER", Finding::Done, group.set_container(&container))
    })?;
    pair.release()?;
    Ok(None)
}

/// G4: a driver is refused a group that user space owns, EBUSY, and the kernel has nothing to complain
/// of. Controls: before user space has it and after, OK.
pub fn bind_beside_a_user(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let pair = Pair::of_one_device(vm)?;
    let bind = || pair.sibling.bind(UIO_PCI_GENERIC);
    t.when("before");
    t.control("bind sibling to uio_pci_generic", Finding::Done, bind())?;
    pair.release()?;
    with_user(vm, |user| {
        let _device = pair.own(user)?;
        let start = vm.guest.log_end()?;
        t.when("group owned");
        check_refused(vm, t, "bind sibling to uio_pci_generic", bind())?;
        pair.sibling.unbind()?;
        t.check("what the kernel complains of", "nothing", complaint_since(vm, start)?)
    })?;
    t.when("group released");
    t.control("bind sibling to uio_pci_generic", Finding::Done, bind())?;
    pair.release()?;
    Ok(None)
}

/// G5: a driver that is loaded while user space owns the group does not bind to the group's members.
/// Controls: probed before user space has the group and after, they are bound.
pub fn load_beside_a_user(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let pair = Pair::of_one_device(vm)?;
    pair.sibling.set_driver_override(UIO_PCI_GENERIC)?;
    pair.sibling.probe_drivers()?;
    t.when("before, probed by its driver");
    t.control("sibling", "bound", bound_or_not(&pair.sibling)?)?;
    pair.release()?;
    // One that is built in cannot be unloaded, and stays.
    vm.guest.unload_module(UIO_PCI_GENERIC).outcome()?;
    with_user(vm, |user| {
        let _device = pair.own(user)?;
        let start = vm.guest.log_end()?;
        t.when("group owned");
        let tried = "load uio_pci_generic, which is for the sibling";
        let loaded = vm.guest.load_module(UIO_PCI_GENERIC, "");
        check_alive(vm, t, tried, Finding::Done, &loaded)?;
        t.check(tried, Finding::Done, loaded)?;
        pair.sibling.probe_drivers().outcome()?;
        let left_alone = "not bound".by(OWNERSHIP).otherwise("bound");
        t.check("sibling", left_alone, bound_or_not(&pair.sibling)?)?;
        pair.sibling.unbind()?;
        t.check("what the kernel complains of", "nothing", complaint_since(vm, start)?)
    })?;
    pair.sibling.probe_drivers()?;
    t.when("group released, probed by its driver");
    t.control("sibling", "bound", bound_or_not(&pair.sibling)?)?;
    pair.sibling.clear_driver_override()?;
    pair.release()?;
    Ok(None)
}

/// G6: drivers that do no DMA of their own are tolerated beside user space: pci-stub, and vfio-pci,
/// through which user space may open the sibling too.
/// Control: the sibling cannot be opened as long as user space does not own the group.
pub fn tolerated_drivers(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let pair = Pair::of_one_device(vm)?;
    vm.guest.load_module("pci_stub", "").outcome()?;
    with_user(vm, |user| {
        pair.sibling.bind(VFIO_PCI)?;
        let (group, _container) = pair.open(user)?;
        t.when("group not owned");
        let opened = group.open_device(&pair.sibling);
        t.control("open the sibling, bound to vfio-pci", Errno::EINVAL, opened)
    })?;
    pair.release()?;
    with_user(vm, |user| {
        let device = pair.own(user)?;
        let bound = pair.sibling.bind("pci-stub");
        t.when("group owned");
        t.check("bind sibling to pci-stub", Finding::Done, bound)?;
        pair.sibling.unbind()?;
        let bound = pair.sibling.bind(VFIO_PCI);
        t.check("bind sibling to vfio-pci", Finding::Done, bound)?;
        let opened = device.group().open_device(&pair.sibling);
        t.check("open the sibling", Finding::Done, opened)
    })?;
    pair.release()?;
    Ok(None)
}

/// G7: user space owns the group until it has given up the last of what it had of it: its group and
/// container, the open device, mappings of the device. Controls: before and then a driver binds, OK.
pub fn last_reference(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let pair = Pair::of_one_device(vm)?;
    let bind = || pair.sibling.bind(UIO_PCI_GENERIC);
    t.when("before");
    t.control("bind sibling", Finding::Done, bind())?;
    pair.release()?;
    with_user(vm, |user| {
        let device = pair.own(user)?;
        let mapping = device.map(vm.vmm().endpoints().idle.bar, PAGE)?;
        let device = device.leave_group()?;
        t.when("group closed, device open");
        check_refused(vm, t, "bind sibling", bind())?;
        pair.sibling.unbind()?;
        device.close()?;
        t.when("device closed, BAR mapped");
        check_refused(vm, t, "bind sibling", bind())?;
        pair.sibling.unbind()?;
        mapping.munmap()?;
        t.when("BAR unmapped");
        t.control("bind sibling", Finding::Done, bind())
    })?;
    pair.release()?;
    Ok(None)
}

/// G8: a group that one process has open cannot be opened by another, EBUSY, and keeps its type: EPERM, and
/// on Linux 6.1, which looks for a driver instead, EBUSY. Controls: afterwards, OK.
pub fn exclusive_group(vm: &Vm, t: &mut Recorder) -> CaseResult {
    const REFUSALS: [Denial; 2] = [Denial::Errno(Errno::EPERM), Denial::Errno(Errno::EBUSY)];
    let alone = alone(vm)?;
    let r#type = alone.file("iommu_group/type");
    let present = vm.guest.read_text(&r#type)?;
    let write = || vm.guest.write_file(&r#type, &present).map(drop);
    alone.bind(VFIO_PCI)?;
    with_user(vm, |other| {
        let open = || VfioGroup::open(other, &alone).map(drop);
        with_user(vm, |user| {
            let _device = VfioDevice::open(user, &alone)?;
            t.when("group owned");
            t.check("open it once more", Errno::EBUSY, open())?;
            let written = match write().outcome()? {
                Outcome::Denied(denial) if REFUSALS.contains(&denial) => "refused".into(),
                other => Finding::from(other).to_string(),
            };
            t.check("write its type", "refused", written)
        })?;
        t.when("group closed");
        t.control("open it", Finding::Done, open())
    })?;
    alone.unbind()?;
    t.when("group closed, vfio-pci gone");
    t.control("write its type", Finding::Done, write())?;
    Ok(None)
}

const GROUPS: &[Requirement] = &[Requirement::Iommu, Requirement::Vfio, Requirement::UioPciGeneric];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "G3",
        title: "user space is refused a group in which a driver has bound",
        requires: GROUPS,
        cases: &[Case::InGuest(Profile::Iommu, claim_beside_a_driver)],
    },
    Scenario {
        id: "G4",
        title: "a driver is refused a group that user space owns",
        requires: GROUPS,
        cases: &[Case::InGuest(Profile::Iommu, bind_beside_a_user)],
    },
    Scenario {
        id: "G5",
        title: "a driver that is loaded does not bind in a group that user space owns",
        requires: GROUPS,
        cases: &[Case::InGuest(Profile::Iommu, load_beside_a_user)],
    },
    Scenario {
        id: "G6",
        title: "drivers that do no DMA may bind in a group that user space owns",
        requires: &[
            Requirement::Iommu,
            Requirement::Vfio,
            Requirement::UioPciGeneric,
            Requirement::PciStub,
        ],
        cases: &[Case::InGuest(Profile::Iommu, tolerated_drivers)],
    },
    Scenario {
        id: "G7",
        title: "user space owns a group until it has given up all that it had of it",
        requires: GROUPS,
        cases: &[Case::InGuest(Profile::Iommu, last_reference)],
    },
    Scenario {
        id: "G8",
        title: "a group that user space owns cannot be opened by another process, nor change its type",
        requires: GROUPS,
        cases: &[Case::InGuest(Profile::Iommu, exclusive_group)],
    },
];
