//! F14: DMA directed to a function's registers.

use super::{PAGE, Told, assigned::with_assigned, groups::load_vfio, vfio_memory::ASKED};
use crate::{
    guest::{Errno, Observe as _},
    report::{Finding, Observations},
    vm::Vm,
};

/// Where devices are to see the BAR.
const BAR_AT: u64 = 0x1000_0000;

/// F14: a BAR may be where DMA goes, even if its mapping has not been used yet, but not while it is not
/// decoded, EFAULT: VFIO resolves the mapping as an access would. Control: decoded again, OK.
pub fn to_a_bar(vm: &Vm, seen: &mut Observations) -> Told {
    with_assigned(vm, |assigned| {
        let mapping = assigned.map()?;
        let container = assigned.device.container();
        let map = || container.map_dma(BAR_AT, &mapping, PAGE);
        assigned.disable_memory()?;
        let mapped = map();
        let is_mapped = mapped.is_ok();
        let tried = "not decoded, never used: MAP_DMA of a mapping of a BAR";
        seen.check_with(ASKED, tried, Errno::EFAULT, Finding::Done, mapped)?;
        if is_mapped {
            container.unmap_dma(BAR_AT, PAGE)?;
        }
        assigned.enable_memory()?;
        seen.control("decoded: MAP_DMA of a mapping of a BAR", Finding::Done, map())?;
        Ok(container.unmap_dma(BAR_AT, PAGE)?)
    })
}

/// F14, its control: without an IOMMU nobody directs DMA, and a container has no such request, ENOTTY.
pub fn without_an_iommu(vm: &Vm, seen: &mut Observations) -> Told {
    const TRIED: &str = "no IOMMU, decoded: MAP_DMA of a mapping of a BAR";
    load_vfio(vm)?;
    let parameter = vm.guest.read_file("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode");
    if parameter.outcome()? == Errno::ENOENT {
        seen.unasked(TRIED, Errno::ENOTTY, "VFIO_NOIOMMU is off in this kernel");
        return Ok(None);
    }
    with_assigned(vm, |assigned| {
        let mapped = assigned.device.container().map_dma(BAR_AT, &assigned.map()?, PAGE);
        Ok(seen.control(TRIED, Errno::ENOTTY, mapped)?)
    })
}
