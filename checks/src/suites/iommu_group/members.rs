//! PCI functions that share an IOMMU group, and who owns it: the kernel's drivers or user space.

use std::fmt::Display;

use testvm::{
    guest::{
        Errno, GuestError, Observe as _, PciAddress, PciFunction, Process, VfioContainer,
        VfioDevice, VfioGroup,
    },
    vm::{Vm, VmError},
};

use crate::framework::{Expect as _, Finding, Mitigation, Recorder};

/// The driver by which user space has a function.
pub const VFIO_PCI: &str = "vfio-pci";
/// A driver of the kernel's that binds to any function by driver_override. VFIO does not count it among
/// those that leave DMA alone, for its user may do DMA by it.
pub const UIO_PCI_GENERIC: &str = "uio_pci_generic";

/// What refuses drivers a group that user space owns.
pub const OWNERSHIP: &[Mitigation] = &[Mitigation::GroupOwnership];

/// Two functions in one group. None of them has a driver.
#[derive(Debug)]
pub struct Pair {
    /// The one for user space.
    pub claimed: PciFunction,
    /// The one for the kernel's drivers.
    pub sibling: PciFunction,
}

impl Pair {
    /// Two functions of one device.
    pub fn of_one_device(vm: &Vm) -> Result<Self, VmError> {
        Self::find(vm, |one, other| one.bus == other.bus && one.device == other.device)
    }

    /// Two devices behind one bridge to conventional PCI.
    pub fn behind_a_bridge(vm: &Vm) -> Result<Self, VmError> {
        let is_below = |address: PciAddress| address.bus != 0;
        Self::find(vm, |one, other| is_below(one) && one.bus == other.bus)
    }

    fn find(vm: &Vm, is_pair: impl Fn(PciAddress, PciAddress) -> bool) -> Result<Self, VmError> {
        load_vfio(vm)?;
        vm.guest.load_module(UIO_PCI_GENERIC, "").outcome()?;
        let functions = functions(vm)?;
        for pair in functions.windows(2) {
            if let [claimed, sibling] = pair
                && is_pair(claimed.address(), sibling.address())
            {
                let pair = Self { claimed: claimed.clone(), sibling: sibling.clone() };
                pair.release()?;
                return Ok(pair);
            }
        }
        Err(VmError::Absent("pair of PCI functions in one device or behind one bridge"))
    }

    /// Unbinds both.
    pub fn release(&self) -> Result<(), GuestError> {
        self.claimed.unbind()?;
        self.sibling.unbind()
    }

    /// Has user space own the group, by the claimed function.
    pub fn own(&self, user: &Process) -> Result<VfioDevice, GuestError> {
        self.claimed.bind(VFIO_PCI)?;
        VfioDevice::open(user, &self.claimed)
    }

    /// Has user space open the group for the claimed function, and no more.
    pub fn open(&self, user: &Process) -> Result<(VfioGroup, VfioContainer), GuestError> {
        self.claimed.bind(VFIO_PCI)?;
        Ok((VfioGroup::open(user, &self.claimed)?, VfioContainer::open(user)?))
    }
}

/// Runs a part of a case with a process that ends with it, whatever its result: unbinding a function's
/// driver waits as long as a process has the function open.
pub fn with_user<T>(
    vm: &Vm,
    run: impl FnOnce(&Process) -> Result<T, VmError>,
) -> Result<T, VmError> {
    let user = vm.guest.spawn()?;
    match run(&user) {
        Err(error) if error.guest_is_lost() => Err(error),
        result => user.kill().map_err(VmError::from).and(result),
    }
}

/// The function that is alone in its group.
pub fn alone(vm: &Vm) -> Result<PciFunction, VmError> {
    load_vfio(vm)?;
    let first = functions(vm)?.into_iter().next();
    let alone = first.ok_or(VmError::Absent("PCI function that its machine should have"))?;
    alone.unbind()?;
    Ok(alone)
}

/// The functions that no driver is made for, in the order of their addresses. The first is alone.
pub fn functions(vm: &Vm) -> Result<Vec<PciFunction>, GuestError> {
    let idle = vm.vmm().endpoints().idle;
    vm.guest.pci_functions(idle.vendor, idle.device)
}

/// Loads VFIO; what is loaded already is there. Machines of ours may be without interrupt remapping,
/// and kernels without a driver for the IOMMU, or without that parameter, which they then ignore.
pub fn load_vfio(vm: &Vm) -> Result<(), GuestError> {
    vm.guest.load_module("vfio", "enable_unsafe_noiommu_mode=1").outcome()?;
    vm.guest.load_module("vfio_iommu_type1", "allow_unsafe_interrupts=1").outcome()?;
    vm.guest.load_module("vfio_pci", "").outcome()?;
    Ok(())
}

/// Loads VFIO, and with it iommufd, which is to accept the same.
pub fn load_iommufd(vm: &Vm) -> Result<(), GuestError> {
    load_vfio(vm)?;
    vm.guest.write_file("/sys/module/iommufd/parameters/allow_unsafe_interrupts", "Y").map(drop)
}

/// Binding a driver in a group that user space owns is refused: EBUSY. On a kernel that allows it, the
/// driver's DMA goes where user space has mapped it, or the kernel ends itself.
pub fn check_refused(
    vm: &Vm,
    t: &mut Recorder,
    tried: impl Display + Copy,
    bound: Result<(), GuestError>,
) -> Result<(), VmError> {
    check_alive(vm, t, tried, Errno::EBUSY, &bound)?;
    t.check(tried, Errno::EBUSY.by(OWNERSHIP), bound)
}

/// Linux before 5.19 ends itself in `vfio_group_nb_verify()` when it sees a driver bound in a group
/// that user space owns. What was tried ends there, and the case with it.
pub fn check_alive<T>(
    vm: &Vm,
    t: &mut Recorder,
    tried: impl Display,
    expected: impl Into<Finding>,
    answer: &Result<T, GuestError>,
) -> Result<(), VmError> {
    const DEATH: &str = "kernel BUG";
    if !vm.has_died_of(answer) {
        return Ok(());
    }
    t.check(tried, expected.by(OWNERSHIP).otherwise(DEATH), DEATH)?;
    Err(VmError::Died)
}

/// Whether a function has a driver, in a word.
pub fn bound_or_not(function: &PciFunction) -> Result<&'static str, GuestError> {
    Ok(if function.is_bound()? { "bound" } else { "not bound" })
}

/// Whether user space may have a group, in a word.
pub fn viable_or_not(group: &VfioGroup) -> Result<&'static str, GuestError> {
    Ok(if group.is_viable()? { "viable" } else { "not viable" })
}

/// What the kernel's log has to complain of since a record: nothing, or the first complaint.
pub fn complaint_since(vm: &Vm, record: u64) -> Result<String, GuestError> {
    let log = vm.guest.kernel_log(record)?;
    let complaint = log.into_iter().find(|record| record.is_splat());
    Ok(complaint.map_or_else(|| "nothing".to_owned(), |record| record.text))
}
