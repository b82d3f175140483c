//! G1, G2 and G11: which functions Linux puts into one IOMMU group, and which of those groups user space
//! may have.
//!
//! `pci_device_group()`: functions that can reach each other, or that the IOMMU cannot distinguish, share
//! a group. Access Control Services keep them from reaching each other.

use testvm::{
    guest::{GuestError, Observe as _, PciFunction, VfioContainer, VfioGroup},
    vm::{Feature, Vm, VmError},
};

use crate::{
    framework::{Case, CaseResult, Finding, Profile, Recorder, Requirement, Scenario},
    suites::iommu_group::members::{
        Pair, UIO_PCI_GENERIC, VFIO_PCI, alone, functions, viable_or_not, with_user,
    },
};

/// G1: the functions of a device without access control share a group.
/// Control: those of two devices do not.
pub fn functions_of_a_device(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let Pair { claimed, sibling } = Pair::of_one_device(vm)?;
    t.check("two functions of one device", TOGETHER, placed(&claimed, &sibling)?)?;
    t.control("functions of two devices", APART, placed(&alone(vm)?, &claimed)?)?;
    Ok(None)
}

/// G2: devices behind a bridge to conventional PCI share a group with it, and so does a device with a
/// root port without access control. User space may have these groups: bridges do no DMA.
/// Controls: a root port with access control; a group with a driver in it that does DMA.
pub fn behind_bridges(vm: &Vm, t: &mut Recorder) -> CaseResult {
    match vm.vmm().lacks(Feature::ConventionalPci) {
        None => behind_a_bridge(vm, t)?,
        Some(why) => t.unasked(BEHIND_A_BRIDGE, TOGETHER, why),
    }
    for device in behind_root_ports(vm)? {
        root_port(vm, t, &device)?;
    }
    Ok(None)
}

fn behind_a_bridge(vm: &Vm, t: &mut Recorder) -> Result<(), VmError> {
    let pair = Pair::behind_a_bridge(vm)?;
    let Pair { claimed, sibling } = &pair;
    t.check(BEHIND_A_BRIDGE, TOGETHER, placed(claimed, sibling)?)?;
    let bridge = bridge_above(vm, claimed)?;
    t.check("a device behind a bridge, and the bridge", TOGETHER, placed(claimed, &bridge)?)?;
    check_viable(vm, t, "group of a bridge", claimed)?;
    sibling.bind(UIO_PCI_GENERIC)?;
    with_user(vm, |user| {
        let (group, _container) = pair.open(user)?;
        t.control("group of a bridge, and of a driver", "not viable", viable_or_not(&group)?)
    })?;
    Ok(pair.release()?)
}

/// The device alone in its group if its port has access control, and the port a member if it has none.
fn root_port(vm: &Vm, t: &mut Recorder, device: &PciFunction) -> Result<(), VmError> {
    let port = bridge_above(vm, device)?;
    if port.has_access_control()? {
        let tried = "a device behind a root port with access control, and the port";
        return t.control(tried, APART, placed(device, &port)?);
    }
    let tried = "a device behind a root port without access control, and the port";
    t.check(tried, TOGETHER, placed(device, &port)?)?;
    check_viable(vm, t, "group of a root port", device)
}

/// User space may have the group.
fn check_viable(
    vm: &Vm,
    t: &mut Recorder,
    name: &str,
    device: &PciFunction,
) -> Result<(), VmError> {
    device.bind(VFIO_PCI)?;
    with_user(vm, |user| {
        let (group, container) = (VfioGroup::open(user, device)?, VfioContainer::open(user)?);
        t.check(name, "viable", viable_or_not(&group)?)?;
        let set = group.set_container(&container);
        t.check(format_args!("{name}: SET_CONTAINER"), Finding::Done, set)
    })?;
    Ok(device.unbind()?)
}

/// G11: with Linux 6.12 and a virtio-iommu a function has no group until a driver has been tried on it,
/// with others it has one at once. From then on it is in one, alone.
pub fn group_of_a_function(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let function = alone(vm)?;
    try_vfio_pci(&function)?;
    t.check(GROUP_OF_A_FUNCTION, "alone in a group", grouped(&function)?)?;
    Ok(None)
}

/// G11, its control: without an IOMMU there are no groups, whatever is tried.
pub fn no_group(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let function = functions(vm)?.into_iter().next();
    let function = function.ok_or(VmError::Absent("PCI function that its machine should have"))?;
    vm.guest.load_module(UIO_PCI_GENERIC, "").outcome()?;
    function.bind(UIO_PCI_GENERIC)?;
    function.unbind()?;
    t.when("no IOMMU");
    t.control(GROUP_OF_A_FUNCTION, "in no group", grouped(&function)?)?;
    Ok(None)
}

const GROUP_OF_A_FUNCTION: &str = "a function on which a driver was tried";

fn grouped(function: &PciFunction) -> Result<&'static str, GuestError> {
    if !function.has_file("iommu_group")? {
        return Ok("in no group");
    }
    let is_alone = function.group_members()? == [function.address()];
    Ok(if is_alone { "alone in a group" } else { "in a group of others" })
}

const BEHIND_A_BRIDGE: &str = "two devices behind a bridge";
const TOGETHER: &str = "in one group";
const APART: &str = "in two groups";

fn placed(one: &PciFunction, other: &PciFunction) -> Result<&'static str, GuestError> {
    try_vfio_pci(one)?;
    try_vfio_pci(other)?;
    let is_together = one.group_members()?.contains(&other.address());
    Ok(if is_together { TOGETHER } else { APART })
}

/// A function may be in no group until a driver has been tried on it; Linux 6.12 does so behind a
/// virtio-iommu. vfio-pci is one that does not want bridges.
fn try_vfio_pci(function: &PciFunction) -> Result<(), GuestError> {
    if !function.is_bound()? {
        function.bind(VFIO_PCI).outcome()?;
        function.unbind()?;
    }
    Ok(())
}

fn bridge_above(vm: &Vm, device: &PciFunction) -> Result<PciFunction, VmError> {
    let bridge = vm.guest.pci_bridge_to(device.address().bus)?;
    bridge.ok_or(VmError::Absent("PCI bridge above a device"))
}

/// The devices that are alone on their bus.
pub fn behind_root_ports(vm: &Vm) -> Result<Vec<PciFunction>, VmError> {
    let functions = functions(vm)?;
    let buses: Vec<_> = functions.iter().map(|function| function.address().bus).collect();
    let is_alone = |function: &PciFunction| {
        let bus = function.address().bus;
        bus != 0 && buses.iter().filter(|&&other| other == bus).count() == 1
    };
    Ok(functions.into_iter().filter(is_alone).collect())
}

const GROUPS: &[Requirement] = &[Requirement::Iommu, Requirement::Vfio, Requirement::UioPciGeneric];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "G1",
        title: "the functions of a device without access control share an IOMMU group",
        requires: GROUPS,
        cases: &[Case::InGuest(Profile::Iommu, functions_of_a_device)],
    },
    Scenario {
        id: "G2",
        title: "devices share a group with the bridge above them, and user space may have it",
        requires: GROUPS,
        cases: &[Case::InGuest(Profile::Iommu, behind_bridges)],
    },
    Scenario {
        id: "G11",
        title: "a function is in an IOMMU group once a driver has been tried on it",
        requires: GROUPS,
        cases: &[
            Case::InGuest(Profile::Plain, no_group),
            Case::InGuest(Profile::Iommu, group_of_a_function),
        ],
    },
];
