//! F18, G13 and G14: functions that user space has without VFIO's groups, by files of their own
//! (Linux 6.6) and iommufd. What holds for a group's members holds for them.

use testvm::{
    PAGE,
    guest::{Denial, Errno, VfioDevice, VfioGroup, command_register::MEMORY},
    vm::Vm,
};

use crate::{
    framework::{Case, CaseResult, Expect as _, Finding, Profile, Recorder, Requirement, Scenario},
    suites::{
        iommu_group::members::{
            Pair, UIO_PCI_GENERIC, VFIO_PCI, check_refused, load_iommufd, with_user,
        },
        vfio::{
            assigned::with_assigned_by_iommufd,
            iommu_dma::{AFTER, BEFORE, Engine, IOVA, Memory},
            memory::{ASKED, NOT_DECODED, TORN_DOWN, check_denied, check_unreached},
        },
    },
};

/// F18: user space that has a function by iommufd reaches its BARs as long as they are decoded, as F1 to F4
/// check it for a group's members. Control: decoded, before and again, OK.
pub fn not_decoded(vm: &Vm, t: &mut Recorder) -> CaseResult {
    with_assigned_by_iommufd(vm, |assigned| {
        let held = assigned.map_and_use()?;
        t.when("decoded");
        t.control("load", assigned.identity(), assigned.load(&held))?;
        t.control("pread(2)", assigned.identity(), assigned.read())?;
        assigned.disable_memory()?;
        let before = assigned.accesses(vm);
        t.when("not decoded");
        check_denied(t, NOT_DECODED, assigned, &held)?;
        let new = assigned.map()?;
        t.check("load by a new mapping", Denial::SIGBUS.by(ASKED), assigned.load(&new))?;
        check_unreached(vm, t, assigned, before);
        assigned.enable_memory()?;
        t.when("decoded again");
        t.control("load", assigned.identity(), assigned.load(&held))?;
        let command = assigned.command()?;
        assigned.set_command_with(1, command & !MEMORY)?;
        t.when("turned off by 1 byte");
        t.check("load", Denial::SIGBUS.by(TORN_DOWN), assigned.load(&held))
    })
}

/// G13: user space is refused a function by iommufd while a driver has bound in its group, EPERM, or
/// another process has opened the group, EBUSY. As long as it has the function drivers are refused the
/// group, EBUSY, and so are other processes. Controls: before and afterwards, OK.
pub fn one_owner(vm: &Vm, t: &mut Recorder) -> CaseResult {
    load_iommufd(vm)?;
    let pair = Pair::of_one_device(vm)?;
    pair.claimed.bind(VFIO_PCI)?;
    let bind = || pair.sibling.bind(UIO_PCI_GENERIC);
    t.when("before");
    t.control("bind sibling to uio_pci_generic", Finding::Done, bind())?;
    with_user(vm, |user| {
        let opened = VfioDevice::open_by_iommufd(user, &pair.claimed);
        t.when("sibling bound");
        t.check("open by iommufd", Errno::EPERM, opened)
    })?;
    pair.sibling.unbind()?;
    with_user(vm, |other| {
        with_user(vm, |user| {
            let _group = VfioGroup::open(other, &pair.claimed)?;
            let opened = VfioDevice::open_by_iommufd(user, &pair.claimed);
            t.when("group open");
            t.check("open by iommufd", Errno::EBUSY, opened)
        })
    })?;
    with_user(vm, |other| {
        with_user(vm, |user| {
            // Nothing is closed before its process ends.
            let opened = VfioDevice::open_by_iommufd(user, &pair.claimed);
            t.when("group not open");
            t.control("open by iommufd", Finding::Done, opened)?;
            t.when("open by iommufd");
            check_refused(vm, t, "bind sibling", bind())?;
            pair.sibling.unbind()?;
            t.check("open the group", Errno::EBUSY, VfioGroup::open(other, &pair.claimed))
        })
    })?;
    t.when("closed");
    t.control("bind sibling", Finding::Done, bind())?;
    pair.release()?;
    Ok(None)
}

/// G14: a device that user space has by iommufd reaches memory that is mapped for it, and no other.
/// Control: what is mapped it does reach.
pub fn mapped_memory_only(vm: &Vm, t: &mut Recorder) -> CaseResult {
    with_assigned_by_iommufd(vm, |assigned| {
        let registers = assigned.map()?;
        let engine = Engine::new(vm, &assigned.function, &registers)?;
        let memory = Memory::allocate(&assigned.user)?;
        let ioas = assigned.device.ioas();
        ioas.map(IOVA, &memory.target, PAGE)?;
        ioas.map(IOVA + PAGE, &memory.source, PAGE)?;
        engine.load(IOVA + PAGE)?;
        engine.store(IOVA)?;
        t.when("mapped");
        t.control("memory after DMA", AFTER, memory.read())?;
        memory.restore()?;
        ioas.unmap(IOVA, PAGE)?;
        engine.store(IOVA)?;
        t.when("unmapped again");
        t.check("memory after DMA", BEFORE, memory.read())
    })
}

const IOMMUFD: &[Requirement] = &[Requirement::Iommu, Requirement::Vfio, Requirement::Iommufd];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "F18",
        title: "a BAR that is not decoded cannot be reached by VFIO without groups either",
        requires: IOMMUFD,
        cases: &[Case::InGuest(Profile::Iommu, not_decoded)],
    },
    Scenario {
        id: "G13",
        title: "a group has one owner, if user space has a member of it by iommufd",
        requires: &[
            Requirement::Iommu,
            Requirement::Vfio,
            Requirement::Iommufd,
            Requirement::UioPciGeneric,
        ],
        cases: &[Case::InGuest(Profile::Iommu, one_owner)],
    },
    Scenario {
        id: "G14",
        title: "a device that user space has by iommufd reaches memory that is mapped for it only",
        requires: IOMMUFD,
        cases: &[Case::InGuest(Profile::Iommu, mapped_memory_only)],
    },
];
