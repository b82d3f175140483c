//! G3 to G8: an IOMMU group belongs to the kernel's drivers or to user space, and never to both.
//!
//! "Fix BUG_ON in vfio_iommu_group_notifier()" (Linux 5.19): `iommu_group_claim_dma_owner()` refuses
//! user space a group in which a driver has bound, and `iommu_device_use_default_domain()` refuses
//! drivers a group that user space owns. Before that VFIO looked on as a driver bound, and ended the
//! kernel. Drivers that do no DMA of their own (`driver_managed_dma`) may bind at any time.

use super::{
    PAGE, Told,
    groups::{
        OWNERSHIP, Pair, UIO_PCI_GENERIC, VFIO_PCI, alone, bound_or_not, check_alive,
        check_refused, complaint_since, viable_or_not, with_user,
    },
};
use crate::{
    guest::{Denial, Errno, Observe as _, Outcome, VfioDevice, VfioGroup},
    report::{Finding, Observations, Protection},
    vm::Vm,
};

/// G3: user space is refused a group in which a driver has bound: EPERM.
/// Control: without the driver, OK.
pub fn claim_beside_a_driver(vm: &Vm, seen: &mut Observations) -> Told {
    const CLAIM: &[Protection] = &[Protection::GroupClaim];
    let pair = Pair::of_one_device(vm)?;
    pair.sibling.bind(UIO_PCI_GENERIC)?;
    with_user(vm, |user| {
        let (group, container) = pair.open(user)?;
        let tried = "sibling bound to uio_pci_generic: group";
        seen.check(tried, "not viable", viable_or_not(&group)?)?;
        let tried = "sibling bound to uio_pci_generic: SET_CONTAINER";
        let set = group.set_container(&container);
        Ok(seen.check_with(CLAIM, tried, Errno::EPERM, Finding::Done, set)?)
    })?;
    pair.release()?;
    with_user(vm, |user| {
        let (group, container) = pair.open(user)?;
        seen.control("sibling not bound: group", "viable", viable_or_not(&group)?)?;
        let set = group.set_container(&container);
        Ok(seen.control("sibling not bound: SET_CONTAINER", Finding::Done, set)?)
    })?;
    pair.release()?;
    Ok(None)
}

/// G4: a driver is refused a group that user space owns, EBUSY, and the kernel has nothing to complain
/// of. Controls: before user space has it and after, OK.
pub fn bind_beside_a_user(vm: &Vm, seen: &mut Observations) -> Told {
    let pair = Pair::of_one_device(vm)?;
    let bind = || pair.sibling.bind(UIO_PCI_GENERIC);
    seen.control("before: bind sibling to uio_pci_generic", Finding::Done, bind())?;
    pair.release()?;
    with_user(vm, |user| {
        let _device = pair.own(user)?;
        let start = vm.guest.log_end()?;
        check_refused(vm, seen, "group owned: bind sibling to uio_pci_generic", bind())?;
        pair.sibling.unbind()?;
        let tried = "group owned: what the kernel complains of";
        Ok(seen.check(tried, "nothing", complaint_since(vm, start)?)?)
    })?;
    seen.control("group released: bind sibling to uio_pci_generic", Finding::Done, bind())?;
    pair.release()?;
    Ok(None)
}

/// G5: a driver that comes while user space owns the group comes, and leaves the group's members
/// alone. Controls: offered before user space has the group and after, they are bound.
pub fn load_beside_a_user(vm: &Vm, seen: &mut Observations) -> Told {
    let pair = Pair::of_one_device(vm)?;
    pair.sibling.reserve_for(UIO_PCI_GENERIC)?;
    pair.sibling.offer()?;
    seen.control("before, offered to its driver: sibling", "bound", bound_or_not(&pair.sibling)?)?;
    pair.release()?;
    // One that is built in does not go, and has been there.
    vm.guest.unload_module(UIO_PCI_GENERIC).outcome()?;
    with_user(vm, |user| {
        let _device = pair.own(user)?;
        let start = vm.guest.log_end()?;
        let tried = "group owned: load uio_pci_generic, which is for the sibling";
        let loaded = vm.guest.load_module(UIO_PCI_GENERIC, "");
        check_alive(vm, seen, tried, Finding::Done, &loaded)?;
        seen.check(tried, Finding::Done, loaded)?;
        pair.sibling.offer().outcome()?;
        let (tried, bound) = ("group owned: sibling", bound_or_not(&pair.sibling)?);
        seen.check_with(OWNERSHIP, tried, "not bound", "bound", bound)?;
        pair.sibling.unbind()?;
        let tried = "group owned: what the kernel complains of";
        Ok(seen.check(tried, "nothing", complaint_since(vm, start)?)?)
    })?;
    pair.sibling.offer()?;
    let tried = "group released, offered to its driver: sibling";
    seen.control(tried, "bound", bound_or_not(&pair.sibling)?)?;
    pair.sibling.reserve_for_nobody()?;
    pair.release()?;
    Ok(None)
}

/// G6: drivers that do no DMA of their own are tolerated beside user space: pci-stub, and vfio-pci,
/// through which user space may open the sibling too.
/// Control: the sibling cannot be opened as long as user space does not own the group.
pub fn tolerated_drivers(vm: &Vm, seen: &mut Observations) -> Told {
    let pair = Pair::of_one_device(vm)?;
    vm.guest.load_module("pci_stub", "").outcome()?;
    with_user(vm, |user| {
        pair.sibling.bind(VFIO_PCI)?;
        let (group, _container) = pair.open(user)?;
        let tried = "group not owned: open the sibling, bound to vfio-pci";
        Ok(seen.control(tried, Errno::EINVAL, group.open_device(&pair.sibling))?)
    })?;
    pair.release()?;
    with_user(vm, |user| {
        let device = pair.own(user)?;
        let bound = pair.sibling.bind("pci-stub");
        seen.check("group owned: bind sibling to pci-stub", Finding::Done, bound)?;
        pair.sibling.unbind()?;
        let bound = pair.sibling.bind(VFIO_PCI);
        seen.check("group owned: bind sibling to vfio-pci", Finding::Done, bound)?;
        let opened = device.group().open_device(&pair.sibling);
        Ok(seen.check("group owned: open the sibling", Finding::Done, opened)?)
    })?;
    pair.release()?;
    Ok(None)
}

/// G7: user space owns the group until it has given up the last of what it had of it: its group and
/// container, the open device, mappings of the device. Controls: before and then a driver binds, OK.
pub fn last_reference(vm: &Vm, seen: &mut Observations) -> Told {
    let pair = Pair::of_one_device(vm)?;
    let bind = || pair.sibling.bind(UIO_PCI_GENERIC);
    seen.control("before: bind sibling", Finding::Done, bind())?;
    pair.release()?;
    with_user(vm, |user| {
        let device = pair.own(user)?;
        let mapping = device.map(vm.vmm().endpoints().idle.bar, PAGE)?;
        let device = device.leave_group()?;
        check_refused(vm, seen, "group closed, device open: bind sibling", bind())?;
        pair.sibling.unbind()?;
        device.close()?;
        check_refused(vm, seen, "device closed, BAR mapped: bind sibling", bind())?;
        pair.sibling.unbind()?;
        mapping.munmap()?;
        Ok(seen.control("BAR unmapped: bind sibling", Finding::Done, bind())?)
    })?;
    pair.release()?;
    Ok(None)
}

/// G8: nobody else opens a group that somebody has open, EBUSY, and its type stays as it is: EPERM, and
/// on Linux 6.1, which looks for a driver instead, EBUSY. Controls: afterwards, OK.
pub fn exclusive_group(vm: &Vm, seen: &mut Observations) -> Told {
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
            seen.check("group owned: open it once more", Errno::EBUSY, open())?;
            let written = match write().outcome()? {
                Outcome::Denied(denial) if REFUSALS.contains(&denial) => "refused".into(),
                other => Finding::from(other).to_string(),
            };
            Ok(seen.check("group owned: write its type", "refused", written)?)
        })?;
        Ok(seen.control("group closed: open it", Finding::Done, open())?)
    })?;
    alone.unbind()?;
    seen.control("group closed, vfio-pci gone: write its type", Finding::Done, write())?;
    Ok(None)
}
