//! F18, G13 and G14: functions that user space has without VFIO's groups, by files of their own
//! (Linux 6.6) and iommufd. What holds for a group's members holds for them.

use super::{
    PAGE, Told,
    assigned::with_assigned_by_iommufd,
    groups::{Pair, UIO_PCI_GENERIC, VFIO_PCI, check_refused, load_iommufd, with_user},
    iommu_dma::{AFTER, BEFORE, Engine, IOVA, Memory},
    vfio_memory::{ASKED, NOT_DECODED, TORN_DOWN, check_denied, check_unreached},
};
use crate::{
    guest::{Denial, Errno, VfioDevice, VfioGroup, command_register::MEMORY},
    report::{Finding, Observations},
    vm::Vm,
};

/// F18: who has a function by iommufd reaches its BARs as long as it decodes them, as F1 to F4 have it of
/// a group's members. Control: decoded, before and again, OK.
pub fn not_decoded(vm: &Vm, seen: &mut Observations) -> Told {
    with_assigned_by_iommufd(vm, |assigned| {
        let held = assigned.map_and_use()?;
        seen.control("decoded: load", assigned.identity(), assigned.load(&held))?;
        seen.control("decoded: pread(2)", assigned.identity(), assigned.read())?;
        assigned.disable_memory()?;
        let before = assigned.accesses(vm);
        check_denied(seen, "not decoded", NOT_DECODED, assigned, &held)?;
        let load = assigned.load(&assigned.map()?);
        let tried = "mapped while not decoded: load";
        seen.check_with(ASKED, tried, Denial::SIGBUS, Finding::Done, load)?;
        check_unreached(vm, seen, "not decoded", assigned, before)?;
        assigned.enable_memory()?;
        seen.control("decoded again: load", assigned.identity(), assigned.load(&held))?;
        let command = assigned.command()?;
        assigned.set_command_with(1, command & !MEMORY)?;
        let (tried, load) = ("turned off by 1 byte: load", assigned.load(&held));
        Ok(seen.check_with(TORN_DOWN, tried, Denial::SIGBUS, Finding::Done, load)?)
    })
}

/// G13: user space is refused a function by iommufd while a driver has bound in its group, EPERM, or
/// somebody has opened the group, EBUSY. As long as it has the function drivers are refused the group,
/// EBUSY, and so is everybody else. Controls: before and afterwards, OK.
pub fn one_owner(vm: &Vm, seen: &mut Observations) -> Told {
    load_iommufd(vm)?;
    let pair = Pair::of_one_device(vm)?;
    pair.claimed.bind(VFIO_PCI)?;
    let bind = || pair.sibling.bind(UIO_PCI_GENERIC);
    seen.control("before: bind sibling to uio_pci_generic", Finding::Done, bind())?;
    with_user(vm, |user| {
        let opened = VfioDevice::open_by_iommufd(user, &pair.claimed);
        Ok(seen.check("sibling bound: open by iommufd", Errno::EPERM, opened)?)
    })?;
    pair.sibling.unbind()?;
    with_user(vm, |other| {
        with_user(vm, |user| {
            let _group = VfioGroup::open(other, &pair.claimed)?;
            let opened = VfioDevice::open_by_iommufd(user, &pair.claimed);
            Ok(seen.check("group open: open by iommufd", Errno::EBUSY, opened)?)
        })
    })?;
    with_user(vm, |other| {
        with_user(vm, |user| {
            // Nothing is closed before its process ends.
            let opened = VfioDevice::open_by_iommufd(user, &pair.claimed);
            seen.control("nobody there: open by iommufd", Finding::Done, opened)?;
            check_refused(vm, seen, "open by iommufd: bind sibling", bind())?;
            pair.sibling.unbind()?;
            let group = VfioGroup::open(other, &pair.claimed);
            Ok(seen.check("open by iommufd: open the group", Errno::EBUSY, group)?)
        })
    })?;
    seen.control("closed: bind sibling", Finding::Done, bind())?;
    pair.release()?;
    Ok(None)
}

/// G14: a device that user space has by iommufd reaches memory that is mapped for it, and no other.
/// Control: what is mapped it does reach.
pub fn mapped_memory_only(vm: &Vm, seen: &mut Observations) -> Told {
    with_assigned_by_iommufd(vm, |assigned| {
        let registers = assigned.map()?;
        let engine = Engine::new(vm, &assigned.function, &registers)?;
        let memory = Memory::allocate(&assigned.user)?;
        let ioas = assigned.device.ioas();
        ioas.map(IOVA, &memory.target, PAGE)?;
        ioas.map(IOVA + PAGE, &memory.source, PAGE)?;
        engine.load(IOVA + PAGE)?;
        engine.store(IOVA)?;
        seen.control("mapped: memory after DMA", AFTER, memory.look())?;
        memory.restore()?;
        ioas.unmap(IOVA, PAGE)?;
        engine.store(IOVA)?;
        Ok(seen.check("unmapped again: memory after DMA", BEFORE, memory.look())?)
    })
}
