//! F14: DMA directed to a function's registers.

use super::{PAGE, Told, assigned::with_assigned, vfio_memory::ASKED};
use crate::{
    guest::Errno,
    report::{Finding, Observations},
    vm::Vm,
};

/// F14: a BAR may be where DMA goes, even if its mapping has not been used yet, but not while it is not
/// decoded, EFAULT: VFIO resolves the mapping as an access would. Control: decoded again, OK.
pub fn to_a_bar(vm: &Vm, seen: &mut Observations) -> Told {
    const BAR_AT: u64 = 0x1000_0000;
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
