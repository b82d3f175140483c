//! F14: DMA directed to a function's registers.

use testvm::{
    PAGE,
    guest::{Errno, Observe as _},
    vm::Vm,
};

use crate::{
    framework::{Case, CaseResult, Expect as _, Finding, Profile, Recorder, Requirement, Scenario},
    suites::{
        iommu_group::members::load_vfio,
        vfio::{assigned::with_assigned, memory::ASKED},
    },
};

const TRIED: &str = "MAP_DMA of a mapping of a BAR";

/// Where devices are to see the BAR.
const BAR_AT: u64 = 0x1000_0000;

/// F14: a BAR may be where DMA goes, even if its mapping has not been used yet, but not while it is not
/// decoded, EFAULT: VFIO resolves the mapping as an access would. Control: decoded again, OK.
pub fn to_a_bar(vm: &Vm, t: &mut Recorder) -> CaseResult {
    with_assigned(vm, |assigned| {
        let mapping = assigned.map()?;
        let container = assigned.device.container();
        let map = || container.map_dma(BAR_AT, &mapping, PAGE);
        assigned.disable_memory()?;
        let mapped = map();
        let is_mapped = mapped.is_ok();
        t.when("not decoded, never used");
        t.check(TRIED, Errno::EFAULT.by(ASKED), mapped)?;
        if is_mapped {
            container.unmap_dma(BAR_AT, PAGE)?;
        }
        assigned.enable_memory()?;
        t.when("decoded");
        t.control(TRIED, Finding::Done, map())?;
        Ok(container.unmap_dma(BAR_AT, PAGE)?)
    })
}

/// F14, its control: without an IOMMU there are no DMA mappings, and a container has no such request,
/// ENOTTY.
pub fn without_an_iommu(vm: &Vm, t: &mut Recorder) -> CaseResult {
    load_vfio(vm)?;
    t.when("no IOMMU, decoded");
    let parameter = vm.guest.read_file("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode");
    if parameter.outcome()? == Errno::ENOENT {
        t.unasked(TRIED, Errno::ENOTTY, "VFIO_NOIOMMU is off in this kernel");
        return Ok(None);
    }
    with_assigned(vm, |assigned| {
        let mapped = assigned.device.container().map_dma(BAR_AT, &assigned.map()?, PAGE);
        t.control(TRIED, Errno::ENOTTY, mapped)
    })
}

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[Scenario {
    id: "F14",
    title: "DMA can be directed to a BAR by VFIO only while it is decoded",
    requires: &[Requirement::Vfio, Requirement::Iommu],
    cases: &[
        Case::InGuest(Profile::Plain, without_an_iommu),
        Case::InGuest(Profile::Iommu, to_a_bar),
    ],
}];
